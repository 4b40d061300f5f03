"""The table of TensorRT builds: engine sizes, build times and layer precisions, by recipe and compute capability."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from ..columns import Block, Column, Part, Record, Table, block, code, conditions, megabytes

__all__ = ["BLOCKS"]


def _whole(row: Any) -> list[Any]:
    return [engine for engine in row["engines"] if not engine["bucket"].startswith("pairs")]


def _sizes(row: Any) -> str:
    size = [engine["bytes"] for engine in _whole(row)]
    return f"{megabytes(min(size))} - {megabytes(max(size))}"


def _part(name: str) -> Column:
    def kinds(row: Any) -> str:
        return ", ".join(sorted({e["layers"][name] for e in row["engines"] if name in e["layers"]})) or "-"

    return Column(name, kinds)


_COLUMNS = (
    Column("Recipe", "recipe", code),
    Column("compute capability", "capability"),
    Column("engines", lambda row: len(row["engines"])),
    Column("MB each", _sizes),
    Column(
        "seconds each, median", lambda row: statistics.median(s for e in _whole(row) for s in e["seconds"]), "{:.1f}"
    ),
    *(_part(name) for name in ("table", "mixer", "hidden", "output", "pairs")),
)


def _builds(record: Record) -> Sequence[Part]:
    rows = [
        {"recipe": name, "capability": capability, "engines": engines}
        for name, entry in record["recipes"].items()
        for capability, engines in entry["engines"].items()
    ]
    versions = ", ".join(sorted({entry["tensorrt_rtx"] for entry in record["recipes"].values()}))
    before = (
        f"TensorRT-RTX {versions}, no GPU, every engine built twice to the same bytes; sizes and seconds without the "
        "pair graphs. "
    )
    return [Table(_COLUMNS, rows), conditions(record, before, packages=(), after="")]


BLOCKS: dict[str, Block] = {"tensorrt-build": block(_builds, "tensorrt-build")}
