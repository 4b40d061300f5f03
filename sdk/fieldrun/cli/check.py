"""`fieldrun check`: what is wrong with labelled files, and what is in them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fieldrun.errors import DatasetError

from .options import bundle_option, columns_options, examples, json_option
from .output import note, one_line, put, put_json

if TYPE_CHECKING:
    from fieldrun_runtimes.check import CheckReport

__all__ = ["check"]

_MOST = 20  # places that are shown of each kind


@click.command(
    short_help="Check labelled files before training on them.",
    epilog=examples("fieldrun check data.csv", "fieldrun check data.csv --text-column sentence --label-column class"),
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="FILE...")
@bundle_option
@columns_options()
@json_option
def check(
    files: tuple[Path, ...],
    bundle: str,
    text_column: str | None,
    text_b_column: str | None,
    label_column: str | None,
    as_json: bool,
) -> None:
    """Report every row that cannot be used, copies, conflicting and nearly equal labels, and what the texts are like.

    A FILE is a TSV, CSV, JSON lines or Parquet file with the columns text and label, or text_a, text_b and label. The
    exit code is 4 if a row cannot be used.

    With --json: files, kind, n, texts, bad (place and reason), labels (with rows), near_equal, copies and conflicts
    (places), tokens (min, median, p95, max), too_long, with_unknown, nothing_known, not_english (texts), warnings.
    """
    import fieldrun

    report = fieldrun.check(
        files, bundle=bundle, text_column=text_column, text_b_column=text_b_column, label_column=label_column
    )
    if as_json:
        put_json(report.to_dict())
    else:
        _put(report)
        for warning in report.warnings:
            note(warning)
    if report.bad:
        click.get_current_context().exit(DatasetError.exit_code)


def _put(report: CheckReport) -> None:
    for where, why in report.bad[:_MOST]:
        put(one_line(f"{where}: {why}"))
    for what, places in (("copy", report.copies), ("conflict", report.conflicts)):
        for where in places[:_MOST]:
            put(one_line(f"{where}: {what}"))
    put(
        f"{report.n} rows can be used, {len(report.bad)} cannot; {len(report.copies)} copies, "
        f"{len(report.conflicts)} in conflict"
    )
    put("labels: " + ", ".join(f"{one_line(label)} {rows}" for label, rows in report.labels.items()))
    if report.tokens:
        put("tokens: " + ", ".join(f"{name} {count}" for name, count in report.tokens.items()))
        shares = ("with_unknown", "nothing_known", "not_english", "too_long")
        found = (f"{name.replace('_', ' ')} {getattr(report, name) / report.texts:.1%}" for name in shares)
        put("texts: " + ", ".join(found))
