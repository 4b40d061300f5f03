"""The options and arguments that several commands share. Each means the same thing everywhere, in the same words."""

from __future__ import annotations

import functools
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from fieldrun.errors import OutputExists, StorageError

__all__ = [
    "bundle_argument",
    "bundle_option",
    "cache_option",
    "calibration_option",
    "check_output",
    "columns_options",
    "data_option",
    "engine_option",
    "engine_options",
    "examples",
    "force_option",
    "join_labels_option",
    "json_option",
    "on_error_option",
    "output_option",
    "parse_bytes",
    "runtime_options",
    "seed_option",
    "task_option",
    "threads_option",
    "unknown_option",
    "work_option",
]

F = TypeVar("F", bound=Callable[..., Any])
_PATH = click.Path(path_type=Path)
_SIZE = re.compile(r"([0-9]{1,15}(?:\.[0-9]{1,15})?) ?(kB|MB|GB)?", re.IGNORECASE)
_UNITS = {"": 1, "kb": 1000, "mb": 10**6, "gb": 10**9}


def examples(*lines: str) -> str:
    """Return the end of a command's help: command lines to copy, one per line."""
    return "\b\n" + ("Example:" if len(lines) == 1 else "Examples:") + "".join(f"\n  {line}" for line in lines)


def bundle_argument(function: F) -> F:
    """Add the argument BUNDLE, for commands that are about a bundle."""
    return click.argument("bundle", default="reference")(function)


def bundle_option(function: F) -> F:
    """Add `-b` / `--bundle`, for commands whose arguments are texts or files."""
    return click.option(
        "-b", "--bundle", default="reference", show_default=True, metavar="BUNDLE", help="The bundle to run."
    )(function)


def task_option(function: F) -> F:
    """Add `--task`, which may be repeated; by default every task for single texts."""
    return click.option(
        "--task",
        "tasks",
        multiple=True,
        help="A task of the bundle; repeat it for several.  [default: every task for single texts]",
    )(function)


def output_option(what: str, *, required: bool = True) -> Callable[[F], F]:
    """Add `-o` / `--output`; `what` names what is written."""
    return click.option("-o", "--output", type=_PATH, required=required, help=f"The {what} to write.")


def force_option(function: F) -> F:
    """Add `--force`."""
    return click.option("--force", is_flag=True, help="Replace the output if it exists.")(function)


def json_option(function: F) -> F:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout.")(function)


def join_labels_option(function: F) -> F:
    """Add `--join-labels`."""
    return click.option(
        "--join-labels", is_flag=True, help="Take labels that differ only in case, blanks or Unicode form for one."
    )(function)


def on_error_option(function: F) -> F:
    """Add `--on-error`."""
    return click.option(
        "--on-error",
        type=click.Choice(["fail", "skip", "report"]),
        help="What a text that cannot be read does: end the command, be left out, or be reported in its place, with an "
        "exit code at the end.  [default: report; for texts given as arguments: fail]",
    )(function)


def unknown_option(function: F) -> F:
    """Add `--unknown`."""
    return click.option(
        "--unknown",
        type=click.Choice(["answer", "reject", "error"]),
        default="answer",
        show_default=True,
        help="What a text without a known token gets (another script, emoji): labels that mean nothing, no label, or "
        "an error.",
    )(function)


def columns_options(*, labels: bool = True) -> Callable[[F], F]:
    """Add `--text-column`, `--text-b-column` and `--label-column`, for files with named columns."""
    whats = {
        "--label-column": "of the labels.  [default: label]",
        "--text-b-column": "of the second texts, for pairs.  [default: text_b]",
        "--text-column": "of the texts.  [default: text; for pairs: text_a]",
    }

    def add(function: F) -> F:
        for name, what in whats.items():
            if labels or name != "--label-column":
                function = click.option(name, metavar="NAME", help=f"The column {what}")(function)
        return function

    return add


def seed_option(function: F) -> F:
    """Add `--seed`."""
    return click.option(
        "--seed", type=click.IntRange(min=0), default=0, show_default=True, help="The seed of all random choices."
    )(function)


def data_option(purpose: str, *, required: bool = False) -> Callable[[F], F]:
    """Add `--data TASK=FILE`, which may be repeated; `purpose` says what the rows are used for."""
    return click.option(
        "--data",
        multiple=True,
        required=required,
        metavar="TASK=FILE",
        help=f"Labelled rows of a task, a TSV, CSV, JSON lines or Parquet file; repeat it for several tasks. {purpose}",
    )


def calibration_option(function: F) -> F:
    """Add `--calibration`."""
    return click.option(
        "--calibration",
        type=_PATH,
        metavar="FILE",
        help="Real texts to calibrate and compare on: one per line, or a .tsv file.  [default: the shipped texts]",
    )(function)


def work_option(function: F) -> F:
    """Add `--work`."""
    return click.option(
        "--work", type=_PATH, help="The folder of the files that resuming needs.  [default: beside the output]"
    )(function)


def cache_option(function: F) -> F:
    """Add `--cache`, as text, so that an empty name is refused and not taken for the current folder."""
    return click.option(
        "--cache",
        "cache_root",
        metavar="FOLDER",
        help="The folder of all engines.  [default: $FIELDRUN_CACHE, or fieldrun/engines in the user's cache folder]",
    )(function)


def runtime_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add `--engine`, `--provider`, `--threads` and `--overflow`, as one dict `runtime` for `fieldrun.load`."""
    names = ("engine", "provider", "threads", "overflow")

    @functools.wraps(function)
    def gathered(**values: Any) -> Any:
        return function(runtime={name: values.pop(name) for name in names}, **values)

    overflow = click.option(
        "--overflow",
        type=click.Choice(["truncate", "window", "error"]),
        default="truncate",
        show_default=True,
        help="What to do with a text over the token limit: cut it (and count it), read it in windows, or stop.",
    )
    return engine_options(overflow(gathered))


def engine_options(function: F) -> F:
    """Add `--engine`, `--provider` and `--threads`."""
    provider = click.option("--provider", help="The provider of onnxruntime: cpu, cuda or cuda-graph.")
    return engine_option(provider(threads_option(function)))


def threads_option(function: F) -> F:
    """Add `--threads`."""
    return click.option(
        "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="The CPU threads of the engine."
    )(function)


def engine_option(function: F) -> F:
    """Add `--engine`."""
    return click.option(
        "--engine",
        default="auto",
        show_default=True,
        help="The engine: auto, native, onnxruntime, numpy, tensorrt, tensorrt-rtx, or null to measure the overhead.",
    )(function)


def parse_bytes(ctx: click.Context, param: click.Parameter, value: str | None) -> int | None:
    """Return the bytes in `value`: a number of them, or one with kB, MB or GB (powers of a thousand)."""
    if value is None:
        return None
    found = _SIZE.fullmatch(value.strip())
    if found is None:
        shown = repr(value if len(value) <= 40 else value[:30] + "...")
        raise click.BadParameter(f"{shown} is not a size; write 10MB, 800kB or a number of bytes", ctx, param)
    return int(float(found[1]) * _UNITS[(found[2] or "").lower()])


def check_output(path: Path, *, force: bool) -> None:
    """Refuse, before any work is done, an output file that cannot be written.

    Raises:
        OutputExists: `path` exists and `force` is not set.
        StorageError: its folder does not exist, or it is not a regular file but a folder, a device or a link.
    """
    if os.path.lexists(path) and (os.path.islink(path) or not os.path.isfile(path)):
        raise StorageError(f"cannot write {path}: it is not a regular file; choose another name")
    if os.path.lexists(path) and not force:
        raise OutputExists(f"{path} exists; choose another name or add --force")
    if not os.path.isdir(path.parent):
        raise StorageError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
