"""Check AN1's claims on our own tasks: probes on raw fields, principal components, AN1 fields, and the student.

    python -m studies.an1.measure --data DATA --teacher NAME=FOLDER --work WORK -o benchmarks/records/an1.json

Give `--teacher` once per teacher. DATA is the folder of the suite. Texts, splits, compressor and seed come from a
training recipe. A fine-tuned teacher must have been tuned with the same recipe; otherwise it has seen the held-out
rows. WORK keeps finished stages, so that the command can be stopped and run again. OMP_NUM_THREADS and
OPENBLAS_NUM_THREADS set the threads. Settings are chosen on a slice of train, never on a report file.
"""

from __future__ import annotations

import dataclasses
import hashlib
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

import fieldrun
from fieldrun.distill.compressor import pair_input, train_compressor
from fieldrun.distill.heads import fit_pair_head
from fieldrun.distill.pool import Split, TaskData, TextPool, build_pool
from fieldrun.distill.recipe import DistillRecipe, load_recipe
from fieldrun.distill.teacher import default_layers, extract_raw_field, teacher_hashes, teacher_shape
from fieldrun.distill.training import arithmetic
from fieldrun.errors import DatasetError
from fieldrun.formats.tensors import Array
from fieldrun_benchmarks.harness.record import write_record

from ..paired import Hits, compare, published, scored
from ..stages import Stages, named, tell
from ..suite import data_option, output_option, study, work_option
from .probe import Features, Floats, Integers, Moments, Probe, accumulate, fit, fit_rows
from .spectrum import principal, spectra

__all__ = ["DIRECTIONS", "TeacherFields", "main", "restrict"]

DIRECTIONS = (1, 3, 8, 32, 128, 256)
_DIM = 256
_METHOD = 1  # raise it when the same settings give other figures, so that stages in WORK are measured again

Scores = dict[str, dict[str, Any]]
"""Task to n, accuracy, interval, hits and, of a probe, the settings chosen."""


def restrict(pool: TextPool, train_rows: int | None = None, report_rows: int | None = None) -> TextPool:
    """Return the pool of the classification tasks alone, train texts first, without a corpus.

    At most `train_rows` and `report_rows` rows of a task are kept, drawn with a fixed seed.
    """
    tasks = [
        dataclasses.replace(t, train=_drawn(t.train, train_rows), report=_drawn(_report(t), report_rows))
        for t in pool.tasks
    ]
    train = np.unique(np.concatenate([task.train.rows.reshape(-1) for task in tasks]))
    others = [_report(task).rows for task in tasks] + [task.held_out.rows for task in tasks]
    rest = np.setdiff1d(np.concatenate([rows.reshape(-1) for rows in others]), train)
    order = np.concatenate([train, rest])
    position = np.full(len(pool.texts), -1, np.int64)
    position[order] = np.arange(len(order))

    def moved(split: Split) -> Split:
        return dataclasses.replace(split, rows=position[split.rows])

    moved_tasks = tuple(
        dataclasses.replace(t, train=moved(t.train), held_out=moved(t.held_out), report=moved(_report(t)))
        for t in tasks
    )
    return TextPool(
        texts=tuple(pool.texts[i] for i in order),
        n_transfer=len(train),
        n_labelled=len(train),
        corpus={},
        tasks=moved_tasks,
        similarities=(),
        hashes=pool.hashes,
    )


def _drawn(split: Split, count: int | None) -> Split:
    if count is None or len(split) <= count:
        return split
    kept = np.sort(np.random.default_rng(0).permutation(len(split))[:count])
    return Split(rows=split.rows[kept], labels=split.labels[kept])


def _report(task: TaskData) -> Split:
    if task.report is None:
        raise DatasetError(f"task {task.name!r} has no report file; the recipe must name one")
    return task.report


class TeacherFields:
    """The measurements on one teacher's raw field `(texts, layers * hidden)`, whose last layer is the sentence's."""

    def __init__(self, suite: TextPool, raw: Array, layers: Sequence[int]) -> None:
        self.suite, self.raw, self.layers = suite, raw, layers
        self.hidden = raw.shape[1] // len(layers)

    @cached_property
    def moments(self) -> Moments:
        """Of the raw field, over the train texts of all tasks."""
        return accumulate(self._raw, np.arange(self.suite.n_transfer))

    def spectra(self) -> dict[str, Any]:
        """Return how the variance spreads, per layer and in the whole raw field."""
        width = self.hidden
        parts = {str(layer): slice(i * width, (i + 1) * width) for i, layer in enumerate(self.layers)}
        return {name: spectra(self.moments, columns) for name, columns in (parts | {"whole": slice(None)}).items()}

    def raw_probes(self) -> Scores:
        """Row (a): the probe on the raw field of all layers."""
        return self._probes(self._raw)

    def sentence_probes(self) -> Scores:
        """Row (b): the probe on the mean of the last layer, scaled to length 1."""

        def sentence(rows: Integers) -> Floats:
            last = np.asarray(self.raw[rows, -self.hidden :], np.float64)
            unit: Floats = last / np.maximum(np.linalg.norm(last, axis=1, keepdims=True), 1e-12)
            return unit

        return self._probes(sentence)

    def principal_probes(self) -> dict[str, Scores]:
        """Row (c): the probe on the first k principal components of the standardised raw field, for every k."""
        kept = [k for k in DIRECTIONS if k <= self.raw.shape[1]]
        width = kept[-1]
        offset, projection = principal(self.moments, width)
        features = _pairs(lambda rows: self._raw(rows) @ projection - offset)
        result: dict[str, Scores] = {str(k): {} for k in kept}
        for task in self.suite.tasks:
            moments = accumulate(features, task.train.rows, task.train.labels, len(task.labels))
            x_held, x = features(task.held_out.rows), features(_report(task).rows)
            for k in kept:  # of a pair's four blocks, the first k columns of each
                columns = np.concatenate([np.arange(k) + i for i in range(0, len(moments.mean), width)])
                probe = fit(moments.part(columns), x_held[:, columns], task.held_out.labels)
                result[str(k)][task.name] = _scored(task, probe.predict(x[:, columns]), probe)
        return result

    def an1(self, recipe: DistillRecipe, seed: int, progress: Callable[[int, int], None]) -> dict[str, Scores]:
        """Row (d): train the AN1 compressor; score the field's own heads, and the probe on the field."""
        compressed = train_compressor(self.suite, self.raw, recipe.compressor, _DIM, seed, progress)
        field = torch.from_numpy(compressed.field)
        heads: Scores = {}
        for task in self.suite.tasks:
            x, x_held, x_report = (_inputs(field, s) for s in (task.train, task.held_out, _report(task)))
            head = compressed.heads[task.name]
            if task.kind == "pair":
                y, y_held = torch.from_numpy(task.train.labels), torch.from_numpy(task.held_out.labels)
                head = fit_pair_head(x, y, x_held, y_held, len(task.labels))
            with torch.inference_mode():
                heads[task.name] = _scored(task, head(x_report).argmax(1).numpy())
        probes = self._probes(lambda rows: np.asarray(compressed.field[rows], np.float64))
        return {"field_head": heads, "field_probe": probes}

    def _raw(self, rows: Integers) -> Floats:
        return np.asarray(self.raw[rows], np.float64)

    def _probes(self, read: Features) -> Scores:
        features, result = _pairs(read), {}
        for task in self.suite.tasks:
            x_held, y_held, labels = features(task.held_out.rows), task.held_out.labels, len(task.labels)
            if x_held.shape[1] > len(task.train):
                probe = fit_rows(features(task.train.rows), task.train.labels, labels, x_held, y_held)
            else:
                moments = accumulate(features, task.train.rows, task.train.labels, labels)
                probe = fit(moments, x_held, y_held)
            result[task.name] = _scored(task, probe.predict(features(_report(task).rows)), probe)
        return result


def _pairs(read: Features) -> Features:
    """Return `read` that makes `[a; b; |a - b|; a * b]` of pairs of texts."""

    def features(rows: Integers) -> Floats:
        if rows.ndim == 1:
            return read(rows)
        a, b = read(rows[:, 0]), read(rows[:, 1])
        return np.concatenate([a, b, np.abs(a - b), a * b], axis=1)

    return features


def _inputs(field: torch.Tensor, split: Split) -> torch.Tensor:
    rows = split.rows
    return field[rows] if rows.ndim == 1 else pair_input(field[rows[:, 0]], field[rows[:, 1]])


def _scored(task: TaskData, predicted: Array, probe: Probe | None = None) -> dict[str, Any]:
    result = scored(predicted == _report(task).labels)
    if probe is not None:
        chosen = {"scaling": probe.scaling, "penalty": probe.penalty, "held_out": probe.held_out}
        result["probe"] = {name: round(v, 6) if isinstance(v, float) else v for name, v in chosen.items()}
    return result


def _measure(
    suite: TextPool, folder: Path, work: Path, recipe: DistillRecipe, seeds: Sequence[int], student: Mapping[str, Hits]
) -> dict[str, Any]:
    hashes = teacher_hashes(folder)
    count, dtype = recipe.teacher.layers, arithmetic(recipe.teacher.dtype)
    layers = default_layers(teacher_shape(folder)[0], count) if isinstance(count, int) else count
    identity = {
        "method": _METHOD,
        "suite": _digest(suite),
        "teacher": hashes,
        "field": [list(layers), recipe.teacher.max_tokens, dtype],
        "compressor": dataclasses.asdict(recipe.compressor),
    }
    work.mkdir(parents=True, exist_ok=True)
    stages = Stages(work / "stages.json", identity)

    def read() -> Array:
        return extract_raw_field(
            suite.texts,
            folder,
            work / "raw_field.npy",
            layers=layers,
            max_tokens=recipe.teacher.max_tokens,
            dtype=dtype,
            progress=tell(),
        )

    stages.do("raw field", lambda: list(read().shape))
    fields = TeacherFields(suite, read(), layers)
    methods: dict[str, list[Scores]] = {}
    spread = stages.do("spectra", fields.spectra)
    methods["raw"] = [stages.do("probe on the raw field", fields.raw_probes)]
    methods["sentence"] = [stages.do("probe on the sentence vector", fields.sentence_probes)]
    components = stages.do("probes on principal components", fields.principal_probes)
    methods |= {f"pca{k}": [scores] for k, scores in components.items()}
    runs = [stages.do(f"AN1 field, seed {seed}", partial(fields.an1, recipe, seed, tell())) for seed in seeds]
    methods |= {name: [run[name] for run in runs] for name in ("field_head", "field_probe")}
    kinds = {task.name: task.kind for task in suite.tasks}
    return {
        "sha256": hashes,
        "layers": list(layers),
        "hidden": fields.hidden,
        "arithmetic": dtype,
        **published(methods, kinds),
        "differences": compare(methods, student, kinds),
        "spectra": spread,
        "seconds": stages.state["seconds"],
    }


def _digest(suite: TextPool) -> str:
    digest = hashlib.sha256("\0".join(suite.texts).encode("utf-8", "surrogatepass"))
    for task in suite.tasks:
        for split in (task.train, task.held_out, _report(task)):
            digest.update(np.ascontiguousarray(split.rows).tobytes() + split.labels.tobytes())
    return digest.hexdigest()


def _student(name: str, suite: TextPool) -> tuple[dict[str, Any], Scores]:
    """Label the report files with the bundle `name`."""
    scores: Scores = {}
    with fieldrun.load(name, engine="onnxruntime") as model:
        for task in suite.tasks:
            rows = _report(task).rows
            single = [suite.texts[i] for i in rows.reshape(-1)]
            texts = single if rows.ndim == 1 else list(zip(single[0::2], single[1::2], strict=True))
            number = {label: i for i, label in enumerate(task.labels)}
            scores[task.name] = _scored(task, np.array([number.get(x, -1) for x in model.predict(texts, task.name)]))
        manifest = model.manifest
    about = {
        "name": manifest.name,
        "recipe": manifest.recipe["name"],
        "weights_sha256": manifest.files["weights.safetensors"].sha256,
        "parameters": manifest.network.parameters,
    }
    return about, scores


@study(__doc__)
@data_option
@click.option(
    "--teacher",
    "teachers",
    multiple=True,
    required=True,
    metavar="NAME=FOLDER",
    help="A teacher; repeat it.",
)
@work_option
@output_option
@click.option("--recipe", default="reference", show_default=True, help="The training recipe, by name or path.")
@click.option("--student", default="reference", show_default=True, help="The student's bundle, by name or path.")
@click.option("--seeds", default=3, show_default=True, type=click.IntRange(1), help="How many AN1 fields to train.")
@click.option("--steps", type=click.IntRange(20), help="Training steps of an AN1 field.  [default: the recipe's]")
@click.option("--rows", type=click.IntRange(1), help="The most train rows of a task.  [default: all]")
@click.option("--report-rows", type=click.IntRange(1), help="The most report rows of a task.  [default: all]")
def main(
    data: Path,
    teachers: Sequence[str],
    work: Path,
    output: Path,
    recipe: str,
    student: str,
    seeds: int,
    steps: int | None,
    rows: int | None,
    report_rows: int | None,
) -> None:
    """Write the record behind docs/an1.md."""
    folders = dict(named(teacher) for teacher in teachers)
    plan = load_recipe(recipe)
    if steps is not None:
        plan = dataclasses.replace(plan, compressor=dataclasses.replace(plan.compressor, steps=steps))
    click.echo("reading the suite", err=True)
    pool = build_pool(plan, data)
    suite = restrict(pool, rows, report_rows)
    about, scores = _student(student, suite)
    hits = {name: Hits.of([entry]) for name, entry in scores.items()}
    numbers = [plan.seed + i for i in range(seeds)]
    measured = {name: _measure(suite, path, work / name, plan, numbers, hits) for name, path in folders.items()}
    kinds = {task.name: task.kind for task in suite.tasks}
    values = {
        "recipe": plan.name,
        "seeds": numbers,
        "steps": plan.compressor.steps,
        "rows_at_most": {"train": rows, "report": report_rows},
        "texts": {"train": suite.n_transfer, "all": len(suite.texts)},
        "tasks": {
            task.name: {
                "kind": task.kind,
                "labels": len(task.labels),
                "train": len(task.train),
                "held_out": len(task.held_out),
                "report": len(_report(task)),
                "majority": round(float(np.bincount(_report(task).labels).max()) / len(_report(task)), 5),
            }
            for task in suite.tasks
        },
        "data_sha256": dict(suite.hashes),
        "teachers": measured,
        "student": about | published({"student": [scores]}, kinds),
        "libraries": {name: version(name) for name in ("torch", "transformers")},
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }
    command = "python -m studies.an1.measure --data DATA --teacher NAME=FOLDER ... --work WORK -o RECORD"
    write_record(output, "an1", command, values)


if __name__ == "__main__":
    main()
