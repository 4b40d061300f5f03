"""What commands read: texts from arguments or from stdin as they arrive, labelled rows, calibration texts."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from fieldrun.errors import DatasetError, FieldrunError, InputTextError, TextTooLong, UsageError
from fieldrun.evaluation.dataset import Dataset, read_tsv
from fieldrun.evaluation.tables import Columns, is_table
from fieldrun.formats.bundle import MANIFEST
from fieldrun.formats.storage import is_folder

from .output import note

if TYPE_CHECKING:
    from fieldrun_runtimes.answers import Failed, Text
    from fieldrun_runtimes.model import FieldModel, Floats, Integers

__all__ = ["Batch", "choose_tasks", "encode", "labelled_rows", "read_batches", "read_texts", "read_tsv"]

Named: TypeAlias = "tuple[str, str | bytes | tuple[str, str]]"
"""What errors call a text, and the text: an argument, a line of stdin, or a `--pair`."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Some texts, or pairs of texts, what errors call each of them ("line 3", "text 1"), and their numbers.

    In the place of a text that could not be read stands its error.
    """

    texts: list[Text | FieldrunError]
    names: list[str]
    lines: list[int]


def choose_tasks(model: FieldModel[str | None], wanted: Sequence[str], *, paired: bool) -> tuple[tuple[str, ...], bool]:
    """Return the tasks to answer, and whether they take pairs."""
    from fieldrun_runtimes import answers

    tasks = answers.choose_tasks(model, wanted, paired=paired)
    return tasks, model.kind(tasks[0]) == "pair"


def read_batches(
    texts: Sequence[str], pairs: Sequence[tuple[str, str]] = (), *, paired: bool = False, on_error: str = "fail"
) -> Iterator[Batch]:
    """Yield the texts of the arguments or, without any, the lines of stdin, in batches.

    A line of stdin is never held back to wait for the next one. The texts before a bad one are yielded first.

    Args:
        texts: the arguments TEXT; if `paired`, each is `a<TAB>b`.
        pairs: the options `--pair`.
        paired: whether the texts are pairs.
        on_error: `"fail"` raises the error of a text that cannot be read; else it is yielded in the text's place.

    Raises:
        InputTextError: there are no texts, or, with `"fail"`, one is empty, not UTF-8 or, if `paired`, not a pair.
        UsageError: the first argument names a bundle.
    """
    from fieldrun_runtimes.answers import BATCH, parse_line

    if texts and (texts[0] == "reference" or _is_bundle(Path(texts[0]))):
        raise UsageError(f"{texts[0]!r} is a bundle, not a text; write --bundle {texts[0]}")
    chunks: Iterable[list[Named]] = _lines_of_stdin()
    if texts or pairs:
        given: list[Named] = [(f"text {i}", text) for i, text in enumerate(texts, start=1)]
        chunks = [given + [(f"pair {i}", pair) for i, pair in enumerate(pairs, start=1)]]
    found, number = False, 0
    for chunk in chunks:
        batch = Batch([], [], [])
        for name, text in chunk:
            number += 1
            try:
                if isinstance(text, tuple) and all(part.strip() for part in text):
                    parsed: Text | FieldrunError = text
                else:
                    line = "\t".join(text) if isinstance(text, tuple) else text
                    parsed = parse_line(line, name, paired=paired)
            except InputTextError as error:
                if on_error == "fail":
                    if batch.texts:
                        yield batch
                    raise
                parsed = error
            batch.texts.append(parsed)
            batch.names.append(name)
            batch.lines.append(number)
            if len(batch.texts) == BATCH:
                yield batch
                batch = Batch([], [], [])
        if batch.texts:
            yield batch
        found = True
    if not found:
        raise InputTextError("no texts: give them as arguments, or one per line on stdin")


def encode(
    model: FieldModel[str | None], texts: Sequence[str], dim: int | None, on_error: str
) -> tuple[Floats, Integers, list[Failed]]:
    """Return fields, the tokens that each text lost, and what failed, of the arguments or of the lines of stdin.

    With `on_error="report"` the field of a text that cannot be encoded is NaN; with `"skip"` there is none.
    """
    import numpy as np

    from fieldrun.evaluation.rows import run_located
    from fieldrun_runtimes.answers import failed

    fields, dropped = [], []
    errors: list[Failed] = []
    for batch in read_batches(texts, on_error=on_error):
        rows = batch.texts
        try:
            if any(isinstance(text, FieldrunError) for text in rows):
                raise InputTextError
            found = run_located(lambda part: model.forward(part, dim=dim), rows, batch.names.__getitem__)
            fields.append(found.field)
            dropped.append(found.dropped)
            continue
        except (InputTextError, TextTooLong):
            if on_error == "fail":
                raise
        for i, text in enumerate(rows):  # which ones are they?
            try:
                if isinstance(text, FieldrunError):
                    raise text
                found = model.forward([text], dim=dim)  # type: ignore[list-item]  # not a pair
                fields.append(found.field)
                dropped.append(found.dropped)
            except (InputTextError, TextTooLong) as error:
                errors.append(failed(error, batch.lines[i], batch.names[i]))
                if on_error == "report":
                    fields.append(np.full((1, dim or model.get_embedding_dimension()), np.nan, np.float32))
                    dropped.append(np.zeros(1, np.int64))
    if not fields:
        raise InputTextError("no text could be encoded")
    return np.concatenate(fields), np.concatenate(dropped), errors


def labelled_rows(values: Sequence[str], **columns: str | None) -> dict[str, Dataset]:
    """Read the rows of every TASK=FILE, by task; `columns` as for `read_tsv`."""
    files: dict[str, str] = {}
    for value in values:
        task, _, path = value.partition("=")
        if not task or not path:
            raise click.UsageError(f"--data {value!r}: write TASK=FILE, as in sst2=dev.tsv")
        if task in files:
            raise click.UsageError(
                f"--data names the task {task!r} twice, with {files[task]} and {path}; put their rows into one file"
            )
        files[task] = path
    return {task: read_tsv(path, **columns) for task, path in files.items()}


def read_texts(path: Path | None) -> list[str] | None:
    """Read the texts of a calibration file; a pair counts as two texts."""
    if path is None:
        return None
    if path.suffix == ".tsv" or is_table(path, Columns()):
        return [text for item in read_tsv(path).texts for text in ([item] if isinstance(item, str) else item)]
    try:
        lines = path.read_text("utf-8-sig").split("\n")
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist; give a file with one text per line") from error
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not valid UTF-8; convert it to UTF-8") from error
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise DatasetError(f"{path} has no texts; give a file with one text per line")
    return texts


def _is_bundle(path: Path) -> bool:
    return is_folder(path) and (path / MANIFEST).is_file()


def _lines_of_stdin() -> Iterator[list[Named]]:
    """Yield all the lines that have arrived, as soon as there is one; the last may lack its newline."""
    if sys.stdin is None:
        raise InputTextError("stdin is closed: give the texts as arguments")
    if sys.stdin.isatty():
        note("reading one text per line; end with Ctrl-D")
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


def _numbered(lines: list[bytes], start: int) -> list[Named]:
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
