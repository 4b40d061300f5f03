"""Sections of tables: columns over rows, each column a head and the way to a row's cell."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from .values import NOT_MEASURED, shown, span

__all__ = ["Cell", "Record", "Section", "Table", "alive", "at", "ends", "find", "one_line", "table"]

Record: TypeAlias = Mapping[str, Any]
Cell: TypeAlias = Callable[[Any], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of strings: its caption, its column heads, its rows; the first column names the row."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]

    def to_markdown(self) -> str:
        """Return the table as Markdown, without its caption."""
        lines = [f"| {' | '.join(map(one_line, row))} |" for row in (self.head, *self.rows)]
        return "\n".join([lines[0], "|---" * len(self.head) + "|", *lines[1:]])


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading with lines, tables and the names of the figures that belong to it; "$ " begins a command."""

    title: str
    lines: Sequence[str] = ()
    tables: Sequence[Table] = ()
    figures: Sequence[str] = ()


def one_line(text: str) -> str:
    """Return text that fits a cell or a heading of Markdown."""
    return " ".join(text.replace("|", "\\|").split())


def alive(record: Record) -> dict[str, Any]:
    """Return the subjects that were measured, by name."""
    return {name: subject for name, subject in record["subjects"].items() if "failed" not in subject}


def table(caption: str, columns: Mapping[str, Cell], rows: Iterable[Any]) -> Table:
    """Return `columns`, by their heads, over `rows`."""
    cells = tuple(tuple(cell(row) for cell in columns.values()) for row in rows)
    return Table(caption=caption, head=tuple(columns), rows=cells)


def find(row: Any, path: str) -> Any:
    """Return the value at `path`, keys with "/" between them, or None."""
    for key in path.split("/"):
        row = row.get(key) if isinstance(row, Mapping) else None
    return row


def at(path: str, unit: str = "", missing: str = NOT_MEASURED) -> Cell:
    """Return the cell that shows the value at `path` of a row, or `missing`."""
    return lambda row: shown(find(row, path), unit, missing)


def ends(path: str, unit: str, missing: str = "too few calls") -> Cell:
    """Return the cell that shows the interval at `path` of a row: a pair, or two paths with a space between them."""

    def cell(row: Any) -> str:
        both = [find(row, one) for one in path.split()]
        low, high = both if len(both) == 2 else both[0] or (None, None)
        return missing if low is None or high is None else span(low, high, unit)

    return cell
