"""`fieldrun bench`: what an answer costs here, from string to label, as a record and a report."""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fieldrun.errors import DatasetError, FieldrunError, UsageError
from fieldrun.formats.storage import write_bytes

from .inputs import labelled_rows
from .options import examples, json_option
from .output import note, put, put_json, put_table, warn
from .progress import progress

if TYPE_CHECKING:
    from fieldrun.evaluation.dataset import Dataset

__all__ = ["bench"]


@click.command(
    short_help="Measure speed, memory, energy and accuracy here.",
    epilog=examples(
        "fieldrun bench reference --quick --report out",
        "fieldrun bench reference@native reference@numpy tokenizer:reference --interleave --report out",
        "fieldrun bench bundle --data sst2=dev.tsv --workload texts.txt --json",
    ),
)
@click.argument("subjects", nargs=-1, metavar="[SUBJECT]...")
@click.option("--interleave", is_flag=True, help="Compare several subjects, in alternating slices of the same texts.")
@click.option("--quick", is_flag=True, help="A first look, under 50 s for one subject, report included.")
@click.option(
    "--report", type=click.Path(path_type=Path, file_okay=False), help="Folder for the record and report.html."
)
@click.option(
    "--workload",
    "texts",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Texts to send: a TSV file with a header, or one text a line; may be repeated.  [default: the shipped sample]",
)
@click.option("--limit", type=click.IntRange(min=1), help="Send at most so many texts, drawn at random.")
@click.option(
    "--data", multiple=True, metavar="TASK=FILE", help="Labelled rows to measure accuracy on; may be repeated."
)
@click.option("--engine", default="auto", show_default=True, help="Of bundles that name none with @ENGINE.")
@click.option("--threads", type=click.IntRange(min=1), default=1, show_default=True, help="CPU threads of the engine.")
@click.option("--repeats", type=click.IntRange(min=2), help="Repeats of single stream.  [default: 5]")
@click.option("--seconds", type=click.FloatRange(min=0.01), help="Seconds of one repeat.  [default: 26; quick: 1.2]")
@click.option("--timeout", type=click.FloatRange(min=0.1), help="Seconds after which a subject counts as hung.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of the order of texts and of arrivals.")
@click.option("--no-loadgen", is_flag=True, help="Leave out MLPerf LoadGen's second opinion.")
@json_option
@click.pass_context
def bench(
    ctx: click.Context,
    subjects: tuple[str, ...],
    interleave: bool,
    quick: bool,
    report: Path | None,
    texts: tuple[Path, ...],
    limit: int | None,
    data: tuple[str, ...],
    engine: str,
    threads: int,
    repeats: int | None,
    seconds: float | None,
    timeout: float | None,
    seed: int,
    no_loadgen: bool,
    as_json: bool,
) -> None:
    """Measure SUBJECTs: BUNDLE, BUNDLE@ENGINE#TASK, tokenizer:BUNDLE, null, peer:FOLDER#TASK, python:MODULE:CLASS.

    Each runs in a process of its own. Measured are latency, throughput, latency under load, cold start, memory, energy
    where there is a counter, and accuracy of the same artifact. With --report the record is kept in the folder beside
    report.html; records are never replaced. With --json: the record. Ends with exit code 1 when a subject failed; its
    record is kept.
    """
    from dataclasses import replace

    from fieldrun.doctor import examine
    from fieldrun_benchmarks.harness.bench import measure
    from fieldrun_benchmarks.harness.record import SCHEMA, append_record, conditions
    from fieldrun_benchmarks.harness.settings import SCENARIOS, Settings
    from fieldrun_benchmarks.harness.workload import read_workload
    from fieldrun_benchmarks.report.canvas import check_matplotlib
    from fieldrun_benchmarks.report.render import metrics, page, read_records
    from fieldrun_benchmarks.report.sections import claim
    from fieldrun_benchmarks.subjects.subject import parse_subject

    if report is not None:
        check_matplotlib()
    specs = [parse_subject(subject, engine=engine, threads=threads) for subject in subjects or ("reference",)]
    names = [spec.name for spec in specs]
    if len(set(names)) < len(names):
        raise UsageError("two subjects have the same name; give each another folder name or engine")
    if len(specs) > 1 and not interleave:
        raise UsageError("several subjects are compared in alternating slices: add --interleave")
    workload = read_workload(texts, limit=limit, seed=seed)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    settings = Settings.quick(seed=seed, cores=cores) if quick else Settings.whole(seed=seed, cores=cores)
    chosen: dict[str, Any] = {
        "repeats": repeats,
        "seconds": seconds,
        "timeout_s": timeout,
        "scenarios": tuple(name for name in SCENARIOS if name != "loadgen") if no_loadgen else None,
    }
    settings = replace(settings, **{key: value for key, value in chosen.items() if value is not None})
    before = conditions()
    with progress() as step:
        values = measure(specs, workload, settings, _labelled(data), progress=step)
    values |= {"system": examine(commands=False), "conditions": before}
    command = shlex.join(["fieldrun", *_arguments()])
    if report is None:
        record: Mapping[str, Any] = {"schema": SCHEMA, "kind": "bench", "command": command, **values}
    else:
        path = append_record(report, "bench", command, values)
        (record,) = read_records([path])
        write_bytes(report / "report.html", page([record]).encode("utf-8"))
    if as_json:
        put_json(record)
    else:
        put(claim(record))
        put_table(
            [
                (r["subject"], r["metric"], "not measured" if r["value"] is None else f"{r['value']:,.4g} {r['unit']}")
                for r in metrics(record)
            ]
        )
        if report is not None:
            put(f"{report / 'report.html'}; the record: {path}")
    for entry in record["warnings"]:
        note(f"{entry['about']}: {entry['text']}")
    reasons = {name: value.get("failed", value.get("ended_early")) for name, value in record["subjects"].items()}
    failed = [f"{name}: {reason}" for name, reason in reasons.items() if reason]
    if failed:
        warn(f"error: {'; '.join(failed)}")
        ctx.exit(FieldrunError.exit_code)


def _labelled(data: tuple[str, ...]) -> dict[str, Dataset]:
    """Read `TASK=FILE` options; without any, the shipped samples."""
    from fieldrun.evaluation.dataset import read_tsv
    from fieldrun_benchmarks.harness.workload import sample_files

    if not data:
        return {task: read_tsv(path) for task, path in sample_files().items()}
    found = labelled_rows(data)
    for rows in found.values():
        if rows.kind != "single":
            raise DatasetError(f"{rows.path} holds pairs; a bench measures accuracy on single texts")
    return found


def _arguments() -> list[str]:
    """Return the arguments of this command line, with file names instead of this machine's paths."""
    home = str(Path.cwd()) + os.sep
    return [argument.replace(home, "") for argument in sys.argv[1:]]
