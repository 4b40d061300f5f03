"""The tables of the ladder of recipes: bytes, accuracy, latency and memory side by side, and accuracy by task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from .record import read_record, where

__all__ = ["TABLES", "WORKLOADS"]

WORKLOADS = ("sst2", "trec")


def _ladder_table(records: Path) -> str:
    record = read_record(records / "ladder.json", "ladder")
    lines = [
        "| Recipe | bundle, MB | mean of eight tasks, % | to fp32, points (95 % interval) | to `int8`'s latency, "
        f"{' / '.join(WORKLOADS)} | fresh process to first labels | its peak memory |",
        "|---" * 7 + "|",
    ]
    for name, rung in record["rungs"].items():
        ratios = " / ".join(f"{rung['latency'][task]['to_int8']:.2f}" for task in WORKLOADS)
        change, fresh = _change(rung["drop"]["mean"]), rung["fresh_process"]
        first = f"{fresh['wall_s']:.2f} s | {fresh['peak_rss_mib']:.0f} MiB"
        accuracy = f"{100 * rung['mean_accuracy']:.2f} | {change}"
        lines.append(f"| `{name}` | {rung['bytes'] / 1e6:.1f} | {accuracy} | {ratios} | {first} |")
    for name, reason in record["refused"].items():
        lines += ["", f"`{name}` was refused: {reason}."]
    return "\n".join([*lines, "", where(record)])


def _tasks_table(records: Path) -> str:
    record = read_record(records / "ladder.json", "ladder")
    rungs: dict[str, Any] = record["rungs"]
    tasks = list(next(iter(rungs.values()))["tasks"])
    lines = [f"| Recipe | {' | '.join(tasks)} |", "|---" * (1 + len(tasks)) + "|"]
    for name, rung in rungs.items():
        cells = []
        for task in tasks:
            entry = rung["tasks"][task]
            low, high = (100 * x for x in entry["ci95"])
            cells.append(f"{100 * entry['accuracy']:.1f} ({low:.1f} - {high:.1f})")
        lines.append(f"| `{name}` | {' | '.join(cells)} |")
    return "\n".join(lines)


def _change(entry: dict[str, Any]) -> str:
    low, high = (-100 * x + 0.0 for x in reversed(entry["ci95"]))
    return f"{-100 * entry['difference'] + 0.0:+.2f} ({low:+.2f} to {high:+.2f})"


TABLES: dict[str, Callable[[Path], str]] = {"ladder": _ladder_table, "ladder-tasks": _tasks_table}
