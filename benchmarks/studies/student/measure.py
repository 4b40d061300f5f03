"""Measure the shipped student: accuracy of every recipe, speed, cold start, memory; one record each.

    python -m studies.student.measure --data DATA -o benchmarks/records

DATA holds the suite, one folder per task with `dev.tsv` or `test.tsv`. The int8 and fp32 bundles are exported afresh
from the shipped checkpoint, so that what is measured is what a reader can make; cold starts are the shipped bundle's.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

# one thread each, for a comparison that means something; before NumPy and tokenizers are imported
for _name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import numpy as np  # noqa: E402

import fieldrun  # noqa: E402
from fieldrun.evaluation.dataset import Dataset, read_tsv  # noqa: E402
from fieldrun.evaluation.metrics import auroc, expected_calibration_error, macro_f1, spearman, wilson_interval  # noqa: E402
from fieldrun.formats.bundle import Bundle  # noqa: E402
from fieldrun_benchmarks.harness.cold_start import cold_starts  # noqa: E402
from fieldrun_benchmarks.harness.latency import interleave  # noqa: E402
from fieldrun_benchmarks.harness.record import write_record  # noqa: E402
from fieldrun_runtimes.engines import Engine, open_engine  # noqa: E402

from ..suite import report_sets  # noqa: E402

__all__ = ["main"]

_SHIPPED = "cpu-small"  # the recipe of the bundle "reference"
_RECIPES = ("cpu-fp32", "cpu-int8", _SHIPPED)
_SPEED_TASKS = ("sst2", "trec")
_PREFIXES = (256, 128, 64)
_OUT_OF_SCOPE = ("clinc150", "oos")
_IMPORTS = "import numpy, onnxruntime, tokenizers"
_FIRST_LABEL = """
import fieldrun
with fieldrun.load({path!r}, engine={engine!r}) as model:
    print(model.predict(["a gripping film"], {task!r}))
"""
_EVERY_BUCKET = """
import fieldrun
with fieldrun.load({path!r}, engine="onnxruntime") as model:
    for bucket in model.manifest.buckets:
        model.field([" ".join(["film"] * (bucket.length - 2))] * bucket.batch)
"""


@click.command()
@click.option("--data", type=click.Path(path_type=Path), required=True, help="Folder with one folder per task.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="Folder of the records.")
def main(data: Path, output: Path) -> None:
    """Write the records behind the README's tables."""
    command = "python -m studies.student.measure --data DATA -o benchmarks/records"
    with tempfile.TemporaryDirectory() as scratch:
        paths = {recipe: Path(scratch) / recipe for recipe in _RECIPES}
        for recipe, path in paths.items():
            fieldrun.export("reference", path, recipe=recipe)
        sets = report_sets(paths[_SHIPPED], data)
        for recipe, path in paths.items():
            click.echo(f"accuracy of {recipe}", err=True)
            write_record(output / f"accuracy-{recipe}.json", "accuracy", command, _accuracy(path, sets, data))
        click.echo("latency", err=True)
        write_record(output / "latency.json", "latency", command, _latency(paths[_SHIPPED], sets))
        click.echo("cold start", err=True)
        write_record(output / "cold-start.json", "cold-start", command, _cold("reference"))


def _artifact(bundle: Bundle) -> dict[str, Any]:
    return {
        "name": bundle.manifest.name,
        "recipe": bundle.manifest.recipe["name"],
        "bytes": bundle.total_bytes(),
        "parameters": bundle.manifest.network.parameters,
        "weights_sha256": bundle.manifest.files["weights.safetensors"].sha256,
    }


def _accuracy(path: Path, sets: dict[str, Dataset], data: Path) -> dict[str, Any]:
    tasks: dict[str, dict[str, Any]] = {}
    with fieldrun.load(path, engine="onnxruntime") as model:
        for task, rows in sets.items():
            scores = model.scores(rows.texts, task)
            labels = np.array(model.labels(task))
            right = labels[scores.argmax(1)] == np.array(rows.labels)
            hits = int(right.sum())
            tasks[task] = {
                "file": f"{task}/{rows.path.name}",
                "sha256": rows.sha256,
                "n": len(rows),
                "accuracy": hits / len(rows),
                "ci95": list(wilson_interval(hits, len(rows))),
                "macro_f1": macro_f1(rows.labels, labels[scores.argmax(1)].tolist()),
                "calibration_error": expected_calibration_error(scores.max(1), right),
                "majority": max(rows.labels.count(label) for label in set(rows.labels)) / len(rows),
            }
        values = {"similarity": _similarity(model, data), "rejection": _rejection(model, sets)}
    mean = sum(entry["accuracy"] for entry in tasks.values()) / len(tasks)
    artifact = _artifact(Bundle.load(path))
    return {"artifact": artifact, "engine": "onnxruntime", "tasks": tasks, "mean_accuracy": mean} | values


def _similarity(model: fieldrun.FieldModel, data: Path) -> dict[str, Any]:
    """Return Spearman's correlation of the cosines with STS-B's grades, of whole fields and of prefixes."""
    rows = read_tsv(data / "stsb" / "dev.tsv")
    first, second = ([str(pair[side]) for pair in rows.texts] for side in (0, 1))
    grades = [float(label) for label in rows.labels]
    correlation = {dim: spearman(model.similarity(first, second, dim=dim), grades) for dim in _PREFIXES}
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
            "probability of its own label": auroc(model.scores(rows.texts, task)[:, column], outside),
        },
    }


def _latency(path: Path, sets: dict[str, Dataset]) -> dict[str, Any]:
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(path / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.no_truncation()
    result: dict[str, Any] = {}
    for task in _SPEED_TASKS:
        texts = [text for text in sets[task].texts if isinstance(text, str)]
        engines: dict[str, Any] = {}
        for engine in ("native", "onnxruntime", "numpy", "null"):
            with fieldrun.load(path, engine=engine) as model:
                subjects: dict[str, Callable[[str], object]] = {
                    "tokenizer": lambda text: tokenizer.encode_batch_fast([text])[0].ids,
                    "text_to_labels": _labeller(model),
                }
                measured = interleave(subjects, texts, repeats=5)
                ratio = measured["text_to_labels"].p50_us / measured["tokenizer"].p50_us
                engines[engine] = {name: value.to_dict() for name, value in measured.items()}
                engines[engine]["ratio_p50"] = round(ratio, 3)
                tokens = float(model.encode(texts).tokens.mean())
        result[task] = {"texts": len(texts), "mean_tokens": round(tokens, 1), "engines": engines}
    bundle = Bundle.load(path)
    return {
        "artifact": _artifact(bundle),
        "scenario": "batch 1, one thread, in turns with the tokenizer on the same texts",
        "tasks": sum(task.kind == "single" for task in bundle.manifest.tasks),
        "workloads": result,
        "buckets": _buckets(bundle),
    }


def _labeller(model: fieldrun.FieldModel) -> Callable[[str], object]:
    return lambda text: model.predict_all([text])


def _buckets(bundle: Bundle) -> list[dict[str, Any]]:
    """Return the median microseconds of one call of each engine in every bucket, filled, in turns."""
    engines = {name: open_engine(name, bundle, 1) for name in ("native", "onnxruntime", "numpy")}
    network, rng = bundle.manifest.network, np.random.default_rng(0)
    found = []
    for bucket in bundle.manifest.buckets:
        texts = rng.integers(1, network.vocab_size, (bucket.batch, bucket.length)).tolist()
        calls = {name: _call(engine, texts) for name, engine in engines.items()}
        measured = interleave(calls, [""] * 200, warm_up=5)
        micros = {name: value.p50_us for name, value in measured.items()}
        found.append({"batch": bucket.batch, "length": bucket.length, "p50_us": micros})
    return found


def _call(engine: Engine, sequences: list[list[int]]) -> Callable[[str], object]:
    return lambda _: engine.run(sequences)


def _cold(path: str) -> dict[str, Any]:
    programs = {"imports only": _IMPORTS}
    for engine in ("onnxruntime", "numpy", "auto"):
        programs[engine] = _FIRST_LABEL.format(path=path, engine=engine, task="sst2")
    programs["every bucket"] = _EVERY_BUCKET.format(path=path)
    measured = cold_starts(programs)
    base = measured["imports only"].wall_s
    return {
        "artifact": _artifact(Bundle.load(path)),
        "imports_only": _IMPORTS,
        "programs": {
            name: value.to_dict() | {"ratio_to_imports": round(value.wall_s / base, 3)}
            for name, value in measured.items()
        },
    }


if __name__ == "__main__":
    main()
