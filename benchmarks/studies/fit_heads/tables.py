"""The tables of your own labels: `fit_head` beside scikit-learn, and a student that is trained on few rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..columns import Block, Column, Part, Record, Table, accuracy, block, conditions, percent, slashed

__all__ = ["BLOCKS"]


def _each(key: str) -> Any:
    return lambda row: slashed([percent(run[key]["accuracy"]) for run in row["runs"]])


def _difference(row: Any) -> float:
    ours, theirs = (sum(run[key]["accuracy"] for run in row["runs"]) for key in ("fit_head", "scikit_learn"))
    return 100 * float(ours - theirs) / len(row["runs"])


_COLUMNS = (
    Column("Task", lambda row: f"{row['task']}, unseen" if row["unseen"] else row["task"]),
    Column("labels", "labels"),
    Column("n", "n", "{:,}"),
    Column("examples", lambda row: "all rows" if row["each"] == "all" else f"{row['each']} a label"),
    Column("draws", lambda row: len(row["runs"])),
    Column("`fit_head`, %", _each("fit_head")),
    Column("scikit-learn, %", _each("scikit_learn")),
    Column("difference, points", _difference, "{:+.1f}"),
)


def _fit_heads(record: Record) -> Sequence[Part]:
    rows = [
        {**about, "task": task, "each": each, "runs": runs}
        for task, about in record["tasks"].items()
        for each, runs in about["examples"].items()
    ]
    timed = record["timed"]
    return [
        Table(_COLUMNS, rows),
        f"{timed['labels']} labels from {timed['rows']:,} texts: {timed['median_s']:.2f} s, texts to head, one thread.",
        conditions(record),
    ]


_NAMES = {"banking77": "Banking77, 77 intents", "few770": "Banking77, ten rows a label", "sst400": "SST-2, sentiment"}


def _train_rows(run: Record) -> str:
    more = f", and {run['unlabelled_rows']:,} unlabelled texts" if "unlabelled_rows" in run else ""
    return f"{run['train_rows']:,}{more}"


_OWN = (
    Column("Task", "task", lambda task: _NAMES[task]),
    Column("Rows in train.tsv", _train_rows),
    Column("Test rows", "bundle.n", "{:,}"),
    Column("Accuracy of the bundle, % (95 % interval)", "bundle", accuracy),
    Column("Seconds", lambda run: sum(run["seconds"].values()), "{:.0f}"),
)


def _own_labels(record: Record) -> Sequence[Part]:
    return [Table(_OWN, [record["checkpoint"], *record["fewer_rows"]["runs"]])]


BLOCKS: dict[str, Block] = {
    "fit-heads": block(_fit_heads, "fit-heads"),
    "own-labels": block(_own_labels, "own-labels-banking77", kind="own-labels"),
}
