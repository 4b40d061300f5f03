"""Tables of the pages: a table is a list of columns over rows, a block is tables and paragraphs.

Every study declares its blocks in `tables.py` as functions from the folder of records to parts; `markdown` writes them.
How an interval, a change, a time or a size is spelled is decided here, and so is the line of conditions below a table.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from pathlib import Path
from typing import Any, TypeAlias

from fieldrun_benchmarks.harness.record import read_record

__all__ = [
    "Block",
    "Claim",
    "Column",
    "Part",
    "Record",
    "Table",
    "accuracy",
    "block",
    "change",
    "code",
    "conditions",
    "interval",
    "loss",
    "markdown",
    "megabytes",
    "micros",
    "percent",
    "seconds",
    "slashed",
    "times",
]

Record: TypeAlias = Mapping[str, Any]
Claim: TypeAlias = tuple[str, str, str]
"""What an absolute figure is about: the quantity, the artifact, and the rows or texts it was measured on."""


@dataclass(frozen=True, slots=True)
class Column:
    """One column: its title, how a row's value is read, and how the value is shown.

    Attributes:
        title: the heading.
        read: the keys of the value in a row, with dots between them, or a function of the row.
        show: a format or a function of the value.
        missing: what stands where a row lacks one of the keys; None makes a missing key an error.
        claim: says what the figure of a row is about, so that a test can find a second one.
    """

    title: str
    read: str | Callable[[Any], Any]
    show: str | Callable[[Any], str] = "{}"
    _: KW_ONLY
    missing: str | None = None
    claim: Callable[[Any], Claim] | None = None

    def cell(self, row: Any) -> str:
        """Return the cell of `row`; raises `KeyError` for a key that is missing and must not be."""
        value = row
        if callable(self.read):
            value = self.read(row)
        else:
            for key in self.read.split("."):
                value = value[0] if isinstance(value, list) else value
                if self.missing is not None and (not isinstance(value, Mapping) or key not in value):
                    return self.missing
                value = value[key]
        return self.show(value) if callable(self.show) else self.show.format(value)


@dataclass(frozen=True, slots=True)
class Table:
    """Columns over rows, with ready cells `below` or `above` them."""

    columns: Sequence[Column]
    rows: Sequence[Any]
    below: Sequence[Sequence[str]] = ()
    above: Sequence[Sequence[str]] = ()

    def markdown(self) -> str:
        """Return the table in Markdown."""
        cells = [[column.cell(row) for column in self.columns] for row in self.rows]
        lines = [[column.title for column in self.columns], *self.above, *cells, *self.below]
        head, *body = ("|" + "|".join(f" {cell} " if cell else " " for cell in line) + "|" for line in lines)
        return "\n".join([head, "|---" * len(self.columns) + "|", *body])

    def figures(self) -> Iterator[tuple[Claim, str]]:
        """Yield what every absolute figure is about, and the figure as it is shown, without its interval."""
        for column in self.columns:
            for row in self.rows if column.claim else ():
                if cell := column.cell(row):
                    yield column.claim(row), cell.partition(" (")[0]  # type: ignore[misc]


Part: TypeAlias = Table | str
Block: TypeAlias = Callable[[Path], Sequence[Part]]
"""The folder of records -> what a page shows of them."""


def block(parts: Callable[..., Sequence[Part]], *names: str, kind: str | None = None) -> Block:
    """Return the block that `parts` makes of the records `names`, each of `kind`, or else of the kind of its name."""
    return lambda records: parts(*(read_record(records / f"{name}.json", kind or name) for name in names))


def markdown(parts: Sequence[Part]) -> str:
    """Return the parts as Markdown, an empty line between them."""
    return "\n\n".join(part if isinstance(part, str) else part.markdown() for part in parts)


def conditions(
    record: Record,
    before: str = "",
    packages: Sequence[str] = ("onnxruntime", "numpy"),
    after: str = "; a shared machine: read the ratios",
) -> str:
    """Return the line that says when, on which machine and with which versions a record was measured."""
    about = record["conditions"]
    machine = f"{about['cores_allowed']} shared cores of {about['processor']}, {about['system']}"
    versions = "".join(f", {name} {about['packages'][name]}" for name in packages)
    return f"({before}{about['date']}, {machine}, Python {about['python']}{versions}{after})"


def percent(share: float) -> str:
    """Return a share in per cent."""
    return f"{100 * share:.1f}"


def interval(ends: Sequence[float], digits: int = 1, scale: float = 100.0) -> str:
    """Return the ends of an interval in brackets."""
    return "({} - {})".format(*(f"{scale * end:.{digits}f}" for end in ends))


def accuracy(entry: Record) -> str:
    """Return an accuracy and its interval, per cent."""
    return f"{percent(entry['accuracy'])} {interval(entry['ci95'])}"


def change(entry: Record, digits: int = 2, scale: float = 100.0, key: str = "difference", ends: str = "ci95") -> str:
    """Return a signed difference and its interval, in points unless `scale` says otherwise."""
    value, low, high = (f"{scale * x + 0.0:+.{digits}f}" for x in (entry[key], *entry[ends]))
    return f"{value} ({low} to {high})"


def loss(entry: Record, scale: float = 100.0, key: str = "difference") -> str:
    """Return as a change what a record holds as a loss: the signs turned, the ends of the interval swapped."""
    return change({"difference": -entry[key], "ci95": [-x for x in reversed(entry["ci95"])]}, scale=scale)


def micros(value: float) -> str:
    """Return a time in microseconds."""
    return f"{value:.1f} us" if value < 10 else f"{value:,.0f} us"


def seconds(value: float) -> str:
    """Return a time in seconds."""
    return f"{value:.2f} s"


def megabytes(size: int) -> str:
    """Return bytes in MB, without the unit."""
    return f"{size / 1e6:,.1f}"


def times(value: float) -> str:
    """Return a ratio: two digits while it is small."""
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def slashed(values: Sequence[Any], show: str = "{}") -> str:
    """Return several values in one cell."""
    return " / ".join(show.format(value) for value in values)


def code(name: object) -> str:
    """Return a name as code."""
    return f"`{name}`"
