"""`fieldrun report`: one page from records, or what changed between two of them."""

from __future__ import annotations

from pathlib import Path

import click

from fieldrun.errors import FieldrunError

from .options import check_output, examples, force_option, json_option, output_option
from .output import put, put_json, warn

__all__ = ["report"]


@click.command(
    short_help="Make a report of benches, or compare two.",
    epilog=examples(
        "fieldrun report out/bench-*.json -o report.html", "fieldrun report --diff old.json new.json --json"
    ),
)
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RECORD...")
@output_option("report, a .html, .md, .csv or .json file", required=False)
@click.option("--diff", is_flag=True, help="Compare two records: OLD NEW.")
@force_option
@json_option
@click.pass_context
def report(
    ctx: click.Context, records: tuple[Path, ...], output: Path | None, diff: bool, force: bool, as_json: bool
) -> None:
    """Make one page of RECORDs that 'fieldrun bench --report' wrote. The page opens offline.

    The ending of --output chooses HTML, Markdown, CSV or JSON. With --diff, show how the second record differs from the
    first, with 95 % intervals; the exit code is 1 when a subject became slower, larger or less accurate, or failed.
    """
    import fieldrun

    if output is not None:
        check_output(output, force=force)
    made = fieldrun.report(records, output, diff=diff)
    if as_json:
        put_json(made.to_dict())
    elif made.path is None:
        put(made.text.rstrip())
    elif not diff:
        put(f"{made.path}: {made.records} record{'' if made.records == 1 else 's'}")
    if made.diff is not None and made.diff.regressions:
        names = ", ".join(f"{change.subject} {change.metric}" for change in made.diff.regressions)
        warn(f"error: worse than before: {names}")
        ctx.exit(FieldrunError.exit_code)
