"""Forge bundles and see what loading them does: `python -m studies.forge -o benchmarks/records/forge.json`.

Each bundle is changed at random and sealed with right hashes. It must be refused with one of fieldrun's errors, or
answered with probabilities, by every engine, in 10 s and 1 GB of address space. A signal, a hang, another exception, or
a message that would control the terminal is a failure, and is listed with its number: `--first NUMBER --mutants 1`
repeats it.
"""

from __future__ import annotations

import json
import os
import select
import subprocess
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import click

import fieldrun
from fieldrun.formats.bundle import REFERENCE_BUNDLE
from fieldrun.formats.storage import write_json

from .trial import MEMORY, SECONDS

__all__ = ["Outcomes", "main", "try_bundles"]

_BATCH = 200
_GRACE = 20  # seconds that a trial may take on a busy machine before it counts as a hang


@dataclass(slots=True, kw_only=True)
class Outcomes:
    """How the trials ended, by engine; the failures with what was changed; and the panics that Rust printed."""

    counts: dict[str, Counter[str]] = field(default_factory=dict)
    failures: list[dict[str, Any]] = field(default_factory=list)
    panics: int = 0


def try_bundles(source: Path, work: Path, first: int, count: int, engines: tuple[str, ...]) -> Outcomes:
    """Try the forged bundles `first` to `first + count` of the bundle `source` with `engines`."""
    found = Outcomes()
    number, last = first, first + count
    while number < last:
        number = _batch(source, work, number, min(number + _BATCH, last), engines, found)
    return found


def _batch(source: Path, work: Path, first: int, last: int, engines: tuple[str, ...], found: Outcomes) -> int:
    """Run a process until it ends or is ended; return the number of the bundle to go on with."""
    argv = [
        sys.executable,
        "-m",
        "studies.forge.trial",
        str(source),
        str(work),
        str(first),
        str(last),
        ",".join(engines),
    ]
    environment = os.environ | {"MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1", "RAYON_NUM_THREADS": "1"}
    begun: dict[str, Any] = {"number": first}
    with (
        tempfile.TemporaryFile() as errors,
        subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=errors, env=environment) as process,
    ):
        assert process.stdout is not None
        rest, hung = b"", False
        while True:
            if not select.select([process.stdout], [], [], SECONDS + _GRACE)[0]:
                hung = True
                process.kill()
                break
            block = os.read(process.stdout.fileno(), 1 << 16)
            if not block:
                break
            *lines, rest = (rest + block).split(b"\n")
            for line in lines:
                if line.startswith(b'{"number"'):  # a library may print, too
                    begun = _note(json.loads(line), begun, found)
        code = process.wait()
        errors.seek(0)
        printed = errors.read().decode("utf-8", "replace")
    found.panics += printed.count("panicked at")
    if code == 0:
        return last
    why = "it hung" if hung else f"the process ended with {code}: {printed.strip()[-300:]}"
    found.failures.append(begun | {"outcome": f"bad: {why}"})
    return int(begun["number"]) + 1


def _note(line: dict[str, Any], begun: dict[str, Any], found: Outcomes) -> dict[str, Any]:
    if "outcome" not in line:
        return line
    kind = line["outcome"].partition(": ")
    found.counts.setdefault(line["engine"], Counter())["bad" if kind[0] == "bad" else line["outcome"]] += 1
    if kind[0] == "bad":
        found.failures.append(begun | line)
    return begun


def _toy(work: Path) -> Path:
    """Return the bundle of the tests, which is small enough for thousands of trials; from the root of a clone."""
    code = "import pathlib, sys; from tests import toy; toy.toy_checkpoint().save(pathlib.Path(sys.argv[1]))"
    subprocess.run([sys.executable, "-c", code, str(work / "checkpoint")], check=True)
    return Path(fieldrun.export(work / "checkpoint", work / "bundle", recipe="cpu-int8").path)


@click.command(help=__doc__)
@click.option("--mutants", type=click.IntRange(min=1), default=6000, show_default=True)
@click.option("--first", type=click.IntRange(min=0), default=0, show_default=True, help="The number of the first.")
@click.option("--bundle", help="'reference' or a folder.  [default: the toy bundle of the tests]")
@click.option("--engines", default="native,numpy,onnxruntime", show_default=True)
@click.option("-o", "out", type=click.Path(path_type=Path), help="Write a record.")
def main(mutants: int, first: int, bundle: str | None, engines: str, out: Path | None) -> None:
    """Try forged bundles; exit with 1 if one was neither refused nor answered."""
    began, names = time.perf_counter(), tuple(engines.split(","))
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        chosen = _toy(work) if bundle is None else REFERENCE_BUNDLE if bundle == "reference" else Path(bundle)
        source = work / "source"
        source.mkdir()
        for path in chosen.iterdir():  # beside the forged ones, which are hard links
            (source / path.name).write_bytes(path.read_bytes())
        found = try_bundles(source, work, first, mutants, names)
    record = {
        "schema": 1,
        "kind": "forge",
        "bundle": bundle or "toy",
        "mutants": mutants,
        "first": first,
        "limits": {"address_space_bytes": MEMORY, "seconds": SECONDS},
        "outcomes": {engine: dict(sorted(counts.items())) for engine, counts in found.counts.items()},
        "panics_printed": found.panics,
        "failures": found.failures,
        "seconds": round(time.perf_counter() - began),
        "conditions": {"date": date.today().isoformat(), "fieldrun": fieldrun.__version__},
    }
    click.echo(json.dumps(record, indent=1))
    if out is not None:
        write_json(out, record)
    if found.failures:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
