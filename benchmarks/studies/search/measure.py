"""Search recipes of the shipped student, and compare the front with every uniform recipe.

    python -m studies.search.measure --data DATA --work WORK -o benchmarks/records/search.json

The search is the command `fieldrun compress reference --max-size 16MB` on rows drawn from the train files; report files
choose nothing. It is killed (SIGKILL) after some of its budgets and started again. Its recipe is then exported once
more, and the files must be the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np

from fieldrun.errors import FieldrunError
from fieldrun.evaluation.dataset import Dataset, read_tsv
from fieldrun.formats.bundle import REFERENCE_BUNDLE, Bundle
from fieldrun.formats.storage import read_json, write_bytes
from fieldrun_benchmarks.harness.record import write_record
from fieldrun_exporters.search.front import front_plot

from ..commands import run
from ..suite import data_option, output_option, study, work_option

__all__ = ["beaten", "main", "plot", "write_rows"]

_ROWS = 500
_SEED = 0
_KILL_AT = 3  # budgets noted


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
    """Return the drawing of the front from a record of this module."""
    report = record["report"]
    return front_plot(report["front"], report["chosen"], report["shapes"], report["uniform"])


def _noted(work: Path) -> int:
    """Return how many budgets a search has noted in `work`."""
    states = list(work.glob("compress-*/state.json"))
    return sum(name.startswith("budget ") for name in read_json(states[0])["values"]) if states else 0


@study(__doc__)
@data_option
@work_option
@click.option("--max-size", default="16MB", show_default=True, help="The largest size, as for `fieldrun compress`.")
@output_option
def main(data: Path, work: Path, max_size: str, output: Path) -> None:
    """Search the shipped student, killed and resumed, and compare the front with the uniform recipes."""
    if work.exists():
        raise click.UsageError(f"{work} exists; give a new folder")
    try:
        work.mkdir(parents=True)
        files = write_rows(data, work, _ROWS, _SEED)
        found, kept = work / "found", work / "work"
        labelled = [word for task, path in files.items() for word in ("--data", f"{task}={path}")]
        command = ["compress", "reference", "--max-size", max_size, *labelled, "--work", str(kept), "-o", str(found)]
        before = run(command, kill_when=lambda: _noted(kept) >= _KILL_AT)
        if found.exists():
            raise FieldrunError(f"{found} exists after the kill; it must not before the search is done")
        noted = _noted(kept)
        after = run(command)
        again = work / "again"
        run(["export", "reference", *labelled, "--recipe", str(found / "recipe.toml"), "-o", str(again)])
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


if __name__ == "__main__":
    main()
