"""Measure a ladder of export recipes on one student: bytes, accuracy, latency, memory; one record.

    python -m fieldrun_benchmarks.ladder --data DATA --work WORK -o benchmarks/records/ladder.json

Every recipe is exported from the checkpoint into WORK (those that are there already are measured as they are) and
opened by the native engine, as a user's program opens it. Accuracy is that of all report files; what a recipe costs is
the difference on the same rows from the same student in float32. Latency is from text to all labels, all bundles in
turns on the same texts; a fresh process each gives its peak memory.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click

# one thread each, for a comparison that means something; before NumPy and tokenizers are imported
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np  # noqa: E402

import fieldrun  # noqa: E402
from fieldrun.bundle import Bundle  # noqa: E402
from fieldrun.dataset import Dataset, read_tsv  # noqa: E402
from fieldrun.errors import ExportError  # noqa: E402
from fieldrun.storage import write_bytes  # noqa: E402
from fieldrun_exporters.recipe import load_recipe  # noqa: E402

from .cold_start import cold_starts  # noqa: E402
from .latency import summary, time_in_turns  # noqa: E402
from .paired import difference, scored  # noqa: E402
from .record import write_record  # noqa: E402
from .suite import report_sets  # noqa: E402

__all__ = ["LADDER", "main", "recipe_text"]

BASELINE = "fp32"
_DENSE = {"dense": "int8-weights", "mixer": "fp32"}
_TUNED = " tuned"
LADDER: dict[str, dict[str, str]] = {
    BASELINE: {},
    "fp16": {"default": "fp16"},
    "int8": {"tables": "int8", **_DENSE},
    "int4": {"tables": "int4", **_DENSE},
    "palette64": {"tables": "palette64", **_DENSE},
    "palette64 tuned": {"tables": "palette64", **_DENSE},
    "palette32": {"tables": "palette32", **_DENSE},
    "palette32 tuned": {"tables": "palette32", **_DENSE},
    "palette16": {"tables": "palette16", **_DENSE},
    "palette16 tuned": {"tables": "palette16", **_DENSE},
    "palette64x2": {"tables": "palette64x2", **_DENSE},
    "palette4": {"tables": "palette4", **_DENSE},
    "palette256x4": {"tables": "palette256x4", **_DENSE},
    "palette256x4 tuned": {"tables": "palette256x4", **_DENSE},
    "cpu-small": {},
    "cpu-tiny": {},
}
"""The rungs: the rules of `[precision]`, with recovery for those called tuned; none for shipped recipes."""

_PASSES = ("int8", "fp16", "palettize")
_TEXTS_PER_TASK = 2500
_SPEED_TASKS = ("sst2", "trec")
_FIRST_LABEL = """
import fieldrun
with fieldrun.load({path!r}, engine="native") as model:
    print(model.predict_all(["a gripping film"]))
"""


def recipe_text(rules: Mapping[str, str], *, tuned: bool = False) -> str:
    """Return a recipe with these rules, tuned or not: the buckets of the shipped ones, and a gate that lets all pass.

    The ladder measures what a recipe costs; it must not be stopped by what it wants to find.
    """
    from fieldrun_exporters.precision import Precision

    wanted = Precision(rules).wants(rules)
    named = ("fold", *(name for name in _PASSES if name in wanted), *(["recover"] if tuned else []))
    passes = ", ".join(f'"{name}"' for name in named)
    precision = "\n".join(f'"{name}" = "{value}"' for name, value in rules.items())
    buckets = load_recipe("cpu-int8").buckets
    return (
        f"schema = 1\npasses = [{passes}]\n\n[precision]\n{precision}\n\n[buckets]\nbatches = {list(buckets.batches)}\n"
        f"lengths = {list(buckets.lengths)}\n\n[parity]\nmin_cosine = 0.01\nmax_abs = 1000\nmin_top1 = 0.01\n"
    )


def _export(
    checkpoint: str, work: Path, name: str, rules: Mapping[str, str], calibration: Sequence[str] | None
) -> Path:
    slug = name.replace(" ", "-")
    path = work / slug
    if not path.exists():
        click.echo(f"exporting {name}", err=True)
        recipe: str | Path = name
        if not name.startswith("cpu-"):
            recipe = work / f"{slug}.toml"
            write_bytes(recipe, recipe_text(rules, tuned=name.endswith(_TUNED)).encode("utf-8"))
        fieldrun.export(checkpoint, path, recipe=recipe, calibration=calibration)
    return path


def _train_texts(data: Path) -> list[str] | None:
    """Return texts of the train files of `data`, so many of each, to calibrate and tune on; None if it has none."""
    found: list[str] = []
    for path in sorted(data.glob("*/train.tsv")):
        texts = [text for item in read_tsv(path).texts for text in ([item] if isinstance(item, str) else item)]
        found += texts[:: -(-len(texts) // _TEXTS_PER_TASK)]
    return found or None


def _hits(path: Path, sets: Mapping[str, Dataset]) -> dict[str, np.ndarray[Any, np.dtype[np.bool_]]]:
    with fieldrun.load(path, engine="native") as model:
        return {task: np.array(model.predict(rows.texts, task)) == np.array(rows.labels) for task, rows in sets.items()}


def _latency(paths: Mapping[str, Path], sets: Mapping[str, Dataset], rounds: int) -> dict[str, dict[str, Any]]:
    """Return, per workload and bundle, latency and the median ratio to the int8 bundle over the rounds."""
    models = {name: fieldrun.load(path, engine="native") for name, path in paths.items()}
    result: dict[str, dict[str, Any]] = {}
    for task in _SPEED_TASKS:
        texts = [str(text) for text in sets[task].texts]
        subjects = {name: _labeller(model) for name, model in models.items()}
        timed = time_in_turns(subjects, texts, rounds=rounds, apart=True)
        base = np.median(timed["int8"], axis=1)
        result[task] = {
            name: summary(micros).to_dict() | {"to_int8": round(float(np.median(np.median(micros, axis=1) / base)), 3)}
            for name, micros in timed.items()
        }
    for model in models.values():
        model.close()
    return result


def _labeller(model: fieldrun.FieldModel) -> Callable[[str], object]:
    return lambda text: model.predict_all([text])


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder with one folder per task.")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="Folder that keeps the bundles.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The record to write.")
@click.option("--checkpoint", default="reference", show_default=True, help="The student, by name or path.")
@click.option("--only", multiple=True, help="Rungs to measure besides fp32 and int8.  [default: all]")
@click.option("--rounds", type=click.IntRange(min=3), default=5, show_default=True, help="Rounds of the latency.")
def main(data: Path, work: Path, output: Path, checkpoint: str, only: Sequence[str], rounds: int) -> None:
    """Write the record behind docs/recipes.md."""
    names = [name for name in LADDER if not only or name in (BASELINE, "int8", *only)]
    work.mkdir(parents=True, exist_ok=True)
    texts = _train_texts(data)
    paths: dict[str, Path] = {}
    refused: dict[str, str] = {}
    for name in names:
        try:
            paths[name] = _export(checkpoint, work, name, LADDER[name], texts)
        except ExportError as error:  # a finding as well: tuning that gains nothing is refused
            refused[name] = str(error)
    sets = report_sets(paths[BASELINE], data)
    hits = {}
    for name, path in paths.items():
        click.echo(f"accuracy of {name}", err=True)
        hits[name] = _hits(path, sets)
    click.echo("latency", err=True)
    latency = _latency(paths, sets, rounds)
    click.echo("memory", err=True)
    cold = cold_starts({name: _FIRST_LABEL.format(path=str(path)) for name, path in paths.items()}, runs=5)
    rungs = {}
    for name, path in paths.items():
        bundle = Bundle.load(path)
        tasks = {task: {k: v for k, v in scored(found).items() if k != "hits"} for task, found in hits[name].items()}
        lost = {t: found.astype(np.float64) - hits[name][t] for t, found in hits[BASELINE].items()}
        rungs[name] = {
            "precision": bundle.manifest.recipe["precision"],
            "bytes": bundle.total_bytes(),
            "weights_bytes": bundle.manifest.files["weights.safetensors"].bytes,
            "weights_sha256": bundle.manifest.files["weights.safetensors"].sha256,
            "tasks": tasks,
            "mean_accuracy": sum(entry["accuracy"] for entry in tasks.values()) / len(tasks),
            "drop": {"mean": difference(list(lost.values())), "tasks": {t: difference([v]) for t, v in lost.items()}},
            "latency": {task: found[name] for task, found in latency.items()},
            "fresh_process": cold[name].to_dict(),
        }
    values = {
        "checkpoint": checkpoint,
        "rungs": rungs,
        "refused": refused,
        "data_sha256": {task: rows.sha256 for task, rows in sets.items()},
        "scenario": "native engine, batch 1, one thread, text to all labels; all bundles in turns, each another text",
    }
    command = "python -m fieldrun_benchmarks.ladder --data DATA --work WORK -o benchmarks/records/ladder.json"
    write_record(output, "ladder", command, values)


if __name__ == "__main__":
    main()
