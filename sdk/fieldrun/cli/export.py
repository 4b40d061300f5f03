"""`fieldrun export`: a checkpoint in, a bundle out."""

from __future__ import annotations

import contextlib
from pathlib import Path

import click

from fieldrun.errors import DatasetError

from .options import examples, json_option
from .output import progress, put, put_json

__all__ = ["export"]


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
    epilog=examples("fieldrun export reference --recipe cpu-int8 -o bundle"),
)
@click.argument("checkpoint")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The bundle folder to make.")
@click.option("--recipe", default="cpu-int8", show_default=True, help="A recipe of the list below, or a .toml file.")
@click.option(
    "--calibration",
    type=click.Path(path_type=Path),
    help="Real texts to calibrate and compare on: one per line, or a .tsv file with labels.  [default: shipped texts]",
)
@json_option
def export(checkpoint: str, output: Path, recipe: str, calibration: Path | None, as_json: bool) -> None:
    """Export the folder CHECKPOINT to a bundle, and prove it equal to its reference first.

    'reference' is the checkpoint of the repository. A bundle that fails its comparison is not written.
    """
    import fieldrun

    texts = None if calibration is None else _texts(calibration)
    with progress() as step:
        report = fieldrun.export(checkpoint, output, recipe=recipe, calibration=texts, progress=step)
    value = report.to_dict()
    if as_json:
        put_json(value)
        return
    size = sum(file.stat().st_size for file in output.rglob("*") if file.is_file())
    put(f"{output}: {size / 1e6:.1f} MB, recipe {recipe}, equal to its reference")
    put(f"next: fieldrun verify {output}")


def _texts(path: Path) -> list[str]:
    """Read the texts of a calibration file; a pair counts as two texts."""
    if path.suffix == ".tsv":
        from fieldrun.dataset import read_tsv

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
