"""Render the tables of peers from the record `peers.json`, and say how far a second record agrees with it."""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from fieldrun.errors import FieldrunError
from fieldrun_benchmarks.harness.record import read_record

__all__ = ["OURS", "TABLES", "TOKENIZER", "failures", "read_peers", "reproduced"]

OURS, TOKENIZER = "fieldrun native", "tokenizer alone"

Record = Mapping[str, Any]
_Pair = tuple[str, str]
_NUMBER = re.compile(r"\d+(?:\.\d+)?")
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

    def cpu(name: str) -> float:
        value: float = subjects[name]["single_stream"]["cpu_us"]
        return value

    return {(of, to): cpu(of) / cpu(to) for of, to in _ratios(record, workload)}


def read_peers(path: Path) -> dict[str, Any]:
    """Read a record of kind `peers`; raises what `read_record` does, and `FieldrunError` for one of the older loop."""
    record = read_record(path, "peers")
    if not all("subjects" in workload for workload in record["workloads"].values()):
        raise FieldrunError(f"{path} is of the loop before `fieldrun bench` measured the peers; measure again")
    return record


def failures(record: Record) -> list[str]:
    """Return what became of the subjects of a record of kind `peers` that failed or ended early."""
    found = []
    for workload, values in record["workloads"].items():
        for name, subject in values["subjects"].items():
            why = subject.get("failed", subject.get("ended_early"))
            found += [f"{name} on {workload}: {why}"] if why else []
    return found


def _read_whole(path: Path) -> dict[str, Any]:
    record = read_peers(path)
    if failed := failures(record):
        raise FieldrunError(f"{path} is not whole: {'; '.join(failed)}; measure again")
    return record


def _figure(spell: Callable[[Any], str], *keys: str) -> _Cell:
    """Return the cell of a subject's value at `keys`."""

    def cell(workload: Record, name: str) -> str:
        value = workload["subjects"][name]
        for key in keys:
            value = value[0] if isinstance(value, list) else value
            if not isinstance(value, Mapping) or key not in value:
                return "not measured"
            value = value[key]
        return spell(value)

    return cell


def _accuracy(workload: Record, name: str) -> str:
    entry = workload["subjects"][name]["accuracy"]
    found = next((found for found in entry.values() if isinstance(found, Mapping)), {})
    if "accuracy" not in found:
        return "" if name == TOKENIZER else "not measured"
    low, high = (100 * x for x in found["ci95"])
    return f"{100 * found['accuracy']:.1f} ({low:.1f} - {high:.1f})"


def _times(to: str, *, interval: bool) -> _Cell:
    def cell(workload: Record, name: str) -> str:
        if name == to:
            return "1"
        entry = next(r for r in workload["ratios"] if (r["of"], r["to"]) == (name, to))
        ends = entry.get("ci95") if interval else None
        return _ratio(entry["median"]) + (f" ({_ratio(ends[0])} - {_ratio(ends[1])})" if ends else "")

    return cell


def _us(value: float) -> str:
    return f"{_digits(value)} us"


_P50, _P90 = (_figure(_us, "single_stream", "percentiles", which, "value_us") for which in ("p50", "p90"))
_TEXTS_PER_S = _figure("{:,.0f}".format, "offline", "texts_per_s")
_COLD = _figure("{:.2f} s".format, "cold_start", "wall_s")
_PEAK = _figure("{:,.0f} MiB".format, "cold_start", "peak_rss_mib")
_ARTIFACT = _figure(lambda size: f"{size / 1e6:,.1f} MB", "about", "artifact", "bytes")

_SHORT: dict[str, _Cell] = {
    "accuracy, % (95 % interval)": _accuracy,
    "p50": _P50,
    "p90": _P90,
    "times the tokenizer": _times(TOKENIZER, interval=False),
    "times `fieldrun`": _times(OURS, interval=False),
    "texts/s": _TEXTS_PER_S,
    "peak memory": _PEAK,
    "artifact": _ARTIFACT,
    "cold start": _COLD,
}
_TIMES: dict[str, _Cell] = {
    "calls": _figure("{:,}".format, "single_stream", "calls"),
    "p50": _P50,
    "p90": _P90,
    "CPU time, mean": _figure(_us, "single_stream", "cpu_us"),
    "times the tokenizer (95 % interval)": _times(TOKENIZER, interval=True),
    "times `fieldrun native`": _times(OURS, interval=True),
    "texts/s": _TEXTS_PER_S,
    "in batches of": _figure(str, "offline", "batch"),
}
_COSTS: dict[str, _Cell] = {
    "accuracy, % (95 % interval)": _accuracy,
    "artifact": _ARTIFACT,
    "packages": _figure(lambda size: f"{size / 1e6:,.0f} MB", "install", "bytes"),
    "cold start": _COLD,
    "its peak": _PEAK,
    "peak at work": _figure("{:,.0f} MiB".format, "memory", "after", "peak_mib"),
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
    record = _read_whole(records / "peers.json")
    parts = [part for name, w in record["workloads"].items() for part in (_title(name, w), _table(w, _SHORT))]
    return "\n\n".join([*parts, _notes(record), *_warnings(record)])


def _whole(records: Path) -> str:
    record = _read_whole(records / "peers.json")
    parts = []
    for name, workload in record["workloads"].items():
        parts += [_title(name, workload), _table(workload, _TIMES), _table(workload, _COSTS)]
    return "\n\n".join([*parts, _notes(record), *_warnings(record), _versions(record)])


def _again(records: Path) -> str:
    return reproduced(*(_read_whole(records / name) for name in ("peers.json", "peers-again.json")))


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


def _warnings(record: Record) -> list[str]:
    """Return one paragraph of what the bench warned of: like warnings once, with all that they are about."""
    alike: dict[str, list[tuple[str, str]]] = {}
    for workload, values in record["workloads"].items():
        for entry in values["warnings"]:
            about = workload if entry["about"] == "machine" else f"{entry['about']} on {workload}"
            alike.setdefault(_NUMBER.sub("", entry["text"]), []).append((about, entry["text"]))
    parts = [
        f"{', '.join(about for about, _ in found)}: {_spanned([text for _, text in found])}" for found in alike.values()
    ]
    return [f"Warnings of the bench: {'; '.join(parts)}."] if parts else []


def _spanned(texts: list[str]) -> str:
    """Return the words that the texts share, with the least and the most of a number that differs."""
    words = _NUMBER.split(texts[0])
    shown = [words[0]]
    for at, word in enumerate(words[1:]):
        numbers = sorted({_NUMBER.findall(text)[at] for text in texts}, key=float)
        shown += [" to ".join(dict.fromkeys((numbers[0], numbers[-1]))), word]
    return "".join(shown)


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
