"""The sections that say what was measured, on which machine and texts, what was not, and how to repeat it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["Record", "Section", "Table", "alive", "facts", "machine_of", "not_measured"]

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """A table of strings: its caption, its column heads, its rows; the first column names the row."""

    caption: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """A heading with lines, tables and the names of the figures that belong to it."""

    title: str
    lines: tuple[str, ...] = ()
    tables: tuple[Table, ...] = ()
    figures: tuple[str, ...] = field(default=())


def alive(record: Record) -> dict[str, Any]:
    """Return the subjects that were measured, by name."""
    return {name: subject for name, subject in record["subjects"].items() if "failed" not in subject}


def facts(record: Record) -> list[Section]:
    """Return workload, artifacts, system, what is missing, and the command."""
    return [_workload(record), _artifacts(record), _system(record), _missing(record), _repeat(record)]


def machine_of(record: Record) -> str:
    """Return the board, the processor, its architecture and the cores that the bench was allowed."""
    about = record["conditions"]
    cores, device = about["cores_allowed"], (record.get("system") or {}).get("device")
    board = f"{device}: " if device and device not in about["processor"] else ""
    return f"{board}{about['processor']} ({about['architecture']}, {cores} core{'' if cores == 1 else 's'} allowed)"


def not_measured(value: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Yield (where, why) for every value of a record that is not there."""
    if isinstance(value, Mapping):
        if set(value) == {"unavailable"}:
            yield " / ".join(part.replace("_", " ") for part in path), str(value["unavailable"])
            return
        for key, inner in value.items():
            yield from not_measured(inner, (*path, str(key)))
    elif isinstance(value, list):
        for i, inner in enumerate(value):
            shown = str(inner.get("load", inner.get("batch", i))) if isinstance(inner, Mapping) else str(i)
            yield from not_measured(inner, (*path, shown))


def _workload(record: Record) -> Section:
    work = record["workload"]
    rows = tuple((s["file"], f"{s['texts']:,}", s["sha256"][:16]) for s in work["sources"])
    mean = work["characters"]["mean"]
    count = f"{work['texts']:,} texts ({work['distinct']:,} distinct)"
    line = f"{count}, {mean:.0f} characters in the mean, seed {work['seed']}."
    table = Table(caption="Where the texts come from", head=("File", "texts", "sha256, start"), rows=rows)
    return Section(title="Workload", lines=(line,), tables=(table,), figures=("workload",))


def _artifacts(record: Record) -> Section:
    rows = []
    for name, subject in alive(record).items():
        about = subject["about"]
        artifact = about.get("artifact", {})
        for key in ("name", "recipe", "bytes", "parameters", "licence"):
            if key in artifact:
                value = f"{artifact[key]:,}" if isinstance(artifact[key], int) else str(artifact[key])
                rows.append((f"{name}, {key}", value))
        rows += [(f"{name}, sha256 of {file}", value) for file, value in artifact.get("sha256", {}).items()]
        if "engine" in about:
            rows.append(
                (f"{name}, engine", f"{about['engine']} ({about['engine_reason']}), threads {subject['threads']}")
            )
        if "answers" in about:
            rows.append((f"{name}, answers with", about["answers"]))
    return Section(
        title="Artifacts", tables=(Table(caption="What was measured", head=("Fact", "value"), rows=tuple(rows)),)
    )


def _system(record: Record) -> Section:
    about, sensors = record["conditions"], record["sensors"]
    system = record.get("system") or {}
    cpu, memory = system.get("cpu", {}), system.get("memory", {})
    rows = [
        ("device", system.get("device") or "no device tree: a PC, a server or a virtual machine"),
        ("processor", machine_of(record)),
        ("instruction sets", " ".join(cpu.get("features", ())) or "unknown"),
        ("memory", f"{memory['total_mib']:,} MiB" if memory.get("total_mib") else "unknown"),
        ("system", system.get("platform") or about["system"]),
        ("python", about["python"]),
        ("packages", ", ".join(f"{name} {number or 'not installed'}" for name, number in about["packages"].items())),
        ("date", about["date"]),
        ("load average before", f"{about['load_average']}"),
    ]
    units = {
        "clock_mhz": ("clock", "MHz"),
        "temperature_c": ("temperature", "C"),
        "power_w": ("power of the board or its module", "W"),
    }
    for key, (label, unit) in units.items():
        value = sensors[key]
        shown = (
            f"{value['min']:g} - {value['max']:g} {unit}" if "min" in value else f"not measured: {value['unavailable']}"
        )
        rows.append((label, shown))
    rows.append(
        (
            "governor",
            sensors["governor"] if isinstance(sensors["governor"], str) else sensors["governor"]["unavailable"],
        )
    )
    others = sensors["other_cores"]
    rows.append(
        ("other processes", f"{others:.2f} cores" if isinstance(others, float) else str(others.get("unavailable")))
    )
    return Section(
        title="System", tables=(Table(caption="Where it was measured", head=("Fact", "value"), rows=tuple(rows)),)
    )


def _missing(record: Record) -> Section:
    parts = {key: record[key] for key in ("subjects", "sensors", "idle", "harness")}
    found = list(not_measured(parts))
    always = ("cold page cache", "the operating system keeps the files; dropping them needs root")
    rows = (*found, always)
    table = Table(caption="Missing values are never shown as 0", head=("What", "why"), rows=rows)
    return Section(title="Not measured", tables=(table,))


def _repeat(record: Record) -> Section:
    settings = record["settings"]
    line = f"{settings['repeats']} repeats of {settings['seconds']:g} s, slices of {settings['slice_calls']} texts."
    return Section(title="Repeat it", lines=(line, f"$ {record['command']}"))
