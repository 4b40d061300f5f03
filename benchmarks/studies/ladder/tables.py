"""The blocks of the ladder of recipes: what each costs, accuracy by task, and a vocabulary pruned to a domain.

Latency, start and memory are ratios to the recipe `int8` in the same run: the absolute ones are in `peers.json`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..columns import Block, Column, Part, Record, Table, accuracy, block, code, conditions, loss, megabytes, slashed

__all__ = ["BLOCKS"]

_RECIPE = Column("Recipe", "name", code)


def _rows(record: Record) -> list[Record]:
    base = record["rungs"]["int8"]["fresh_process"]
    return [
        {
            **rung,
            "name": name,
            "start": {key: rung["fresh_process"][key] / base[key] for key in ("wall_s", "peak_rss_mib")},
        }
        for name, rung in record["rungs"].items()
    ]


def _ladder(record: Record) -> Sequence[Part]:
    rows = _rows(record)
    workloads = list(rows[0]["latency"])
    columns = (
        _RECIPE,
        Column("bundle, MB", "bytes", megabytes),
        Column("field's cosine, mean / p1", "field", "{0[mean_cosine]:.4f} / {0[p1_cosine]:.3f}"),
        Column("mean of eight tasks, %", lambda row: f"{100 * row['mean_accuracy']:.2f}"),
        Column("to fp32, points (95 % interval)", "drop.mean", loss),
        Column(
            f"to `int8`: latency, {' / '.join(workloads)}",
            lambda row: slashed([row["latency"][task]["to_int8"] for task in workloads], "{:.2f}"),
        ),
        Column(f"in the first pass over {workloads[0]}", f"latency.{workloads[0]}.first_to_int8", "{:.2f}"),
        Column("a fresh process to first labels", "start.wall_s", "{:.2f}"),
        Column("its peak memory", "start.peak_rss_mib", "{:.2f}"),
    )
    refused = [f"`{name}` was refused: {reason}." for name, reason in record["refused"].items()]
    return [Table(columns, rows), *refused, conditions(record)]


def _tasks(record: Record) -> Sequence[Part]:
    rows = _rows(record)

    def task(name: str) -> Column:
        return Column(
            name,
            f"tasks.{name}",
            accuracy,
            claim=lambda row: ("accuracy", row["weights_sha256"], f"{name}, n = {row['tasks'][name]['n']}"),
        )

    return [Table([_RECIPE, *map(task, rows[0]["tasks"])], rows)]


def _domains(record: Record) -> Sequence[Part]:
    whole = megabytes(record["rungs"]["palette16"]["bytes"])

    def kept(what: str) -> Any:
        return lambda entry: f"{entry[f'{what}_after']:,} of {entry[f'{what}_before']:,}"

    columns = (
        Column("Vocabulary of", "task", "{}'s train texts"),
        Column("n", "n", "{:,}"),
        Column("word pieces", "pruned.embedding", kept("rows")),
        Column("n-gram buckets", "pruned.ngram", kept("buckets")),
        Column("bundle, MB", "bytes", lambda size: f"{megabytes(size)} of {whole}"),
        Column("accuracy, %", "accuracy", accuracy),
        Column("to fp32, points (95 % interval)", "drop", loss),
    )
    rows = [{**entry, "task": task} for task, entry in record["domains"].items()]
    return [Table(columns, rows), conditions(record)]


BLOCKS: dict[str, Block] = {
    "ladder": block(_ladder, "ladder"),
    "ladder-domains": block(_domains, "ladder"),
    "ladder-tasks": block(_tasks, "ladder"),
}
