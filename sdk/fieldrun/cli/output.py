"""What commands say: answers on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from typing import Any

from fieldrun.errors import StorageError
from fieldrun.formats.progress import Progress

__all__ = [
    "Progress",
    "flush",
    "hush",
    "note",
    "one_line",
    "progress",
    "put",
    "put_json",
    "put_table",
    "terminal_width",
    "tolerate_encodings",
    "warn",
]

"""Called with (phase, done, total)."""


def put(line: str) -> None:
    """Write one line to stdout."""
    with _storage_errors():
        sys.stdout.write(line + "\n")


def put_json(value: Any) -> None:
    """Write `value` to stdout as one line of JSON, in ASCII: any terminal, file or pipe can carry it."""
    put(json.dumps(value, allow_nan=False))


def put_table(rows: Sequence[Sequence[object]]) -> None:
    """Write rows of cells in columns that are as wide as their widest cell."""
    cells = [[one_line(str(cell)) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in cells if i < len(row)) for i in range(max(map(len, cells), default=0))]
    for row in cells:
        put("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=False)).rstrip())


def flush() -> None:
    """Hand everything that was put to the reader."""
    with _storage_errors():
        sys.stdout.flush()


def note(message: str) -> None:
    """Tell the user something on stderr that is not an answer."""
    warn(f"note: {message}")


def warn(message: str) -> None:
    """Write one line to stderr, with the program's name."""
    sys.stderr.write(f"fieldrun: {one_line(message)}\n")
    sys.stderr.flush()


def one_line(text: str, width: int | None = None) -> str:
    """Return `text` on one line, without characters that steer a terminal, cut to `width` characters."""
    line = " ".join(text.split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if width is None or len(line) <= width else line[: max(0, width - 3)] + "..."


def terminal_width() -> int | None:
    """Return the width of the terminal that stdout is, None when it is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


def tolerate_encodings() -> None:
    """Make stdout and stderr escape what their encoding lacks, instead of failing."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def hush() -> None:
    """Send what is still to be written to nowhere: the reader of stdout has gone, or its disk is full."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


@contextlib.contextmanager
def progress() -> Iterator[Progress]:
    """Yield a callback that draws bars on stderr; silent when stderr is no terminal or `rich` is not installed."""
    if not sys.stderr.isatty():
        yield _silent
        return
    try:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
    except ImportError:
        yield _silent
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bars:
        known = {}

        def update(phase: str, done: int, total: int) -> None:
            if phase not in known:
                known[phase] = bars.add_task(phase, total=total)
            bars.update(known[phase], completed=done, total=total)

        yield update


def _silent(phase: str, done: int, total: int) -> None:
    pass


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"cannot write to stdout: {reason}; free space or choose another place") from error
