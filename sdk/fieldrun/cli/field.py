"""`fieldrun field`: texts in, a NumPy file of fields out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from fieldrun.errors import InputTextError

from .inputs import encode
from .options import (
    bundle_option,
    check_output,
    examples,
    force_option,
    json_option,
    on_error_option,
    output_option,
    runtime_options,
)
from .output import end_with_errors, note, note_dropped, put, put_json, save_array

__all__ = ["field"]


@click.command(
    short_help="Write the fields of texts to a .npy file.",
    epilog=examples("fieldrun field -o fields.npy < sentences.txt", 'fieldrun field "a gripping film" -o field.npy'),
)
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@bundle_option
@output_option(".npy file")
@click.option("--dim", type=click.IntRange(min=1), help="Keep the first DIM numbers of each field.  [default: all]")
@on_error_option
@force_option
@runtime_options
@json_option
def field(
    texts: tuple[str, ...],
    bundle: str,
    output: Path,
    dim: int | None,
    on_error: str | None,
    force: bool,
    runtime: dict[str, Any],
    as_json: bool,
) -> None:
    """Write the meaning fields of texts to a .npy file, (texts, 256) float32, in the order of the texts.

    The texts are the arguments TEXT, or the lines of stdin. The first numbers of a field are a smaller field:
    --dim 64 writes (texts, 64) for a smaller index. The file is written whole or not at all.

    A line that cannot be encoded (blank, not UTF-8, without a token) does not end the command: its field is NaN, it is
    listed with its number, in "errors" of --json, and the exit code is 2 at the end.
    """
    import fieldrun

    check_output(output, force=force)
    with fieldrun.load(bundle, **runtime) as model:
        policy, used = on_error or ("fail" if texts else "report"), model.engine
        fields, dropped, errors = encode(model, texts, dim, policy)
    save_array(output, fields)
    note_dropped(int(dropped.sum()), int((dropped > 0).sum()), len(fields))
    if as_json:
        about = {"path": str(output), "shape": [*fields.shape], "engine": used, "dropped": int(dropped.sum())}
        put_json(about | {"errors": errors})
    else:
        put(f"{output}: {fields.shape[0]} fields of {fields.shape[1]} float32")
    for error in () if as_json else errors[:10]:
        note(f"line {error['line']}: {error['error']['message']}")
    if policy == "report":
        end_with_errors(len(errors), len(fields), InputTextError.exit_code)
