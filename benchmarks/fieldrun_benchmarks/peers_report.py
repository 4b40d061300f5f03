"""Render the tables of peers from the record `peers.json`, and say how far a second record agrees with it."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fieldrun.errors import FieldrunError

from .record import read_record

__all__ = ["OURS", "TABLES", "TOKENIZER", "read_peers", "reproduced"]

OURS, TOKENIZER = "fieldrun native", "tokenizer alone"

Record = Mapping[str, Any]
_Pair = tuple[str, str]
_Cell = Callable[[Record, str], str]
"""A workload and a subject's name -> a cell."""


def reproduced(first: Record, second: Record) -> str:
    """Return one sentence on how far the ratios of two records of kind `peers` differ.

    Raises:
        FieldrunError: they have no ratio in common.
    """
    count, wall = _differences(first, second, _ratios)
    _, cpu = _differences(first, second, _cpu_ratios)
    return (
        f"Of {count} ratios measured twice the largest difference is {wall}; of the same ratios in CPU time, which "
        f"other processes disturb less, {cpu}."
    )


def _differences(first: Record, second: Record, ratios: Callable[[Record, str], dict[_Pair, float]]) -> tuple[int, str]:
    found = []
    for workload in first["workloads"]:
        before, after = (ratios(record, workload) for record in (first, second))
        found += [
            (abs(after[key] / before[key] - 1), f"{key[0]} to {key[1]} on {workload}") for key in before if key in after
        ]
    if not found:
        raise FieldrunError("the two records have no ratio in common; measure the same subjects twice")
    worst, name = max(found)
    middle = statistics.median(difference for difference, _ in found)
    return len(found), f"{100 * worst:.1f} % ({name}), the median {100 * middle:.1f} %"


def _ratios(record: Record, workload: str) -> dict[_Pair, float]:
    entries = record["workloads"].get(workload, {}).get("ratios", ())
    return {(entry["of"], entry["to"]): entry["median"] for entry in entries if "median" in entry}


def _cpu_ratios(record: Record, workload: str) -> dict[_Pair, float]:
    subjects = record["workloads"].get(workload, {}).get("subjects", {})
    cpu = {name: subject["single_stream"]["cpu_us"] for name, subject in subjects.items()}
    return {(of, to): cpu[of] / cpu[to] for of, to in _ratios(record, workload)}


def read_peers(path: Path) -> dict[str, Any]:
    """Read a record of kind `peers`; raises what `read_record` does, and `FieldrunError` for one of the older loop."""
    record = read_record(path, "peers")
    if not all("subjects" in workload for workload in record["workloads"].values()):
        raise FieldrunError(f"{path} is of the loop before `fieldrun bench` measured the peers; measure again")
    return record


def _accuracy(workload: Record, name: str) -> str:
    entry = workload["subjects"][name]["accuracy"]
    if "unavailable" in entry:
        return ""
    (found,) = entry.values()
    low, high = (100 * x for x in found["ci95"])
    return f"{100 * found['accuracy']:.1f} ({low:.1f} - {high:.1f})"


def _percentile(which: str) -> _Cell:
    def cell(workload: Record, name: str) -> str:
        return f"{_digits(workload['subjects'][name]['single_stream']['percentiles'][which]['value_us'])} us"

    return cell


def _times(to: str, *, interval: bool) -> _Cell:
    def cell(workload: Record, name: str) -> str:
        if name == to:
            return "1"
        entry = next(r for r in workload["ratios"] if (r["of"], r["to"]) == (name, to))
        ends = entry.get("ci95") if interval else None
        return _ratio(entry["median"]) + (f" ({_ratio(ends[0])} - {_ratio(ends[1])})" if ends else "")

    return cell


def _texts_per_s(workload: Record, name: str) -> str:
    (row,) = workload["subjects"][name]["offline"]
    return f"{row['texts_per_s']:,.0f}"


def _batch(workload: Record, name: str) -> str:
    (row,) = workload["subjects"][name]["offline"]
    return str(row["batch"])


def _cold(workload: Record, name: str) -> str:
    return f"{workload['subjects'][name]['cold_start']['wall_s']:.2f} s"


def _peak(workload: Record, name: str) -> str:
    return f"{workload['subjects'][name]['cold_start']['peak_rss_mib']:,.0f} MiB"


def _peak_at_work(workload: Record, name: str) -> str:
    return f"{workload['subjects'][name]['memory']['after']['peak_mib']:,.0f} MiB"


def _artifact(workload: Record, name: str) -> str:
    return f"{workload['subjects'][name]['about']['artifact']['bytes'] / 1e6:,.1f} MB"


def _packages(workload: Record, name: str) -> str:
    return f"{workload['subjects'][name]['install']['bytes'] / 1e6:,.0f} MB"


def _cpu(workload: Record, name: str) -> str:
    return f"{_digits(workload['subjects'][name]['single_stream']['cpu_us'])} us"


def _calls(workload: Record, name: str) -> str:
    return f"{workload['subjects'][name]['single_stream']['calls']:,}"


_SHORT: dict[str, _Cell] = {
    "accuracy, % (95 % interval)": _accuracy,
    "p50": _percentile("p50"),
    "p90": _percentile("p90"),
    "times the tokenizer": _times(TOKENIZER, interval=False),
    "times `fieldrun`": _times(OURS, interval=False),
    "texts/s": _texts_per_s,
    "peak memory": _peak,
    "artifact": _artifact,
    "cold start": _cold,
}
_TIMES: dict[str, _Cell] = {
    "calls": _calls,
    "p50": _percentile("p50"),
    "p90": _percentile("p90"),
    "CPU time, mean": _cpu,
    "times the tokenizer (95 % interval)": _times(TOKENIZER, interval=True),
    "times `fieldrun native`": _times(OURS, interval=True),
    "texts/s": _texts_per_s,
    "in batches of": _batch,
}
_COSTS: dict[str, _Cell] = {
    "accuracy, % (95 % interval)": _accuracy,
    "artifact": _artifact,
    "packages": _packages,
    "cold start": _cold,
    "its peak": _peak,
    "peak at work": _peak_at_work,
}


def _table(workload: Record, columns: Mapping[str, _Cell]) -> str:
    lines = [f"| Text in, label out, one thread | {' | '.join(columns)} |", "|---" * (1 + len(columns)) + "|"]
    for name in workload["subjects"]:
        lines.append(f"| {name} | {' | '.join(cell(workload, name) for cell in columns.values())} |")
    return "\n".join(lines)


def _title(name: str, workload: Record) -> str:
    tokens = workload["subjects"][TOKENIZER]["by_length"]["mean"]
    return f"**{name}**: {workload['workload']['texts']:,} texts, {tokens:.0f} tokens in the mean"


def _short(records: Path) -> str:
    record = read_peers(records / "peers.json")
    parts = [part for name, w in record["workloads"].items() for part in (_title(name, w), _table(w, _SHORT))]
    return "\n\n".join([*parts, _notes(record)])


def _whole(records: Path) -> str:
    record = read_peers(records / "peers.json")
    parts = []
    for name, workload in record["workloads"].items():
        parts += [_title(name, workload), _table(workload, _TIMES), _table(workload, _COSTS)]
    return "\n\n".join([*parts, _notes(record), _versions(record)])


def _again(records: Path) -> str:
    return reproduced(read_peers(records / "peers.json"), read_peers(records / "peers-again.json"))


def _notes(record: Record) -> str:
    about, workload = record["conditions"], next(iter(record["workloads"].values()))
    packages = about["packages"]
    pairs = min(ratio["pairs"] for workload in record["workloads"].values() for ratio in workload["ratios"])
    return (
        f"(Ratios: medians of {pairs:,} or more slices in turns on the same texts. `fieldrun native` answers "
        f"{workload['subjects'][OURS]['about']['answers'].removeprefix('the labels of ')}, a peer one. Peak memory and "
        f"cold start: a fresh process to its first label. {about['date']}, {about['cores_allowed']} shared cores of "
        f"{about['processor']}, {about['system']}, Python {about['python']}, onnxruntime {packages['onnxruntime']}, "
        f"numpy {packages['numpy']}, tokenizers {packages['tokenizers']}; a shared machine: read the ratios)"
    )


def _versions(record: Record) -> str:
    workload = next(iter(record["workloads"].values()))
    made = {name: subject["about"].get("made_with") for name, subject in workload["subjects"].items()}
    shown = [
        f"{name}: {', '.join(f'{p} {v}' for p, v in made_with.items())}"
        for name, made_with in made.items()
        if made_with
    ]
    return f"Made with: {'; '.join(shown)}."


TABLES: dict[str, Callable[[Path], str]] = {"peers": _short, "peers-whole": _whole, "peers-again": _again}


def _digits(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:,.0f}"


def _ratio(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"
