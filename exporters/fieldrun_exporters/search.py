"""Search: the precision of every part that keeps the fields nearest within a size (EvoPress, arXiv 2410.14649).

Every part is clustered once at every level. A candidate is a level for each part; what it does to the fields of
calibration texts is known without building it, because a position's sum is the sum of what its blocks give. A parent
begins uniform; a child raises the level of one to three parts and lowers others until it fits; the nearest survives.
Several budgets, smallest first, give a front of size against field error. Its points are then judged on labelled rows,
and the one that the limits ask for is exported as a recipe of one's own.

What was done is kept in a work folder: a killed search goes on, and ends as one that was not killed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fieldrun.checkpoint import Checkpoint
from fieldrun.dataset import Dataset
from fieldrun.errors import ExportError, OutputExists, UsageError
from fieldrun.reference import pad_ids
from fieldrun.storage import new_folder, read_json, sha256_bytes, write_bytes, write_json
from fieldrun.tensors import Array, read_tensors, write_tensors

from .calibrate import choose_texts, tokenize
from .deployed import Deployed
from .drop import accuracy_drop, check_tasks
from .export import export, task_specs
from .passes.fold import fold
from .passes.int8 import int8, quantize_rows
from .passes.palettize import cluster, cluster_block, palettize
from .precision import Palette, Precision, Split
from .recipe import Recipe, load_recipe
from .simulate import finish, row_numbers

__all__ = ["DENSE_LEVELS", "TABLE_LEVELS", "SearchReport", "search"]

TABLE_LEVELS = (
    "int8",
    "palette64",
    "palette16",
    "palette64:30%+palette256x4",
    "palette64x2",
    "palette64:20%+palette256x8",
    "palette256x4",
    "palette16:15%+palette256x8",
    "palette256x8",
)
DENSE_LEVELS = ("int8-weights", "palette64", "palette16", "palette8")
"""The levels of a part, most bytes first."""

_TEXTS = 384  # whose fields a candidate is judged on
_BATCH = 64
_CHILDREN = 24
_GENERATIONS = 40
_BUDGETS = 7
_JUDGED = 6  # points of the front that labelled rows are spent on
_MARGIN = 8000  # bytes by which golden answers and reports differ
_WIDTH = 4  # bytes of a packed matrix's width
_METHOD = 2  # raise it when the same settings give another front: what a work folder keeps is then done again

Levels = tuple[int, ...]
Progress = Callable[[str, int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchReport:
    """What a search found: the bundle, its recipe, and the front it was taken from.

    `front` has, per point from the smallest on: `precision`, `weights_bytes`, `bytes` (of the bundle, at most: a few
    thousand less if the graphs have fewer nodes), `field_error` (1 - mean cosine), and, where it was judged, `accuracy`
    (`accuracy_drop`).
    """

    path: Path
    bytes: int
    recipe: Path
    front: tuple[Mapping[str, Any], ...]
    chosen: int

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {
            "path": str(self.path),
            "bytes": self.bytes,
            "recipe": str(self.recipe),
            "front": [dict(point) for point in self.front],
            "chosen": self.chosen,
        }


def search(
    checkpoint: str | Path,
    out: str | Path,
    *,
    data: Mapping[str, Dataset],
    max_bytes: int | None = None,
    max_drop: float | None = None,
    calibration: Sequence[str] | None = None,
    work: Path | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> SearchReport:
    """Find the recipe that keeps most within a size, or the smallest that costs at most so much, and export it.

    Args:
        checkpoint: a checkpoint folder, or `"reference"`.
        out: the folder to make: `bundle/`, `recipe.toml`, `search.json`; must not exist.
        data: task -> labelled rows, of a slice that may choose: not those that will be reported on.
        max_bytes: of the whole bundle. Alone: the candidate with the nearest fields within it.
        max_drop: points of mean accuracy on `data`. The smallest candidate that keeps to it.
        calibration: real texts to judge fields on; a shipped sample when None.
        work: folder that a killed search goes on from; `<out>.work` when None.
        seed: of the mutations.
        progress: called with (phase, done, total).

    Raises:
        UsageError: neither limit is given, or one makes no sense.
        ExportError: no candidate keeps to the limits; the message says how near the best one comes.
        CheckpointError, InputTextError, DatasetError, OutputExists, StorageError: as of `export`.
    """
    report = progress or _silent
    out = Path(out)
    if out.exists():
        raise OutputExists(f"{out} exists; choose another folder or delete it first")
    if max_bytes is None and max_drop is None:
        raise UsageError("a search needs a limit: a size, a drop of accuracy, or both")
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
    texts = choose_texts(calibration, _TEXTS)
    sequences = tokenize(source, texts, base.buckets.lengths[-1])
    folded, _ = fold(source)
    identity = {
        "method": _METHOD,
        "checkpoint": sha256_bytes(write_tensors(dict(folded.tensors) | _counts(folded))),
        "texts": sha256_bytes("\n".join(texts).encode("utf-8")),
        "seed": seed,
    }
    state = _State(work, identity)
    space = _Space(folded, sequences, state, report)
    overhead = _overhead(checkpoint, base, state.work, state, calibration, report)
    front = _evolve(space, state, seed, report, None if max_bytes is None else max_bytes - overhead)
    points = [
        {
            "precision": space.rules(levels),
            "weights_bytes": space.size(levels),
            "bytes": space.size(levels) + overhead,
            "field_error": round(error, 6),
        }
        for levels, error in front
    ]
    forms = [space.rules(levels) for levels, _ in front]
    chosen = _choose(points, forms, source, folded, tasks, data, base, max_bytes, max_drop, state, report)
    recipe = _recipe_text(base, forms[chosen])
    with new_folder(out) as folder:
        write_bytes(folder / "recipe.toml", recipe.encode("utf-8"))
        done = export(
            checkpoint, folder / "bundle", recipe=folder / "recipe.toml", calibration=calibration, progress=report
        )
        if max_bytes is not None and done.bytes > max_bytes:
            raise ExportError(
                f"the chosen bundle has {done.bytes:,} bytes, {done.bytes - max_bytes:,} above the limit; "
                "search with a limit lower by as much"
            )
        found = SearchReport(
            path=out / "bundle", bytes=done.bytes, recipe=out / "recipe.toml", front=tuple(points), chosen=chosen
        )
        write_json(folder / "search.json", found.to_dict() | {"seed": seed, "identity": identity})
    return found


def _counts(folded: Deployed) -> dict[str, Array]:
    return {} if folded.usage is None else {"usage": folded.usage}


def _silent(phase: str, done: int, total: int) -> None:
    del phase, done, total


class _State:
    """What a search has done, in a folder of its own inside the work folder: nothing else there is touched."""

    def __init__(self, work: Path, identity: Mapping[str, Any]) -> None:
        digest = sha256_bytes(json.dumps(identity, sort_keys=True).encode("utf-8"))
        self.work = work / f"search-{digest[:16]}"
        self.work.mkdir(parents=True, exist_ok=True)
        self._path = self.work / "state.json"
        kept = read_json(self._path) if self._path.exists() else {}
        same = isinstance(kept, dict) and kept.get("identity") == json.loads(json.dumps(identity))
        self.values: dict[str, Any] = kept["values"] if same else {}
        self._identity = identity

    def do(self, name: str, make: Callable[[], Any]) -> Any:
        """Return what `make` gives, from the file if it is there."""
        if name not in self.values:
            self.put(name, make())
        return self.values[name]

    def put(self, name: str, value: Any) -> None:
        """Keep `value` under `name`."""
        self.values[name] = value
        write_json(self._path, {"identity": self._identity, "values": self.values})


class _Space:
    """Every part at every level: its bytes, and what it gives on the calibration texts."""

    def __init__(self, folded: Deployed, sequences: Sequence[Sequence[int]], state: _State, report: Progress) -> None:
        self.folded, self.parts = folded, (*folded.blocks, *(n for n in folded.dense() if n != "pairs"))
        tables = [level for level in TABLE_LEVELS if folded.usage is not None or not Split.of(level)]
        self.levels = {part: tables if part in folded.blocks else DENSE_LEVELS for part in self.parts}
        order = np.argsort([len(ids) for ids in sequences], kind="stable")
        groups = [order[i : i + _BATCH] for i in range(0, len(order), _BATCH)]
        self.rows = [row_numbers(folded, pad_ids([sequences[i] for i in group])) for group in groups]
        self._sums: dict[tuple[str, int], list[Array]] = {}
        self._dense: dict[tuple[str, int], dict[str, Array]] = {}
        self._bytes: dict[tuple[str, int], int] = {}
        total, done = sum(len(levels) for levels in self.levels.values()), 0
        for part in self.parts:
            for number, level in enumerate(self.levels[part]):
                report("cluster", done, total)
                tensors = self._clustered(part, level, state.work)
                self._bytes[part, number] = int(tensors.pop("bytes")[0])
                if part in folded.blocks:
                    self._sums[part, number] = self._sum(part, tensors["steps"], tensors["scale"])
                else:
                    self._dense[part, number] = {
                        f"{part}.weight": tensors["steps"].T,
                        f"{part}.weight_scale": tensors["scale"],
                    }
                done += 1
        report("cluster", total, total)
        self._fixed = sum(
            tensor.nbytes
            for name, tensor in folded.tensors.items()
            if name not in ("table", "table.scale", "pairs.weight") and name.removesuffix(".weight") not in self.parts
        )
        self._pairs = {"pairs": "int8-weights"} if "pairs.weight" in folded.tensors else {}
        if self._pairs:
            self._fixed += folded.tensors["pairs.weight"].size + 4 * folded.tensors["pairs.weight"].shape[1]
        self._table_rows = len(folded.tensors["table"])
        exact = [sum(parts) for parts in zip(*(self._sum(b, *self._float(b)) for b in folded.blocks), strict=True)]
        self._target = self._unit(finish(folded.network, folded.tensors, y) for y in exact)

    def _float(self, block: str) -> tuple[Array, Array]:
        start, stop = self.folded.blocks[block]
        return self.folded.tensors["table"][start:stop], np.ones(stop - start, np.float32)

    def _clustered(self, part: str, level: str, work: Path) -> dict[str, Array]:
        """Return steps, scale and stored bytes of `part` at `level`, from the work folder if they are there."""
        path = work / f"{part}-{level}.safetensors"
        if path.exists():
            try:
                return dict(read_tensors(path))
            except ValueError:
                path.unlink()
        if part in self.folded.blocks:
            start, stop = self.folded.blocks[part]
            padding = int(self.folded.tensors["rows.base"][list(self.folded.blocks).index("offset0")])
            even = padding - start if start <= padding < stop else None
            usage = None if self.folded.usage is None else self.folded.usage[start:stop]
            block = cluster_block(self.folded.tensors["table"][start:stop], level, 0, even, usage)
            steps, scale, stored = block.steps, block.scale, sum(tensor.nbytes for tensor in block.stored.values())
        else:
            matrix, palette = np.ascontiguousarray(self.folded.tensors[f"{part}.weight"].T), Palette.of(level)
            if palette is None:
                steps, scale = quantize_rows(matrix)
                stored = steps.nbytes + scale.nbytes
            else:
                found = cluster(matrix, palette)
                steps, scale = found.steps(), found.scale
                stored = found.packed().nbytes + found.codebook.nbytes + scale.nbytes + _WIDTH
        tensors = {"steps": steps, "scale": scale.astype(np.float32), "bytes": np.array([stored], np.int64)}
        write_bytes(path, write_tensors(tensors))
        return tensors

    def _sum(self, block: str, steps: Array, scale: Array) -> list[Array]:
        """Return what `block` adds to every position of every batch of texts."""
        start, stop = self.folded.blocks[block]
        base = self.folded.tensors["rows.base"]
        columns = np.flatnonzero((base >= start) & (base < stop))
        sums = []
        for rows in self.rows:
            total = np.zeros((*rows.shape[:2], steps.shape[1]), np.float32)
            for j in columns:
                own = rows[:, :, j] - start
                total += steps[own] * scale[own][:, :, None].astype(np.float32)
            sums.append(total)
        return sums

    def _unit(self, found: Any) -> Array:
        fields = np.concatenate([output[:, : self.folded.network.field_dim] for output in found])
        unit: Array = fields / np.maximum(np.linalg.norm(fields, axis=1, keepdims=True), 1e-12)
        return unit

    def error(self, levels: Levels) -> float:
        """Return 1 - the mean cosine of the fields with those of the student in float32."""
        tensors = dict(self.folded.tensors)
        chosen = dict(zip(self.parts, levels, strict=True))
        for part, level in chosen.items():
            tensors |= self._dense.get((part, level), {})
        blocks = [self._sums[block, chosen[block]] for block in self.folded.blocks]
        found = self._unit(
            finish(self.folded.network, tensors, np.sum([sums[i] for sums in blocks], axis=0))
            for i in range(len(self.rows))
        )
        return float(1 - (found * self._target).sum(1).mean())

    def size(self, levels: Levels) -> int:
        """Return the bytes of the weights."""
        chosen = dict(zip(self.parts, levels, strict=True))
        packed = any(self.levels[block][chosen[block]] != "int8" for block in self.folded.blocks)
        table = self._table_rows * (2 if packed else 4) + (_WIDTH if packed else 0)
        return self._fixed + table + sum(self._bytes[key] for key in chosen.items())

    def rules(self, levels: Levels) -> dict[str, str]:
        """Return the rules of `[precision]`; pair heads, which see fields and change none, have int8 weights."""
        return {part: self.levels[part][level] for part, level in zip(self.parts, levels, strict=True)} | self._pairs


def _evolve(
    space: _Space, state: _State, seed: int, report: Progress, limit: int | None = None
) -> list[tuple[Levels, float]]:
    """Return the front of all candidates seen: levels and error, smallest first; `limit` is one more budget."""
    top = [len(space.levels[part]) - 1 for part in space.parts]
    smallest, largest = space.size(tuple(top)), space.size((0,) * len(top))
    budgets = np.linspace(smallest, largest, _BUDGETS + 2)[1:-1].astype(int).tolist()
    budgets += [limit] if limit is not None and smallest <= limit else []
    seen: dict[Levels, float] = {}

    def judge(levels: Levels) -> float:
        if levels not in seen:
            seen[levels] = space.error(levels)
        return seen[levels]

    uniform = [tuple(min(level, t) for t in top) for level in range(max(top) + 1)]
    total = len(budgets) * _GENERATIONS
    for number, budget in enumerate(budgets):
        kept = state.values.get(f"budget {budget}")
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
        state.put(f"budget {budget}", [(list(levels), seen[levels]) for levels in seen if levels not in before])
    for levels in uniform:
        judge(levels)
    front: list[tuple[Levels, float]] = []
    for levels in sorted(seen, key=lambda found: (space.size(found), seen[found])):
        if not front or seen[levels] < front[-1][1]:
            front.append((levels, seen[levels]))
    return front


def _child(space: _Space, parent: Levels, top: Sequence[int], budget: int, rng: np.random.Generator) -> Levels:
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
    state: _State,
    calibration: Sequence[str] | None,
    report: Progress,
) -> int:
    """Return the bytes of a bundle besides its weights, at most: graphs that open a palette have some nodes more."""

    def measure() -> int:
        path = work / "probe"
        with new_folder(path, replace=path.exists()) as folder:
            recipe = folder / "recipe.toml"
            write_bytes(recipe, _recipe_text(base, {"default": "palette16"}).encode("utf-8"))
            done = export(checkpoint, folder / "bundle", recipe=recipe, calibration=calibration, progress=report)
            return _MARGIN + done.bytes - (folder / "bundle" / "weights.safetensors").stat().st_size

    found: int = state.do("overhead", measure)
    return found


def _choose(
    points: list[dict[str, Any]],
    forms: Sequence[Mapping[str, str]],
    source: Checkpoint,
    folded: Deployed,
    tasks: Any,
    data: Mapping[str, Dataset],
    base: Recipe,
    max_bytes: int | None,
    max_drop: float | None,
    state: _State,
    report: Progress,
) -> int:
    """Return the number of the point that the limits ask for; judges as few points on `data` as that takes."""
    allowed = [i for i, point in enumerate(points) if max_bytes is None or point["bytes"] <= max_bytes]
    if not allowed:
        raise ExportError(
            f"no candidate fits {max_bytes:,} bytes: the smallest has {points[0]['bytes']:,}; allow more, or train a "
            "smaller student"
        )

    def judge(number: int) -> float:
        def measure() -> Any:
            precision, deployed = Precision(dict(forms[number])), folded
            wanted = precision.wants(precision.rules)
            if "int8" in wanted:
                deployed, _ = int8(folded, precision, {})
            if "palettize" in wanted:
                deployed, _ = palettize(deployed, folded, precision)
            return accuracy_drop(source, folded, deployed, tasks, data, base.buckets.lengths[-1])

        key = f"accuracy of {json.dumps(dict(forms[number]))}, {sorted(rows.sha256 or '' for rows in data.values())}"
        points[number]["accuracy"] = state.do(key, measure)
        return float(points[number]["accuracy"]["mean_drop"])

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


def _recipe_text(base: Recipe, rules: Mapping[str, str]) -> str:
    """Return the recipe file of a candidate, with the buckets of `base`."""
    wanted = {"fold"} | Precision(rules).wants(rules)
    passes = ", ".join(f'"{name}"' for name in ("fold", "int8", "palettize") if name in wanted)
    precision = "\n".join(f'"{part}" = "{value}"' for part, value in rules.items())
    return (
        f"# Found by fieldrun search.\nschema = 1\npasses = [{passes}]\n\n[precision]\n{precision}\n\n[buckets]\n"
        f"batches = {list(base.buckets.batches)}\nlengths = {list(base.buckets.lengths)}\n\n[parity]\n"
        "min_cosine = 0.1\nmax_abs = 100.0\nmin_top1 = 0.1\n"
    )
