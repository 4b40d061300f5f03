"""`fieldrun distill`: texts with labels and a teacher in, a checkpoint out."""

from __future__ import annotations

from pathlib import Path

import click

from .options import examples, json_option, output_option, work_option
from .output import put, put_json
from .progress import progress

__all__ = ["distill"]


@click.command(
    short_help="Train a student and its heads.",
    epilog=examples(
        "fieldrun distill quick data --teacher gte-small -o checkpoint", "fieldrun export checkpoint -o bundle"
    ),
)
@click.argument("recipe")
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--teacher", type=click.Path(path_type=Path), required=True, help="The folder of a Hugging Face encoder.")
@output_option("checkpoint folder")
@work_option
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of the training.  [default: all]")
@json_option
def distill(
    recipe: str, data: Path, teacher: Path, output: Path, work: Path | None, threads: int | None, as_json: bool
) -> None:
    """Train a student and its heads by RECIPE on the folder DATA.

    RECIPE is a .toml file, or the name of a shipped one. DATA has a folder per task with train.tsv, and the texts
    that the recipe names. After an interruption, the same command continues. Needs the extra 'distill' (torch,
    transformers).
    """
    import fieldrun

    with progress() as step:
        checkpoint = fieldrun.distill(recipe, data, teacher, output, work=work, threads=threads, progress=step)
    names = [head.name for head in checkpoint.heads]
    if as_json:
        value = {"path": str(output), "name": checkpoint.name, "parameters": checkpoint.parameters(), "tasks": names}
        put_json(value)
    else:
        put(f"{output}: {checkpoint.name}, {checkpoint.parameters() / 1e6:.2f} M parameters, tasks {', '.join(names)}")
        put(f"next: fieldrun export {output} -o bundle")
