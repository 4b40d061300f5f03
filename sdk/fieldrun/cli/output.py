"""What commands say: answers on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from fieldrun.errors import StorageError
from fieldrun.formats.storage import write_bytes

__all__ = [
    "end_with_errors",
    "flush",
    "hush",
    "note",
    "note_dropped",
    "one_line",
    "put",
    "put_json",
    "put_table",
    "save_array",
    "save_table",
    "terminal_width",
    "tolerate_encodings",
    "warn",
]


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
    """Send everything that was put to the reader."""
    with _storage_errors():
        sys.stdout.flush()


def note(message: str) -> None:
    """Write a note to stderr."""
    warn(f"note: {message}")


def note_dropped(dropped: int, cut: int, total: int) -> None:
    """Say how many texts were cut, if any was."""
    if cut:
        note(f"{cut} of {total} texts were too long and lost {dropped} tokens; --overflow window reads them whole")


def end_with_errors(count: int, total: int, code: int) -> None:
    """Say how many texts failed, and end the command with `code`; do nothing if none failed."""
    if count:
        note(f"{count} of {total} texts could not be answered")
        flush()
        click.get_current_context().exit(code)


def warn(message: str) -> None:
    """Write one line to stderr, with the program's name."""
    sys.stderr.write(f"fieldrun: {one_line(message)}\n")
    sys.stderr.flush()


def one_line(text: str, width: int | None = None) -> str:
    """Return `text` on one line, without control characters, cut to `width` characters."""
    line = " ".join(text.split())
    if not line.isprintable():
        line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    return line if width is None or len(line) <= width else line[: max(0, width - 3)] + "..."


def terminal_width() -> int | None:
    """Return the width of the terminal, None if stdout is a file or a pipe."""
    return shutil.get_terminal_size().columns if sys.stdout.isatty() else None


_STREAMS = 3  # stdin, stdout, stderr


def tolerate_encodings() -> None:
    """Make stdout and stderr escape characters that their encoding lacks, instead of failing.

    Those that were closed before the start (`>&-`) write nowhere: else the next file that is opened would take their
    place.
    """
    while (nowhere := os.open(os.devnull, os.O_RDWR)) < _STREAMS:
        pass
    os.close(nowhere)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "w", closefd=False))  # noqa: SIM115  # for as long as the process runs
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def hush() -> None:
    """Discard what is still to be written: the reader of stdout has gone, or its disk is full."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def save_array(path: Path, array: Any) -> None:
    """Write a NumPy array to the `.npy` file `path`, whole or not at all."""
    import numpy as np

    file = io.BytesIO()
    np.save(file, array, allow_pickle=False)
    write_bytes(path, file.getvalue())


def save_table(path: Path, rows: Sequence[Sequence[object]]) -> None:
    """Write rows of cells to the TSV file `path`, whole or not at all."""
    write_bytes(path, "".join("\t".join(map(str, row)) + "\n" for row in rows).encode("utf-8"))


@contextlib.contextmanager
def _storage_errors() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError:
        raise
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(f"cannot write to stdout: {reason}; free space or choose another place") from error
