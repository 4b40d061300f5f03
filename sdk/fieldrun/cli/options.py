"""The options and arguments that several commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from fieldrun.errors import OutputExists, StorageError

if TYPE_CHECKING:
    from fieldrun_runtimes.model import FieldModel

__all__ = [
    "bundle_argument",
    "cache_option",
    "check_output",
    "engine_options",
    "examples",
    "force_option",
    "json_option",
    "open_model",
    "runtime_options",
]

F = TypeVar("F", bound=Callable[..., Any])


def examples(*lines: str) -> str:
    """Return the end of a command's help: command lines to copy, one per line."""
    return "\b\n" + ("Example:" if len(lines) == 1 else "Examples:") + "".join(f"\n  {line}" for line in lines)


def json_option(function: F) -> F:
    """Add `--json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, and nothing else, on stdout.")(function)


def force_option(function: F) -> F:
    """Add `--force`."""
    return click.option("--force", is_flag=True, help="Replace the output file when it exists.")(function)


def bundle_argument(*, default: str | None = None) -> Callable[[F], F]:
    """Add the argument BUNDLE; `default` makes it optional."""
    if default is None:  # click takes a default of None for one that was given, and then asks for nothing
        return click.argument("bundle")
    return click.argument("bundle", default=default)


def cache_option(function: F) -> F:
    """Add `--cache`, as text: an empty one must be told from the current folder, and is refused."""
    return click.option(
        "--cache",
        "cache_root",
        metavar="FOLDER",
        help="The folder of all engines.  [default: $FIELDRUN_CACHE, or fieldrun/engines in the user's cache folder]",
    )(function)


def runtime_options(function: F) -> F:
    """Add `--engine`, `--provider`, `--threads` and `--overflow`."""
    function = click.option(
        "--overflow",
        type=click.Choice(["truncate", "window", "error"]),
        default="truncate",
        show_default=True,
        help="A text longer than the largest bucket is cut (and counted), read in windows, or an error.",
    )(function)
    return engine_options(function)


def engine_options(function: F) -> F:
    """Add `--engine`, `--provider` and `--threads`."""
    function = click.option(
        "--threads", type=click.IntRange(min=1), default=1, show_default=True, help="CPU threads of the engine."
    )(function)
    function = click.option("--provider", help="What onnxruntime runs on: cpu, cuda or cuda-graph.")(function)
    return click.option(
        "--engine",
        default="auto",
        show_default=True,
        help="auto, native, onnxruntime, numpy, tensorrt, tensorrt-rtx, or null to measure the overhead.",
    )(function)


def open_model(bundle: str, engine: str, threads: int, overflow: str, provider: str | None = None) -> FieldModel:
    """Load the bundle with the options of the command line; the caller closes it."""
    import fieldrun

    return fieldrun.load(bundle, engine=engine, provider=provider, threads=threads, overflow=overflow)


def check_output(path: Path, *, force: bool) -> None:
    """Refuse, before any work is done, an output file that cannot be written.

    Raises:
        OutputExists: `path` exists and `force` is not set.
        StorageError: its folder does not exist, or it is there and not a regular file: a folder, a device, a link.
    """
    if os.path.lexists(path) and (os.path.islink(path) or not os.path.isfile(path)):
        raise StorageError(f"cannot write {path}: it is not a regular file; give another name")
    if os.path.lexists(path) and not force:
        raise OutputExists(f"{path} exists; choose another name or add --force")
    if not os.path.isdir(path.parent):
        raise StorageError(f"cannot write {path}: the folder {path.parent} does not exist; create it first")
