"""`fieldrun import-encoder`: a Hugging Face encoder in, a checkpoint that `fieldrun export` takes out."""

from __future__ import annotations

import os
from pathlib import Path

import click

from fieldrun.errors import OutputExists

from .options import examples, json_option
from .output import put, put_json

__all__ = ["import_encoder"]


@click.command(
    short_help="Bring a Hugging Face encoder.",
    epilog=examples(
        "fieldrun import-encoder gte-small -o encoder", "fieldrun export encoder --recipe encoder-int8 -o bundle"
    ),
)
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The folder to make.")
@click.option(
    "--pooling",
    type=click.Choice(["mean", "cls"]),
    help="How token states become a field.  [default: as 1_Pooling/config.json says, else mean]",
)
@click.option(
    "--normalize/--no-normalize",
    default=None,
    help="Whether fields have length 1.  [default: as modules.json says, else no]",
)
@json_option
def import_encoder(folder: Path, output: Path, pooling: str | None, normalize: bool | None, as_json: bool) -> None:
    """Read the local FOLDER of an encoder of the BERT family: config.json, safetensors, tokenizer.json.

    Nothing is downloaded, unpickled or run. What this fieldrun does not know is refused by its name.
    """
    from fieldrun_exporters.encoder.model import load_encoder

    if os.path.lexists(output):
        raise OutputExists(f"{output} exists; choose another folder or delete it first")
    encoder = load_encoder(folder, pooling=pooling, normalize=normalize)
    encoder.save(output)
    config = encoder.config
    if as_json:
        put_json(
            {
                "path": str(output),
                "name": config.name,
                "parameters": encoder.parameters(),
                "layers": config.layers,
                "field_dim": config.hidden,
                "max_tokens": config.max_positions,
                "pooling": config.pooling,
                "normalize": config.normalize,
                "licence": encoder.licence,
            }
        )
        return
    put(
        f"{output}: {config.name}, {encoder.parameters() / 1e6:.2f} M parameters, {config.layers} layers, "
        f"{config.hidden}-d fields ({config.pooling}{', length 1' if config.normalize else ''}), "
        f"licence {encoder.licence}"
    )
    put(f"next: fieldrun export {output} --recipe encoder-int8 -o bundle")
