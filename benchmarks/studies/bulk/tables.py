"""The table of bulk labelling: texts a second and memory with one worker and with two, and the killed run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from fieldrun_benchmarks.harness.record import read_record, where

__all__ = ["TABLES"]


def _bulk_table(records: Path) -> str:
    record = read_record(records / "bulk.json", "bulk")
    lines = [
        "| Workers | seconds, each run | texts/s | memory of all processes: second fifth, MiB | last fifth | peak |",
        "|---" * 6 + "|",
    ]
    for workers, runs in record["runs"].items():
        memory = [run["memory_mib"] for run in runs]
        cells = [
            " / ".join(f"{entry[name]:.0f}" for entry in memory) for name in ("second_fifth", "last_fifth", "peak")
        ]
        seconds = " / ".join(f"{run['seconds']:.0f}" for run in runs)
        speed = " / ".join(f"{run['lines_per_s']:,}" for run in runs)
        lines.append(f"| {workers} | {seconds} | {speed} | {' | '.join(cells)} |")
    killed = record["killed"]
    outcome = "the bytes of" if record["all_outputs_equal"] else "NOT the bytes of"
    lines += [
        "",
        f"{record['lines']:,} texts of {record['mean_bytes']:.0f} bytes in the mean, task {record['task']}, from file "
        f"to file. Two workers label {record['ratio_two_to_one']:.2f} times as many a second as one. A run that was "
        f"killed after line {killed['killed_at_line']:,} and started again wrote {killed['lines_after']:,} lines, "
        f"{outcome} the runs that were left alone.",
        "",
        where(record),
    ]
    return "\n".join(lines)


TABLES: dict[str, Callable[[Path], str]] = {"bulk": _bulk_table}
