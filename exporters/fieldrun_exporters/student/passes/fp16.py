"""Half precision: weights stored as float16 and computed in float32, for half the bytes.

No engine here multiplies float16 on a CPU faster than float32: the numbers are converted when a row is looked up or a
bundle is loaded.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fieldrun.errors import ExportError
from fieldrun.formats.tensors import Array

from ...precision import Precision
from ..deployed import Deployed
from . import PassReport
from .int8 import facts

__all__ = ["fp16"]


def fp16(deployed: Deployed, precision: Precision) -> tuple[Deployed, PassReport]:
    """Store what `precision` says as float16; `ExportError` for a weight beyond its range, or if nothing changed."""
    tensors, changed = dict(deployed.tensors), {}
    if deployed.blocks and all(precision.of(block) == "fp16" for block in deployed.blocks):
        tensors["table"] = _half("table", tensors["table"])
        changed["table"] = facts(deployed.tensors["table"], tensors["table"], np.ones(1, np.float32))
    for layer in deployed.dense():
        if precision.of(layer) == "fp16":
            name = f"{layer}.weight"
            tensors[name] = _half(layer, tensors[name])
            changed[layer] = facts(deployed.tensors[name], tensors[name], np.ones(1, np.float32))
    result = replace(deployed, tensors=tensors)
    return result, PassReport.of("fp16", deployed, result, changed)


def _half(name: str, tensor: Array) -> Array:
    largest = float(np.abs(tensor).max())
    if largest > float(np.finfo(np.float16).max):
        raise ExportError(f"fp16: {name!r} has a weight of {largest:.3g}, beyond float16; use fp32 or int8 for it")
    return tensor.astype(np.float16)
