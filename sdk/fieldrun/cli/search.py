"""`fieldrun search`: a checkpoint and limits in, the bundle that keeps most within them out."""

from __future__ import annotations

import re
from pathlib import Path

import click

from .export import labelled_rows, read_texts
from .options import examples, json_option
from .output import progress, put, put_json, warn

__all__ = ["search"]

_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?(kB|MB|GB)?", re.IGNORECASE)
_UNITS = {"": 1, "kb": 1000, "mb": 10**6, "gb": 10**9}


def _bytes(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Return the bytes of `value`: a number of them, or one with kB, MB or GB, in thousands."""
    if value is None:
        return None
    found = _SIZE.fullmatch(value.strip())
    if found is None:
        shown = repr(value if len(value) <= 40 else value[:30] + "...")
        raise click.BadParameter(f"{shown} is not a size; write 10MB, 800kB or a number of bytes", ctx, param)
    return int(float(found[1]) * _UNITS[(found[2] or "").lower()])


@click.command(
    short_help="Find the recipe for a size.",
    epilog=examples(
        "fieldrun search reference --max-size 10MB --data sst2=train.tsv -o small",
        "fieldrun search reference --max-drop 0.5 --data sst2=train.tsv -o small",
    ),
)
@click.argument("checkpoint")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The folder to make.")
@click.option("--max-size", metavar="SIZE", callback=_bytes, help="Of the bundle: 10MB, 800kB, or bytes.")
@click.option(
    "--max-latency-us",
    type=click.FloatRange(min=0, min_open=True),
    help="Microseconds from a text to all labels, on this device.",
)
@click.option("--max-drop", type=click.FloatRange(min=0), help="Points of mean accuracy on --data that it may cost.")
@click.option(
    "--data",
    multiple=True,
    required=True,
    metavar="TASK=FILE",
    help="Labelled rows that may choose: not those that will be reported on. Once per task.",
)
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Real texts to judge candidates on: one per line, or a .tsv file.  [default: shipped texts]",
)
@click.option(
    "--work", type=click.Path(path_type=Path), help="Where to keep what resuming needs.  [default: beside the output]"
)
@click.option("--seed", type=click.IntRange(min=0), default=0, show_default=True, help="Of the mutations.")
@json_option
def search(
    checkpoint: str,
    output: Path,
    max_size: int | None,
    max_drop: float | None,
    max_latency_us: float | None,
    data: tuple[str, ...],
    calibration: Path | None,
    work: Path | None,
    seed: int,
    as_json: bool,
) -> None:
    """Search the precision of every part of CHECKPOINT, and export what keeps most within the limits.

    With --max-size alone the nearest fields within it, with --max-drop the smallest bundle that costs no more.
    Precision changes no latency: with --max-latency-us the student loses features until it is fast enough. OUTPUT gets
    bundle/, recipe.toml (of which `fieldrun export` with the same --data and --calibration makes the same bundle),
    search.json with the fronts of size and of latency, and front.svg that shows them. Ended half-way, the same command
    goes on where it stopped.
    """
    import fieldrun
    from fieldrun_runtimes.timing import text_to_labels_us

    if max_size is None and max_drop is None and max_latency_us is None:
        raise click.UsageError("a search needs a limit: --max-size, --max-drop or --max-latency-us")
    rows = labelled_rows(data)
    texts = None if calibration is None else read_texts(calibration)
    with progress() as step:
        report = fieldrun.search(
            checkpoint,
            output,
            data=rows,
            max_bytes=max_size,
            max_drop=max_drop,
            max_latency_us=max_latency_us,
            timer=text_to_labels_us,
            calibration=texts,
            work=work,
            seed=seed,
            progress=step,
        )
    for line in report.warnings:
        warn(f"warning: {line}")
    if as_json:
        put_json(report.to_dict())
        return
    put(f"{len(report.front)} points of size against field error:")
    for number, point in enumerate(report.front):
        drop = f", {-point['accuracy']['mean_drop']:+.2f} points" if "accuracy" in point else ""
        mark = "  <- chosen" if number == report.chosen else ""
        put(f"  {point['bytes'] / 1e6:6.2f} MB  field error {point['field_error']:.4f}{drop}{mark}")
    for shape in report.shapes:
        put(
            f"  {shape['latency_us']:6.1f} us  {100 * shape['share']:g} % of the features, "
            f"field error {shape['field_error']:.4f}, {-shape['accuracy']['mean_drop']:+.2f} points"
        )
    put(f"{report.path}: {report.bytes / 1e6:.1f} MB; its recipe: {report.recipe}")
    put(f"next: fieldrun verify {report.path}")
