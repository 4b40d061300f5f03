"""`fieldrun distill`: texts with labels and a teacher in, a checkpoint out."""

from __future__ import annotations

import os
from importlib import util
from pathlib import Path

import click

from fieldrun.errors import MissingDependency

from .options import examples, json_option
from .output import progress, put, put_json

__all__ = ["distill"]


@click.command(
    short_help="Train a student and its heads.",
    epilog=examples(
        "fieldrun distill quick --data data --teacher teacher -o checkpoint", "fieldrun export checkpoint -o bundle"
    ),
)
@click.argument("recipe")
@click.option(
    "--data", type=click.Path(path_type=Path), required=True, help="The folder of the texts that the recipe names."
)
@click.option("--teacher", type=click.Path(path_type=Path), required=True, help="The folder of a Hugging Face encoder.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The checkpoint folder to make.")
@click.option(
    "--work", type=click.Path(path_type=Path), help="Where to keep what resuming needs.  [default: beside the output]"
)
@click.option("--threads", type=click.IntRange(min=1), help="CPU threads of the training.  [default: all]")
@json_option
def distill(
    recipe: str, data: Path, teacher: Path, output: Path, work: Path | None, threads: int | None, as_json: bool
) -> None:
    """Train a student and its heads by RECIPE: a .toml file, or the name of a shipped one.

    Ended half-way, the same command goes on where it stopped. Needs the extra 'distill' (torch, transformers).
    """
    for package in ("torch", "transformers"):
        if util.find_spec(package) is None:
            raise MissingDependency(package, "distill")
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)  # torch reads it once, when it is imported
    from fieldrun.distill import pipeline

    with progress() as step:
        checkpoint = pipeline.distill(recipe, data, teacher, output, work, step)
    names = [head.name for head in checkpoint.heads]
    if as_json:
        value = {"path": str(output), "name": checkpoint.name, "parameters": checkpoint.parameters(), "tasks": names}
        put_json(value)
    else:
        put(f"{output}: {checkpoint.name}, {checkpoint.parameters() / 1e6:.2f} M parameters, tasks {', '.join(names)}")
        put(f"next: fieldrun export {output} -o bundle")
