"""Label a file of a million lines with one worker and with two, kill a run, and go on: texts a second, memory, loss.

    python -m studies.bulk.measure FILE... --task sst2 -o benchmarks/records

Every run is `fieldrun run --from`, as a user types it. Runs with one worker and with two take turns. Memory is the
proportional memory of all its processes together, so that a page that they share counts once; it is read twice a
second, and the second fifth of a run is compared with the last. The killed run gets SIGKILL, with its workers, once a
share of the lines is noted, and is then started again; its output must be the bytes of a run that was left alone.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from fieldrun.errors import DatasetError, FieldrunError
from fieldrun.formats.storage import read_json, sha256_file
from fieldrun_benchmarks.harness.record import write_record
from fieldrun_benchmarks.machine.sensors import process_memory

from ..suite import output_option

__all__ = ["Run", "main", "tree_memory", "write_lines"]

_READ_S = 0.5
_KILL_AT = 0.4  # of the lines
_WORKERS = (1, 2)
_COMMAND = (sys.executable, "-c", "from fieldrun.cli import main; main(prog_name='fieldrun')")


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run: seconds from the start of the command to its end, and the memory of its processes, in MiB, over time."""

    seconds: float
    memory_mib: Sequence[float]

    def summary(self, lines: int) -> dict[str, Any]:
        """Return lines a second, and the mean memory of the first and the last fifth after the first readings."""
        fifth = max(1, len(self.memory_mib) // 5)
        # a start is not flat: the first fifth is what follows on the first one
        early, late = self.memory_mib[fifth : 2 * fifth] or self.memory_mib, self.memory_mib[-fifth:]
        found: dict[str, Any] = {"seconds": round(self.seconds, 2), "lines_per_s": round(lines / self.seconds)}
        if self.memory_mib:
            found["memory_mib"] = {
                "second_fifth": round(sum(early) / len(early), 1),
                "last_fifth": round(sum(late) / len(late), 1),
                "peak": round(max(self.memory_mib), 1),
            }
        else:
            found["memory_mib"] = {"unavailable": "the run ended before its memory was read"}
        return found


def write_lines(sources: Sequence[Path], count: int, target: Path) -> int:
    """Write the first `count` lines of `sources` that are not empty to `target`; return their bytes.

    Raises:
        DatasetError: a file cannot be read, or they have fewer lines.
    """
    left = count
    with target.open("wb") as out:
        for path in sources:
            try:
                with path.open("rb") as file:
                    for line in file:
                        if left and (text := line.strip()):
                            out.write(text + b"\n")
                            left -= 1
            except OSError as error:
                raise DatasetError(f"cannot read {path}: {error.strerror}; check the path") from error
    if left:
        raise DatasetError(f"the files have {count - left:,} lines that are not empty, not {count:,}; give more files")
    return target.stat().st_size


def tree_memory(pid: int) -> float | None:
    """Return the proportional memory in MiB of `pid` and all its descendants, None where it cannot be read."""
    found, waiting = 0.0, [pid]
    while waiting:
        one = waiting.pop()
        value = process_memory(one)["proportional_mib"]
        if not isinstance(value, float | int):
            return None
        found += value
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{one}/task").iterdir():
                waiting += [int(child) for child in (task / "children").read_text("ascii").split()]
    return found


def _command(bundle: str, task: str, lines: Path, output: Path, workers: int) -> list[str]:
    wanted = ["--task", task, "--from", str(lines), "-o", str(output), "--workers", str(workers)]
    return [*_COMMAND, "run", bundle, *wanted]


def _start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)


def _run(command: Sequence[str]) -> Run:
    began, memory = time.perf_counter(), []
    with _start(command) as process:
        while process.poll() is None:
            value = tree_memory(process.pid)
            memory += [] if value is None else [value]
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(_READ_S)
        seconds = time.perf_counter() - began
        _check(process)
    return Run(seconds=seconds, memory_mib=memory)


def _check(process: subprocess.Popen[bytes]) -> None:
    if process.returncode:
        said = process.stderr.read().decode("utf-8", "replace") if process.stderr else ""
        raise FieldrunError(f"fieldrun run ended with {process.returncode}: {' '.join(said.split())[-300:]}")


def _killed(command: Sequence[str], output: Path, lines: int) -> dict[str, Any]:
    """Kill a run once `_KILL_AT` of the lines are noted, run it again to its end, and say what was kept."""
    note, noted = output.with_name(f"{output.name}.resume"), 0
    with _start(command) as process:
        while process.poll() is None and noted < max(1, _KILL_AT * lines):
            with contextlib.suppress(OSError, ValueError, KeyError):
                noted = int(read_json(note)["lines"])
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(0.05)
        if process.poll() is not None:
            _check(process)
            raise FieldrunError("the run ended before it could be killed; give more lines")
        os.killpg(process.pid, signal.SIGKILL)
    kept = int(read_json(note)["lines"])
    _run(command)
    with output.open("rb") as file:
        found = sum(1 for _ in file)
    return {"killed_at_line": kept, "lines_after": found, "sha256": sha256_file(output)}


@click.command()
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option("--lines", type=click.IntRange(1000), default=1_000_000, show_default=True, help="Texts to label.")
@click.option("--task", default="sst2", show_default=True)
@click.option("--bundle", default="reference", show_default=True)
@click.option(
    "--repeats", type=click.IntRange(1), default=2, show_default=True, help="Runs with each number of workers."
)
@output_option
def main(sources: Sequence[Path], lines: int, task: str, bundle: str, repeats: int, output: Path) -> None:
    """Write the record bulk.json."""
    runs: dict[int, list[dict[str, Any]]] = {workers: [] for workers in _WORKERS}
    hashes: set[str] = set()
    with tempfile.TemporaryDirectory() as scratch:
        texts, out = Path(scratch) / "texts.txt", Path(scratch) / "labels.jsonl"
        size = write_lines(sources, lines, texts)
        for repeat in range(repeats):
            for workers in _WORKERS:
                click.echo(f"repeat {repeat + 1} of {repeats}, workers: {workers}", err=True)
                runs[workers].append(_run(_command(bundle, task, texts, out, workers)).summary(lines))
                hashes.add(sha256_file(out))
                out.unlink()
        click.echo("killed, and started again", err=True)
        killed = _killed(_command(bundle, task, texts, out, max(_WORKERS)), out, lines)
    best = {workers: sorted(run["lines_per_s"] for run in found)[len(found) // 2] for workers, found in runs.items()}
    values = {
        "bundle": bundle,
        "task": task,
        "lines": lines,
        "mean_bytes": round(size / lines, 1),
        "runs": {str(workers): found for workers, found in runs.items()},
        "ratio_two_to_one": round(best[2] / best[1], 3),
        "all_outputs_equal": hashes == {killed.pop("sha256")},
        "killed": killed,
    }
    write_record(output / "bulk.json", "bulk", "python -m studies.bulk.measure FILE... -o RECORDS", values)


if __name__ == "__main__":
    main()
