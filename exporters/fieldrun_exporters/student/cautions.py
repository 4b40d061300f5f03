"""What an export warns of: settings that work, but cost time or memory that a user may not expect."""

from __future__ import annotations

from fieldrun.formats.packing import packed_names

from ..recipe import Recipe
from .deployed import Deployed

__all__ = ["cautions"]


def cautions(deployed: Deployed, plan: Recipe) -> tuple[str, ...]:
    """Return one line for everything in `deployed`, made by `plan`, that costs time or memory, or has no effect.

    A recipe with `[tensorrt]` is for GPUs, so there is no warning that fp16 is slow on a CPU.
    """
    found = [
        f"precision.{layer}: the student has no such layer, so the rule does nothing"
        for layer in plan.precision.idle(deployed.dense())
    ]
    halves = [part for part in ("table", *deployed.dense()) if deployed.precision(part) == "fp16"]
    if halves and plan.tensorrt is None:
        found.append(
            f"fp16 ({', '.join(halves)}) is slower than int8 on a CPU, which converts every number before it adds or "
            "multiplies; it is meant for GPUs"
        )
    if "table" in packed_names(deployed.packed):
        megabytes = deployed.tensors["table"].nbytes / 1e6
        found.append(
            f"the table is packed: ONNX Runtime and NumPy expand it to {megabytes:.1f} MB of memory when they load it; "
            "the native engine expands a row when a text first needs it"
        )
    return tuple(found)
