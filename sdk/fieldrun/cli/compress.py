"""`fieldrun compress`: a checkpoint and limits in, the best bundle within them out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from .inputs import labelled_rows, read_texts
from .options import (
    calibration_option,
    data_option,
    examples,
    json_option,
    output_option,
    parse_bytes,
    seed_option,
    work_option,
)
from .output import put, put_json, warn
from .progress import progress

if TYPE_CHECKING:
    from fieldrun_exporters.search.compress import CompressReport

__all__ = ["compress"]


@click.command(
    short_help="Make the best bundle of a given size.",
    epilog=examples(
        "fieldrun compress reference --max-size 10MB --data sst2=train.tsv -o small",
        "fieldrun compress reference --max-drop 0.5 --data sst2=train.tsv -o small",
    ),
)
@click.argument("checkpoint")
@output_option("folder")
@click.option("--max-size", metavar="SIZE", callback=parse_bytes, help="The size of the bundle: 10MB, 800kB, or bytes.")
@click.option(
    "--max-latency-us",
    type=click.FloatRange(min=0, min_open=True),
    help="The microseconds from a text to all labels, on this device.",
)
@click.option("--max-drop", type=click.FloatRange(min=0), help="The points of accuracy on --data that may be lost.")
@data_option("They choose the bundle, so do not give those that you will report on.", required=True)
@calibration_option
@work_option
@seed_option
@json_option
def compress(
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
    """Search the precision of every part of CHECKPOINT, and export the best bundle within the limits.

    With --max-size alone it has the nearest fields within that size, with --max-drop the smallest size that costs no
    more. Precision does not change latency: with --max-latency-us the student loses features until it is fast enough.

    OUTPUT gets bundle/, recipe.toml (with which 'fieldrun export' and the same --data and --calibration make the same
    bundle), compress.json with the fronts of size and of latency, and front.svg, a plot of them. After an
    interruption, the same command continues.
    """
    import fieldrun

    if max_size is None and max_drop is None and max_latency_us is None:
        raise click.UsageError("give a limit: --max-size, --max-drop or --max-latency-us")
    rows, texts = labelled_rows(data), read_texts(calibration)
    with progress() as step:
        report = fieldrun.compress(
            checkpoint,
            output,
            data=rows,
            max_bytes=max_size,
            max_drop=max_drop,
            max_latency_us=max_latency_us,
            calibration=texts,
            work=work,
            seed=seed,
            progress=step,
        )
    for line in report.warnings:
        warn(f"warning: {line}")
    if as_json:
        put_json(report.to_dict())
    else:
        _put(report)


def _put(report: CompressReport) -> None:
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
