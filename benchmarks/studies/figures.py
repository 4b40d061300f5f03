"""Draw the figures of the pages from the committed records, or check that they are drawn from them.

python -m studies.figures             # rewrite the SVG files in docs
python -m studies.figures --check     # change nothing; exit 1 when a drawing is of another record
python -m studies.figures --docs FOLDER --records FOLDER

Every file ends with a comment that names its record by hash, and the matplotlib that drew it: another version may place
a letter elsewhere, so that bytes are compared only where the version is the same.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from fieldrun.formats.storage import sha256_file, write_bytes
from fieldrun_benchmarks.harness.record import read_record

from .an1.figures import directions, spectrum
from .peers.figures import accuracy_latency
from .search.measure import plot
from .tables import RECORDS, ROOT

__all__ = ["FIGURES", "draw", "is_drawn", "main"]

FIGURES: Mapping[str, tuple[str, Callable[[Any], str]]] = {
    "accuracy-latency.svg": ("peers", accuracy_latency),
    "an1-directions.svg": ("an1", directions),
    "an1-spectrum.svg": ("an1", spectrum),
    "search-front.svg": ("search", plot),
}
"""File -> the record, by kind, and what draws it."""


def _drawn_by() -> str:
    import matplotlib

    return f" by matplotlib {matplotlib.__version__} -->\n"


def _drawn_from(name: str, records: Path) -> str:
    record = records / f"{FIGURES[name][0]}.json"
    return f"<!-- drawn from {record.name}, sha256 {sha256_file(record)},"


def draw(name: str, records: Path = RECORDS) -> str:
    """Return the SVG file `name`; raises what `read_record` does."""
    kind, drawing = FIGURES[name]
    return drawing(read_record(records / f"{kind}.json", kind)) + _drawn_from(name, records) + _drawn_by()


def is_drawn(path: Path, records: Path = RECORDS) -> bool:
    """Whether the file at `path` is what `draw` makes of the records, as far as this matplotlib can tell."""
    text = path.read_text("utf-8") if path.is_file() else ""
    if not text.endswith(_drawn_by()):
        return _drawn_from(path.name, records) in text
    return text == draw(path.name, records)


@click.command()
@click.option("--docs", type=click.Path(path_type=Path, exists=True, file_okay=False), default=ROOT / "docs")
@click.option("--records", type=click.Path(path_type=Path, exists=True, file_okay=False), default=RECORDS)
@click.option("--check", is_flag=True, help="Change nothing; exit 1 when a drawing is not what the records say.")
def main(docs: Path, records: Path, check: bool) -> None:
    """Draw the figures into the folder of the pages."""
    for name in FIGURES:
        path = next(docs.rglob(name), docs / name)
        if is_drawn(path, records):
            continue
        if check:
            click.echo(f"{path} is not drawn from its record; run this without --check", err=True)
            sys.exit(1)
        write_bytes(path, draw(name, records).encode("utf-8"))


if __name__ == "__main__":
    main()
