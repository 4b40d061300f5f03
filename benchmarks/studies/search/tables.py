"""The table of a search: every uniform recipe beside the nearest point of the front that is no larger."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from ..columns import Block, Column, Part, Record, Table, block, code, conditions, loss

__all__ = ["BLOCKS"]


def _front(read: Callable[[Any], str], otherwise: str = "") -> Callable[[Any], str]:
    return lambda row: otherwise if row["best"] is None else read(row["best"])


def _size(point: Any) -> str:
    return f"{point['bytes'] / 1e6:.2f}"


def _error(point: Any) -> str:
    return f"{point['field_error']:.4f}"


def _change(point: Any) -> str:
    return loss(point["accuracy"], scale=1, key="mean_drop") if "accuracy" in point else ""


_COLUMNS = (
    Column("All tables at", "precision.offset0", code),
    Column("bundle, MB", _size),
    Column("1 - cosine", _error),
    Column("change of accuracy, points (95 % interval)", _change),
    Column("the front, no larger: MB", _front(_size, "nothing nearer")),
    Column("1 - cosine", _front(_error)),
    Column("change of accuracy", _front(_change)),
)


def _search(record: Record) -> Sequence[Part]:
    report = record["report"]
    rows = [
        {**point, "best": None if number is None else report["front"][number]}
        for point, number in zip(report["uniform"], record["beaten"], strict=True)
    ]
    minutes, killed = sum(record["seconds"].values()) / 60, record["seconds"]["before_the_kill"] / 60
    return [
        Table(_COLUMNS, rows),
        f"`fieldrun compress reference --max-size {record['max_size']}`, {record['rows_a_task']} rows of every train "
        f"file: {minutes:.1f} minutes, killed (SIGKILL) after {killed:.1f} and started again. Chosen: 1 - cosine "
        f"{_error(report['front'][report['chosen']])}, {_size(report)} MB; its recipe exported once more gives "
        f"{'the same files' if record['exported_again']['same_files'] else 'OTHER FILES'}.",
        conditions(record),
    ]


BLOCKS: dict[str, Block] = {"search": block(_search, "search")}
