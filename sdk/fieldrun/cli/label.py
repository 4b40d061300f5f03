"""`fieldrun label`: files of texts in, a file of labels out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .options import bundle_option, examples, force_option, json_option, output_option, runtime_options, task_option
from .output import note, note_dropped, put, put_json
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
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="The number of processes.")
@click.option("--top", type=click.IntRange(min=1), help="The number of labels in scores, best first.  [default: all]")
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
    force: bool,
    runtime: dict[str, Any],
    as_json: bool,
) -> None:
    """Label every line of FILEs, in their order, with little memory.

    A FILE has one text per line or, for a pair task, two texts with a tab between them. The output has one JSON object
    per text and task, as 'fieldrun run --json' prints it. After an interruption, the same command continues.
    """
    import fieldrun

    with progress() as step:
        done = fieldrun.label(
            files, output, tasks=tasks, bundle=bundle, workers=workers, top=top, force=force, **runtime, progress=step
        )
    note_dropped(done.dropped, done.cut, done.lines)
    if done.resumed_at:
        note(f"continued at line {done.resumed_at + 1} of an earlier run")
    if as_json:
        put_json(done.to_dict())
    else:
        rate = (done.lines - done.resumed_at) / done.seconds
        put(f"{output}: {done.lines:,} lines, {rate:,.0f} lines/s with {workers} worker{'' if workers == 1 else 's'}")
