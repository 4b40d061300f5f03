"""Labelled texts from a TSV file.

| Header (first line) | Kind | One line |
|---|---|---|
| `text<TAB>label` | single | a text and its label |
| `text_a<TAB>text_b<TAB>label` | pair | two texts and the label of the pair |

UTF-8 (a byte-order mark is allowed), one record per line, ended by LF or CR LF. There is no quoting: a quote character
is text, and so is every other character but tab and newline.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import DatasetError
from .copies import text_key
from .rows import Labels, Texts, check_labels, split_texts

__all__ = ["Dataset", "read_tsv"]

_BOM = b"\xef\xbb\xbf"
_HEADERS: dict[str, Literal["single", "pair"]] = {"text\tlabel": "single", "text_a\ttext_b\tlabel": "pair"}
_WANTED = "'text<TAB>label' or 'text_a<TAB>text_b<TAB>label'"


@dataclass(frozen=True, slots=True, kw_only=True)
class Dataset:
    """Texts (or pairs of texts) with their labels."""

    path: Path
    kind: Literal["single", "pair"]
    texts: tuple[str, ...] | tuple[tuple[str, str], ...]
    labels: tuple[str, ...]
    sha256: str | None = None
    """Of the bytes that were read; None when the data did not come from a file."""
    lines: tuple[int, ...] = ()
    """The line of each record; empty where record `i` stands on line `i + 2`."""

    @classmethod
    def of(cls, texts: Texts, labels: Labels) -> Dataset:
        """Return `texts`, or pairs of texts, with their labels as strings; raises as `fieldrun.fit_head` does."""
        kind, sides = split_texts(texts)
        checked = check_labels(labels, len(sides[0]))
        rows: Any = tuple(zip(*sides, strict=True)) if kind == "pair" else tuple(sides[0])
        return cls(path=Path("texts"), kind=kind, texts=rows, labels=tuple(checked))

    def __len__(self) -> int:
        """Return the number of records."""
        return len(self.labels)

    def without(self, keys: Collection[Hashable]) -> Dataset:
        """Return the rows whose text has none of `keys` (of `fieldrun.evaluation.copies.text_key`)."""
        kept = [i for i, text in enumerate(self.texts) if text_key(text) not in keys]
        texts: Any = tuple(self.texts[i] for i in kept)
        numbers = tuple(self.lines[i] for i in kept) if self.lines else tuple(i + 2 for i in kept)
        return replace(self, texts=texts, labels=tuple(self.labels[i] for i in kept), lines=numbers)

    def where(self, record: int) -> str:
        """Return the place of record `record` for messages: file and 1-based line, or the 0-based record."""
        if self.sha256 is None:
            return f"{self.path}, record {record}"
        return f"{self.path}, line {self.lines[record] if self.lines else record + 2}"


def read_tsv(path: str | Path) -> Dataset:
    """Read the TSV file at `path`.

    Raises:
        DatasetError: the file is missing, has no records, another header, invalid UTF-8, or a line with the wrong
            number of columns, an empty text or an empty label; the message names the file and the 1-based line.
    """
    path = Path(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist; give a TSV file with the header {_WANTED}") from error
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from error
    lines = _lines(path, data)
    if not lines:
        raise DatasetError(f"{path}, line 1: the file is empty; start it with the header {_WANTED}")
    kind = _HEADERS.get(lines[0])
    if kind is None:
        raise DatasetError(f"{path}, line 1: the header is {_shown(lines[0])}; it must be {_WANTED}")
    if len(lines) == 1:
        raise DatasetError(f"{path}, line 2: there is no record after the header; add one per line")
    rows = [_row(path, number, line, kind) for number, line in enumerate(lines[1:], start=2)]
    labels = tuple(row[-1] for row in rows)
    sha256 = hashlib.sha256(data).hexdigest()
    if kind == "single":
        return Dataset(path=path, kind=kind, texts=tuple(row[0] for row in rows), labels=labels, sha256=sha256)
    return Dataset(path=path, kind=kind, texts=tuple((row[0], row[1]) for row in rows), labels=labels, sha256=sha256)


def _lines(path: Path, data: bytes) -> list[str]:
    data = data.removeprefix(_BOM)
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise DatasetError(f"{path}, line {line}: not valid UTF-8; convert the file to UTF-8") from error
    # Not splitlines(): it would cut texts at U+2028, form feeds and the like.
    lines = text.split("\n")
    if lines[-1] == "":
        lines.pop()
    return [line.removesuffix("\r") for line in lines]


def _row(path: Path, number: int, line: str, kind: str) -> list[str]:
    columns = line.split("\t")
    wanted = 2 if kind == "single" else 3
    if len(columns) != wanted:
        raise DatasetError(
            f"{path}, line {number}: {len(columns)} tab-separated columns, {wanted} expected; correct it"
        )
    *texts, label = columns
    if not label.strip():
        raise DatasetError(f"{path}, line {number}: the label is empty; add it or delete the line")
    if not all(text.strip() for text in texts):
        raise DatasetError(f"{path}, line {number}: the text is empty; add it or delete the line")
    return columns


def _shown(line: str, limit: int = 60) -> str:
    return repr(line if len(line) <= limit else line[:limit] + "...")
