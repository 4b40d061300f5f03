"""The table of a search: every uniform recipe beside the nearest point of the front that is no larger."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fieldrun_benchmarks.harness.record import read_record, where

__all__ = ["TABLES"]


def _table_level(point: dict[str, Any]) -> str:
    return str(point["precision"]["offset0"])


def _cells(point: dict[str, Any]) -> str:
    change = ""
    if "accuracy" in point:
        accuracy = point["accuracy"]
        low, high = (-x + 0.0 for x in reversed(accuracy["ci95"]))
        change = f"{-accuracy['mean_drop'] + 0.0:+.2f} ({low:+.2f} to {high:+.2f})"
    return f"{point['bytes'] / 1e6:.2f} | {point['field_error']:.4f} | {change}"


def _search_table(records: Path) -> str:
    record = read_record(records / "search.json", "search")
    report = record["report"]
    lines = [
        "| All tables at | bundle, MB | 1 - cosine | change of accuracy, points (95 % interval) "
        "| the front, no larger: MB | 1 - cosine | change of accuracy |",
        "|---" * 7 + "|",
    ]
    for point, number in zip(report["uniform"], record["beaten"], strict=True):
        best = "nothing nearer | | " if number is None else _cells(report["front"][number])
        lines.append(f"| `{_table_level(point)}` | {_cells(point)} | {best} |")
    chosen, seconds = report["front"][report["chosen"]], record["seconds"]
    minutes, killed = sum(seconds.values()) / 60, seconds["before_the_kill"] / 60
    lines += [
        "",
        f"`fieldrun search reference --max-size {record['max_size']}`, {record['rows_a_task']} rows of every train "
        f"file: {minutes:.1f} minutes, killed (SIGKILL) after {killed:.1f} and started again. Chosen: 1 - cosine "
        f"{chosen['field_error']:.4f}, {report['bytes'] / 1e6:.2f} MB; its recipe exported once more gives "
        f"{'the same files' if record['exported_again']['same_files'] else 'OTHER FILES'}.",
        "",
        where(record),
    ]
    return "\n".join(lines)


TABLES: dict[str, Callable[[Path], str]] = {"search": _search_table}
