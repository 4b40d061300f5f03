"""Compare `fit_head` with scikit-learn's tuned logistic regression on the same fields.

    python -m studies.fit_heads.measure --data DATA -o benchmarks/records/fit-heads.json

The student never saw labels of IMDB (long reviews, sentiment); it was trained on TREC. Examples of each label are drawn
from the train file, several times when they are few, and both methods are scored on the same rows of the test file.
scikit-learn (`pip install scikit-learn`) chooses its penalty among nine by cross-validated log-loss. The study also
times `fit_head` on the texts of 20 labels with 64 examples each.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

import fieldrun
from fieldrun.evaluation.dataset import read_tsv
from fieldrun.evaluation.metrics import wilson_interval
from fieldrun.formats.tensors import Array
from fieldrun.heads.fit import fit_fields
from fieldrun.heads.head import head_logits
from fieldrun_benchmarks.harness.record import write_record

from ..peers.heads import need
from ..suite import data_option, output_option, study

__all__ = ["draw", "main"]

_SETS = {"imdb": "test.tsv", "trec": "test.tsv"}
_UNSEEN = ("imdb",)
_PER_LABEL = {8: 5, 64: 3}  # examples a label -> draws
_TEST_ROWS = 4000
_TIMED = ("banking77", 20, 64)
_PENALTIES = 10.0 ** np.arange(-4, 5)  # scikit-learn's C


def draw(labels: Sequence[str], per_label: int, seed: int) -> list[int]:
    """Return the numbers of `per_label` rows of every label, or all rows of a label that has fewer."""
    order = np.random.default_rng(seed).permutation(len(labels)).tolist()
    counts: dict[str, int] = {}
    chosen = []
    for row in order:
        counts[labels[row]] = counts.get(labels[row], 0) + 1
        if counts[labels[row]] <= per_label:
            chosen.append(row)
    return chosen


def _ours(x: Array, y: Sequence[str], test: Array) -> list[str]:
    head = fit_fields(x, y)
    return [head.labels[i] for i in head_logits(head, test).argmax(1).tolist()]


def _theirs(x: Array, y: Sequence[str], test: Array) -> list[str]:
    linear, selection = need("sklearn.linear_model"), need("sklearn.model_selection")
    folds = selection.StratifiedKFold(5, shuffle=True, random_state=0)
    grid = selection.GridSearchCV(
        linear.LogisticRegression(max_iter=2000), {"C": _PENALTIES}, scoring="neg_log_loss", cv=folds
    )
    labels: list[str] = grid.fit(x, np.array(y)).predict(test).tolist()
    return labels


def _compare(x: Array, y: Sequence[str], test: Array, truth: Sequence[str]) -> dict[str, Any]:
    result: dict[str, Any] = {"rows": len(y)}
    for name, predict in (("fit_head", _ours), ("scikit_learn", _theirs)):
        start = time.perf_counter()
        hits = sum(a == b for a, b in zip(predict(x, y, test), truth, strict=True))
        interval = [round(bound, 4) for bound in wilson_interval(hits, len(truth))]
        seconds = round(time.perf_counter() - start, 3)
        result[name] = {"accuracy": round(hits / len(truth), 5), "ci95": interval, "seconds": seconds}
    return result


def _task(model: fieldrun.FieldModel, data: Path, task: str) -> dict[str, Any]:
    train, test = read_tsv(data / task / "train.tsv"), read_tsv(data / task / _SETS[task])
    rows = np.random.default_rng(0).permutation(len(test))[:_TEST_ROWS].tolist()
    x = model.field([str(text) for text in train.texts])
    x_test, truth = model.field([str(test.texts[i]) for i in rows]), [test.labels[i] for i in rows]
    found: dict[str, Any] = {}
    for per_label, draws in _PER_LABEL.items():
        runs = []
        for seed in range(draws):
            chosen = draw(train.labels, per_label, seed)
            runs.append(_compare(x[chosen], [train.labels[i] for i in chosen], x_test, truth))
        found[str(per_label)] = runs
    found["all"] = [_compare(x, list(train.labels), x_test, truth)]
    about = {"train_sha256": train.sha256, "test": f"{task}/{_SETS[task]}", "test_sha256": test.sha256}
    return about | {"n": len(truth), "labels": len(set(train.labels)), "unseen": task in _UNSEEN, "examples": found}


def _timed(model: fieldrun.FieldModel, data: Path) -> dict[str, Any]:
    task, count, per_label = _TIMED
    train = read_tsv(data / task / "train.tsv")
    kept = sorted(set(train.labels))[:count]
    rows = [i for i in draw(train.labels, per_label, 0) if train.labels[i] in kept]
    texts, labels = [str(train.texts[i]) for i in rows], [train.labels[i] for i in rows]
    seconds = []
    for _ in range(5):
        start = time.perf_counter()
        fieldrun.fit_head(model, texts, labels)
        seconds.append(round(time.perf_counter() - start, 3))
    return {"task": task, "labels": count, "rows": len(rows), "seconds": seconds, "median_s": float(np.median(seconds))}


@study(__doc__)
@data_option
@click.option("--bundle", default="reference", show_default=True, help="The bundle that makes the fields.")
@output_option
def main(data: Path, bundle: str, output: Path) -> None:
    """Write the record behind the table in docs/own-labels.md."""
    with fieldrun.load(bundle) as model:
        tasks = {}
        for task in _SETS:
            click.echo(task, err=True)
            tasks[task] = _task(model, data, task)
        values = {
            "artifact": {"weights_sha256": model.manifest.files["weights.safetensors"].sha256},
            "engine": model.engine,
            "tasks": tasks,
            "timed": _timed(model, data),
            "scikit_learn": need("sklearn").__version__,
        }
    write_record(output, "fit-heads", "python -m studies.fit_heads.measure --data DATA -o RECORD", values)


if __name__ == "__main__":
    main()
