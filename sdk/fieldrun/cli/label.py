"""`fieldrun label`: files of texts in, a file of labels out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fieldrun.errors import InputTextError

from .options import (
    bundle_option,
    columns_options,
    examples,
    force_option,
    json_option,
    on_error_option,
    output_option,
    runtime_options,
    task_option,
    unknown_option,
)
from .output import end_with_errors, note, note_dropped, put, put_json
from .progress import progress

__all__ = ["label"]


@click.command(
    short_help="Label files of many texts.",
    epilog=examples(
        "fieldrun label texts.txt --task sst2 -o labels.jsonl",
        "fieldrun label a.txt b.txt -b my-bundle --workers 4 -o labels.jsonl",
    ),
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@bundle_option
@task_option
@output_option("file of JSON lines")
@click.option(
    "--workers", type=click.IntRange(min=1), default=1, show_default=True, help="The number of worker processes."
)
@click.option("--top", type=click.IntRange(min=1), help="The number of labels in scores, best first.  [default: all]")
@on_error_option
@unknown_option
@columns_options(labels=False)
@force_option
@runtime_options
@json_option
def label(
    files: tuple[Path, ...],
    bundle: str,
    tasks: tuple[str, ...],
    output: Path,
    workers: int,
    top: int | None,
    on_error: str | None,
    unknown: str,
    text_column: str | None,
    text_b_column: str | None,
    force: bool,
    runtime: dict[str, Any],
    as_json: bool,
) -> None:
    """Label every line of FILEs, in their order, with little memory.

    A FILE has one text per line or, for a pair task, two texts with a tab between them; or it is a table with named
    columns: CSV, JSON lines, Parquet, or TSV with a header. The output has one JSON object per text and task, as
    'fieldrun run --json' prints it, also for a line that cannot be answered. After an interruption, the same command
    continues.
    """
    import fieldrun

    policy = on_error or "report"
    with progress() as step:
        done = fieldrun.label(
            files,
            output,
            tasks=tasks,
            bundle=bundle,
            workers=workers,
            top=top,
            on_error=policy,
            unknown=unknown,
            text_column=text_column,
            text_b_column=text_b_column,
            force=force,
            **runtime,
            progress=step,
        )
    note_dropped(done.dropped, done.cut, done.lines)
    if done.resumed_at:
        note(f"continued at line {done.resumed_at + 1} of an earlier run")
    if as_json:
        put_json(done.to_dict())
    else:
        rate = (done.lines - done.resumed_at) / done.seconds
        put(f"{output}: {done.lines:,} lines, {rate:,.0f} lines/s with {workers} worker{'' if workers == 1 else 's'}")
    if policy == "report":
        end_with_errors(done.errors, done.lines, InputTextError.exit_code)
