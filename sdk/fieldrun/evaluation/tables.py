"""Rows of the files that people have: CSV, TSV, JSON lines and Parquet, with columns that are found by their name.

| File | Read as |
|---|---|
| `.tsv`, or any other name with a tab in its first line | columns between tabs; there is no quoting |
| `.csv` | the quoting of Excel, columns between `,` `;` `|` or tabs, whichever the header has |
| `.jsonl`, `.ndjson`, `.json` | a JSON object a line |
| `.parquet` | by pyarrow (the extra `data`) |

Text is UTF-8, or UTF-16 with a byte-order mark; lines end with LF or CR LF, and blank lines at the end are nothing. A
tab-separated file in UTF-16 has Excel's quoting too, as Excel writes it.
"""

from __future__ import annotations

import csv
import io
import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from ..errors import DatasetError, MissingDependency
from ..formats.limits import has_control

__all__ = ["PAIR", "SINGLE", "START", "UTF_16", "Columns", "Row", "Table", "is_table", "no_text", "open_table"]

SINGLE, PAIR = "'text<TAB>label'", "'text_a<TAB>text_b<TAB>label'"
_JSON = (".jsonl", ".ndjson", ".json")
_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
UTF_16 = (b"\xff\xfe", b"\xfe\xff")
"""The byte-order marks of UTF-16."""
_NO_TEXT = {  # the first bytes of files that are often given for text
    b"\x1f\x8b": "is compressed (gzip); unpack it first",
    b"BZh": "is compressed (bzip2); unpack it first",
    b"\xfd7zXZ": "is compressed (xz); unpack it first",
    b"\x28\xb5\x2f\xfd": "is compressed (zstd); unpack it first",
    b"PK\x03\x04": "is an Excel workbook or a zip archive; save it as CSV, or unpack it",
    b"\xd0\xcf\x11\xe0": "is an Excel workbook; save it as CSV",
    b"\xff\xfe\x00\x00": "is UTF-32; convert the file to UTF-8",
    b"\x00\x00\xfe\xff": "is UTF-32; convert the file to UTF-8",
}
START = 8
"""So many bytes `no_text` needs."""
_BATCH = 4096  # rows of a Parquet file at once


@dataclass(frozen=True, slots=True, kw_only=True)
class Columns:
    """The names of the columns; by default `text` or, for pairs, `text_a` and `text_b`, and `label`."""

    text: str | None = None
    text_b: str | None = None
    label: str | None = None

    @property
    def given(self) -> bool:
        """Whether any was named."""
        return any((self.text, self.text_b, self.label))


@dataclass(frozen=True, slots=True)
class Row:
    """A record: the number of its line (of its row in Parquet), texts and label, or why it cannot be used."""

    line: int
    text: str | tuple[str, str] = ""
    label: str = ""
    error: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """The rows of a file, read as they are asked for."""

    kind: Literal["single", "pair"]
    rows: Iterator[Row]
    unit: str
    """What a row's number counts: `"line"` or `"row"`."""


Records = Iterator[tuple[int, Sequence[Any], str | None]]
"""Line number, cells, and what is wrong with the line."""


def is_table(path: Path, columns: Columns) -> bool:
    """Return whether `path` has named columns, rather than a text a line."""
    if columns.given or path.suffix.lower() in (".csv", ".parquet", *_JSON):
        return True
    if path.suffix.lower() != ".tsv":
        return False
    try:
        with path.open("rb") as file:
            start = file.read(4096)
    except OSError:
        return False
    head = start.decode("utf-16" if start[:2] in UTF_16 else "utf-8-sig", "replace").partition("\n")[0]
    names = [name.strip('"') for name in head.strip().split("\t")]  # Excel's quotes
    return "text" in names or {"text_a", "text_b"} <= {*names}


def no_text(start: bytes) -> str | None:
    """Return what a file is whose first `START` bytes are those of no text that can be read, and what to do."""
    found = next((why for mark, why in _NO_TEXT.items() if start.startswith(mark)), None)
    if found is None and start[:2] not in _MARKS and b"\x00" in (start[:1], start[1:2]) and start.strip(b"\x00"):
        return "is UTF-16 without a byte-order mark; convert the file to UTF-8"
    return found


def open_table(file: BinaryIO, path: Path, columns: Columns, *, labelled: bool = True) -> Table:
    """Return the rows of `file`, whose name `path` says what it is; without labels if not `labelled`.

    Raises:
        DatasetError: it is empty, or lacks a column; the message names file and line. What is wrong with a single row
            is in its `error`.
        MissingDependency: a Parquet file needs pyarrow.
    """
    suffix = path.suffix.lower()
    start = file.read(START)
    file.seek(0)
    if why := no_text(start):
        raise DatasetError(f"{path} {why}")
    if suffix == ".parquet" or start.startswith(b"PAR1"):
        names, records = _parquet(file, path, columns, labelled)
        return _table(path, names, records, columns, labelled, "row")
    encoding = next((encoding for mark, encoding in _MARKS.items() if start.startswith(mark)), "utf-8")
    # newline="\n": only that ends a line; bytes that are not UTF-8 become lone surrogates, which `_cell` finds
    wide = encoding == "utf-16"
    text = io.TextIOWrapper(file, encoding, errors="surrogatepass" if wide else "surrogateescape", newline="\n")
    try:
        first = text.readline()
    except UnicodeError as error:
        raise DatasetError(f"{path}, line 1: not valid UTF-16; convert the file to UTF-8") from error
    if not first.strip():
        more = " it is blank;" if first else ""
        raise DatasetError(
            f"{path}, line 1:{more or ' the file is empty;'} start it with the header {SINGLE} or {PAIR}"
        )
    header, lone, _ = first.rstrip("\r\n").partition("\r")
    if lone and not header.count('"') % 2:
        raise DatasetError(f"{path}: its lines end with CR alone, as on old Macs; save it with LF or CR LF")
    if first.startswith("[{") or first.strip() == "[":
        raise DatasetError(f"{path} is a JSON array; write one object per line (JSON lines) instead")
    lines = _decoded(first, text, path)
    if suffix in _JSON or (suffix not in (".tsv", ".csv") and first.startswith("{")):
        names, records = _json(lines, columns, labelled)
    elif suffix == ".csv" or wide or (suffix != ".tsv" and "\t" not in first and ("," in first or ";" in first)):
        names, records = _csv(lines)
    else:
        names, records = _tsv(lines)
    return _table(path, names, records, columns, labelled, "line", shown=first.rstrip("\r\n"))


def _table(
    path: Path, names: Sequence[str], records: Records, columns: Columns, labelled: bool, unit: str, shown: str = ""
) -> Table:
    where = f"{path}, line 1" if unit == "line" else str(path)

    def place(name: str) -> int:
        if names.count(name) > 1:
            raise DatasetError(f"{where}: two columns are called {name!r}; rename one")
        if name not in names:
            raise DatasetError(f"{where}: there is no column {name!r}; the columns are {_short(', '.join(names))}")
        return names.index(name)

    pair, wanted = _wanted(names, columns, labelled)
    if not columns.given and not {*wanted} <= {*names}:
        header = repr(_short(shown)) if shown else ", ".join(names)
        raise DatasetError(
            f"{where}: the header is {header}; it must be {SINGLE} or {PAIR}, in any order and with other columns too, "
            "or name the columns (--text-column, --label-column, --text-b-column)"
        )
    places = [place(name) for name in wanted]
    return Table(
        kind="pair" if pair else "single", rows=_rows(records, places, len(places) - labelled, len(names)), unit=unit
    )


def _rows(records: Records, places: Sequence[int], texts: int, width: int) -> Iterator[Row]:
    blank: list[int] = []  # lines that are nothing if no other line follows
    for line, cells, wrong in records:
        if not cells and wrong is None:
            blank.append(line)
            continue
        yield from (Row(number, error="the line is blank; delete it") for number in blank)
        blank.clear()
        if wrong is None and len(cells) != width:
            wrong = f"{len(cells)} columns, {width} expected; correct it"
        try:
            if wrong is not None:
                raise ValueError(wrong)
            found = [_cell(cells[place], "label" if i >= texts else "text") for i, place in enumerate(places)]
        except ValueError as error:
            yield Row(line, error=str(error))
            continue
        label = found[texts] if len(found) > texts else ""
        yield Row(line, found[0] if texts == 1 else (found[0], found[1]), label)


def _cell(value: Any, what: str) -> str:
    """Return a cell as a string; `ValueError` says why it is not one."""
    if what == "label" and isinstance(value, int):  # a bool too
        return str(value)
    if value is None or (isinstance(value, float) and value != value):
        raise ValueError(f"the {what} is missing; add it or delete the line")
    if not isinstance(value, str):
        raise ValueError(f"the {what} is {type(value).__name__}, not a string; correct it")
    if not value or value.isspace():
        raise ValueError(f"the {what} is empty; add it or delete the line")
    if not value.isascii() and any("\ud800" <= c <= "\udfff" for c in value):
        raise ValueError("not valid UTF-8; convert the file to UTF-8")
    if what == "label" and has_control(value):
        raise ValueError(f"the label has control characters or line ends: {value[:40]!a}; remove them")
    return value


def _decoded(first: str, text: io.TextIOWrapper, path: Path) -> Iterator[str]:
    yield first
    try:
        yield from text
    except UnicodeError as error:  # of UTF-16 alone
        raise DatasetError(f"{path} is not valid UTF-16 to its end; convert the file to UTF-8") from error
    text.detach()  # the file is the caller's to close


def _lines(first: str, rest: Iterable[str]) -> Iterator[str]:
    yield first
    yield from rest


def _wanted(names: Sequence[str], columns: Columns, labelled: bool) -> tuple[bool, list[str]]:
    """Return whether the rows are pairs, and the names of the columns to read: texts, then label."""
    pair = columns.text_b is not None or (columns.text is None and "text" not in names and "text_a" in names)
    wanted = [columns.text or "text_a", columns.text_b or "text_b"] if pair else [columns.text or "text"]
    return pair, wanted + ([columns.label or "label"] if labelled else [])


def _tsv(lines: Iterator[str]) -> tuple[list[str], Records]:
    names = next(lines).rstrip("\n").removesuffix("\r").split("\t")

    def records() -> Records:
        for number, line in enumerate(lines, start=2):
            line = line.removesuffix("\n").removesuffix("\r")
            cells = line.split("\t") if line else []
            wrong = f"{len(cells)} tab-separated columns, {len(names)} expected; correct it"
            yield number, cells, wrong if cells and len(cells) != len(names) else None

    return names, records()


def _csv(lines: Iterator[str]) -> tuple[list[str], Records]:
    first, skipped = next(lines), 0
    hint = re.fullmatch(r"sep=(.)\r?\n?", first)  # Excel's own first line
    if hint:
        first, skipped = next(lines, ""), 1
    counts = {mark: first.count(mark) for mark in ",;\t|"}
    delimiter = hint[1] if hint else max(counts, key=counts.__getitem__)
    csv.field_size_limit(max(csv.field_size_limit(), 1 << 30))  # a text may be longer than 128 kB
    reader = csv.reader(_lines(first, lines), delimiter=delimiter, strict=True)
    try:
        names = [name.strip() for name in next(reader)]
    except (csv.Error, StopIteration):
        names = [first.strip()]

    def records() -> Records:
        while True:
            number = reader.line_num + skipped + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                yield number, (), f"not CSV ({error}); correct the quotes"
                continue
            yield number, cells if any(cells) else (), None

    return names, records()


def _json(lines: Iterator[str], columns: Columns, labelled: bool) -> tuple[list[str], Records]:
    first = next(lines)
    names = [*_object(first)[0]] if first.strip() else []
    _, wanted = _wanted(names, columns, labelled)

    def records() -> Records:
        for number, line in enumerate(_lines(first, lines), start=1):
            if not line.strip():
                yield number, (), None
                continue
            found, wrong = _object(line)
            yield number, [found.get(name) for name in wanted], wrong

    return wanted if {*wanted} <= {*names} else names, records()


def _object(line: str) -> tuple[dict[str, Any], str | None]:
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return {}, "not a JSON object; correct it"
    return (found, None) if isinstance(found, dict) else ({}, "not a JSON object; correct it")


def _parquet(file: BinaryIO, path: Path, columns: Columns, labelled: bool) -> tuple[list[str], Records]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise MissingDependency("pyarrow", "data") from error
    try:
        source = parquet.ParquetFile(file)
    except (pyarrow.ArrowException, OSError) as error:
        raise DatasetError(f"{path} is not a Parquet file ({_short(str(error))}); write it again") from error
    names: list[str] = list(source.schema_arrow.names)
    _, wanted = _wanted(names, columns, labelled)
    if {*wanted} <= {*names}:
        names = wanted  # only these are read

    def records() -> Records:
        number = 0
        try:
            for batch in source.iter_batches(batch_size=_BATCH, columns=names):
                for cells in zip(*(batch[name].to_pylist() for name in names), strict=True):
                    number += 1
                    yield number, cells, None
        except (pyarrow.ArrowException, OSError) as error:
            raise DatasetError(f"{path}, row {number + 1}: cannot be read ({_short(str(error))})") from error

    return names, records()


def _short(line: str, limit: int = 60) -> str:
    return line if len(line) <= limit else line[:limit] + "..."
