"""Compress: find the precision of every part that keeps the fields nearest within a size (EvoPress, arXiv 2410.14649).

Every part is clustered once at every level. A candidate is a level for each part; what it does to the fields of
calibration texts is known without building it, because a position's sum is the sum over its blocks. A parent starts
uniform (all tables at one level, all dense layers at one). A child raises the level of one to three parts and lowers
others until it fits; the one with the nearest fields survives. The sizes of the uniform recipes are the budgets,
smallest first, and give a front of size against field error. Points of the front are then judged on labelled rows, and
the one that the limits ask for is exported with a recipe of its own.

Precision changes bytes, not latency. With a limit of latency the student's shape is chosen first: the largest that is
fast enough on this device (`shapes`).

Results are kept in a work folder: a run that was killed continues, and ends like one that was not.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fieldrun.errors import ExportError, MissingDependency, OutputExists, UsageError
from fieldrun.evaluation.dataset import Dataset
from fieldrun.formats.progress import Progress, silent
from fieldrun.formats.storage import new_folder, write_bytes, write_json
from fieldrun.heads.trained import Checkpoint

from ..calibrate import CalibrationText
from ..precision import Precision
from ..recipe import LEAST_TEXTS, LowRank, Parity, Recipe, load_recipe
from ..student.drop import check_tasks
from ..student.passes.fold import fold
from ..student.simulate import outputs
from .evolve import evolve
from .front import front_plot
from .gate import measured_gate
from .inputs import Inputs, identity
from .shapes import Shape, Timer, measured_shapes, recipe_section
from .space import Levels, Space, least_bytes
from .state import State

__all__ = ["CompressReport", "compress"]

_TEXTS = 512  # three quarters of which candidates are judged on
_CHILDREN = 24
_GENERATIONS = 40
_JUDGED = 6  # steps along the front towards a limit of accuracy
_MARGIN = 8000  # bytes by which golden replies and reports differ
_OF_A_TASK = 600  # bytes in a report for the accuracy of a task, at most
_PROBE = Parity(min_cosine=0.1, max_abs=100.0, min_top1=0.1)  # of a bundle that is only weighed


@dataclass(frozen=True, slots=True, kw_only=True)
class CompressReport:
    """What was found: the bundle, its recipe, and the front it was taken from.

    `front` has, per point from the smallest on: `precision`, `weights_bytes`, `bytes` (of the bundle, at most),
    `field_error` (1 - mean cosine) and, where it was judged, `accuracy` (`accuracy_drop`). `uniform` has the same of
    what the search must beat: all tables at one level, the dense layers at the one that takes most bytes. `shapes` has,
    per shape from the largest on, its sizes, `latency_us`, `field_error`, and `accuracy` in float32; it is empty if
    nothing was timed.
    """

    path: Path
    bytes: int
    recipe: Path
    front: tuple[Mapping[str, Any], ...]
    chosen: int
    uniform: tuple[Mapping[str, Any], ...]
    shapes: tuple[Mapping[str, Any], ...] = ()
    warnings: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return asdict(self) | {"path": str(self.path), "recipe": str(self.recipe)}


def compress(
    checkpoint: str | Path,
    out: str | Path,
    *,
    data: Mapping[str, Dataset],
    max_bytes: int | None = None,
    max_drop: float | None = None,
    max_latency_us: float | None = None,
    timer: Timer | None = None,
    calibration: Sequence[str] | None = None,
    work: str | Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> CompressReport:
    """Find the recipe with the nearest fields within a size or latency, or the smallest within a drop; export it.

    Args:
        checkpoint: a checkpoint folder, or `"reference"`.
        out: the folder to make: `bundle/`, `recipe.toml`, `compress.json`, and `front.svg` if matplotlib is installed;
            must not exist.
        data: task -> labelled rows that may choose: not those that will be reported on.
        max_bytes: of the whole bundle. On its own: the candidate with the nearest fields within it.
        max_drop: points of mean accuracy on `data`: the smallest candidate that costs no more.
        max_latency_us: microseconds from a text to all labels on this device: the largest shape that keeps to it. On
            its own: in int8.
        timer: takes the folder of a bundle and some texts, and returns the median microseconds from a text to all its
            labels. Shapes are measured with it, and a limit of latency needs it.
        calibration: real texts to judge fields on; a shipped sample when None.
        work: folder for what a killed run continues from; `<out>.work` when None.
        seed: of the mutations.
        progress: called with (phase, done, total).

    Raises:
        UsageError: no limit is given, one is not a valid number, or `max_latency_us` without `timer`.
        ExportError: no candidate keeps to the limits; says how near the best one comes.
        CheckpointError, InputTextError, DatasetError, OutputExists, StorageError: as of `export`.
    """
    out = Path(out)
    if os.path.lexists(out):
        raise OutputExists(f"{out} exists; choose another folder or delete it first")
    _check_limits(max_bytes, max_drop, max_latency_us, timer)
    if not data:
        raise UsageError("candidates are judged on labelled rows; give data")
    source = Checkpoint.load(checkpoint)
    check_tasks(source.heads, data)
    folded, texts = fold(source)[0], CalibrationText(calibration, _TEXTS)
    about = identity(folded, texts, seed)
    inputs = Inputs(
        checkpoint=checkpoint,
        source=source,
        folded=folded,
        base=load_recipe("cpu-int8"),
        texts=texts,
        calibration=calibration,
        data=data,
        state=State(out.with_name(out.name + ".work") if work is None else Path(work), about),
        report=progress or silent,
    )
    least = least_bytes(folded)
    if max_bytes is not None and max_latency_us is None and max_bytes < least:
        raise ExportError(
            f"no candidate fits {max_bytes:,} bytes: at one bit a number the student alone has {least:,}; allow more, "
            "or train a smaller student"
        )
    shapes = [] if timer is None else measured_shapes(inputs, timer)
    shape = None if max_latency_us is None else _fast_enough(shapes, max_latency_us)
    candidates = _Candidates(inputs, shape, seed, max_bytes)
    chosen = _choose(candidates, max_bytes, max_drop)
    uniform = candidates.compared()
    timed = [each.judged(inputs) for each in shapes]
    levels, space = candidates.front[chosen], candidates.space
    gate = measured_gate(folded, space.deployed(levels), inputs.ids(texts.proof), inputs.base.buckets.lengths)
    with new_folder(out) as folder:
        recipe = folder / "recipe.toml"
        text = _recipe_text(inputs.base, space.rules(levels), gate, None if shape is None else shape.plan)
        write_bytes(recipe, text.encode("utf-8"))
        done = inputs.export(folder / "bundle", recipe, data=data)
        if max_bytes is not None and done.bytes > max_bytes:
            raise ExportError(
                f"the chosen bundle has {done.bytes:,} bytes, {done.bytes - max_bytes:,} above the limit; "
                "lower the limit by that much"
            )
        warnings = [*done.warnings, *([done.summary()] if done.differs else [])]
        try:
            write_bytes(folder / "front.svg", front_plot(candidates.points, chosen, timed, uniform).encode("utf-8"))
        except MissingDependency as error:
            warnings.append(f"front.svg was not drawn: {error}")
        found = CompressReport(
            path=out / "bundle",
            bytes=done.bytes,
            recipe=out / "recipe.toml",
            front=tuple(candidates.points),
            chosen=chosen,
            uniform=tuple(uniform),
            shapes=tuple(timed),
            warnings=tuple(warnings),
        )
        write_json(folder / "compress.json", found.to_dict() | {"seed": seed, "identity": about})
    return found


def _check_limits(
    max_bytes: int | None, max_drop: float | None, max_latency_us: float | None, timer: Timer | None
) -> None:
    if max_bytes is None and max_drop is None and max_latency_us is None:
        raise UsageError("give a limit: max_bytes, max_drop or max_latency_us")
    if max_bytes is not None and max_bytes < 1:
        raise UsageError(f"max_bytes must be positive, not {max_bytes}")
    if max_drop is not None and not max_drop >= 0:
        raise UsageError(f"max_drop must be a number of points, 0 or more, not {max_drop}")
    if max_latency_us is not None and not max_latency_us > 0:
        raise UsageError(f"max_latency_us must be a positive number of microseconds, not {max_latency_us}")
    if max_latency_us is not None and timer is None:
        raise UsageError("max_latency_us needs a timer; fieldrun.compress has one")


class _Candidates:
    """The front of one shape: its candidates, smallest first, what the report says of each, and their accuracy."""

    def __init__(self, inputs: Inputs, shape: Shape | None, seed: int, max_bytes: int | None) -> None:
        self._inputs, state = inputs, inputs.state
        shaped = inputs.folded if shape is None else shape.folded
        self._scope = "" if shape is None or shape.plan is None else f"share {shape.share}, "
        sequences = inputs.ids(inputs.texts.calibration)
        target = outputs(inputs.folded, sequences)[:, : inputs.folded.network.field_dim]
        self.space = Space(shaped, sequences, state.folder(self._scope), inputs.report, target)
        self._overhead = state.do("overhead", lambda: _overhead(inputs)) + _OF_A_TASK * len(inputs.data)
        self.front, self._seen = evolve(
            self.space,
            state,
            inputs.report,
            seed=seed,
            children=_CHILDREN,
            generations=_GENERATIONS,
            limit=None if max_bytes is None else max_bytes - self._overhead,
            scope=self._scope,
        )
        self.points = [self._point(levels) for levels in self.front]

    def judge(self, number: int) -> float:
        """Measure the accuracy of a point of the front on the labelled rows, and return its mean drop."""
        self.points[number]["accuracy"] = self._accuracy(self.front[number])
        return float(self.points[number]["accuracy"]["mean_drop"])

    def compared(self) -> list[dict[str, Any]]:
        """Return the uniform candidates, judged; judge the ends of the front and the points of the same sizes."""
        plain, report = self.space.uniform(dense=0), self._inputs.report
        sizes = [point["weights_bytes"] for point in self.points]
        rivals = [max(i for i, size in enumerate(sizes) if size <= self.space.size(levels)) for levels in plain]
        shown, total = sorted({0, *rivals, len(self.front) - 1}), len(plain)
        for step, number in enumerate(shown):
            report("judge", step, len(shown) + total)
            self.judge(number)
        uniform = []
        for step, levels in enumerate(plain, len(shown)):
            report("judge", step, len(shown) + total)
            uniform.append(self._point(levels) | {"accuracy": self._accuracy(levels)})
        report("judge", len(shown) + total, len(shown) + total)
        return uniform

    def _point(self, levels: Levels) -> dict[str, Any]:
        return {
            "precision": self.space.rules(levels),
            "weights_bytes": self.space.size(levels),
            "bytes": self.space.size(levels) + self._overhead,
            "field_error": round(self._seen[levels], 6),
        }

    def _accuracy(self, levels: Levels) -> dict[str, Any]:
        name = f"{self._scope}{json.dumps(self.space.rules(levels))}"
        return self._inputs.accuracy(name, lambda: self.space.deployed(levels))


def _overhead(inputs: Inputs) -> int:
    """Return the bytes of a bundle without its weights, at most.

    Graphs that decode palettes have more nodes, and most if a code does not fill half or all of a byte.
    """
    path = inputs.state.work / "probe"
    with new_folder(path, replace=path.exists()) as folder:
        recipe, bundle = folder / "recipe.toml", folder / "bundle"
        write_bytes(
            recipe, _recipe_text(inputs.base, {"default": "palette16", "dense": "palette64"}, _PROBE).encode("utf-8")
        )
        return _MARGIN + inputs.export(bundle, recipe).bytes - (bundle / "weights.safetensors").stat().st_size


def _fast_enough(shapes: Sequence[Shape], limit: float) -> Shape:
    """Return the largest shape within `limit` microseconds."""
    if not shapes:
        raise ExportError(f"shapes are fitted on at least {LEAST_TEXTS} texts; give more with calibration")
    within = [shape for shape in shapes if shape.latency_us <= limit]
    if not within:
        fastest = min(shape.latency_us for shape in shapes)
        raise ExportError(
            f"no shape is fast enough: the smallest takes {fastest:.1f} us here; allow more than {limit:g}"
        )
    return within[0]


def _choose(candidates: _Candidates, max_bytes: int | None, max_drop: float | None) -> int:
    """Return the number of the point that the limits ask for; judges only as many points as that needs."""
    points = candidates.points
    allowed = [i for i, point in enumerate(points) if max_bytes is None or point["bytes"] <= max_bytes]
    if not allowed:
        raise ExportError(
            f"no candidate fits {max_bytes:,} bytes: the smallest has {points[0]['bytes']:,}; allow more, or train a "
            "smaller student"
        )
    low, high = 0, len(allowed) - 1
    best = candidates.judge(allowed[high])
    if max_drop is None:
        return allowed[high]
    if best > max_drop:
        raise ExportError(
            f"no candidate keeps to {max_drop:g} points: the best one costs {best:.2f}; allow more bytes or a larger "
            "drop"
        )
    for _ in range(_JUDGED):  # accuracy follows the field error closely enough to halve the front
        if low == high:
            break
        middle = (low + high) // 2
        within = candidates.judge(allowed[middle]) <= max_drop
        low, high = (low, middle) if within else (middle + 1, high)
    return allowed[high]


def _recipe_text(base: Recipe, rules: Mapping[str, str], gate: Parity, plan: LowRank | None = None) -> str:
    """Return the recipe file of a candidate, with the buckets of `base`."""
    wanted = {"fold"} | Precision(rules).wants(rules) | ({"lowrank"} if plan else set())
    passes = ", ".join(f'"{name}"' for name in ("fold", "lowrank", "int8", "palettize") if name in wanted)
    precision = "\n".join(f'"{part}" = "{value}"' for part, value in rules.items())
    return (
        f"# Found by fieldrun compress.\nschema = 1\npasses = [{passes}]\n\n[precision]\n{precision}\n\n[buckets]\n"
        f"batches = {list(base.buckets.batches)}\nlengths = {list(base.buckets.lengths)}\n\n[parity]\n"
        f"min_cosine = {gate.min_cosine}\nmax_abs = {gate.max_abs}\nmin_top1 = {gate.min_top1}\n" + recipe_section(plan)
    )
