"""The NumPy engine: the deployed student in NumPy alone, on the tables of the bundle; it runs on any CPU.

It reads `weights.safetensors` as it is: rows of the table are gathered as int8 and scaled in float32. An int8 layer is
computed exactly: its int8 input times its int8 weights are whole numbers below 2**24, which float32 sums without
rounding, so the result does not depend on the order in which a BLAS adds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fieldrun.formats.bundle import Bundle
from fieldrun.formats.limits import SCRATCH
from fieldrun.formats.tensors import Array
from fieldrun.heads.blas import one_thread
from fieldrun.heads.head import pair_features
from fieldrun.student.config import SCORE_FLOOR

from .weights import check_weights, lookup_network, read_weights

__all__ = ["NumpyEngine", "PairHeads"]

_TOGETHER = 32  # texts of one length in a call, which bounds the memory


class NumpyEngine:
    """Runs any student with NumPy on one thread. Texts of the same length run together, without padding.

    A product of matrices has the same shape for a text alone and in company, so a text's answer has the same bits alone
    and in any batch, on one machine and one NumPy. The native engine's answers differ from these by some 1e-6: they add
    in another order.
    """

    def __init__(self, bundle: Bundle, threads: int, weights: Mapping[str, Array] | None = None) -> None:
        del threads
        self._net = net = lookup_network(bundle, "numpy")
        weights = read_weights(bundle) if weights is None else weights
        check_weights(bundle, net, weights, weights["table"].shape if "table" in weights else None)
        self._table, self._scale = weights["table"], weights["table.scale"]
        self._coef = weights["rows.coef"]
        self._modulus, self._base = weights["rows.modulus"], weights["rows.base"]
        self._share = 1 / weights["mean.gain"]
        self._score = weights["score.weight"] if net.mean else None
        self._mixer = _Dense(weights, "mixer") if net.mixer_kernel else None
        self._hidden = _Dense(weights, "hidden") if net.hidden else None
        self._output = _Dense(weights, "output")
        self._left = net.margins[0]
        longest = max(bucket.length for bucket in bundle.manifest.buckets) + net.mixer_kernel
        self._together = max(1, min(_TOGETHER, SCRATCH // (4 * longest * self._base.size * net.width)))
        self._pairs = PairHeads(weights)

    def run(self, sequences: Sequence[Sequence[int]]) -> tuple[Array, Array]:
        """Return field `(n, dim)` and logits `(n, labels)` float32 of `n` texts' token ids."""
        groups: dict[int, list[int]] = {}
        for row, ids in enumerate(sequences):
            groups.setdefault(len(ids), []).append(row)
        order: list[int] = []
        parts = []
        for length, rows in groups.items():
            for start in range(0, len(rows), self._together):
                part = rows[start : start + self._together]
                framed = self._net.frame([sequences[row] for row in part], len(part), length)
                with one_thread():
                    parts.append(self._run(framed, length))
                order += part
        output = parts[0]
        if len(parts) > 1:
            output = np.empty((len(sequences), parts[0].shape[1]), np.float32)
            output[order] = np.concatenate(parts)
        return output[:, : self._net.field_dim], output[:, self._net.field_dim :]

    def run_pairs(self, a: Array, b: Array) -> Array:
        """Return the pair tasks' logits `(n, labels) float32` for fields `a`, `b` `(n, dim) float32`."""
        return self._pairs(a, b)

    def _run(self, ids: Array, length: int) -> Array:
        """Return field and logits `(n, dim + labels)` of texts of `length` tokens, framed as `Network.frame` says."""
        net = self._net
        kernel = max(1, net.mixer_kernel)
        positions = length + kernel - 1  # those after the text are padding, and so zeros after the ReLU
        starts = [self._left + shift for shift in net.shifts]
        window = np.stack([ids[:, start : start + positions] for start in starts], axis=-1)
        rows = (window @ self._coef) % self._modulus + self._base
        values = self._table.take(rows, axis=0).astype(np.float32, copy=False)
        h = np.matmul(self._scale.take(rows)[:, :, None, :], values)
        g = np.maximum(h, 0, out=h).reshape(len(ids), positions, -1)
        if self._mixer is not None:
            g = self._mixer(np.concatenate([g[:, k : k + length] for k in range(kernel)], axis=-1))
            np.maximum(g, 0, out=g)
        pooled = g.max(1)
        if self._score is not None:
            a = (g @ self._score).transpose(0, 2, 1)
            share = (a.sum(2) + SCORE_FLOOR) * self._share
            pooled = np.concatenate([np.matmul(a, g)[:, 0] / share, pooled], axis=-1)
        if self._hidden is not None:
            pooled = self._hidden(pooled)
            np.maximum(pooled, 0, out=pooled)
        return self._output(pooled)


class PairHeads:
    """The heads of all pair tasks, where a bundle has such tasks."""

    def __init__(self, weights: Mapping[str, Array]) -> None:
        self._layers = {"pairs": _Dense(weights, "pairs")} if "pairs.weight" in weights else {}

    def __call__(self, a: Array, b: Array) -> Array:
        """Return the logits `(n, labels) float32` for fields `a`, `b` `(n, dim) float32`."""
        with one_thread():
            return self._layers["pairs"](pair_features(a, b))


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
