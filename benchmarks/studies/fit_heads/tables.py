"""The table of `fit_head` beside scikit-learn."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..columns import Block, Column, Part, Record, Table, block, conditions, percent, slashed

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


BLOCKS: dict[str, Block] = {"fit-heads": block(_fit_heads, "fit-heads")}
