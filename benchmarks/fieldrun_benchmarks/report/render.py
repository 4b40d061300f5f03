"""Records in; a page, Markdown, CSV, JSON or a comparison out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fieldrun.errors import FieldrunError, UsageError
from fieldrun.formats.storage import write_bytes

from ..harness.record import read_record
from .canvas import check_matplotlib
from .diff import Diff, diff_all
from .figures import figures
from .metrics import Metric, machine_of, metrics
from .sections import claim, sections
from .table import Record, one_line

__all__ = ["Report", "page", "read_records", "report", "to_csv", "to_json", "to_markdown"]

_NEEDED = ("workload", "settings", "harness", "idle", "sensors", "subjects", "ratios", "warnings", "single_stream_s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What `report` made: its text, the file it was written to, the number of records, and the comparison, if any."""

    text: str
    path: Path | None
    records: int
    diff: Diff | None

    def to_dict(self) -> dict[str, Any]:
        """Return the comparison, or where the report is, as JSON."""
        if self.diff is not None:
            return self.diff.to_dict()
        return {"path": str(self.path), "records": self.records, "bytes": len(self.text.encode("utf-8"))}


def report(records: Sequence[Path], out: Path | None = None, *, diff: bool = False) -> Report:
    """Make one report of records that `bench` wrote, or compare two of them.

    Args:
        records: the records; with `diff`, the old one and the new one.
        out: the file to write, replaced when it exists. Its ending chooses HTML, Markdown, CSV or JSON; a comparison is
            always Markdown, and needs no file.
        diff: compare two records.

    Raises:
        UsageError: no `out`, an unknown ending, another number of records than two to compare, or nothing in common.
        SchemaTooNew: a record was written by a newer fieldrun.
        MissingDependency: a page needs the extra `bench`.
        FieldrunError: a record is missing, of another kind, or incomplete.
        StorageError: `out` cannot be written.
    """
    changes: Diff | None = None
    if diff:
        if len(records) != 2:
            raise UsageError(f"--diff compares two records, OLD NEW, not {len(records)}")
        changes = diff_all(*(read_records([path]) for path in records))
        text, count = changes.to_markdown(), 2
    else:
        if out is None:
            raise UsageError("give -o, the report to write (.html, .md, .csv or .json), or --diff")
        if out.suffix not in _SPELLINGS:
            raise UsageError(f"{out.name}: the ending must be one of {', '.join(_SPELLINGS)}")
        found = read_records(records)
        text, count = _SPELLINGS[out.suffix](found), len(found)
    if out is not None:
        write_bytes(out, text.encode("utf-8"))
    return Report(text=text, path=out, records=count, diff=changes)


def read_records(paths: Sequence[Path]) -> list[Record]:
    """Read records of kind `bench`; one of kind `peers` gives a bench with a `name` for each of its workloads.

    Raises:
        SchemaTooNew: a record was written by a newer fieldrun.
        FieldrunError: a record is missing, of another kind, or incomplete.
    """
    found: list[Record] = []
    for path in paths:
        record = read_record(path, "bench", "peers")
        shared = {key: record.get(key) for key in ("kind", "command", "conditions", "system")}
        workloads = record.get("workloads", {}).items()
        for one in [record] if record["kind"] == "bench" else [shared | {"name": n} | w for n, w in workloads]:
            missing = [key for key in _NEEDED if key not in one]
            if missing or not one["subjects"]:
                raise FieldrunError(f"{path} is incomplete: it lacks {', '.join(missing) or 'subjects'}; measure again")
            found.append(one)
    return found


def page(records: Sequence[Record]) -> str:
    """Return one HTML page that needs nothing outside itself: no script, no font, no request."""
    check_matplotlib()
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    parts = []
    for number, record in enumerate(records):
        found = figures(record, f"r{number}").items()
        drawn = {name: {"svg": Markup(svg), "caption": caption} for name, (caption, svg) in found}
        about = {"claim": claim(record), "sections": sections(record), "figures": drawn}
        parts.append({**about, "record": record, "id": f"r{number}"})
    loader = PackageLoader("fieldrun_benchmarks.report", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2").render(parts=parts, mixed=_mixed(records))


def to_markdown(records: Sequence[Record]) -> str:
    """Return the claims and tables as Markdown; only the page has figures."""
    lines = ["# fieldrun bench", "", *([f"**{_mixed(records)}**", ""] if _mixed(records) else [])]
    for record in records:
        lines += [f"## {one_line(claim(record))}", ""]
        for section in sections(record):
            lines += [f"### {section.title}", ""]
            for line in section.lines:
                lines += [f"```\n{line[2:]}\n```" if line.startswith("$ ") else one_line(line), ""]
            for table in section.tables:
                lines += [table.to_markdown(), ""]
    return "\n".join(lines)


def to_csv(records: Sequence[Record]) -> str:
    """Return `metrics` of all records as CSV, with the date and the machine of each."""
    out = io.StringIO()
    names = ("date", "machine", *(field.name for field in fields(Metric)))
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    for record in records:
        about = {"date": record["conditions"]["date"], "machine": machine_of(record)}
        writer.writerows(about | asdict(metric) for metric in metrics(record))
    return out.getvalue()


def to_json(records: Sequence[Record]) -> str:
    """Return the records as they are, with their metrics."""
    found = [[asdict(metric) for metric in metrics(record)] for record in records]
    value = {"records": list(records), "metrics": found}
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


_SPELLINGS: dict[str, Callable[[Sequence[Record]], str]] = {
    ".html": page,
    ".md": to_markdown,
    ".csv": to_csv,
    ".json": to_json,
}


def _mixed(records: Sequence[Record]) -> str:
    machines = list(dict.fromkeys(machine_of(record) for record in records))
    if len(machines) < 2:
        return ""
    return f"These records are from {len(machines)} machines ({'; '.join(machines)}): do not compare their times."
