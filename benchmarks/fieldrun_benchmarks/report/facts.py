"""The sections on what was measured, on which machine and texts, what is missing, and how to repeat it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .metrics import machine_of
from .table import Record, Section, Table, alive, at, find, shown, span, table

__all__ = ["facts", "not_measured"]


def facts(record: Record) -> list[Section]:
    """Return workload, artifacts, system, what is missing, and the command."""
    return [_workload(record), _artifacts(record), _system(record), _missing(record), _repeat(record)]


def not_measured(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield (where, why) for every value of a record that was not measured."""
    if isinstance(value, Mapping):
        if set(value) == {"unavailable"}:
            yield " / ".join(part.replace("_", " ") for part in path), str(value["unavailable"])
            return
        for key, inner in value.items():
            yield from not_measured(inner, (*path, str(key)))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            name = str(inner.get("load", inner.get("batch", i))) if isinstance(inner, Mapping) else str(i)
            yield from not_measured(inner, (*path, name))


def _facts(caption: str, rows: list[tuple[str, str]], head: tuple[str, str] = ("Fact", "value")) -> tuple[Table, ...]:
    return (Table(caption=caption, head=head, rows=tuple(rows)),)


_SOURCES = {"File": at("file"), "texts": at("texts", "count"), "sha256, start": lambda row: row["sha256"][:16]}


def _workload(record: Record) -> Section:
    work = record["workload"]
    line = (
        f"{work['texts']:,} texts ({work['distinct']:,} distinct), {work['characters']['mean']:.0f} characters in the "
        f"mean, seed {work['seed']}."
    )
    tables = (table("Where the texts come from", _SOURCES, work["sources"]),)
    return Section(title="Workload", lines=(line,), tables=tables, figures=("workload",))


def _artifacts(record: Record) -> Section:
    rows: list[tuple[str, str]] = []
    for name, subject in alive(record).items():
        about = subject["about"]
        artifact = about.get("artifact", {})
        for key, unit in (("name", ""), ("recipe", ""), ("bytes", "bytes"), ("parameters", "count"), ("licence", "")):
            if key in artifact:
                rows.append((f"{name}, {'size' if unit == 'bytes' else key}", shown(artifact[key], unit)))
        rows += [(f"{name}, sha256 of {file}", value) for file, value in artifact.get("sha256", {}).items()]
        if "engine" in about:
            rows.append(
                (f"{name}, engine", f"{about['engine']} ({about['engine_reason']}), threads {subject['threads']}")
            )
        if "answers" in about:
            rows.append((f"{name}, answers with", about["answers"]))
    return Section(title="Artifacts", tables=_facts("What was measured", rows))


def _system(record: Record) -> Section:
    about, sensors = record["conditions"], record["sensors"]
    packages = [f"{name} {version or 'not installed'}" for name, version in about["packages"].items()]
    total = find(record, "system/memory/total_mib")
    rows = [
        ("device", find(record, "system/device") or "no device tree: a PC, a server or a virtual machine"),
        ("processor", machine_of(record)),
        ("instruction sets", " ".join(find(record, "system/cpu/features") or ()) or "unknown"),
        ("memory", f"{total:,} MiB" if total else "unknown"),
        ("system", find(record, "system/platform") or about["system"]),
        ("python", about["python"]),
        ("packages", ", ".join(packages)),
        ("date", about["date"]),
        ("load average before", str(about["load_average"])),
    ]
    for key, label, unit in (
        ("clock_mhz", "clock", "MHz"),
        ("temperature_c", "temperature", "C"),
        ("power_w", "power of the board or its module", "W"),
    ):
        value = sensors[key]
        why = f"not measured: {value.get('unavailable')}"
        rows.append((label, span(value["min"], value["max"], unit) if "min" in value else why))
    for key, label, unit in (("governor", "governor", ""), ("other_cores", "other processes", "cores")):
        value = sensors[key]
        rows.append((label, str(value["unavailable"]) if isinstance(value, Mapping) else shown(value, unit)))
    return Section(title="System", tables=_facts("Where it was measured", rows))


def _missing(record: Record) -> Section:
    rows = [*not_measured({key: record[key] for key in ("subjects", "sensors", "idle", "harness")})]
    rows.append(("cold page cache", "the operating system keeps the files; dropping them needs root"))
    return Section(title="Not measured", tables=_facts("A missing value is never shown as 0", rows, ("What", "why")))


def _repeat(record: Record) -> Section:
    settings = record["settings"]
    line = f"{settings['repeats']} repeats of {settings['seconds']:g} s, slices of {settings['slice_calls']} texts."
    return Section(title="Repeat it", lines=(line, f"$ {record['command']}"))
