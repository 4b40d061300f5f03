"""Label a million lines with one worker and with two, kill a run and resume it: texts a second, memory, losses.

    python -m studies.bulk.measure FILE... --task sst2 -o benchmarks/records/bulk.json

Every run is the command `fieldrun label`. Runs with one worker and with two take turns. Memory is the proportional
memory of all processes of a run, so that a shared page counts once. It is read twice a second, and the second fifth of
a run is compared with the last. One run is killed (SIGKILL, with its workers) after a share of the lines and started
again. Its output must equal that of the other runs.
"""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from fieldrun.errors import DatasetError
from fieldrun.formats.storage import read_json, sha256_file
from fieldrun_benchmarks.harness.record import write_record
from fieldrun_benchmarks.machine.sensors import process_memory

from ..commands import run
from ..suite import output_option, study

__all__ = ["Run", "main", "tree_memory", "write_lines"]

_KILL_AT = 0.4  # of the lines
_WORKERS = (1, 2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run: seconds from the start of the command to its end, and the memory of its processes, in MiB, over time."""

    seconds: float
    memory_mib: Sequence[float]

    def summary(self, lines: int) -> dict[str, Any]:
        """Return lines a second, and the mean memory of the second and the last fifth of the readings."""
        fifth = max(1, len(self.memory_mib) // 5)
        # memory grows while models load: the first fifth is left out
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


def _run(command: Sequence[str]) -> Run:
    memory: list[float] = []

    def watch(pid: int) -> None:
        if (value := tree_memory(pid)) is not None:
            memory.append(value)

    return Run(seconds=run(command, watch=watch), memory_mib=memory)


def _killed(command: Sequence[str], output: Path, lines: int) -> dict[str, Any]:
    """Kill a run once `_KILL_AT` of the lines are noted, run it again to its end, and say what was kept."""
    note = output.with_name(f"{output.name}.resume")

    def noted() -> int:
        try:
            return int(read_json(note)["lines"])
        except (OSError, ValueError, KeyError):
            return 0

    run(command, kill_when=lambda: noted() >= max(1, _KILL_AT * lines), every_s=0.05)
    kept = noted()
    run(command)
    with output.open("rb") as file:
        found = sum(1 for _ in file)
    return {"killed_at_line": kept, "lines_after": found, "sha256": sha256_file(output)}


@study(__doc__)
@click.argument("sources", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@click.option(
    "--lines", type=click.IntRange(1000), default=1_000_000, show_default=True, help="The number of texts to label."
)
@click.option("--task", default="sst2", show_default=True, help="The task to label for.")
@click.option("--bundle", default="reference", show_default=True, help="The bundle, by name or path.")
@click.option(
    "--repeats", type=click.IntRange(1), default=2, show_default=True, help="How many runs with each number of workers."
)
@output_option
def main(sources: Sequence[Path], lines: int, task: str, bundle: str, repeats: int, output: Path) -> None:
    """Write the record of bulk labelling."""
    runs: dict[int, list[dict[str, Any]]] = {workers: [] for workers in _WORKERS}
    hashes: set[str] = set()
    with tempfile.TemporaryDirectory() as scratch:
        texts, out = Path(scratch) / "texts.txt", Path(scratch) / "labels.jsonl"
        size = write_lines(sources, lines, texts)

        def command(workers: int) -> list[str]:
            return ["label", str(texts), "-b", bundle, "--task", task, "-o", str(out), "--workers", str(workers)]

        for repeat in range(repeats):
            for workers in _WORKERS:
                click.echo(f"repeat {repeat + 1} of {repeats}, workers: {workers}", err=True)
                runs[workers].append(_run(command(workers)).summary(lines))
                hashes.add(sha256_file(out))
                out.unlink()
        click.echo("killed, and started again", err=True)
        killed = _killed(command(max(_WORKERS)), out, lines)
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
    write_record(output, "bulk", "python -m studies.bulk.measure FILE... -o RECORD", values)


if __name__ == "__main__":
    main()
