"""The table of TensorRT builds: engine sizes, build times and layer precisions, by recipe and compute capability."""

from __future__ import annotations

import statistics
from collections.abc import Callable
from pathlib import Path

from fieldrun_benchmarks.harness.record import read_record

__all__ = ["TABLES"]

_PARTS = ("table", "mixer", "hidden", "output", "pairs")


def _build_table(records: Path) -> str:
    record = read_record(records / "tensorrt-build.json", "tensorrt-build")
    lines = [
        f"| Recipe | compute capability | engines | MB each | seconds each, median | {' | '.join(_PARTS)} |",
        "|---" * (5 + len(_PARTS)) + "|",
    ]
    versions = set()
    for name, entry in record["recipes"].items():
        versions.add(entry["tensorrt_rtx"])
        for capability, engines in entry["engines"].items():
            whole = [engine for engine in engines if not engine["bucket"].startswith("pairs")]
            size = [engine["bytes"] / 1e6 for engine in whole]
            seconds = statistics.median(value for engine in whole for value in engine["seconds"])
            kinds = (
                ", ".join(sorted({engine["layers"][part] for engine in engines if part in engine["layers"]})) or "-"
                for part in _PARTS
            )
            lines.append(
                f"| `{name}` | {capability} | {len(engines)} | {min(size):.1f} - {max(size):.1f} | {seconds:.1f} "
                f"| {' | '.join(kinds)} |"
            )
    about = record["conditions"]
    lines += [
        "",
        f"(TensorRT-RTX {', '.join(sorted(versions))}, no GPU, every engine built twice to the same bytes; sizes and "
        f"seconds without the pair graphs. {about['date']}, {about['cores_allowed']} shared cores of "
        f"{about['processor']}, {about['system']}, Python {about['python']})",
    ]
    return "\n".join(lines)


TABLES: dict[str, Callable[[Path], str]] = {"tensorrt-build": _build_table}
