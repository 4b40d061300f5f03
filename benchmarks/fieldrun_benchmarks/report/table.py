"""Values spelled by their unit, and sections of tables: columns over rows, each a head and the way to a row's cell.

This is the one spelling of a value: for pages, Markdown, comparisons and the terminal.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

__all__ = [
    "UNITS",
    "Cell",
    "Record",
    "Section",
    "Table",
    "alive",
    "at",
    "ends",
    "find",
    "one_line",
    "shown",
    "span",
    "table",
]

Record: TypeAlias = Mapping[str, Any]
Cell: TypeAlias = Callable[[Any], str]


NOT_MEASURED = "not measured"


def _micros(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:,.2f} s"
    if value >= 1e4:
        return f"{value / 1e3:,.1f} ms"
    return f"{value:,.0f} us" if value >= 100 else f"{value:.1f} us"


def _bytes(value: float) -> str:
    if value >= 1e8:
        return f"{value / 1e6:,.0f} MB"
    return f"{value / 1e6:.1f} MB" if value >= 1e5 else f"{value / 1e3:.1f} kB"


UNITS: dict[str, Callable[[Any], str]] = {
    "": str,
    "C": "{:g} C".format,
    "MHz": "{:,.0f} MHz".format,
    "MiB": lambda value: f"{value:,.0f} MiB" if value >= 10 else f"{value:.1f} MiB",
    "W": "{:.2f} W".format,
    "bytes": _bytes,
    "completed": lambda value: "yes" if value else "no",
    "cores": "{:.2f} cores".format,
    "count": "{:,}".format,
    "mJ": "{:.3f} mJ".format,
    "ms": lambda value: _micros(1e3 * value),
    "points": lambda value: f"{100 * value:+.1f} points",
    "ratio": lambda value: f"{value:.3f}" if value < 10 else f"{value:,.1f}",
    "s": lambda value: f"{value:.2f} s" if value >= 1 else f"{value:.3f} s",
    "share": lambda value: f"{100 * value:.1f} %",
    "texts/s": "{:,.0f} texts/s".format,
    "times": lambda value: f"{value:.3f} times" if value < 10 else f"{value:,.1f} times",
    "us": _micros,
}
"""What spells a value of each unit; "share" and "points" take shares of 1."""


def shown(value: Any, unit: str = "", missing: str = NOT_MEASURED) -> str:
    """Return `value` with its unit; `missing` for None and for a value that a record calls unavailable."""
    if value is None or (unit and not isinstance(value, int | float)):
        return missing
    return UNITS[unit](value)


def span(low: float, high: float, unit: str) -> str:
    """Return the two ends of an interval, with the unit once where both have the same."""
    (first, *of_first), (_, *of_last) = (shown(end, unit).split(" ", 1) for end in (low, high))
    return f"{first if of_first == of_last else shown(low, unit)} - {shown(high, unit)}"


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
