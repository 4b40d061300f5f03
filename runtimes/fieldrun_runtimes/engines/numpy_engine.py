"""The NumPy engine: the deployed form in NumPy alone, on the mapped int8 tables; a first-class engine on any CPU.

It reads `weights.safetensors` as it is: rows of the table are gathered as int8 and scaled in float32. An int8 layer is
computed exactly: its int8 input times its int8 weights are whole numbers below 2**24, which float32 sums without
rounding, so the result does not depend on the order in which a BLAS adds.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fieldrun.bundle import Bundle
from fieldrun.errors import BundleError
from fieldrun.tensors import Array

__all__ = ["NumpyEngine"]


class NumpyEngine:
    """Runs any bundle with NumPy. `threads` is left to NumPy's BLAS; at batch 1 nothing here uses more than one."""

    def __init__(self, bundle: Bundle, threads: int, weights: Mapping[str, Array]) -> None:
        del threads
        try:
            net = bundle.manifest.network
            self._table = weights["table"]
            self._scale = weights.get("table.scale")
            self._coef = weights["rows.coef"]
            self._modulus, self._base = weights["rows.modulus"], weights["rows.base"]
            self._share = 1 / weights["mean.gain"]
            self._score, self._bounds = weights["score.weight"], weights["score.bounds"]
            names = [name.removesuffix(".bias") for name in weights if name.endswith(".bias")]
            self._layers = {name: _Dense(weights, name) for name in names}
            self._hidden, self._output = self._layers["hidden"], self._layers["output"]
        except KeyError as error:
            raise BundleError(f"{bundle.path}: weights.safetensors cannot be used ({error}); copy it again") from error
        labels = sum(len(task.labels) for task in bundle.manifest.tasks if task.kind == "single")
        wanted = {
            "rows.coef": (self._coef.shape[0], len(net.shifts)),
            "table": (self._table.shape[1], net.width),
            "output": (weights["output.bias"].size, net.field_dim + labels),
            "mixer": (len(weights.get("mixer.weight", ())), net.mixer_kernel * net.width),
        }
        wrong = [name for name, (found, want) in wanted.items() if found != want]
        if wrong:
            raise BundleError(f"{bundle.path}: {wrong[0]!r} in weights.safetensors is not of the manifest's network")
        self._shifts, self._kernel, self._dim = net.shifts, net.mixer_kernel, net.field_dim
        self._left, self._right = max(0, -min(net.shifts)), max(0, max(net.shifts))

    def run(self, ids: Array) -> tuple[Array, Array]:
        """Return field `(batch, dim)` and logits `(batch, labels)` of `ids (batch, length) int64`, padded with 0."""
        if len(ids) == 1:  # nothing here needs the fixed shape: a single text does not pay for its padding
            ids = ids[:, : int(np.flatnonzero(ids[0])[-1]) + 1]
        batch, length = ids.shape
        mask = (ids > 0)[:, :, None]
        padded = np.zeros((batch, length + self._left + self._right), np.int64)
        padded[:, self._left : self._left + length] = ids
        window = np.stack([padded[:, self._left + s : self._left + s + length] for s in self._shifts], axis=-1)
        rows = (window @ self._coef) % self._modulus + self._base
        values = self._table.take(rows, axis=0).astype(np.float32, copy=False)
        if self._scale is not None:
            values *= self._scale.take(rows, axis=0)
        h = np.maximum(values.sum(2), 0)
        h *= mask
        if self._kernel:
            h = self._mix(h, mask)
        score = h @ self._score
        np.maximum(np.minimum(score, self._bounds[1], out=score), self._bounds[0], out=score)
        a = np.exp(score, out=score) * mask
        pooled = np.concatenate([(a * h).sum(1) / (a.sum(1) * self._share), h.max(1)], axis=-1)
        output = self._output(np.maximum(self._hidden(pooled), 0))
        return output[:, : self._dim], output[:, self._dim :]

    def _mix(self, h: Array, mask: Array) -> Array:
        batch, length, width = h.shape
        reach, mixer = self._kernel // 2, self._layers["mixer"]
        wide = np.zeros((batch, length + 2 * reach, width), np.float32)
        wide[:, reach : reach + length] = mixer.quantize(h)
        window = np.concatenate([wide[:, k : k + length] for k in range(self._kernel)], axis=-1)
        mixed = np.maximum(mixer.apply(window), 0)
        mixed += h
        mixed *= mask
        return mixed

    def run_pairs(self, a: Array, b: Array) -> Array:
        """Return the pair tasks' logits `(batch, labels) float32` for fields `a`, `b` `(batch, dim) float32`."""
        return self._layers["pairs"](np.concatenate([a, b, np.abs(a - b), a * b], axis=-1))


class _Dense:
    """`x @ weight + bias` in float32, or exactly as QuantizeLinear / DequantizeLinear define it."""

    def __init__(self, weights: Mapping[str, Array], name: str) -> None:
        weight = weights[f"{name}.weight"]
        self._bias = weights[f"{name}.bias"]
        self._weight = weight.astype(np.float32)
        self._input_scale: Array | None = None
        if weight.dtype == np.int8:
            self._input_scale = weights[f"{name}.input_scale"]
            self._output_scale = weights[f"{name}.weight_scale"] * self._input_scale

    def __call__(self, x: Array) -> Array:
        return self.apply(self.quantize(x))

    def quantize(self, x: Array) -> Array:
        """Return `x` as the whole numbers that the int8 layer takes, in float32; `x` itself for a float layer."""
        if self._input_scale is None:
            return x
        q = x / self._input_scale
        np.rint(q, out=q)
        return np.asarray(np.clip(q, -128, 127, out=q))

    def apply(self, q: Array) -> Array:
        """Return the layer's output for an input that `quantize` returned."""
        y = q @ self._weight
        if self._input_scale is not None:
            y *= self._output_scale
        y += self._bias
        return np.asarray(y)
