"""Render the tables of the pages from the committed records, or check that the pages show what the records say.

python -m studies.tables             # rewrite README.md and docs
python -m studies.tables --check     # change nothing; exit 1 when a page differs
python -m studies.tables PAGE... --records FOLDER
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import click

from fieldrun.errors import UnknownName
from fieldrun.formats.storage import write_bytes

from .an1 import tables as an1
from .arm import tables as arm
from .bulk import tables as bulk
from .columns import Block, markdown
from .encoder_methods import tables as encoder_methods
from .fit_heads import tables as fit_heads
from .flips import tables as flips
from .ladder import tables as ladder
from .peers import tables as peers
from .rank_order import tables as rank_order
from .search import tables as search
from .serve import tables as serve
from .student import tables as student
from .tensorrt_build import tables as tensorrt_build
from .transfer import tables as transfer
from .trials import tables as trials

__all__ = ["BLOCKS", "RECORDS", "ROOT", "main", "names", "pages", "render"]

ROOT = Path(__file__).resolve().parents[2]
RECORDS = ROOT / "benchmarks" / "records"
_STUDIES = (
    an1, arm, bulk, encoder_methods, fit_heads, flips, ladder, peers, rank_order, search, serve, student,
    tensorrt_build, transfer, trials,
)  # fmt: skip
BLOCKS: dict[str, Block] = {name: block for study in _STUDIES for name, block in study.BLOCKS.items()}
"""Every block that a page may show, by name."""

_BLOCK = re.compile(r"<!-- table: ([\w-]+) -->\n.*?<!-- end -->", re.DOTALL)


def pages(root: Path = ROOT) -> Iterator[Path]:
    """Yield the pages of the clone that show a block."""
    for page in [root / "README.md", *sorted((root / "docs").rglob("*.md"))]:
        if names(page.read_text("utf-8")):
            yield page


def names(text: str) -> list[str]:
    """Return the names of the blocks that a page shows."""
    return _BLOCK.findall(text)


def render(text: str, records: Path = RECORDS) -> str:
    """Return `text` with every `<!-- table: NAME -->` ... `<!-- end -->` block rendered from `records`.

    Raises:
        UnknownName: no such block.
        FieldrunError: a record is missing.
    """

    def block(match: re.Match[str]) -> str:
        name = match.group(1)
        if name not in BLOCKS:
            raise UnknownName("table", name, sorted(BLOCKS))
        return f"<!-- table: {name} -->\n{markdown(BLOCKS[name](records))}\n<!-- end -->"

    return _BLOCK.sub(block, text)


@click.command()
@click.argument("documents", nargs=-1, type=click.Path(path_type=Path, exists=True, dir_okay=False), metavar="PAGE...")
@click.option("--records", type=click.Path(path_type=Path, exists=True, file_okay=False), default=RECORDS)
@click.option("--check", is_flag=True, help="Change nothing; exit 1 when a page is not what the records say.")
def main(documents: Sequence[Path], records: Path, check: bool) -> None:
    """Render the tables of every PAGE (of README.md and docs when none is given) from the records."""
    differ = []
    for page in documents or pages():
        before = page.read_text("utf-8")
        after = render(before, records)
        if before != after:
            differ.append(page)
            if not check:
                write_bytes(page, after.encode("utf-8"))
    if check and differ:
        click.echo(f"{', '.join(map(str, differ))}: not what the records say; run this without --check", err=True)
        sys.exit(1)


if __name__ == "__main__":
    main()
