"""`fieldrun bench`: measure what an answer costs on this machine, from text to label."""

from __future__ import annotations

from pathlib import Path

import click

from fieldrun.errors import FieldrunError

from .inputs import labelled_rows
from .options import data_option, engine_option, examples, json_option, seed_option, threads_option
from .output import note, put, put_json, put_table, warn
from .progress import progress

__all__ = ["bench"]


@click.command(
    short_help="Measure speed, memory, energy and accuracy on this machine.",
    epilog=examples(
        "fieldrun bench reference --quick --report out",
        "fieldrun bench reference@native reference@numpy tokenizer:reference --report out",
        "fieldrun bench bundle --data sst2=dev.tsv --workload texts.txt --json",
    ),
)
@click.argument("subjects", nargs=-1, metavar="[SUBJECT]...")
@click.option("--interleave", is_flag=True, hidden=True, help="Several subjects are always compared in turns.")
@click.option("--quick", is_flag=True, help="Take a first look, in about 20 s for one subject.")
@click.option(
    "--report", type=click.Path(path_type=Path, file_okay=False), help="Folder for the record and report.html."
)
@click.option(
    "--workload",
    "texts",
    type=click.Path(path_type=Path),
    multiple=True,
    help="Texts to send: a TSV file with a header, or one text per line; may be repeated.  [default: shipped samples]",
)
@click.option("--limit", type=click.IntRange(min=1), help="The largest number of texts to send, drawn at random.")
@data_option("The bench measures accuracy on them.  [default: shipped samples]")
@engine_option
@threads_option
@click.option("--repeats", type=click.IntRange(min=2), help="Repeats of single stream.  [default: 5]")
@click.option("--seconds", type=click.FloatRange(min=0.01), help="Seconds of one repeat.  [default: 26; quick: 1.2]")
@click.option("--timeout", type=click.FloatRange(min=0.1), help="Seconds after which a subject counts as hung.")
@seed_option
@click.option("--no-loadgen", is_flag=True, help="Do not repeat the scenarios with MLPerf LoadGen.")
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

    Each subject runs in a process of its own. The bench measures latency, throughput, latency under load, cold start,
    memory, energy (where the machine has a counter), and the accuracy of the same artifact. Several subjects are
    compared in alternating slices of the same texts. Without SUBJECT, it measures 'reference'.

    With --report, the record and report.html are written to the folder; an older record is never replaced. With --json,
    the record is printed. The exit code is 1 when a subject failed.
    """
    import fieldrun

    del interleave
    rows = labelled_rows(data) if data else None
    with progress() as step:
        found = fieldrun.bench(
            subjects or ("reference",),
            workload=texts,
            limit=limit,
            data=rows,
            quick=quick,
            repeats=repeats,
            seconds=seconds,
            timeout_s=timeout,
            loadgen=not no_loadgen,
            engine=engine,
            threads=threads,
            seed=seed,
            report=report,
            progress=step,
        )
    if as_json:
        put_json(found.to_dict())
    else:
        put(found.claim)
        put_table([(one.subject, one.metric, one.text) for one in found.metrics])
        if found.page is not None:
            put(f"{found.page}; the record: {found.path}")
    for entry in found.record["warnings"]:
        note(f"{entry['about']}: {entry['text']}")
    if found.failures:
        warn(f"error: {'; '.join(f'{name}: {why}' for name, why in found.failures.items())}")
        ctx.exit(FieldrunError.exit_code)
