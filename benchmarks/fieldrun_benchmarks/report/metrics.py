"""The figures of a record one by one, for CSV, JSON, the terminal and comparisons."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .table import Record, alive, find, shown

__all__ = ["Metric", "machine_of", "metrics", "metrics_of"]

_SINGLE = (  # metric, unit, where it is
    ("cold_start", "s", "cold_start/wall_s"),
    ("cold_start_peak", "MiB", "cold_start/peak_rss_mib"),
    ("resident", "MiB", "memory/loaded/resident_mib"),
    ("packages", "bytes", "install/bytes"),
    ("artifact", "bytes", "about/artifact/bytes"),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One figure of a subject, None where it was not measured, with the ends of its interval where it has one."""

    subject: str
    metric: str
    unit: str
    value: float | None
    low: float | None
    high: float | None

    @property
    def text(self) -> str:
        """The value with its unit, or "not measured"."""
        return shown(self.value, self.unit)


def metrics(record: Record) -> list[Metric]:
    """Return the figures of all subjects that were measured."""
    return [metric for name, subject in alive(record).items() for metric in metrics_of(name, subject)]


def metrics_of(name: str, subject: Mapping[str, Any]) -> list[Metric]:
    """Return the figures of one subject."""
    rows: list[Metric] = []

    def add(metric: str, unit: str, value: Any, ends: Sequence[float | None] | None = None) -> None:
        low, high = ends or (None, None)
        number = value if isinstance(value, int | float) else None
        rows.append(Metric(subject=name, metric=metric, unit=unit, value=number, low=low, high=high))

    for share, entry in subject["single_stream"]["percentiles"].items():
        add(f"single_stream_{share}", "us", entry.get("value_us"), (None, entry.get("upper_us")))
    for stage, entry in subject["stages"].items():
        if isinstance(entry, Mapping):
            add(f"stage_{stage}", "us", entry.get("p50_us"), entry.get("ci95"))
    for row in subject["offline"] if isinstance(subject["offline"], list) else []:
        ends = (row["min"], row["max"])
        add(f"offline_batch{row['batch']}_callers{row['threads']}", "texts/s", row["texts_per_s"], ends)
    for metric, unit, path in _SINGLE:
        add(metric, unit, find(subject, path))
    for task, entry in subject["accuracy"].items():
        if isinstance(entry, Mapping):
            add(f"accuracy_{task}", "share", entry.get("accuracy"), entry.get("ci95"))
    return rows


def machine_of(record: Record) -> str:
    """Return the board, the processor, its architecture, and the cores that the bench was allowed to use."""
    about = record["conditions"]
    cores, device = about["cores_allowed"], find(record, "system/device")
    board = f"{device}: " if device and device not in about["processor"] else ""
    return f"{board}{about['processor']} ({about['architecture']}, {cores} core{'' if cores == 1 else 's'} allowed)"
