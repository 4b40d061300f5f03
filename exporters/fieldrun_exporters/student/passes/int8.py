"""Static, symmetric int8: tables per row, dense weights per output channel, activations per tensor, biases in float.

This form of int8 is accepted by x86, aarch64 and the TensorRT parser, and does not depend on the batch: explicit
scales, zero points of 0, activation scales from calibration text.

If a layer's input is int8 too, its weights have only 7 bits, -63..63. On an x86 processor without VNNI, ONNX Runtime
multiplies uint8 by int8 and adds two products in a saturating 16-bit integer: 2 * 255 * 127 does not fit, 2 * 255 * 63
does. With 8 bits, the same bundle gave other answers on such a processor and failed its own verification. A layer in
`int8-weights` is multiplied in float32, and its weights have 8 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fieldrun.errors import ExportError
from fieldrun.formats.tensors import Array

from ...precision import Precision
from ..deployed import Deployed
from . import PassReport

__all__ = ["facts", "int8", "quantize_columns", "quantize_layer", "quantize_rows"]


def quantize_rows(table: Array, largest: int = 127) -> tuple[Array, Array]:
    """Return `table (rows, width)` as int8 within +-`largest`, `(rows, width)`, and the scales `(rows,) float32`."""
    peak = np.abs(table).max(1)
    # a row too small for a normal scale becomes zeros
    scale = np.where(peak > largest * np.finfo(np.float32).tiny, peak / largest, 1).astype(np.float32)
    return np.clip(np.rint(table / scale[:, None]), -largest, largest).astype(np.int8), scale


def quantize_columns(weight: Array, largest: int = 63) -> tuple[Array, Array]:
    """Return `weight (inputs, outputs)` as int8 within +-`largest` and the outputs' scales `(outputs,) float32`."""
    quantized, scale = quantize_rows(weight.T, largest)
    return np.ascontiguousarray(quantized.T), scale


def int8(deployed: Deployed, precision: Precision, input_ranges: Mapping[str, float]) -> tuple[Deployed, PassReport]:
    """Quantize what `precision` says.

    The pooling score stays float. `input_ranges` has the largest absolute input of each layer to represent.

    Raises:
        ExportError: a layer has no calibrated range, or nothing became smaller.
    """
    tensors = dict(deployed.tensors)
    changed: dict[str, dict[str, Any]] = {}
    blocks = [precision.of(block) == "int8" for block in deployed.blocks]
    if all(blocks):
        table = tensors["table"]
        quantized, scale = quantize_rows(table)
        tensors |= {"table": quantized, "table.scale": scale}
        changed["table"] = facts(table, quantized, scale[:, None])
    pooled = "hidden" if "hidden.weight" in tensors else "output"
    if precision.of(pooled) == "int8" and deployed.network.mean:
        tensors |= _equalize(deployed, pooled, input_ranges)
        changed["mean.gain"] = {"gain": float(tensors["mean.gain"][0])}
    for layer in deployed.dense():
        if precision.of(layer) in ("int8", "int8-weights"):
            changed[layer] = quantize_layer(tensors, layer, precision.of(layer), input_ranges)
    result = replace(deployed, tensors=tensors)
    for name in changed:
        if name != "mean.gain" and result.precision(name) == "fp32":
            raise ExportError(f"int8: {name!r} is still a float")
    if any(blocks) and not all(blocks) and not changed:  # the palettize pass writes a table with some int8 blocks
        return result, PassReport(name="int8", bytes_before=deployed.nbytes(), bytes_after=result.nbytes())
    return result, PassReport.of("int8", deployed, result, changed)


def quantize_layer(
    tensors: dict[str, Array], layer: str, kind: str, input_ranges: Mapping[str, float]
) -> dict[str, Any]:
    """Quantize the weight of `layer` in `tensors`, and its input if `kind` is int8; return what the report says of it.

    Raises:
        ExportError: the layer has no calibrated range.
    """
    weight = tensors[f"{layer}.weight"]
    quantized, scale = quantize_columns(weight, 63 if kind == "int8" else 127)
    tensors |= {f"{layer}.weight": quantized, f"{layer}.weight_scale": scale}
    changed = facts(weight, quantized, scale)
    if kind == "int8":
        if not input_ranges.get(layer, 0) > 0:
            raise ExportError(f"int8: no calibration text uses the layer {layer!r}; give more text")
        tensors[f"{layer}.input_scale"] = np.array([input_ranges[layer] / 127], np.float32)
        changed["input_range"] = float(input_ranges[layer])
    return changed


def _equalize(deployed: Deployed, layer: str, input_ranges: Mapping[str, float]) -> dict[str, Array]:
    """Return the tensors that bring the two halves of the pooled vector, the input of `layer`, to the same range.

    The mean over the tokens is several times smaller than the maximum; with one scale for both it would have only a few
    dozen of the 255 steps. The gain is undone in the rows of `layer` (cross-layer equalization, Nagel et al. 2019).
    """
    if not input_ranges.get("mean", 0) > 0:
        raise ExportError(f"int8: no calibration text uses the layer {layer!r}; give more text")
    gain = np.float32(input_ranges[layer] / input_ranges["mean"])
    weight = deployed.tensors[f"{layer}.weight"].copy()
    weight[: len(deployed.tensors["score.weight"])] /= gain
    return {"mean.gain": np.array([gain], np.float32), f"{layer}.weight": weight}


def facts(before: Array, after: Array, scale: Array) -> dict[str, Any]:
    """Return the facts of a matrix that became `after * scale`: bytes, and its error over its norm."""
    step = after.astype(np.float32) * scale
    error = float(np.sqrt(np.square(step - before).sum(dtype=np.float64)))
    norm = float(np.sqrt(np.square(before).sum(dtype=np.float64)))
    return {
        "weights": int(before.size),
        "bytes_before": before.nbytes,
        "bytes_after": after.nbytes + scale.nbytes,
        "relative_error": error / norm if norm else 0.0,
    }
