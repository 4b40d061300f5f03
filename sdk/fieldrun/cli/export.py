"""`fieldrun export`: a checkpoint in, a bundle out."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fieldrun.errors import ParityError

from .inputs import labelled_rows, read_texts
from .options import calibration_option, columns_options, data_option, examples, json_option, output_option
from .output import put, put_json, warn
from .progress import progress

if TYPE_CHECKING:
    from fieldrun_exporters.export import ExportReport

__all__ = ["export"]


class _Command(click.Command):
    """A command whose help also lists the shipped recipes."""

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        super().format_options(ctx, formatter)
        with contextlib.suppress(ImportError), formatter.section("Recipes"):
            from fieldrun_exporters.recipe import recipe_names

            formatter.write_text(", ".join(recipe_names()))


@click.command(
    cls=_Command,
    short_help="Make a bundle of a checkpoint.",
    epilog=examples(
        "fieldrun export reference --recipe cpu-int8 -o bundle",
        "fieldrun export encoder --recipe encoder-int8 -o bundle",
    ),
)
@click.argument("checkpoint")
@output_option("bundle folder")
@click.option("--recipe", default="cpu-int8", show_default=True, help="A recipe of the list below, or a .toml file.")
@calibration_option
@data_option("The report shows how the accuracy on them changes.")
@columns_options()
@click.option("--max-drop", type=click.FloatRange(min=0), help="The points of accuracy on --data that may be lost.")
@json_option
@click.pass_context
def export(
    ctx: click.Context,
    checkpoint: str,
    output: Path,
    recipe: str,
    calibration: Path | None,
    data: tuple[str, ...],
    text_column: str | None,
    text_b_column: str | None,
    label_column: str | None,
    max_drop: float | None,
    as_json: bool,
) -> None:
    """Export the folder CHECKPOINT to a bundle, and prove first that it gives what its reference gives.

    'reference' is the shipped checkpoint. A folder of 'fieldrun import-encoder', or one with a foreign model.onnx and
    its tokenizer.json, takes the encoder recipes. A bundle outside the recipe's parity limits is not written. One that
    is within them and still differs more than a recipe of its kind may is written, and ends with exit code 8.
    """
    import fieldrun

    if max_drop is not None and not data:
        raise click.UsageError("--max-drop is measured on labelled rows; give --data TASK=FILE")
    columns = {"text_column": text_column, "text_b_column": text_b_column, "label_column": label_column}
    rows, texts = labelled_rows(data, **columns), read_texts(calibration)
    with progress() as step:
        report = fieldrun.export(
            checkpoint, output, recipe=recipe, calibration=texts, data=rows, max_drop=max_drop, progress=step
        )
    for line in report.warnings:
        warn(f"warning: {line}")
    if as_json:
        put_json(report.to_dict())
    else:
        _put(report)
    if report.differs:
        warn(
            f"error: {report.path} differs from its reference, by more than a recipe of this kind may change a field; "
            "calibrate on text like yours, or keep more parts in fp32"
        )
        ctx.exit(ParityError.exit_code)


def _put(report: ExportReport) -> None:
    put(f"{report.path}: {report.bytes / 1e6:.1f} MB, recipe {report.recipe}")
    put(f"  {report.summary()}")
    found = report.proof.get("accuracy")
    if found is not None:
        for name, task in found["tasks"].items():
            low, high = task["ci95"]
            put(f"  {name}: {100 * task['accuracy']:.1f} %, {-task['drop']:+.2f} points ({-high:+.2f} to {-low:+.2f})")
        low, high = found["ci95"]
        put(f"  mean: {-found['mean_drop']:+.2f} points ({-high:+.2f} to {-low:+.2f})")
    put(f"next: fieldrun verify {report.path}")
