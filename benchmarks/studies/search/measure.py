"""Compress the shipped student, killed once on the way, and compare the front with every uniform recipe; one record.

    python -m studies.search.measure --data DATA --work WORK -o benchmarks/records/search.json

The command is `fieldrun compress reference --max-size 16MB`, as a user types it, on rows drawn from the train files, so
that reported rows choose nothing. It gets SIGKILL once some of its budgets are noted, and is started again. What it
found is exported once more from its recipe, with the same bytes in every file. `--plot` draws the front into the docs.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from fieldrun.errors import FieldrunError
from fieldrun.evaluation.dataset import Dataset, read_tsv
from fieldrun.formats.bundle import REFERENCE_BUNDLE, Bundle
from fieldrun.formats.storage import read_json, write_bytes
from fieldrun_benchmarks.harness.record import read_record, write_record
from fieldrun_exporters.search.front import front_plot

__all__ = ["beaten", "main", "plot", "write_rows"]

_ROWS = 500
_SEED = 0
_KILL_AT = 3  # budgets noted
_COMMAND = (sys.executable, "-c", "from fieldrun.cli import main; main(prog_name='fieldrun')")


def write_rows(data: Path, folder: Path, rows: int, seed: int) -> dict[str, Path]:
    """Write `rows` rows of every task's `train.tsv`, drawn with `seed`, to `folder`; return the files by task.

    Raises:
        DatasetError: a train file is missing or wrong.
    """
    files = {}
    for task in Bundle.load(REFERENCE_BUNDLE).manifest.tasks:
        source = data / task.name / "train.tsv"
        whole: Dataset = read_tsv(source)
        header, *lines = source.read_text("utf-8").rstrip("\n").split("\n")
        if len(lines) != len(whole):
            raise FieldrunError(f"{source} has {len(lines)} lines for {len(whole)} rows; write a row a line")
        chosen = np.sort(np.random.default_rng(seed).choice(len(lines), min(rows, len(lines)), replace=False))
        files[task.name] = folder / f"{task.name}.tsv"
        write_bytes(files[task.name], ("\n".join([header, *(lines[i] for i in chosen)]) + "\n").encode("utf-8"))
    return files


def beaten(front: Sequence[dict[str, Any]], uniform: Sequence[dict[str, Any]]) -> list[int | None]:
    """Return, for each uniform point, the number of the nearest point of `front` that is no larger.

    None where no such point has nearer fields than the uniform one.
    """
    found: list[int | None] = []
    for point in uniform:
        smaller = [number for number, other in enumerate(front) if other["bytes"] <= point["bytes"]]
        best = min(smaller, key=lambda number: front[number]["field_error"], default=None)
        nearer = best is not None and front[best]["field_error"] < point["field_error"]
        found.append(best if nearer else None)
    return found


def plot(record: dict[str, Any]) -> str:
    """Return the SVG of a record of this module."""
    report = record["report"]
    return front_plot(report["front"], report["chosen"], report["shapes"], report["uniform"])


def _noted(work: Path) -> int:
    """Return how many budgets a search has noted in `work`."""
    states = list(work.glob("compress-*/state.json"))
    return sum(name.startswith("budget ") for name in read_json(states[0])["values"]) if states else 0


def _run(command: Sequence[str], work: Path, kill_at: int | None) -> float:
    """Run a search, killed once `kill_at` budgets are noted, and return its seconds."""
    start = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        while kill_at is not None and process.poll() is None:
            if _noted(work) >= kill_at:
                process.kill()
                process.wait()
                return time.perf_counter() - start
            time.sleep(0.5)
    if kill_at is not None:
        raise FieldrunError(
            f"the search ended with exit code {process.returncode} before it was killed; use a new --work"
        )
    if process.returncode:
        raise FieldrunError(f"the search ended with exit code {process.returncode}: {' '.join(command)}")
    return time.perf_counter() - start


@click.command()
@click.option("--data", type=click.Path(path_type=Path, exists=True, file_okay=False), required=True, help="The suite.")
@click.option("--work", type=click.Path(path_type=Path), required=True, help="A folder to make.")
@click.option("--max-size", default="16MB", show_default=True, help="As of `fieldrun compress`.")
@click.option("--plot", "drawing", type=click.Path(path_type=Path), help="Draw the front into this SVG.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The record.")
def main(data: Path, work: Path, max_size: str, drawing: Path | None, output: Path) -> None:
    """Search the shipped student, killed and resumed, and record the front beside the uniform recipes."""
    if work.exists():
        raise click.UsageError(f"{work} exists; give a folder that this can make")
    try:
        work.mkdir(parents=True)
        files = write_rows(data, work, _ROWS, _SEED)
        found, kept = work / "found", work / "work"
        labelled = [word for task, path in files.items() for word in ("--data", f"{task}={path}")]
        command = [
            *_COMMAND,
            "compress",
            "reference",
            "--max-size",
            max_size,
            *labelled,
            "--work",
            str(kept),
            "-o",
            str(found),
        ]
        before = _run(command, kept, _KILL_AT)
        if found.exists():
            raise FieldrunError(f"{found} is there after a kill; it must be whole or not there")
        noted = _noted(kept)
        after = _run(command, kept, None)
        again = work / "again"
        subprocess.run(
            [*_COMMAND, "export", "reference", *labelled, "--recipe", str(found / "recipe.toml"), "-o", str(again)],
            stdout=subprocess.DEVNULL,
            check=True,
        )
    except FieldrunError as error:
        raise click.ClickException(str(error)) from error
    bundles = [Bundle.load(path).manifest for path in (found / "bundle", again)]
    report = read_json(found / "compress.json")
    values = {
        "max_size": max_size,
        "rows_a_task": _ROWS,
        "seconds": {"before_the_kill": round(before, 1), "after": round(after, 1)},
        "budgets_noted_at_the_kill": noted,
        "exported_again": {"same_files": bundles[0].files == bundles[1].files},
        "beaten": beaten(report["front"], report["uniform"]),
        "report": {key: report[key] for key in ("bytes", "front", "chosen", "uniform", "shapes")},
        "recipe": (found / "recipe.toml").read_text("utf-8"),
    }
    shown = "python -m studies.search.measure --data DATA --work WORK -o benchmarks/records/search.json"
    write_record(output, "search", shown, values)
    if drawing is not None:
        write_bytes(drawing, plot(read_record(output, "search")).encode("utf-8"))


if __name__ == "__main__":
    main()
