"""The NumPy engine: the deployed form in NumPy alone, on the mapped int8 tables; a first-class engine on any CPU.

It reads `weights.safetensors` as it is: rows of the table are gathered as int8 and scaled in float32. An int8 layer is
computed exactly: its int8 input times its int8 weights are whole numbers below 2**24, which float32 sums without
rounding, so the result does not depend on the order in which a BLAS adds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fieldrun.errors import BundleError
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.tensors import Array
from fieldrun.student.config import SCORE_FLOOR

from . import lookup_network

__all__ = ["NumpyEngine", "PairHeads", "check_weights"]

_INTEGERS = (np.int32,)
_FLOATS = (np.float32,)
_WEIGHTS = (np.float32, np.float16, np.int8)


class NumpyEngine:
    """Runs any bundle with NumPy. `threads` is left to NumPy's BLAS; at batch 1 nothing here uses more than one."""

    def __init__(self, bundle: Bundle, threads: int, weights: Mapping[str, Array]) -> None:
        del threads
        net = lookup_network(bundle, "numpy")
        check_weights(bundle, weights, weights["table"].shape if "table" in weights else None)
        self._table, self._scale = weights["table"], weights["table.scale"]
        self._coef = weights["rows.coef"]
        self._modulus, self._base = weights["rows.modulus"], weights["rows.base"]
        self._share = 1 / weights["mean.gain"]
        self._score = weights["score.weight"] if net.mean else None
        self._mixer = _Dense(weights, "mixer") if net.mixer_kernel else None
        self._hidden = _Dense(weights, "hidden") if net.hidden else None
        self._output = _Dense(weights, "output")
        self._pairs = PairHeads(weights)
        self._shifts, self._kernel, self._dim = net.shifts, max(1, net.mixer_kernel), net.field_dim
        self._left, self._right = net.margins

    def run(self, ids: Array) -> tuple[Array, Array]:
        """Return field `(batch, dim)` and logits `(batch, labels)` of `ids`, framed as `Network.frame` says."""
        batch, length = len(ids), ids.shape[1] - self._left - self._right
        if batch == 1:  # nothing here needs the fixed shape: a single text does not pay for its padding
            length = int(ids[0].nonzero()[0][-1]) + 1 - self._left
        positions = length + self._kernel - 1  # those after the text are padding, and so zeros after the ReLU
        starts = [self._left + shift for shift in self._shifts]
        window = np.stack([ids[:, start : start + positions] for start in starts], axis=-1)
        rows = (window @ self._coef) % self._modulus + self._base
        values = self._table.take(rows, axis=0).astype(np.float32, copy=False)
        h = np.matmul(self._scale.take(rows)[:, :, None, :], values)
        g = np.maximum(h, 0, out=h).reshape(batch, positions, -1)
        if self._mixer is not None:
            g = self._mixer(np.concatenate([g[:, k : k + length] for k in range(self._kernel)], axis=-1))
            np.maximum(g, 0, out=g)
        pooled = g.max(1)
        if self._score is not None:
            a = (g @ self._score).transpose(0, 2, 1)
            share = (a.sum(2) + SCORE_FLOOR) * self._share
            pooled = np.concatenate([np.matmul(a, g)[:, 0] / share, pooled], axis=-1)
        if self._hidden is not None:
            pooled = self._hidden(pooled)
            np.maximum(pooled, 0, out=pooled)
        output = self._output(pooled)
        return output[:, : self._dim], output[:, self._dim :]

    def run_pairs(self, a: Array, b: Array) -> Array:
        """Return the pair tasks' logits `(batch, labels) float32` for fields `a`, `b` `(batch, dim) float32`."""
        return self._pairs(a, b)


class PairHeads:
    """The heads of all pair tasks, where a bundle has such tasks, on two fields."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self._layers = {"pairs": _Dense(weights, "pairs")} if "pairs.weight" in weights else {}

    def __call__(self, a: Array, b: Array) -> Array:
        """Return the logits `(batch, labels) float32` for fields `a`, `b` `(batch, dim) float32`."""
        return self._layers["pairs"](np.concatenate([a, b, np.abs(a - b), a * b], axis=-1))


def check_weights(bundle: Bundle, weights: Mapping[str, Array], table: tuple[int, ...] | None) -> None:
    """Check that `weights`, with a table of the shape `table`, are the manifest's network's; `BundleError` if not.

    What is checked is what an engine reads by: shapes, types, and row numbers. The native engine reads no farther than
    these say, so a bundle that passes cannot make it leave its arrays, whatever numbers the tables hold.
    """
    net = lookup_network(bundle, "numpy")
    pooled = (net.mixer_width or net.width) * (2 if net.mean else 1)
    labels, pairs = (
        sum(len(task.labels) for task in bundle.manifest.tasks if task.kind == kind) for kind in ("single", "pair")
    )
    layers = {
        "mixer": (net.mixer_kernel * net.width, net.mixer_width),
        "hidden": (pooled, net.hidden),
        "output": (net.hidden or pooled, net.field_dim + labels),
        "pairs": (4 * net.field_dim, pairs),
    }
    layers = {name: shape for name, shape in layers.items() if min(shape)}
    try:
        if table is None:
            raise KeyError("table")
        blocks = (weights["rows.modulus"].size,)
        wanted: dict[str, tuple[tuple[int, ...], tuple[type[np.generic], ...]]] = {
            "rows.modulus": (blocks, _INTEGERS),
            "rows.coef": ((len(net.shifts), *blocks), _INTEGERS),
            "rows.base": (blocks, _INTEGERS),
            "table.scale": (table[:1], _FLOATS),
            "mean.gain": ((1,), _FLOATS),
        }
        for name, shape in layers.items():
            wanted[f"{name}.weight"] = (shape, _WEIGHTS)
            if name != "mixer":
                wanted[f"{name}.bias"] = (shape[1:], _FLOATS)
            if weights[f"{name}.weight"].dtype == np.int8:
                wanted[f"{name}.weight_scale"] = (shape[1:], _FLOATS)
            if f"{name}.input_scale" in weights:
                wanted[f"{name}.input_scale"] = ((1,), _FLOATS)
        if net.mean:
            wanted["score.weight"] = ((net.mixer_width or net.width, 1), _FLOATS)
        wrong = [n for n, (shape, kinds) in wanted.items() if not _is(weights[n], shape, kinds)]
    except KeyError as error:
        raise BundleError(f"{bundle.path}: weights.safetensors cannot be used ({error}); copy it again") from error
    wrong += [name for name in ("mixer.bias",) if name in weights]
    wrong += [name for name in ("pairs.weight",) if name in weights and "pairs" not in layers]
    if table[1:] != (net.width,) or ("table" in weights and weights["table"].dtype.type not in _WEIGHTS):
        wrong.append("table")
    if not wrong:  # the values can be read
        modulus, base = weights["rows.modulus"], weights["rows.base"].astype(np.int64)
        steps = [name for name in wanted if name.endswith("input_scale") or name == "mean.gain"]
        wrong += [name for name in steps if not (np.isfinite(weights[name][0]) and weights[name][0] > 0)]
        if (modulus <= 0).any():
            wrong.append("rows.modulus")
        if (base < 0).any() or (base + modulus > table[0]).any():
            wrong.append("rows.base")
    if wrong:
        raise BundleError(
            f"{bundle.path}: {wrong[0]!r} in weights.safetensors is not of the manifest's network; copy it again"
        )


def _is(tensor: Array, shape: tuple[int, ...], kinds: tuple[type[np.generic], ...]) -> bool:
    return tensor.shape == shape and tensor.dtype.type in kinds


class _Dense:
    """`x @ weight + bias` in float32, or exactly as QuantizeLinear / DequantizeLinear define it."""

    def __init__(self, weights: Mapping[str, Array], name: str) -> None:
        weight = weights[f"{name}.weight"]
        self._bias = None if name == "mixer" else weights[f"{name}.bias"]
        self._weight = weight.astype(np.float32)
        self._input_scale: Array | None = None
        if weight.dtype == np.int8 and f"{name}.input_scale" not in weights:
            self._weight *= weights[f"{name}.weight_scale"]
        elif weight.dtype == np.int8:
            self._input_scale = weights[f"{name}.input_scale"]
            self._output_scale = weights[f"{name}.weight_scale"] * self._input_scale

    def __call__(self, x: Array) -> Array:
        if x.ndim == 2:  # a text at a time: a BLAS may add a row of a batch in another order than the row alone
            return self(x[:, None, :])[:, 0]
        if self._input_scale is None:
            y: Array = x @ self._weight
        else:
            q = x / self._input_scale
            np.rint(q, out=q)
            y = np.clip(q, -128, 127, out=q) @ self._weight
            y *= self._output_scale
        if self._bias is not None:
            y += self._bias
        return np.asarray(y)
