"""Texts from arguments or from stdin, line by line as they come, each with the place an error can name."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias

from fieldrun.errors import InputTextError

from .output import note

__all__ = ["BATCH", "Record", "read_batches", "record_of"]

BATCH = 256
"""At most so many texts are answered at once: answers come early and memory stays flat."""


Given: TypeAlias = str | bytes | tuple[str, str]
"""A text argument, a line of stdin, or a `--pair`."""


@dataclass(frozen=True, slots=True)
class Record:
    """One text, or one pair of texts, and where it came from ("line 3", "text 1")."""

    where: str
    value: str | tuple[str, str]


def read_batches(texts: tuple[str, ...], pairs: tuple[tuple[str, str], ...], *, paired: bool) -> Iterator[list[Record]]:
    """Yield the texts of the arguments, or those of stdin when there are none, in batches of 1..BATCH.

    A line of stdin is never held back to wait for the next one. What came before a bad text is yielded first.

    Args:
        texts: the arguments TEXT; with `paired`, each is `a<TAB>b`.
        pairs: the options `--pair`; empty unless `paired`.
        paired: whether records are pairs.

    Raises:
        InputTextError: there is no text at all, or one is empty, not UTF-8 or (with `paired`) not two texts.
    """
    if texts or pairs:
        given: list[tuple[str, Given]] = [(f"text {i}", text) for i, text in enumerate(texts, start=1)]
        given += [(f"pair {i}", pair) for i, pair in enumerate(pairs, start=1)]
        chunks: Iterable[list[tuple[str, Given]]] = [given]
    else:
        chunks = _stdin_lines()
    found = False
    for chunk in chunks:
        batch: list[Record] = []
        for where, text in chunk:
            try:
                batch.append(record_of(where, text, paired))
            except InputTextError:
                if batch:
                    yield batch
                raise
            if len(batch) == BATCH:
                yield batch
                batch = []
        if batch:
            yield batch
        found = True
    if not found:
        raise InputTextError("no texts: give them as arguments, or one per line on stdin")


def record_of(where: str, given: Given, paired: bool) -> Record:
    """Return the record of a text or, with `paired`, of `a<TAB>b`; `InputTextError` names `where` it is from."""
    if isinstance(given, bytes):
        try:
            given = given.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputTextError(f"{where}: not valid UTF-8; convert the input to UTF-8") from error
    if isinstance(given, str):
        if not given.strip():
            raise InputTextError(f"{where}: the text is empty; leave it out")
        if not paired:
            return Record(where, given)
        parts = given.split("\t")
        if len(parts) != 2:
            raise InputTextError(f"{where}: a pair is two texts with one tab between them, not {len(parts) - 1} tabs")
        given = (parts[0], parts[1])
    if not all(text.strip() for text in given):
        raise InputTextError(f"{where}: one text of the pair is empty; leave the pair out")
    return Record(where, given)


def _stdin_lines() -> Iterator[list[tuple[str, Given]]]:
    """Yield all the lines that have arrived, as soon as there is one; the last may lack its newline."""
    if sys.stdin is None:
        raise InputTextError("stdin is closed: give the texts as arguments")
    if sys.stdin.isatty():
        note("reading one text per line; Ctrl-D ends the input")
    pending, number = bytearray(), 0
    while chunk := _read():
        head, newline, tail = chunk.rpartition(b"\n")
        if not newline:
            pending += chunk
            continue
        lines = (bytes(pending) + head).split(b"\n")
        pending = bytearray(tail)
        yield _numbered(lines, number)
        number += len(lines)
    if pending:
        yield _numbered([bytes(pending)], number)


def _numbered(lines: list[bytes], start: int) -> list[tuple[str, Given]]:
    if start == 0:
        lines[0] = lines[0].removeprefix(b"\xef\xbb\xbf")
    return [(f"line {start + i}", line.removesuffix(b"\r")) for i, line in enumerate(lines, start=1)]


def _read() -> bytes:
    stream: Any = sys.stdin.buffer
    try:
        data: bytes = stream.read1(1 << 16)  # returns what is there; read and readline would wait for more
    except OSError as error:
        raise InputTextError(f"cannot read stdin: {error.strerror or error}") from error
    return data
