"""The table of short trainings of the student."""

from __future__ import annotations

from collections.abc import Sequence

from ..columns import Block, Column, Part, Record, Table, block, conditions, megabytes, percent

__all__ = ["BLOCKS"]

_COLUMNS = (
    Column("Student", "name"),
    Column("loss", "loss", "{:.2f}"),
    Column("SST-2", "sst2.accuracy", percent),
    Column("TREC", "trec.accuracy", percent),
    Column("BANKING77", "banking77.accuracy", percent),
    Column("STS-B", "stsb.spearman", "{:.2f}"),
    Column("MB", "weights_bytes", megabytes),
    Column(
        "engine, 12 and 28 tokens",
        "engine_p50_us",
        lambda micros: f"{micros['12']:.0f}, {micros['28']:.0f} us",
        claim=lambda row: ("engine alone", row["name"], "12 and 28 tokens"),
    ),
)


def _trials(record: Record) -> Sequence[Part]:
    return [Table(_COLUMNS, record["trials"]), conditions(record)]


BLOCKS: dict[str, Block] = {"student-trials": block(_trials, "student-trials")}
