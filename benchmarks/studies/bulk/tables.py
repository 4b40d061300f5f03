"""The table of bulk labelling: texts a second and memory with one worker and with two, and the killed run."""

from __future__ import annotations

from collections.abc import Sequence

from ..columns import Block, Column, Part, Record, Table, block, conditions, slashed

__all__ = ["BLOCKS"]


def _memory(title: str, key: str) -> Column:
    return Column(title, lambda row: slashed([run["memory_mib"][key] for run in row["runs"]], "{:.0f}"))


_COLUMNS = (
    Column("Workers", "workers"),
    Column("seconds, each run", lambda row: slashed([run["seconds"] for run in row["runs"]], "{:.0f}")),
    Column("texts/s", lambda row: slashed([run["lines_per_s"] for run in row["runs"]], "{:,}")),
    _memory("memory of all processes: second fifth, MiB", "second_fifth"),
    _memory("last fifth", "last_fifth"),
    _memory("peak", "peak"),
)


def _bulk(record: Record) -> Sequence[Part]:
    killed, equal = record["killed"], record["all_outputs_equal"]
    return [
        Table(_COLUMNS, [{"workers": workers, "runs": runs} for workers, runs in record["runs"].items()]),
        f"{record['lines']:,} texts of {record['mean_bytes']:.0f} bytes in the mean, task {record['task']}, from file "
        f"to file. Two workers label {record['ratio_two_to_one']:.2f} times as many a second as one. A run that was "
        f"killed after line {killed['killed_at_line']:,} and started again wrote {killed['lines_after']:,} lines, "
        f"{'the bytes of' if equal else 'NOT the bytes of'} the runs that were left alone.",
        conditions(record),
    ]


BLOCKS: dict[str, Block] = {"bulk": block(_bulk, "bulk")}
