"""Measure a ladder of export recipes on one student: bytes, accuracy, latency, memory.

    python -m studies.ladder.measure --data DATA --work WORK -o benchmarks/records/ladder.json

Every recipe is exported from the checkpoint into WORK, unless WORK has its bundle, and run by the native engine.
Accuracy is measured on all report files; the cost of a recipe is the difference on the same rows from the same student
in float32. Latency is from text to all labels, all bundles in turns on the same texts. Peak memory is that of a fresh
process.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

import fieldrun
from fieldrun.errors import ExportError
from fieldrun.evaluation.dataset import Dataset, read_tsv
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.storage import read_json, write_bytes
from fieldrun_benchmarks.harness.cold_start import cold_starts
from fieldrun_benchmarks.harness.record import write_record
from fieldrun_benchmarks.harness.timer import time_texts
from fieldrun_exporters.precision import Precision
from fieldrun_exporters.recipe import load_recipe

from ..paired import counted, difference
from ..suite import data_option, hits, output_option, report_sets, study, work_option

__all__ = ["LADDER", "Rung", "main", "recipe_text"]

BASELINE = "fp32"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rung:
    """A recipe of the ladder: the rules of `[precision]`, whether it is tuned, and the features of `[lowrank]`."""

    rules: Mapping[str, str] = field(default_factory=dict)
    tuned: bool = False
    lowrank: Mapping[str, int] = field(default_factory=dict)


_DENSE = {"dense": "int8-weights", "mixer": "fp32"}
_SHIPPED = ("cpu-small", "cpu-tiny")
_TABLES = (
    "int8",
    "int4",
    "palette64",
    "palette64 tuned",
    "palette32",
    "palette32 tuned",
    "palette16",
    "palette16 tuned",
    "palette64x2",
    "palette4",
    "palette256x4",
    "palette256x4 tuned",
    "palette64:20%+palette256x4",
    "palette16:20%+palette256x8",
)


def _tables(name: str, lowrank: Mapping[str, int] | None = None) -> Rung:
    precision, tuned = name.removesuffix(" tuned"), name.endswith(" tuned")
    return Rung(rules={"tables": precision, **_DENSE}, tuned=tuned, lowrank=lowrank or {})


LADDER: dict[str, Rung] = {
    BASELINE: Rung(),
    "fp16": Rung(rules={"default": "fp16"}),
    **{name: _tables(name) for name in _TABLES},
    "lowrank 7/8": _tables("int8", {"width": 112, "mixer": 168, "hidden": 224}),
    "lowrank 3/4": _tables("int8", {"width": 96, "mixer": 144, "hidden": 192}),
    **{name: Rung() for name in _SHIPPED},
}
"""The rungs, by name; those of shipped recipes are empty."""

_PASSES = ("int8", "fp16", "palettize")
_TEXTS_PER_TASK = 2500
_SPEED_TASKS = ("sst2", "trec")
_DOMAINS = ("banking77", "clinc150", "trec")
_FIRST_LABEL = """
import fieldrun
with fieldrun.load({path!r}, engine="native") as model:
    print(model.predict_all(["a gripping film"]))
"""


def recipe_text(rung: Rung) -> str:
    """Return the recipe of a rung: the buckets of the shipped recipes, and limits that every export passes.

    The ladder measures what a recipe costs, so that a costly recipe must not be refused.
    """
    wanted = Precision(rung.rules).wants(rung.rules)
    named = ["fold", *(["lowrank"] if rung.lowrank else []), *(name for name in _PASSES if name in wanted)]
    passes = ", ".join(f'"{name}"' for name in [*named, *(["recover"] if rung.tuned else [])])
    precision = "\n".join(f'"{name}" = "{value}"' for name, value in rung.rules.items())
    features = "".join(f"{site} = {kept}\n" for site, kept in rung.lowrank.items())
    buckets = load_recipe("cpu-int8").buckets
    return (
        f"schema = 1\npasses = [{passes}]\n\n[precision]\n{precision}\n\n[buckets]\nbatches = {list(buckets.batches)}\n"
        f"lengths = {list(buckets.lengths)}\n\n[parity]\nmin_cosine = 0.01\nmax_abs = 1000\nmin_top1 = 0.01\n"
        + (f"\n[lowrank]\n{features}" if features else "")
    )


def _export(checkpoint: str, work: Path, name: str, calibration: Sequence[str] | None) -> Path:
    slug = re.sub(r"[^\w.-]+", "-", name)
    path = work / slug
    if not path.exists():
        click.echo(f"exporting {name}", err=True)
        recipe: str | Path = name
        if name not in _SHIPPED:
            recipe = work / f"{slug}.toml"
            write_bytes(recipe, recipe_text(LADDER[name]).encode("utf-8"))
        fieldrun.export(checkpoint, path, recipe=recipe, calibration=calibration)
    return path


def _domains(checkpoint: str, work: Path, data: Path, tasks: Sequence[str]) -> dict[str, Any]:
    """Return, for some domains, what pruning to the vocabulary of their train texts saves and costs on their rows."""
    found = {}
    recipe = work / "domain.toml"
    rung = LADDER["palette16"]
    text = recipe_text(rung).replace('passes = ["fold"', 'passes = ["prune-vocabulary", "fold"')
    write_bytes(recipe, text.encode("utf-8"))
    for task in tasks:
        texts = [str(text) for text in read_tsv(data / task / "train.tsv").texts]
        rows = report_sets(work / BASELINE, data)[task]
        path = work / f"domain-{task}"
        if not path.exists():
            click.echo(f"exporting the vocabulary of {task}", err=True)
            fieldrun.export(checkpoint, path, recipe=recipe, calibration=texts)
        report = read_json(path / "report.json")
        before, after = (hits(each, {task: rows})[task] for each in (work / BASELINE, path))
        found[task] = {
            "bytes": Bundle.load(path).total_bytes(),
            "pruned": report["passes"][0]["changed"],
            "n": len(rows),
            "accuracy": counted(after),
            "drop": difference([before.astype(np.float64) - after]),
        }
    return found


def _train_texts(data: Path) -> list[str] | None:
    """Return some texts of every train file in `data` to calibrate and tune on, or None without such files."""
    found: list[str] = []
    for path in sorted(data.glob("*/train.tsv")):
        texts = [text for item in read_tsv(path).texts for text in ([item] if isinstance(item, str) else item)]
        found += texts[:: -(-len(texts) // _TEXTS_PER_TASK)]
    return found or None


def _latency(paths: Mapping[str, Path], sets: Mapping[str, Dataset], rounds: int) -> dict[str, dict[str, Any]]:
    """Return, per workload and bundle, latency and the ratio to the int8 bundle.

    `first_to_int8`, of the first workload, is the ratio in the first pass over the texts: the native engine unpacks a
    row of a table when a text first needs it.
    """
    models = {name: fieldrun.load(path, engine="native") for name, path in paths.items()}
    subjects = {name: _labeller(model) for name, model in models.items()}
    result: dict[str, dict[str, Any]] = {}
    for task in _SPEED_TASKS:
        texts = [str(text) for text in sets[task].texts]
        first = None if result else time_texts(subjects, texts, repeats=1, warm_up=0)
        timed = time_texts(subjects, texts, repeats=rounds)
        result[task] = {name: timed[name] for name in subjects}
        for name, found in result[task].items():
            found["to_int8"] = round(timed.ratio(name, "int8")["median"], 3)
            if first is not None:
                found["first_to_int8"] = round(first[name]["p50_us"] / first["int8"]["p50_us"], 3)
    for model in models.values():
        model.close()
    return result


def _labeller(model: fieldrun.FieldModel) -> Callable[[str], object]:
    return lambda text: model.predict_all([text])


@study(__doc__)
@data_option
@work_option
@output_option
@click.option("--checkpoint", default="reference", show_default=True, help="The student, by name or path.")
@click.option("--only", multiple=True, help="A rung to measure besides fp32 and int8; repeat it.  [default: all]")
@click.option("--domain", multiple=True, default=_DOMAINS, show_default=True, help="A task to prune to; repeat it.")
@click.option("--rounds", type=click.IntRange(min=3), default=5, show_default=True, help="How many rounds of latency.")
def main(
    data: Path,
    work: Path,
    output: Path,
    checkpoint: str,
    only: Sequence[str],
    domain: Sequence[str],
    rounds: int,
) -> None:
    """Write the record behind docs/recipes.md."""
    names = [name for name in LADDER if not only or name in (BASELINE, "int8", *only)]
    work.mkdir(parents=True, exist_ok=True)
    texts = _train_texts(data)
    paths: dict[str, Path] = {}
    refused: dict[str, str] = {}
    for name in names:
        try:
            paths[name] = _export(checkpoint, work, name, texts)
        except ExportError as error:  # a finding as well: tuning that gains nothing is refused
            refused[name] = str(error)
    sets = report_sets(paths[BASELINE], data)
    right = {}
    for name, path in paths.items():
        click.echo(f"accuracy of {name}", err=True)
        right[name] = hits(path, sets)
    click.echo("latency", err=True)
    latency = _latency(paths, sets, rounds)
    click.echo("memory", err=True)
    cold = cold_starts({name: _FIRST_LABEL.format(path=str(path)) for name, path in paths.items()}, runs=5)
    rungs = {}
    for name, path in paths.items():
        bundle = Bundle.load(path)
        tasks = {task: counted(found) for task, found in right[name].items()}
        lost = {t: found.astype(np.float64) - right[name][t] for t, found in right[BASELINE].items()}
        rungs[name] = {
            "precision": bundle.manifest.recipe["precision"],
            "bytes": bundle.total_bytes(),
            "weights_bytes": bundle.manifest.files["weights.safetensors"].bytes,
            "weights_sha256": bundle.manifest.files["weights.safetensors"].sha256,
            "field": read_json(path / "report.json")["proof"]["field"],
            "tasks": tasks,
            "mean_accuracy": sum(entry["accuracy"] for entry in tasks.values()) / len(tasks),
            "drop": {"mean": difference(list(lost.values())), "tasks": {t: difference([v]) for t, v in lost.items()}},
            "latency": {task: found[name] for task, found in latency.items()},
            "fresh_process": cold[name],
        }
    values = {
        "checkpoint": checkpoint,
        "rungs": rungs,
        "refused": refused,
        "domains": _domains(checkpoint, work, data, domain),
        "data_sha256": {task: rows.sha256 for task, rows in sets.items()},
        "scenario": "native engine, batch 1, one thread, text to all labels; all bundles in turns, each another text",
    }
    command = "python -m studies.ladder.measure --data DATA --work WORK -o benchmarks/records/ladder.json"
    write_record(output, "ladder", command, values)


if __name__ == "__main__":
    main()
