"""Search: the precision of every part that keeps the fields nearest within a size (EvoPress, arXiv 2410.14649).

Every part is clustered once at every level. A candidate is a level for each part; what it does to the fields of
calibration texts is known without building it, because a position's sum is the sum of what its blocks give. A parent
begins uniform (all tables at one level, all dense layers at one); a child raises the level of one to three parts and
lowers others until it fits; the nearest survives. The sizes of the uniform recipes are the budgets, smallest first, and
give a front of size against field error. Its points are then judged on labelled rows, and the one that the limits ask
for is exported as a recipe of one's own.

Precision decides bytes and leaves latency as it is. With a limit of latency the student's shape comes first: the
largest that is fast enough on the device that searches (`search_shapes`).

What was done is kept in a work folder: a killed search goes on, and ends as one that was not killed.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from fieldrun.errors import ExportError, OutputExists, UsageError
from fieldrun.evaluation.dataset import Dataset
from fieldrun.formats.progress import Progress, silent
from fieldrun.formats.storage import new_folder, sha256_bytes, write_bytes, write_json
from fieldrun.formats.tensors import Array, write_tensors
from fieldrun.heads.trained import Checkpoint

from ..calibrate import CalibrationText, tokenize
from ..export import export, task_specs
from ..precision import Precision
from ..recipe import LEAST_TEXTS, LowRank, Parity, Recipe, load_recipe
from ..student.deployed import Deployed
from ..student.drop import accuracy_drop, check_tasks
from ..student.passes.fold import fold
from ..student.simulate import outputs
from .front import front_plot
from .gate import measured_gate
from .shapes import Shape, Timer, recipe_section, shapes
from .space import Levels, Space, least_bytes
from .state import State, rows_digest

__all__ = ["SearchReport", "search"]

_TEXTS = 512  # of which three quarters are those whose fields a candidate is judged on
_CHILDREN = 24
_GENERATIONS = 40
_JUDGED = 6  # steps in the front towards a limit of accuracy
_MARGIN = 8000  # bytes by which golden answers and reports differ
_OF_A_TASK = 600  # bytes of what a report says of a task's accuracy, at most
_METHOD = 3  # raise it when the same settings give another front: what a work folder keeps is then done again
_PROBE = Parity(min_cosine=0.1, max_abs=100.0, min_top1=0.1)  # of a bundle that is weighed and thrown away


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchReport:
    """What a search found: the bundle, its recipe, and the front it was taken from.

    `front` has, per point from the smallest on: `precision`, `weights_bytes`, `bytes` (of the bundle, at most: a few
    thousand less if the graphs have fewer nodes), `field_error` (1 - mean cosine), and, where it was judged, `accuracy`
    (`accuracy_drop`). `uniform` has the same of what a search must beat: all tables at one level, dense layers at the
    one that takes most bytes. `shapes` has, per shape from the largest on, its sizes, `latency_us`, `field_error` and
    `accuracy` in float32; it is empty where nothing was timed. `warnings` are the export's.
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
        return {
            "path": str(self.path),
            "bytes": self.bytes,
            "recipe": str(self.recipe),
            "front": [dict(point) for point in self.front],
            "chosen": self.chosen,
            "uniform": [dict(point) for point in self.uniform],
            "shapes": [dict(shape) for shape in self.shapes],
            "warnings": list(self.warnings),
        }


def search(
    checkpoint: str | Path,
    out: str | Path,
    *,
    data: Mapping[str, Dataset],
    max_bytes: int | None = None,
    max_drop: float | None = None,
    max_latency_us: float | None = None,
    timer: Timer | None = None,
    calibration: Sequence[str] | None = None,
    work: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> SearchReport:
    """Find the recipe that keeps most within a size or latency, or the smallest that costs at most so much; export it.

    Args:
        checkpoint: a checkpoint folder, or `"reference"`.
        out: the folder to make: `bundle/`, `recipe.toml`, `search.json`, `front.svg`; must not exist.
        data: task -> labelled rows, of a slice that may choose: not those that will be reported on.
        max_bytes: of the whole bundle. Alone: the candidate with the nearest fields within it.
        max_drop: points of mean accuracy on `data`. The smallest candidate that keeps to it.
        max_latency_us: from a text to all labels on this device. The largest shape that keeps to it; alone, in int8.
        timer: what measures a bundle; shapes are measured with it,
            and a limit of latency needs it.
        calibration: real texts to judge fields on; a shipped sample when None.
        work: folder that a killed search goes on from; `<out>.work` when None.
        seed: of the mutations.
        progress: called with (phase, done, total).

    Raises:
        UsageError: neither limit is given, or one makes no sense.
        ExportError: no candidate keeps to the limits; the message says how near the best one comes.
        CheckpointError, InputTextError, DatasetError, OutputExists, StorageError: as of `export`.
    """
    report = progress or silent
    out = Path(out)
    if os.path.lexists(out):
        raise OutputExists(f"{out} exists; choose another folder or delete it first")
    if max_bytes is None and max_drop is None and max_latency_us is None:
        raise UsageError("a search needs a limit: a size, a drop of accuracy, or a latency")
    if max_latency_us is not None and (timer is None or not max_latency_us > 0):
        raise UsageError(
            f"a limit of latency is a positive number and needs a timer; got {max_latency_us!r}, {timer!r}"
        )
    if max_bytes is not None and max_bytes < 1:
        raise UsageError(f"the largest size must be positive, not {max_bytes}")
    if max_drop is not None and not max_drop >= 0:
        raise UsageError(f"the largest drop must be a number of points from 0 on, not {max_drop}")
    if not data:
        raise UsageError("a search judges candidates on labelled rows; give data")
    source = Checkpoint.load(checkpoint)
    tasks = task_specs(source)
    check_tasks(tasks, data)
    work = work or out.with_name(out.name + ".work")
    base = load_recipe("cpu-int8")
    texts = CalibrationText(calibration, _TEXTS)
    longest = base.buckets.lengths[-1]
    sequences = tokenize(source, texts.calibration, longest)
    folded, _ = fold(source)
    identity = {
        "method": _METHOD,
        "checkpoint": sha256_bytes(write_tensors(dict(folded.tensors) | _counts(folded))),
        "texts": sha256_bytes("\n".join(texts.chosen).encode("utf-8")),
        "seed": seed,
    }
    state = State(work, identity)
    least = least_bytes(folded)
    if max_bytes is not None and max_latency_us is None and max_bytes < least:
        raise ExportError(
            f"no candidate fits {max_bytes:,} bytes: at a bit a number the student alone has {least:,}; allow more, or "
            "train a smaller student"
        )
    found_shapes = _shapes(checkpoint, source, folded, texts, calibration, longest, state, timer, report)
    shape = _fast_enough(found_shapes, max_latency_us)
    plan, shaped = (None, folded) if shape is None else (shape.plan, shape.folded)
    scope = f"share {shape.share}, " if shape is not None and plan is not None else ""
    target = outputs(folded, sequences)[:, : folded.network.field_dim]
    report("cluster", 0, 1)
    own = state.folder(scope)
    space = Space(shaped, sequences, own, report, target)
    overhead = _overhead(checkpoint, base, state.work, state, calibration, report) + _OF_A_TASK * len(data)
    front, seen = _evolve(space, state, seed, report, None if max_bytes is None else max_bytes - overhead, scope)

    def point(levels: Levels) -> dict[str, Any]:
        return {
            "precision": space.rules(levels),
            "weights_bytes": space.size(levels),
            "bytes": space.size(levels) + overhead,
            "field_error": round(seen[levels], 6),
        }

    points = [point(levels) for levels in front]
    rows = rows_digest(data)

    def accuracy(levels: Levels) -> Any:
        key = f"accuracy of {scope}{json.dumps(dict(space.rules(levels)))}, {rows}"
        return state.do(
            key,
            lambda: accuracy_drop((source, folded), (source, space.deployed(levels)), tasks, data, longest),
        )

    def judge(number: int) -> float:
        points[number]["accuracy"] = accuracy(front[number])
        return float(points[number]["accuracy"]["mean_drop"])

    chosen = _choose(points, judge, max_bytes, max_drop, report)
    plain = space.uniform(dense=0)
    rivals = [[i for i, other in enumerate(front) if space.size(other) <= space.size(levels)][-1] for levels in plain]
    shown = sorted({0, *rivals, len(front) - 1})  # for the plot; the front gets nearer with its size
    for step, number in enumerate(shown):
        report("judge", step, len(shown) + len(plain))
        judge(number)
    uniform = []
    for step, levels in enumerate(plain, len(shown)):
        report("judge", step, len(shown) + len(plain))
        uniform.append(point(levels) | {"accuracy": accuracy(levels)})
    measured = []
    for each in found_shapes:
        key = f"accuracy of the share {each.share}, {rows}"
        forms = (source, folded), (source, each.folded)
        drop = state.do(key, partial(accuracy_drop, *forms, tasks, data, longest))
        measured.append(each.to_dict() | {"accuracy": drop})
    report("judge", len(shown) + len(plain), len(shown) + len(plain))
    levels = front[chosen]
    proven = tokenize(source, texts.proof, longest)
    gate = measured_gate(source, space.deployed(levels), tasks, proven, base.buckets.lengths)
    with new_folder(out) as folder:
        recipe = folder / "recipe.toml"
        write_bytes(recipe, _recipe_text(base, space.rules(levels), gate, plan).encode("utf-8"))
        done = export(checkpoint, folder / "bundle", recipe=recipe, calibration=calibration, data=data, progress=report)
        if max_bytes is not None and done.bytes > max_bytes:
            raise ExportError(
                f"the chosen bundle has {done.bytes:,} bytes, {done.bytes - max_bytes:,} above the limit; "
                "search with a limit lower by as much"
            )
        found = SearchReport(
            path=out / "bundle",
            bytes=done.bytes,
            recipe=out / "recipe.toml",
            front=tuple(points),
            chosen=chosen,
            uniform=tuple(uniform),
            shapes=tuple(measured),
            warnings=done.warnings,
        )
        write_bytes(folder / "front.svg", front_plot(points, chosen, measured, uniform).encode("utf-8"))
        write_json(folder / "search.json", found.to_dict() | {"seed": seed, "identity": identity})
    return found


def _shapes(
    checkpoint: str | Path,
    source: Checkpoint,
    folded: Deployed,
    texts: CalibrationText,
    calibration: Sequence[str] | None,
    longest: int,
    state: State,
    timer: Timer | None,
    report: Progress,
) -> list[Shape]:
    """Return a student's shapes as they were measured; none without a timer, or with too few texts to learn from."""
    learning = tokenize(source, texts.learning(LowRank().texts), longest)
    if timer is None or len(learning) < LEAST_TEXTS:
        return []
    proven = tokenize(source, texts.proof, longest)
    return shapes(checkpoint, folded, learning, proven, texts.proof, calibration, state.work, state.do, timer, report)


def _fast_enough(found: Sequence[Shape], limit: float | None) -> Shape | None:
    """Return the largest shape within `limit` microseconds, None when there is no limit."""
    if limit is None:
        return None
    if not found:
        raise ExportError(f"shapes are fitted on at least {LEAST_TEXTS} texts; give more with calibration")
    within = [shape for shape in found if shape.latency_us <= limit]
    if not within:
        fastest = min(shape.latency_us for shape in found)
        raise ExportError(f"no shape is that fast here: the smallest takes {fastest:.1f} us; allow more than {limit:g}")
    return within[0]


def _counts(folded: Deployed) -> dict[str, Array]:
    return {} if folded.usage is None else {"usage": folded.usage}


def _evolve(
    space: Space, state: State, seed: int, report: Progress, limit: int | None = None, scope: str = ""
) -> tuple[list[Levels], dict[Levels, float]]:
    """Return the front, smallest first, and the error of every candidate seen; `limit` is one more budget."""
    top = [len(space.levels[part]) - 1 for part in space.parts]
    smallest, largest = space.size(tuple(top)), space.size((0,) * len(top))
    plain = {space.size(levels) for levels in space.uniform(dense=0)}
    budgets = sorted(size for size in plain if smallest < size < largest)  # where a uniform recipe has to be beaten
    budgets += [limit] if limit is not None and smallest <= limit and limit not in budgets else []
    seen: dict[Levels, float] = {}

    def judge(levels: Levels) -> float:
        if levels not in seen:
            seen[levels] = space.error(levels)
        return seen[levels]

    uniform = space.uniform()
    total = len(budgets) * _GENERATIONS
    for number, budget in enumerate(budgets):
        kept = state.values.get(f"{scope}budget {budget}")
        if kept is not None:
            seen |= {tuple(levels): error for levels, error in kept}
            report("search", (number + 1) * _GENERATIONS, total)
            continue
        before = set(seen)
        fitting = [levels for levels in uniform if space.size(levels) <= budget]
        parent = min(fitting, key=judge)
        for generation in range(_GENERATIONS):
            rng = np.random.default_rng([seed, budget, generation])
            children = [_child(space, parent, top, budget, rng) for _ in range(_CHILDREN)]
            parent = min((parent, *children), key=judge)
            report("search", number * _GENERATIONS + generation + 1, total)
        state.put(f"{scope}budget {budget}", [(list(levels), seen[levels]) for levels in seen if levels not in before])
    for levels in uniform:
        judge(levels)
    front: list[Levels] = []
    for levels in sorted(seen, key=lambda found: (space.size(found), seen[found])):
        if not front or seen[levels] < seen[front[-1]]:
            front.append(levels)
    return front, seen


def _child(space: Space, parent: Levels, top: Sequence[int], budget: int, rng: np.random.Generator) -> Levels:
    """Return `parent` with one to three parts at a better level, and others at a worse one until it fits."""
    child = list(parent)
    for _ in range(min(rng.integers(1, 4), rng.integers(1, 4))):
        better = [i for i, level in enumerate(child) if level > 0]
        if better:
            child[int(rng.choice(better))] -= 1
    while space.size(tuple(child)) > budget:
        worse = [i for i, level in enumerate(child) if level < top[i]]
        child[int(rng.choice(worse))] += 1
    return tuple(child)


def _overhead(
    checkpoint: str | Path,
    base: Recipe,
    work: Path,
    state: State,
    calibration: Sequence[str] | None,
    report: Progress,
) -> int:
    """Return the bytes of a bundle besides its weights, at most: graphs that open a palette have some nodes more."""

    def measure() -> int:
        path = work / "probe"
        with new_folder(path, replace=path.exists()) as folder:
            recipe = folder / "recipe.toml"
            write_bytes(recipe, _recipe_text(base, {"default": "palette16"}, _PROBE).encode("utf-8"))
            done = export(checkpoint, folder / "bundle", recipe=recipe, calibration=calibration, progress=report)
            return _MARGIN + done.bytes - (folder / "bundle" / "weights.safetensors").stat().st_size

    found: int = state.do("overhead", measure)
    return found


def _choose(
    points: Sequence[Mapping[str, Any]],
    judge: Callable[[int], float],
    max_bytes: int | None,
    max_drop: float | None,
    report: Progress,
) -> int:
    """Return the number of the point that the limits ask for; judges as few points on labelled rows as that takes."""
    allowed = [i for i, point in enumerate(points) if max_bytes is None or point["bytes"] <= max_bytes]
    if not allowed:
        raise ExportError(
            f"no candidate fits {max_bytes:,} bytes: the smallest has {points[0]['bytes']:,}; allow more, or train a "
            "smaller student"
        )
    if max_drop is None:
        judge(allowed[-1])
        return allowed[-1]
    # accuracy follows the field error closely enough to halve the front; what is between is judged last
    low, high, step = 0, len(allowed) - 1, 0
    if judge(allowed[high]) > max_drop:
        raise ExportError(
            f"no candidate keeps to {max_drop:g} points: the best one costs "
            f"{points[allowed[high]]['accuracy']['mean_drop']:.2f}; allow more bytes or a larger drop"
        )
    while low < high and step < _JUDGED:
        report("judge", step, _JUDGED)
        middle = (low + high) // 2
        if judge(allowed[middle]) <= max_drop:
            high = middle
        else:
            low = middle + 1
        step += 1
    report("judge", _JUDGED, _JUDGED)
    return allowed[high]


def _recipe_text(base: Recipe, rules: Mapping[str, str], gate: Parity, plan: LowRank | None = None) -> str:
    """Return the recipe file of a candidate, with the buckets of `base`."""
    wanted = {"fold"} | Precision(rules).wants(rules) | ({"lowrank"} if plan else set())
    passes = ", ".join(f'"{name}"' for name in ("fold", "lowrank", "int8", "palettize") if name in wanted)
    precision = "\n".join(f'"{part}" = "{value}"' for part, value in rules.items())
    return (
        f"# Found by fieldrun search.\nschema = 1\npasses = [{passes}]\n\n[precision]\n{precision}\n\n[buckets]\n"
        f"batches = {list(base.buckets.batches)}\nlengths = {list(base.buckets.lengths)}\n\n[parity]\n"
        f"min_cosine = {gate.min_cosine}\nmax_abs = {gate.max_abs}\nmin_top1 = {gate.min_top1}\n" + recipe_section(plan)
    )
