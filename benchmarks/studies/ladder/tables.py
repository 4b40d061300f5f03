"""The tables of the ladder of recipes: bytes, accuracy, latency and memory side by side, and accuracy by task."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fieldrun_benchmarks.harness.record import read_record, where

__all__ = ["TABLES", "WORKLOADS"]

WORKLOADS = ("sst2", "trec")


def _ladder_table(records: Path) -> str:
    record = read_record(records / "ladder.json", "ladder")
    lines = [
        "| Recipe | bundle, MB | field's cosine, mean / p1 | mean of eight tasks, % | to fp32, points (95 % interval) "
        f"| to `int8`'s latency, {' / '.join(WORKLOADS)} | in the first pass over {WORKLOADS[0]} "
        "| fresh process to first labels | its peak memory |",
        "|---" * 9 + "|",
    ]
    for name, rung in record["rungs"].items():
        ratios = " / ".join(f"{rung['latency'][task]['to_int8']:.2f}" for task in WORKLOADS)
        ratios += f" | {rung['latency'][WORKLOADS[0]]['first_to_int8']:.2f}"
        change, fresh = _change(rung["drop"]["mean"]), rung["fresh_process"]
        first = f"{fresh['wall_s']:.2f} s | {fresh['peak_rss_mib']:.0f} MiB"
        accuracy = f"{100 * rung['mean_accuracy']:.2f} | {change}"
        cosine = f"{rung['field']['mean_cosine']:.4f} / {rung['field']['p1_cosine']:.3f}"
        lines.append(f"| `{name}` | {rung['bytes'] / 1e6:.1f} | {cosine} | {accuracy} | {ratios} | {first} |")
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


def _domains_table(records: Path) -> str:
    record = read_record(records / "ladder.json", "ladder")
    whole = record["rungs"]["palette16"]["bytes"] / 1e6
    lines = [
        "| Vocabulary of | n | word pieces | n-gram buckets | bundle, MB | accuracy, % "
        "| to fp32, points (95 % interval) |",
        "|---" * 7 + "|",
    ]
    for task, entry in record["domains"].items():
        pieces, buckets = entry["pruned"]["embedding"], entry["pruned"]["ngram"]
        low, high = (100 * x for x in entry["accuracy"]["ci95"])
        lines.append(
            f"| {task}'s train texts | {entry['n']:,} | {pieces['rows_after']:,} of {pieces['rows_before']:,} "
            f"| {buckets['buckets_after']:,} of {buckets['buckets_before']:,} "
            f"| {entry['bytes'] / 1e6:.1f} of {whole:.1f} "
            f"| {100 * entry['accuracy']['accuracy']:.1f} ({low:.1f} - {high:.1f}) | {_change(entry['drop'])} |"
        )
    return "\n".join([*lines, "", where(record)])


def _order_table(records: Path) -> str:
    record = read_record(records / "rank-order.json", "rank-order")
    lines = [
        "| K | part | codebook | values moved by | field's cosine, mean | accuracy to fp32, points (95 % interval) |",
        "|---" * 6 + "|",
    ]
    for entry in record["results"]:
        low, high = (-x + 0.0 for x in reversed(entry["ci95"]))
        lines.append(
            f"| {entry['entries']} | {entry['part']} | {entry['change']} | {100 * entry['values_moved']:.0f} % "
            f"| {entry['field']['mean_cosine']:.4f} | {-entry['mean_drop'] + 0.0:+.2f} ({low:+.2f} to {high:+.2f}) |"
        )
    return "\n".join([*lines, "", where(record)])


TABLES: dict[str, Callable[[Path], str]] = {
    "ladder": _ladder_table,
    "ladder-domains": _domains_table,
    "ladder-tasks": _tasks_table,
    "rank-order": _order_table,
}
