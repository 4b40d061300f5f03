"""`fieldrun report`: records in, one page out; or what changed between two of them."""

from __future__ import annotations

from pathlib import Path

import click

from fieldrun.errors import FieldrunError, UsageError
from fieldrun.formats.storage import write_bytes

from .options import check_output, examples, force_option, json_option
from .output import put, put_json, warn

__all__ = ["report"]


@click.command(
    short_help="Make a report of benches, or compare two.",
    epilog=examples(
        "fieldrun report out/bench-*.json -o report.html", "fieldrun report --diff old.json new.json --json"
    ),
)
@click.argument("records", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="RECORD...")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="The report: .html, .md, .csv or .json.")
@click.option("--diff", "compare", is_flag=True, help="Compare two records: OLD NEW.")
@force_option
@json_option
@click.pass_context
def report(
    ctx: click.Context, records: tuple[Path, ...], output: Path | None, compare: bool, force: bool, as_json: bool
) -> None:
    """Make one page of RECORDs that 'fieldrun bench --report' wrote; it opens offline.

    The ending of -o chooses HTML, Markdown, CSV or JSON. With --diff, show what the second record has become against
    the first, with 95 % intervals; ends with exit code 1 when something is slower, larger or less right, or failed.
    """
    from fieldrun_benchmarks.report.diff import diff_all
    from fieldrun_benchmarks.report.render import page, read_records, to_csv, to_json, to_markdown

    if compare:
        if len(records) != 2:
            raise UsageError(f"--diff compares two records, OLD NEW, not {len(records)}")
        changes = diff_all(*(read_records([path]) for path in records))
        text = changes.to_markdown()
        if output is not None:
            check_output(output, force=force)
            write_bytes(output, text.encode("utf-8"))
        if as_json:
            put_json(changes.to_dict())
        elif output is None:
            put(text.rstrip())
        if changes.regressions:
            names = ", ".join(f"{change.subject} {change.metric}" for change in changes.regressions)
            warn(f"error: worse than before: {names}")
            ctx.exit(FieldrunError.exit_code)
        return
    if output is None:
        raise UsageError("give -o, the report to write (.html, .md, .csv or .json), or --diff")
    found = read_records(records)
    spellings = {".html": page, ".md": to_markdown, ".csv": to_csv, ".json": to_json}
    if output.suffix not in spellings:
        raise UsageError(f"{output.name}: the ending chooses among {', '.join(spellings)}")
    check_output(output, force=force)
    text = spellings[output.suffix](found)
    write_bytes(output, text.encode("utf-8"))
    value = {"path": str(output), "records": len(found), "bytes": len(text.encode("utf-8"))}
    if as_json:
        put_json(value)
    else:
        put(f"{output}: {len(found)} record{'' if len(found) == 1 else 's'}")
