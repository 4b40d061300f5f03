"""MixT: dense maps as mixtures of local operators (arXiv 2605.25344), and dropping the same blocks, its control.

A map W (inputs, outputs), both divisible by 2^(N-1), becomes the mean of N overlapping operators, each dense on a
window of adjacent modes and the identity elsewhere:

    W ~ 1/N sum_k I_(2^(k-1)) (x) T_k (x) I_(2^(N-k))          T_k (inputs / 2^(N-1), outputs / 2^(N-1))

which has N / 4^(N-1) of its numbers: 50, 18.75 and 6.25 % for N = 2, 3, 4. The start is by least squares: in turns, T_k
is the partial trace over the identity's modes of N W minus the other branches, divided by 2^(N-1); each turn is the
optimum for that branch. Unstructured matrices keep 44 / 15 / 5 % of their energy, so what makes it work is the recovery
by field regression that follows.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fieldrun.errors import ExportError
from fieldrun.formats.progress import Progress, silent
from fieldrun.formats.tensors import Array
from fieldrun_exporters.encoder.activations import Moments
from fieldrun_exporters.encoder.model import MAPS, Encoder

from .errors import map_errors
from .network import need_torch
from .regression import Regression, regress

__all__ = ["Mixture", "drop_blocks", "expand", "fit", "mixt", "recover", "recover_dropped"]

_SWEEPS = 100
_ENOUGH = 1e-7  # of the energy, gained by a sweep


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Mixture:
    """The operators of every replaced weight: `(N, inputs / 2^(N-1), outputs / 2^(N-1)) float32`."""

    cores: dict[str, Array]

    def apply(self, encoder: Encoder) -> Encoder:
        """Return `encoder` with the dense matrices that the mixtures stand for."""
        dense = {name: expand(cores).astype(np.float32) for name, cores in self.cores.items()}
        return replace(encoder, tensors=dict(encoder.tensors) | dense)


def expand(cores: Array) -> Array:
    """Return the dense `(inputs, outputs)` matrix that `cores (N, a, b)` stand for."""
    n = len(cores)
    terms = [np.kron(np.eye(2**k), np.kron(cores[k], np.eye(2 ** (n - 1 - k)))) for k in range(n)]
    total: Array = sum(terms[1:], terms[0]) / n
    return total


def fit(weight: Array, branches: int) -> Array:
    """Return the `cores (N, a, b) float64` of least squared error to `weight (inputs, outputs)`, by cyclic projection.

    Raises:
        ExportError: fewer than 2 branches, or a size that 2^(branches - 1) does not divide.
    """
    inputs, outputs = weight.shape
    parts = 2 ** (branches - 1)
    if branches < 2 or inputs % parts or outputs % parts:
        raise ExportError(
            f"mixt: {branches} branches need sizes that {parts} divides and at least 2 branches; the map is "
            f"{inputs} x {outputs}"
        )
    wide = weight.astype(np.float64)
    cores = np.zeros((branches, inputs // parts, outputs // parts))
    rest, energy = branches * wide, float(np.square(branches * wide).sum())
    left = energy
    for _ in range(_SWEEPS):
        for k in range(branches):
            shape = (2**k, inputs // parts, 2 ** (branches - 1 - k), 2**k, outputs // parts, 2 ** (branches - 1 - k))
            step = np.einsum("iajibj->ab", rest.reshape(shape)) / parts
            cores[k] += step
            view = rest.reshape(shape)
            for i in range(shape[0]):
                for j in range(shape[2]):
                    view[i, :, j, i, :, j] -= step
        before, left = left, float(np.square(rest).sum())
        if before - left <= _ENOUGH * energy:
            break
    return cores


def mixt(
    encoder: Encoder,
    branches: int,
    layers: Sequence[int],
    moments: Moments | None = None,
    progress: Progress = silent,
) -> tuple[Encoder, Mixture, dict[str, Mapping[str, Any]]]:
    """Replace the weight of every dense map of `layers` by a mixture of `branches` operators; biases stay.

    Returns:
        The encoder, the operators, and per map the parameters before and after, the share of the energy kept, and
        relative errors of the weight and, with `moments`, of the output on the calibration text.

    Raises:
        ExportError: no or unknown layers, or a map whose sizes do not divide.
    """
    _check(encoder, layers)
    names = [f"layer{k}.{name}.weight" for k in layers for name in MAPS]
    found = Mixture(cores={})
    changed: dict[str, Mapping[str, Any]] = {}
    for number, name in enumerate(names):
        weight = encoder.tensors[name]
        found.cores[name] = fit(weight, branches).astype(np.float32)
        facts = map_errors(name, weight, expand(found.cores[name]), moments)
        changed[name] = facts | {
            "parameters_before": weight.size,
            "parameters_after": found.cores[name].size,
            "energy": 1 - facts["weight_error"] ** 2,
        }
        progress("mixt", number + 1, len(names))
    return found.apply(encoder), found, changed


def recover(
    encoder: Encoder,
    mixture: Mixture,
    sequences: Sequence[Sequence[int]],
    target: Array,
    plan: Regression,
    progress: Progress = silent,
) -> tuple[Encoder, dict[str, Any]]:
    """Move the operators, and the biases of their maps, by field regression; the rest of the encoder stays.

    Arguments, result and errors are those of `cluster.tune`.
    """
    torch = need_torch()
    cores = {name: torch.tensor(value, requires_grad=True) for name, value in mixture.cores.items()}
    biases = _leaves(torch, encoder, [name.replace(".weight", ".bias") for name in cores])

    def replaced() -> Mapping[str, Any]:
        return {name: _kron(torch, value) for name, value in cores.items()} | biases

    start = mixture.apply(encoder)
    held = regress(start, replaced, [*cores.values(), *biases.values()], sequences, target, plan, progress)
    found = Mixture(cores={name: value.detach().numpy() for name, value in cores.items()})
    recovered = found.apply(_moved(encoder, biases))
    return recovered, held.gained(start, recovered)


def drop_blocks(encoder: Encoder, layers: Sequence[int]) -> Encoder:
    """Return the encoder without the blocks `layers`; the others move up.

    Raises:
        ExportError: no, unknown or all layers.
    """
    _check(encoder, layers)
    kept = [k for k in range(encoder.config.layers) if k not in layers]
    if not kept:
        raise ExportError("drop: a block must be left; drop fewer")
    number = {f"layer{old}": f"layer{new}" for new, old in enumerate(kept)}
    tensors: dict[str, Array] = {}
    for name, tensor in encoder.tensors.items():
        layer, _, own = name.partition(".")
        if layer in number or not re.fullmatch(r"layer\d+", layer):
            tensors[f"{number.get(layer, layer)}.{own}"] = tensor
    return replace(encoder, config=replace(encoder.config, layers=len(kept)), tensors=tensors)


def recover_dropped(
    encoder: Encoder,
    layers: Sequence[int],
    sequences: Sequence[Sequence[int]],
    target: Array,
    plan: Regression,
    progress: Progress = silent,
) -> tuple[Encoder, dict[str, Any]]:
    """Move the dense maps of `layers` of a shortened encoder by field regression, so that they make up for the others.

    Arguments, result and errors are those of `cluster.tune`.
    """
    _check(encoder, layers)
    names = [f"layer{k}.{name}.{kind}" for k in layers for name in MAPS for kind in ("weight", "bias")]
    leaves = _leaves(need_torch(), encoder, names)
    held = regress(encoder, lambda: leaves, list(leaves.values()), sequences, target, plan, progress)
    recovered = _moved(encoder, leaves)
    return recovered, held.gained(encoder, recovered)


def _leaves(torch: Any, encoder: Encoder, names: Sequence[str]) -> dict[str, Any]:
    return {name: torch.tensor(np.array(encoder.tensors[name], np.float32), requires_grad=True) for name in names}


def _moved(encoder: Encoder, leaves: Mapping[str, Any]) -> Encoder:
    values = {name: leaf.detach().numpy().astype(np.float32) for name, leaf in leaves.items()}
    return replace(encoder, tensors=dict(encoder.tensors) | values)


def _kron(torch: Any, cores: Any) -> Any:
    n = len(cores)
    terms = [
        torch.kron(torch.eye(2**k), torch.kron(cores[k].contiguous(), torch.eye(2 ** (n - 1 - k)))) for k in range(n)
    ]
    return sum(terms[1:], terms[0]) / n


def _check(encoder: Encoder, layers: Sequence[int]) -> None:
    wrong = [k for k in layers if not 0 <= k < encoder.config.layers]
    if wrong or not layers:
        there = f"0 to {encoder.config.layers - 1}"
        raise ExportError(
            f"there is no layer {wrong[0]}; the encoder has {there}" if wrong else f"no layers; give some of {there}"
        )
