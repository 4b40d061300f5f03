"""Cold start: wall time and peak memory of fresh processes, in turns.

A process starts as a user's does, without the thread settings that a worker has. The peak is its own `VmHWM`, because
the `ru_maxrss` that a parent reads also counts the parent's memory from before the child's `exec`.
"""

from __future__ import annotations

import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from typing import Any

from fieldrun.errors import FieldrunError

from .record import THREAD_SETTINGS

__all__ = ["cold_starts"]

_MARK = "fieldrun-peak-kib"
_REPORT_PEAK = f"""
import sys
with open("/proc/self/status") as status:
    peak = next(line.split()[1] for line in status if line.startswith("VmHWM"))
print("\\n{_MARK}", peak, file=sys.stderr)
"""


def cold_starts(
    programs: Mapping[str, str], *, runs: int = 9, pythons: Mapping[str, str] | None = None, timeout_s: float = 600.0
) -> dict[str, dict[str, Any]]:
    """Run each program (`python -c` source) `runs` times in turns, after one uncounted run of each.

    Returns medians by program: `wall_s`, the seconds from start to exit, and `peak_rss_mib`, the most resident memory.

    `pythons` names the interpreter of a program that needs another one than this. Linux only, because of `/proc`.

    Raises:
        FieldrunError: a program does not start, fails (the message has the last line it printed), exits before its peak
            is read, or does not end within `timeout_s`.
    """
    measured: dict[str, list[tuple[float, float]]] = {name: [] for name in programs}
    for _ in range(runs + 1):
        for name, source in programs.items():
            measured[name].append(_run(name, source, (pythons or {}).get(name, sys.executable), timeout_s))
    found = {}
    for name, all_runs in measured.items():
        wall_s, mib = map(statistics.median, zip(*all_runs[1:], strict=True))
        found[name] = {"runs": runs, "wall_s": round(wall_s, 4), "peak_rss_mib": round(mib, 1)}
    return found


def _run(name: str, source: str, python: str, timeout_s: float) -> tuple[float, float]:
    environment = {key: value for key, value in os.environ.items() if key not in THREAD_SETTINGS}
    start = time.perf_counter()
    command = [python, "-c", source + _REPORT_PEAK]
    try:
        done = subprocess.run(command, env=environment, capture_output=True, check=False, timeout=timeout_s)
    except subprocess.TimeoutExpired as error:
        raise FieldrunError(f"the program {name!r} did not end within {timeout_s:g} s; it was stopped") from error
    except OSError as error:
        raise FieldrunError(f"the program {name!r} does not start with {python}: {error.strerror}") from error
    seconds = time.perf_counter() - start
    said = done.stderr.decode("utf-8", "replace")
    lines = said.strip().splitlines() or ["it printed nothing"]
    if done.returncode:
        raise FieldrunError(f"the program {name!r} ended with exit code {done.returncode}: {lines[-1]}")
    peak = re.search(rf"^{_MARK} (\d+)$", said, re.MULTILINE)
    if peak is None:
        raise FieldrunError(f"the program {name!r} ended before its peak memory was read; it must not call exit")
    return seconds, int(peak.group(1)) / 1024
