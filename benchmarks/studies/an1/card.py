"""Add the measurement of AN1's claims to the training record of a checkpoint, and so to its model card.

    python -m studies.an1.card CHECKPOINT benchmarks/records OUT

The measurement needs the finished student, so it follows training. Bundles exported from OUT have the lines as well.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import click

from fieldrun.formats.storage import sha256_file
from fieldrun.heads.trained import Checkpoint

from .tables import an1_record, card_lines

__all__ = ["main"]


@click.command()
@click.argument("checkpoint")
@click.argument("records", type=click.Path(path_type=Path, exists=True, file_okay=False))
@click.argument("out", type=click.Path(path_type=Path))
def main(checkpoint: str, records: Path, out: Path) -> None:
    """Write CHECKPOINT to the new folder OUT, with the lines on AN1 from RECORDS in its card."""
    source = Checkpoint.load(checkpoint)
    lines = card_lines(an1_record(records))
    about = {"card": lines, "record_sha256": sha256_file(records / "an1.json")}
    dataclasses.replace(source, record={**source.record, "an1": about}).save(out)


if __name__ == "__main__":
    main()
