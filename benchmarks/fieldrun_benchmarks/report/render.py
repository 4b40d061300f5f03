"""Records -> a page, Markdown, CSV or JSON."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fieldrun.errors import FieldrunError

from ..harness.record import read_record
from .canvas import check_matplotlib
from .facts import machine_of
from .figures import figures
from .sections import claim, sections

__all__ = ["metrics", "page", "read_records", "to_csv", "to_json", "to_markdown"]

Record = Mapping[str, Any]
_NEEDED = ("workload", "settings", "harness", "idle", "sensors", "subjects", "ratios", "warnings", "single_stream_s")


def read_records(paths: Sequence[Path]) -> list[Record]:
    """Read records of kind `bench`; one of kind `peers` gives a bench with a `name` for each of its workloads.

    Raises:
        SchemaTooNew: one is of a newer fieldrun; none is left out in silence.
        FieldrunError: one is missing, of another kind, or not whole.
    """
    found: list[Record] = []
    for path in paths:
        record = read_record(path, "bench", "peers")
        shared = {key: record.get(key) for key in ("kind", "command", "conditions", "system")}
        workloads = record.get("workloads", {}).items()
        for one in [record] if record["kind"] == "bench" else [shared | {"name": n} | w for n, w in workloads]:
            missing = [key for key in _NEEDED if key not in one]
            if missing or not one["subjects"]:
                raise FieldrunError(f"{path} is not whole: it lacks {', '.join(missing) or 'subjects'}; measure again")
            found.append(one)
    return found


def page(records: Sequence[Record], *, title: str = "fieldrun bench") -> str:
    """Return one HTML page that needs nothing outside itself: no script, no font, no request."""
    check_matplotlib()
    from jinja2 import Environment, PackageLoader, StrictUndefined
    from markupsafe import Markup

    parts = []
    for number, record in enumerate(records):
        drawn = {
            name: {"svg": Markup(f.svg), "caption": f.caption} for name, f in figures(record, f"r{number}").items()
        }
        parts.append(
            {
                "claim": claim(record),
                "sections": sections(record),
                "figures": drawn,
                "record": record,
                "id": f"r{number}",
            }
        )
    loader = PackageLoader("fieldrun_benchmarks.report", ".")
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("page.html.j2").render(title=title, parts=parts, mixed=_mixed(records))


def to_markdown(records: Sequence[Record]) -> str:
    """Return the claims and tables as Markdown; the figures are in the page."""
    lines = ["# fieldrun bench", "", *([f"**{_mixed(records)}**", ""] if _mixed(records) else [])]
    for record in records:
        lines += [f"## {_cell(claim(record))}", ""]
        for section in sections(record):
            lines += [f"### {section.title}", ""]
            for line in section.lines:
                lines += [f"```\n{line[2:]}\n```" if line.startswith("$ ") else _cell(line), ""]
            for table in section.tables:
                lines += [f"| {' | '.join(table.head)} |", "|---" * len(table.head) + "|"]
                lines += [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in table.rows]
                lines.append("")
    return "\n".join(lines)


def metrics(record: Record) -> list[dict[str, Any]]:
    """Return the record's figures one by one: subject, metric, value, low, high, unit; a missing value is None."""
    rows: list[dict[str, Any]] = []

    def add(subject: str, metric: str, unit: str, value: Any, ends: Any = None) -> None:
        number = value if isinstance(value, int | float) else None
        low, high = ends if ends else (None, None)
        rows.append({"subject": subject, "metric": metric, "unit": unit, "value": number, "low": low, "high": high})

    for name, subject in record["subjects"].items():
        if "failed" in subject:
            continue
        for share, entry in subject["single_stream"]["percentiles"].items():
            add(name, f"single_stream_{share}", "us", entry.get("value_us"), (None, entry.get("upper_us")))
        for stage, entry in subject["stages"].items():
            if isinstance(entry, Mapping):
                add(name, f"stage_{stage}", "us", entry.get("p50_us"), entry.get("ci95"))
        for row in subject["offline"] if isinstance(subject["offline"], list) else []:
            metric = f"offline_batch{row['batch']}_callers{row['threads']}"
            add(name, metric, "texts/s", row["texts_per_s"], (row["min"], row["max"]))
        add(name, "cold_start", "s", subject["cold_start"].get("wall_s"))
        add(name, "cold_start_peak", "MiB", subject["cold_start"].get("peak_rss_mib"))
        add(name, "resident", "MiB", subject["memory"].get("loaded", {}).get("resident_mib"))
        add(name, "packages", "bytes", subject.get("install", {}).get("bytes"))
        add(name, "artifact", "bytes", subject["about"].get("artifact", {}).get("bytes"))
        for task, entry in subject["accuracy"].items():
            if isinstance(entry, Mapping):
                add(name, f"accuracy_{task}", "share", entry.get("accuracy"), entry.get("ci95"))
    return rows


def to_csv(records: Sequence[Record]) -> str:
    """Return `metrics` of all records as CSV, with the date and the machine of each."""
    out = io.StringIO()
    names = ("date", "machine", "subject", "metric", "unit", "value", "low", "high")
    writer = csv.DictWriter(out, names, lineterminator="\n")
    writer.writeheader()
    for record in records:
        about = {"date": record["conditions"]["date"], "machine": machine_of(record)}
        writer.writerows(about | row for row in metrics(record))
    return out.getvalue()


def to_json(records: Sequence[Record]) -> str:
    """Return the records as they are, with their metrics beside them."""
    value = {"records": list(records), "metrics": [metrics(record) for record in records]}
    return json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def _mixed(records: Sequence[Record]) -> str:
    machines = list(dict.fromkeys(machine_of(record) for record in records))
    if len(machines) < 2:
        return ""
    return f"These records are of {len(machines)} machines ({'; '.join(machines)}): do not compare their times."


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())
