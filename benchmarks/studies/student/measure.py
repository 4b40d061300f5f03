"""Measure the shipped student: the accuracy of its recipes, and what a fresh process takes.

    python -m studies.student.measure --data DATA -o benchmarks/records

DATA is the folder of the suite: one folder a task with `dev.tsv` or `test.tsv`. The bundles are exported from the
shipped checkpoint first, as a reader would. Cold starts are those of the shipped bundle. Its latency is measured beside
its peers (`studies.peers.measure`).
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

import fieldrun
from fieldrun.evaluation.dataset import Dataset, read_tsv
from fieldrun.evaluation.metrics import auroc, spearman
from fieldrun.formats.bundle import Bundle
from fieldrun_benchmarks.harness.cold_start import cold_starts
from fieldrun_benchmarks.harness.record import write_record

from ..suite import artifact, data_option, evaluated, output_option, report_sets, study
from .tables import RECIPES

__all__ = ["main"]

_PREFIXES = (256, 128, 64)
_OUT_OF_SCOPE = ("clinc150", "oos")
_IMPORTS = "import numpy, onnxruntime, tokenizers"
_FIRST_LABEL = """
import fieldrun
with fieldrun.load({path!r}, engine={engine!r}) as model:
    print(model.predict(["a gripping film"], "sst2"))
"""
_EVERY_BUCKET = """
import fieldrun
with fieldrun.load({path!r}, engine="onnxruntime") as model:
    for bucket in model.manifest.buckets:
        model.field([" ".join(["film"] * (bucket.length - 2))] * bucket.batch)
"""


@study(__doc__)
@data_option
@output_option
def main(data: Path, output: Path) -> None:
    """Write the records of the shipped student: accuracy-RECIPE.json and cold-start.json."""
    command = "python -m studies.student.measure --data DATA -o benchmarks/records"
    with tempfile.TemporaryDirectory() as scratch:
        for recipe in RECIPES:
            click.echo(f"accuracy of {recipe}", err=True)
            path = Path(scratch) / recipe
            fieldrun.export("reference", path, recipe=recipe)
            write_record(output / f"accuracy-{recipe}.json", "accuracy", command, _accuracy(path, data))
    click.echo("cold start", err=True)
    write_record(output / "cold-start.json", "cold-start", command, _cold_start("reference"))


def _accuracy(path: Path, data: Path) -> dict[str, Any]:
    sets, tasks = report_sets(path, data), {}
    with fieldrun.load(path, engine="onnxruntime") as model:
        for task, rows in sets.items():
            tasks[task] = {
                "file": f"{task}/{rows.path.name}",
                "sha256": rows.sha256,
                **evaluated(model, rows, task),
                "majority": max(rows.labels.count(label) for label in set(rows.labels)) / len(rows),
            }
        return {
            "artifact": artifact(Bundle.load(path)),
            "engine": "onnxruntime",
            "tasks": tasks,
            "mean_accuracy": sum(entry["accuracy"] for entry in tasks.values()) / len(tasks),
            "similarity": _similarity(model, data),
            "rejection": _rejection(model, sets),
        }


def _similarity(model: fieldrun.FieldModel, data: Path) -> dict[str, Any]:
    """Return Spearman's correlation of the cosines with STS-B's grades, of whole fields and of prefixes."""
    rows = read_tsv(data / "stsb" / "dev.tsv")
    first, second = ([str(pair[side]) for pair in rows.texts] for side in (0, 1))
    grades = [float(label) for label in rows.labels]
    fields = model.field(first), model.field(second)
    cosines = {dim: model.similarity_pairwise(*(x[:, :dim] for x in fields)) for dim in _PREFIXES}
    correlation = {dim: spearman(found, grades) for dim, found in cosines.items()}
    return {"file": f"stsb/{rows.path.name}", "sha256": rows.sha256, "n": len(rows), "spearman": correlation}


def _rejection(model: fieldrun.FieldModel, sets: dict[str, Dataset]) -> dict[str, Any]:
    """Return how well texts out of scope are told from the others, as the area under the ROC curve."""
    task, name = _OUT_OF_SCOPE
    rows = sets[task]
    outside = [label == name for label in rows.labels]
    column = model.labels(task).index(name)
    return {
        "file": f"{task}/{rows.path.name}",
        "n": len(rows),
        "out_of_scope": sum(outside),
        "auroc": {
            "rejection": auroc(model.rejection(rows.texts, task), outside),
            "probability of its own label": auroc(model.predict_proba(rows.texts, task)[:, column], outside),
        },
    }


def _cold_start(path: str) -> dict[str, Any]:
    programs = {"imports only": _IMPORTS}
    programs |= {engine: _FIRST_LABEL.format(path=path, engine=engine) for engine in ("onnxruntime", "numpy", "auto")}
    measured = cold_starts(programs | {"every bucket": _EVERY_BUCKET.format(path=path)})
    base = measured["imports only"]["wall_s"]
    return {
        "artifact": artifact(Bundle.load(path)),
        "imports_only": _IMPORTS,
        "programs": {
            name: value | {"ratio_to_imports": round(value["wall_s"] / base, 3)} for name, value in measured.items()
        },
    }


if __name__ == "__main__":
    main()
