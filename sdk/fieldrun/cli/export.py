"""`fieldrun export`: a checkpoint in, a bundle out."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fieldrun.errors import DatasetError

from .options import examples, json_option
from .output import progress, put, put_json, warn

if TYPE_CHECKING:
    from fieldrun.evaluation.dataset import Dataset

__all__ = ["export", "labelled_rows", "read_texts"]


class _Command(click.Command):
    """A command whose help also lists the recipes that are installed."""

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
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The bundle folder to make.")
@click.option("--recipe", default="cpu-int8", show_default=True, help="A recipe of the list below, or a .toml file.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Real texts to calibrate and compare on: one per line, or a .tsv file with labels.  [default: shipped texts]",
)
@click.option(
    "--data",
    multiple=True,
    metavar="TASK=FILE",
    help="Labelled rows of a task, a .tsv file; once per task. How accuracy changes goes into the report.",
)
@click.option("--max-drop", type=click.FloatRange(min=0), help="Points of accuracy on --data that the recipe may cost.")
@json_option
def export(
    checkpoint: str,
    output: Path,
    recipe: str,
    calibration: Path | None,
    data: tuple[str, ...],
    max_drop: float | None,
    as_json: bool,
) -> None:
    """Export the folder CHECKPOINT to a bundle, and prove it equal to its reference first.

    'reference' is the checkpoint of the repository. A folder of 'fieldrun import-encoder', or one with a foreign
    model.onnx and its tokenizer.json, takes the encoder recipes. A bundle that fails its comparison is not written.
    """
    import fieldrun

    if max_drop is not None and not data:
        raise click.UsageError("--max-drop is measured on labelled rows; give --data TASK=FILE")
    rows = labelled_rows(data)
    texts = None if calibration is None else read_texts(calibration)
    with progress() as step:
        report = fieldrun.export(
            checkpoint, output, recipe=recipe, calibration=texts, data=rows, max_drop=max_drop, progress=step
        )
    for line in report.warnings:
        warn(f"warning: {line}")
    value = report.to_dict()
    if as_json:
        put_json(value)
        return
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    put(f"{output}: {size / 1e6:.1f} MB, recipe {recipe}, equal to its reference")
    found = report.proof.get("accuracy")
    if found is not None:
        for name, task in found["tasks"].items():
            low, high = task["ci95"]
            put(f"  {name}: {100 * task['accuracy']:.1f} %, {-task['drop']:+.2f} points ({-high:+.2f} to {-low:+.2f})")
        low, high = found["ci95"]
        put(f"  mean: {-found['mean_drop']:+.2f} points ({-high:+.2f} to {-low:+.2f})")
    put(f"next: fieldrun verify {output}")


def labelled_rows(values: Sequence[str]) -> dict[str, Dataset]:
    """Read the rows of every TASK=FILE, by task; a task that is named twice is refused."""
    from fieldrun.evaluation.dataset import read_tsv

    files: dict[str, str] = {}
    for value in values:
        task, _, path = value.partition("=")
        if not task or not path:
            raise click.UsageError(f"--data {value!r}: write TASK=FILE, as in sst2=dev.tsv")
        if task in files:
            raise click.UsageError(
                f"--data names the task {task!r} twice, {files[task]} and {path}; put their rows into one file"
            )
        files[task] = path
    return {task: read_tsv(path) for task, path in files.items()}


def read_texts(path: Path) -> list[str]:
    """Read the texts of a calibration file; a pair counts as two texts."""
    if path.suffix == ".tsv":
        from fieldrun.evaluation.dataset import read_tsv

        return [text for item in read_tsv(path).texts for text in ([item] if isinstance(item, str) else item)]
    try:
        lines = path.read_text("utf-8").split("\n")
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist; give a file with one text per line") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not valid UTF-8; convert it to UTF-8") from error
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise DatasetError(f"{path} has no texts; give a file with one text per line")
    return texts
