"""The table of the rank experiment on the student."""

from __future__ import annotations

from collections.abc import Sequence

from ..columns import Block, Column, Part, Record, Table, block, conditions, loss

__all__ = ["BLOCKS"]

_COLUMNS = (
    Column("K", "entries"),
    Column("part", "part"),
    Column("codebook", "change"),
    Column("values moved by", lambda row: f"{100 * row['values_moved']:.0f} %"),
    Column("field's cosine, mean", "field.mean_cosine", "{:.4f}"),
    Column("accuracy to fp32, points (95 % interval)", lambda row: loss(row, scale=1, key="mean_drop")),
)


def _order(record: Record) -> Sequence[Part]:
    return [Table(_COLUMNS, record["results"]), conditions(record)]


BLOCKS: dict[str, Block] = {"rank-order": block(_order, "rank-order")}
