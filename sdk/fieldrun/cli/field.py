"""`fieldrun field`: texts in, a NumPy file of fields out."""

from __future__ import annotations

import io
from pathlib import Path

import click

from fieldrun.errors import UsageError
from fieldrun.formats.storage import write_bytes

from .inputs import read_batches
from .options import bundle_argument, check_output, examples, force_option, json_option, open_model, runtime_options
from .output import put, put_json

__all__ = ["field"]


@click.command(
    short_help="Write the fields of texts to a .npy file.",
    epilog=examples("fieldrun field reference -o fields.npy < sentences.txt"),
)
@bundle_argument()
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The .npy file to write.")
@click.option("--dim", type=click.IntRange(min=1), help="Keep the first DIM numbers of each field.  [default: all]")
@force_option
@runtime_options
@json_option
def field(
    bundle: str,
    texts: tuple[str, ...],
    output: Path,
    dim: int | None,
    force: bool,
    engine: str,
    provider: str | None,
    threads: int,
    overflow: str,
    as_json: bool,
) -> None:
    """Write the meaning fields of texts to a .npy file, (texts, 256) float32, in the order of the texts.

    A prefix is a field too, for a smaller index: --dim 64 writes (texts, 64). The texts are the arguments TEXT, or the
    lines of stdin. The file is written whole or not at all.
    """
    import numpy as np

    from .answers import answer, note_dropped

    check_output(output, force=force)
    with open_model(bundle, engine, threads, overflow, provider) as model:
        longest = model.manifest.network.field_dim
        if dim is not None and dim > longest:
            raise UsageError(f"--dim {dim} is more than the {longest} numbers of a field")
        parts = [part for batch in read_batches(texts, (), paired=False) for part in answer(model, batch, ())]
        used = model.engine
    fields = np.concatenate([part.field[:, :dim] for part in parts if part.field is not None])
    dropped = np.concatenate([part.dropped for part in parts])
    file = io.BytesIO()
    np.save(file, fields, allow_pickle=False)
    write_bytes(output, file.getvalue())
    note_dropped(int(dropped.sum()), int((dropped > 0).sum()), len(fields))
    if as_json:
        shape = list(fields.shape)
        put_json({"path": str(output), "shape": shape, "engine": used, "dropped": int(dropped.sum())})
    else:
        put(f"{output}: {fields.shape[0]} fields of {fields.shape[1]} float32")
