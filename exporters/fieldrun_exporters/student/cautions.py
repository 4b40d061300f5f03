"""What an export warns of: settings that work, and cost time or memory that their user may not expect."""

from __future__ import annotations

from fieldrun.formats.packing import packed_names

from ..recipe import Recipe
from .deployed import Deployed

__all__ = ["cautions"]


def cautions(deployed: Deployed, plan: Recipe) -> tuple[str, ...]:
    """Return one line for everything in `deployed`, made by `plan`, that an engine runs slower or opens whole.

    A recipe with `[tensorrt]` is for GPUs: what its halves cost on a CPU is not said.
    """
    found = [
        f"precision.{layer}: the student has no such layer, so the rule does nothing"
        for layer in plan.precision.idle(deployed.dense())
    ]
    halves = [part for part in ("table", *deployed.dense()) if deployed.precision(part) == "fp16"]
    if halves and plan.tensorrt is None:
        found.append(
            f"fp16 ({', '.join(halves)}) is slower than int8 on a CPU, which widens every half before it adds or "
            "multiplies; it is meant for GPUs"
        )
    if "table" in packed_names(deployed.packed):
        megabytes = deployed.tensors["table"].nbytes / 1e6
        found.append(
            f"the table is packed: ONNX Runtime and NumPy open it whole when they start, to {megabytes:.1f} MB of "
            "memory of their own; the native engine opens a row when a text first needs it"
        )
    return tuple(found)
