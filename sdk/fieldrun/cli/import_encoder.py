"""`fieldrun import-encoder`: import a Hugging Face encoder as a checkpoint for `fieldrun export`."""

from __future__ import annotations

from pathlib import Path

import click

from .options import examples, json_option, output_option
from .output import put, put_json

__all__ = ["import_encoder"]


@click.command(
    short_help="Import a Hugging Face encoder.",
    epilog=examples(
        "fieldrun import-encoder gte-small -o encoder", "fieldrun export encoder --recipe encoder-int8 -o bundle"
    ),
)
@click.argument("folder", type=click.Path(path_type=Path))
@output_option("encoder folder")
@click.option(
    "--pooling",
    type=click.Choice(["mean", "cls"]),
    help="How token states become a field.  [default: as in modules.json, else mean]",
)
@click.option(
    "--normalize/--no-normalize",
    default=None,
    help="Whether fields have length 1.  [default: as in modules.json, else no]",
)
@json_option
def import_encoder(folder: Path, output: Path, pooling: str | None, normalize: bool | None, as_json: bool) -> None:
    """Read the local FOLDER of an encoder of the BERT family: config.json, safetensors, tokenizer.json.

    Nothing is downloaded or unpickled, and no code of the folder is run. Every setting that could change a field is
    carried, or is an error that names it.
    """
    import fieldrun

    report = fieldrun.import_encoder(folder, output, pooling=pooling, normalize=normalize)
    if as_json:
        put_json(report.to_dict())
        return
    put(
        f"{report.path}: {report.name}, {report.parameters / 1e6:.2f} M parameters, {report.layers} layers, "
        f"{report.field_dim}-d fields ({report.pooling}{', length 1' if report.normalize else ''}), "
        f"texts of up to {report.max_tokens} tokens, licence {report.licence}"
    )
    if report.prompt:
        put(f"  {report.prompt!r} is written before every text")
    others = {name: text for name, text in report.prompts.items() if text and text != report.prompt}
    if others:
        named = ", ".join(f"{name} {text!r}" for name, text in others.items())
        put(f"  other prompts of the model, to write before a text yourself: {named}")
    put(f"next: fieldrun export {report.path} --recipe encoder-int8 -o bundle")
