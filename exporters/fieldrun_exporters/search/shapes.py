"""Shapes: how many features a student keeps decides its latency, where precision decides its bytes alone.

Every shape keeps a share of the features of all sites (`passes.lowrank`), in multiples of eight; each is exported once
and timed in turns on the device that searches. The search of precisions then goes on inside the largest that is fast
enough.
"""

from __future__ import annotations

import contextlib
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fieldrun.formats.progress import Progress
from fieldrun.formats.storage import new_folder, write_bytes
from fieldrun.formats.tensors import Array

from ..export import export
from ..parity import field_errors
from ..recipe import LowRank
from ..student.deployed import Deployed
from ..student.passes.lowrank import lowrank
from ..student.simulate import outputs

__all__ = ["SHARES", "Shape", "Timer", "device", "plan_of", "recipe_section", "shapes"]

SHARES = (1.0, 0.875, 0.75, 0.625, 0.5)
"""Of the features that a shape keeps, most first."""

Timer = Callable[[Path, Sequence[str]], float]
"""Takes a bundle and texts, returns the median microseconds from a text to all its labels."""

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
        """Return the point of the front of latency against error, as JSON."""
        net = self.folded.network
        sizes = {"width": net.width, "mixer": net.mixer_width, "hidden": net.hidden}
        return {"share": self.share, **sizes, "latency_us": self.latency_us, "field_error": self.field_error}


def device() -> str:
    """Return the name of this machine and of its processor: what is timed on one says nothing of another."""
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


def shapes(
    checkpoint: str | Path,
    folded: Deployed,
    learning: Sequence[Sequence[int]],
    proven: Sequence[Sequence[int]],
    texts: Sequence[str],
    calibration: Sequence[str] | None,
    work: Path,
    do: Callable[[str, Callable[[], Any]], Any],
    timer: Timer,
    progress: Progress,
) -> list[Shape]:
    """Return every shape of `folded`, measured here, the largest first; students too small to shrink have one.

    Args:
        checkpoint: what is exported.
        folded: the student in float32.
        learning: token ids of texts that say what a feature is worth.
        proven: token ids of the texts that errors are measured on.
        texts: what is timed.
        calibration: texts for the exports; the shipped ones when None.
        work: folder of the bundles that are timed.
        do: returns what its function gives, or what is kept under a name.
        timer: measures a bundle.
        progress: called with (phase, done, total).
    """
    expected: Array = outputs(folded, proven)[:, : folded.network.field_dim]
    plans = {share: plan_of(folded, share) for share in SHARES}
    plans = {share: plan for share, plan in plans.items() if plan is not None or share == 1}
    measure = partial(_timed, checkpoint, plans, calibration, work, texts, timer, progress)
    latencies = do(f"latencies on {device()}", measure)
    found = []
    for share, plan in plans.items():
        form = folded if plan is None else lowrank(folded, learning, plan)[0]
        error = 1 - field_errors(expected, outputs(form, proven)[:, : form.network.field_dim])["mean_cosine"]
        latency = round(latencies[str(share)], 2)
        found.append(Shape(share=share, plan=plan, folded=form, latency_us=latency, field_error=round(error, 6)))
    progress("shapes", len(SHARES), len(SHARES))
    return found


def _timed(
    checkpoint: str | Path,
    plans: Mapping[float, LowRank | None],
    calibration: Sequence[str] | None,
    work: Path,
    texts: Sequence[str],
    timer: Timer,
    progress: Progress,
) -> dict[str, float]:
    """Return the microseconds of every shape by its share, all timed in turns: a machine may be slow for seconds."""
    path, best = work / "shapes", {str(share): math.inf for share in plans}
    with new_folder(path, replace=path.exists()) as folder:
        for number, (share, plan) in enumerate(plans.items()):
            progress("shapes", number, len(plans))
            passes = '"fold", "int8"' if plan is None else '"fold", "lowrank", "int8"'
            recipe = (
                f'schema = 1\npasses = [{passes}]\n[precision]\ntables = "int8"\ndense = "int8-weights"\n[buckets]\n'
                "batches = [1]\nlengths = [64]\n[parity]\nmin_cosine = 0.01\nmax_abs = 1000.0\nmin_top1 = 0.01\n"
            )
            write_bytes(folder / f"{share}.toml", (recipe + recipe_section(plan)).encode("utf-8"))
            export(checkpoint, folder / f"{share}", recipe=folder / f"{share}.toml", calibration=calibration)
        for _ in range(_TURNS):
            for share in plans:
                best[str(share)] = min(best[str(share)], timer(folder / f"{share}", texts))
    return best
