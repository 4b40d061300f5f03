"""Shapes: how many features a student keeps decides its latency, while precision only decides its bytes.

Every shape keeps a share of the features at all sites (`passes.lowrank`), in multiples of eight. Each is exported once,
and all are timed in turns on this device.
"""

from __future__ import annotations

import contextlib
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fieldrun.formats.storage import new_folder, write_bytes
from fieldrun.formats.tensors import Array

from ..parity import field_errors
from ..recipe import LEAST_TEXTS, LowRank
from ..student.deployed import Deployed
from ..student.passes.lowrank import lowrank
from ..student.simulate import outputs
from .inputs import Inputs

__all__ = ["SHARES", "Shape", "Timer", "device", "measured_shapes", "plan_of", "recipe_section"]

SHARES = (1.0, 0.875, 0.75, 0.625, 0.5)
"""Of the features that a shape keeps, most first."""

Timer = Callable[[Path, Sequence[str]], float]
"""Takes the folder of a bundle and texts; returns the median microseconds from a text to all its labels."""

_STEP = 8  # features that a processor handles together
_TURNS = 6


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A student's shape: its plan (None for the whole one), its form in float32, and what was measured of it."""

    share: float
    plan: LowRank | None
    folded: Deployed
    latency_us: float
    field_error: float

    def to_dict(self) -> dict[str, Any]:
        """Return the shape's point of the front of latency against error, as JSON."""
        net = self.folded.network
        sizes = {"width": net.width, "mixer": net.mixer_width, "hidden": net.hidden}
        return {"share": self.share, **sizes, "latency_us": self.latency_us, "field_error": self.field_error}

    def judged(self, inputs: Inputs) -> dict[str, Any]:
        """Return `to_dict` with the shape's accuracy in float32 on the labelled rows."""
        return self.to_dict() | {"accuracy": inputs.accuracy(f"the share {self.share}", lambda: self.folded)}


def device() -> str:
    """Return the names of this machine and its processor, which a latency is only valid for."""
    processor = platform.machine()
    with contextlib.suppress(OSError, UnicodeDecodeError):
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                processor = line.partition(":")[2].strip()
                break
    return f"{platform.node()}, {processor}"


def plan_of(folded: Deployed, share: float) -> LowRank | None:
    """Return how many features a shape of `share` keeps, None for all of them."""
    net = folded.network
    sizes = {"width": net.width if net.mixer_kernel else 0, "mixer": net.mixer_width, "hidden": net.hidden}
    kept = {site: max(_STEP, round(share * size / _STEP) * _STEP) for site, size in sizes.items() if size}
    smaller = {site: keep for site, keep in kept.items() if keep < sizes[site]}
    return LowRank(**smaller) if smaller and share < 1 else None


def recipe_section(plan: LowRank | None) -> str:
    """Return the section of a recipe that makes the shape, empty for the whole one."""
    if plan is None:
        return ""
    lines = [f"{site} = {getattr(plan, site)}" for site in plan.wanted]
    return "\n[lowrank]\n" + "\n".join([*lines, f"texts = {plan.texts}"]) + "\n"


def measured_shapes(inputs: Inputs, timer: Timer) -> list[Shape]:
    """Return every shape of the student, measured here, the largest first.

    There is only one if the student is too small to shrink, and none if there are too few texts to fit shapes on.
    """
    learning = inputs.ids(inputs.texts.learning(LowRank().texts))
    if len(learning) < LEAST_TEXTS:
        return []
    folded, proven = inputs.folded, inputs.ids(inputs.texts.proof)
    expected: Array = outputs(folded, proven)[:, : folded.network.field_dim]
    plans = {share: plan_of(folded, share) for share in SHARES}
    plans = {share: plan for share, plan in plans.items() if plan is not None or share == 1}
    latencies = inputs.state.do(f"latencies on {device()}", lambda: _timed(inputs, plans, timer))
    found = []
    for share, plan in plans.items():
        form = folded if plan is None else lowrank(folded, learning, plan)[0]
        error = 1 - field_errors(expected, outputs(form, proven)[:, : form.network.field_dim])["mean_cosine"]
        latency = round(latencies[str(share)], 2)
        found.append(Shape(share=share, plan=plan, folded=form, latency_us=latency, field_error=round(error, 6)))
    inputs.report("shapes", len(SHARES), len(SHARES))
    return found


def _timed(inputs: Inputs, plans: Mapping[float, LowRank | None], timer: Timer) -> dict[str, float]:
    """Return the microseconds of every shape by its share, timed in turns: a machine may be slow for seconds."""
    path, best = inputs.state.work / "shapes", {str(share): math.inf for share in plans}
    with new_folder(path, replace=path.exists()) as folder:
        for number, (share, plan) in enumerate(plans.items()):
            inputs.report("shapes", number, len(plans))
            passes = '"fold", "int8"' if plan is None else '"fold", "lowrank", "int8"'
            recipe = (
                f'schema = 1\npasses = [{passes}]\n[precision]\ntables = "int8"\ndense = "int8-weights"\n[buckets]\n'
                "batches = [1]\nlengths = [64]\n[parity]\nmin_cosine = 0.01\nmax_abs = 1000.0\nmin_top1 = 0.01\n"
            )
            write_bytes(folder / f"{share}.toml", (recipe + recipe_section(plan)).encode("utf-8"))
            inputs.export(folder / f"{share}", folder / f"{share}.toml")
        for _ in range(_TURNS):
            for share in plans:
                best[str(share)] = min(best[str(share)], timer(folder / f"{share}", inputs.texts.proof))
    return best
