"""Labelled texts, of a program or from a file."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..errors import DatasetError
from .copies import text_key
from .rows import Labels, Texts, check_labels, split_texts
from .tables import PAIR, SINGLE, Columns, Row, open_table

__all__ = ["Dataset", "read_bytes", "read_tsv"]


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
    """The line of each record in its file; empty without a file."""
    unit: str = "line"
    """What `lines` count: `"line"`, or `"row"` of a Parquet file."""

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
        numbers = tuple(self.lines[i] for i in kept) if self.lines else ()
        return replace(self, texts=texts, labels=tuple(self.labels[i] for i in kept), lines=numbers)

    def where(self, record: int) -> str:
        """Return the place of record `record` for messages: file and 1-based line, or the 0-based record."""
        return f"{self.path}, {self.unit} {self.lines[record]}" if self.lines else f"{self.path}, record {record}"


def read_tsv(
    path: str | Path,
    *,
    text_column: str | None = None,
    label_column: str | None = None,
    text_b_column: str | None = None,
) -> Dataset:
    """Read the labelled rows of `path`: a TSV, CSV, JSON lines or Parquet file, see `fieldrun.evaluation.tables`.

    The columns are `text` and `label`, or `text_a`, `text_b` and `label` for pairs, unless they are named; others are
    not read.

    Raises:
        DatasetError: the file is missing, has no records, lacks a column, or a row is not valid UTF-8, has another
            number of columns, or an empty text or label; the message names the file and the line.
        MissingDependency: a Parquet file needs pyarrow.
    """
    path = Path(path)
    columns = Columns(text=text_column, label=label_column, text_b=text_b_column)
    data = read_bytes(path)
    table = open_table(io.BytesIO(data), path, columns)
    rows: list[Row] = []
    wrong: list[Row] = []
    for row in table.rows:
        (rows if row.error is None else wrong).append(row)
    if wrong:
        more = f" (and {len(wrong) - 1} more rows; 'fieldrun check' lists them)" if len(wrong) > 1 else ""
        raise DatasetError(f"{path}, {table.unit} {wrong[0].line}: {wrong[0].error}{more}")
    if not rows:
        raise DatasetError(f"{path}, {table.unit} 2: there are no records after the header; add one per line")
    texts: Any = tuple(row.text for row in rows)
    return Dataset(
        path=path,
        kind=table.kind,
        texts=texts,
        labels=tuple(row.label for row in rows),
        sha256=hashlib.sha256(data).hexdigest(),
        lines=tuple(row.line for row in rows),
        unit=table.unit,
    )


def read_bytes(path: Path) -> bytes:
    """Return the bytes of a data file; raises `DatasetError`."""
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist; give a TSV file with the header {SINGLE} or {PAIR}") from error
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from error
