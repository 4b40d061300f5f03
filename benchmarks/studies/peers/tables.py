"""The blocks of the peers: all columns, a summary of eight rows, the engines, and how far other records agree.

All come from `peers.json`, which is the one source of the latency of the reference bundle and of its peers.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fieldrun.errors import FieldrunError
from fieldrun_benchmarks.harness.record import read_record

from ..columns import (
    Block,
    Claim,
    Column,
    Part,
    Record,
    Table,
    accuracy,
    conditions,
    megabytes,
    micros,
    seconds,
    slashed,
    times,
)

__all__ = ["BLOCKS", "OURS", "TITLES", "TOKENIZER", "failures", "read_peers", "reproduced", "side_by_side"]

OURS, TOKENIZER = "fieldrun native", "tokenizer alone"
TITLES = {"sst2": "SST-2", "trec": "TREC"}
_NUMBER = re.compile(r"\d+(?:\.\d+)?")


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


def side_by_side(record: Record) -> dict[str, dict[str, Record]]:
    """Return the rows of fieldrun's native engine and of every peer, by subject and task."""
    found: dict[str, dict[str, Record]] = {}
    for workload, values in record["workloads"].items():
        for row in _rows(workload, values):
            if row["name"] == OURS or not row["name"].startswith(("fieldrun ", f"{OURS},", TOKENIZER)):
                found.setdefault(row["name"], {})[workload.partition("/")[0]] = row
    return found


def reproduced(first: Record, second: Record) -> str:
    """Return one sentence on how far the ratios of two records of kind `peers` differ.

    Raises:
        FieldrunError: they have no ratio in common.
    """
    count, wall = _differences(first, second, lambda row, to: row["times"][to]["median"])
    _, cpu = _differences(first, second, lambda row, to: row["single_stream"]["cpu_us"] / row["cpu_us"][to])
    return (
        f"Of {count} ratios measured twice the largest difference is {wall}; of the same ratios in CPU time, which "
        f"other processes disturb less, {cpu}."
    )


def _differences(first: Record, second: Record, ratio: Callable[[Record, str], float]) -> tuple[int, str]:
    found = []
    for workload, values in first["workloads"].items():
        after = {row["name"]: row for row in _rows(workload, second["workloads"].get(workload, _NOTHING))}
        found += [
            (abs(ratio(after[row["name"]], to) / ratio(row, to) - 1), f"{row['name']} to {to} on {workload}")
            for row in _rows(workload, values)
            for to in row["times"]
            if to in after.get(row["name"], _NOTHING)["times"]
        ]
    if not found:
        raise FieldrunError("the two records have no ratio in common; measure the same subjects twice")
    worst, name = max(found)
    middle = statistics.median(difference for difference, _ in found)
    return len(found), f"{100 * worst:.1f} % ({name}), the median {100 * middle:.1f} %"


_NOTHING: Record = {"subjects": {}, "ratios": (), "times": {}}


def _rows(workload: str, values: Record) -> list[Record]:
    """Return the subjects of a workload as rows: their values, and the ratios to other subjects as `times`."""
    cpu = {name: subject.get("single_stream", {}).get("cpu_us") for name, subject in values["subjects"].items()}
    return [
        {
            **subject,
            "name": name,
            "workload": workload,
            "cpu_us": cpu,
            "times": {r["to"]: r for r in values["ratios"] if r["of"] == name and "median" in r},
        }
        for name, subject in values["subjects"].items()
    ]


def _accuracy(row: Record) -> str:
    found = next((entry for entry in row["accuracy"].values() if isinstance(entry, Mapping)), None)
    return accuracy(found) if found else "" if row["name"] == TOKENIZER else "not measured"


def _accuracy_claim(row: Record) -> Claim:
    artifact, (task, found) = row["about"]["artifact"], next(iter(row["accuracy"].items()))
    return "accuracy", artifact["sha256"].get("weights.safetensors", artifact["name"]), f"{task}, n = {found['n']}"


def _times(to: str, *, ends: bool = False) -> Callable[[Record], str]:
    def cell(row: Record) -> str:
        if row["name"] == to:
            return "1"
        low_high = row["times"][to].get("ci95") if ends else None
        return times(row["times"][to]["median"]) + (" ({} - {})".format(*map(times, low_high)) if low_high else "")

    return cell


def _measured(title: str, keys: str, show: str | Callable[[Any], str]) -> Column:
    return Column(title, keys, show, missing="not measured")


def _time(title: str, keys: str) -> Column:
    return Column(title, keys, micros, missing="not measured", claim=lambda row: (title, row["name"], row["workload"]))


def _within(task: str, column: Column, title: str | None = None) -> Column:
    """Return `column` of the row of `task`."""
    claim = column.claim
    return Column(
        title or column.title,
        lambda rows: column.cell(rows[task]),
        claim=(lambda rows: claim(rows[task])) if claim else None,
    )


_NAME = Column("Text in, label out, one thread", "name")
_ACCURACY = Column("accuracy, % (95 % interval)", _accuracy, claim=_accuracy_claim)
_P50, _P90 = (_time(p, f"single_stream.percentiles.{p}.value_us") for p in ("p50", "p90"))
_TEXTS_PER_S = _measured("texts/s", "offline.texts_per_s", "{:,.0f}")
_ARTIFACT = _measured("artifact", "about.artifact.bytes", lambda size: f"{megabytes(size)} MB")
_PEAK = _measured("its peak", "cold_start.peak_rss_mib", "{:,.0f} MiB")
_TIMES = (
    _NAME,
    _measured("calls", "single_stream.calls", "{:,}"),
    _P50,
    _P90,
    _time("CPU time, mean", "single_stream.cpu_us"),
    Column("times the tokenizer (95 % interval)", _times(TOKENIZER, ends=True)),
    Column("times `fieldrun native`", _times(OURS, ends=True)),
    _TEXTS_PER_S,
    _measured("in batches of", "offline.batch", "{}"),
)
_COSTS = (
    _NAME,
    _ACCURACY,
    _ARTIFACT,
    _measured("packages", "install.bytes", lambda size: f"{size / 1e6:,.0f} MB"),
    _measured("cold start", "cold_start.wall_s", seconds),
    _PEAK,
    _measured("peak at work", "memory.after.peak_mib", "{:,.0f} MiB"),
)
_ENGINES = (_NAME, _P50, _P90, Column("times the tokenizer", _times(TOKENIZER)), _TEXTS_PER_S)


def _read_whole(path: Path) -> dict[str, Any]:
    record = read_peers(path)
    if failed := failures(record):
        raise FieldrunError(f"{path} is not whole: {'; '.join(failed)}; measure again")
    return record


def _title(name: str, workload: Record) -> str:
    tokens = workload["subjects"][TOKENIZER]["by_length"]["mean"]
    return f"**{name}**: {workload['workload']['texts']:,} texts, {tokens:.0f} tokens in the mean"


def _whole(records: Path) -> Sequence[Part]:
    record = _read_whole(records / "peers.json")
    parts: list[Part] = []
    for name, workload in record["workloads"].items():
        rows = _rows(name, workload)
        parts += [_title(name, workload), Table(_TIMES, rows), Table(_COSTS, rows)]
    return [*parts, _notes(record), *_warnings(record), _versions(record)]


def _engines(records: Path) -> Sequence[Part]:
    record = _read_whole(records / "peers.json")
    parts: list[Part] = []
    for name, workload in record["workloads"].items():
        rows = [row for row in _rows(name, workload) if row["name"].startswith(("fieldrun ", TOKENIZER))]
        parts += [_title(name, workload), Table(_ENGINES, rows)]
    return [*parts, _notes(record)]


def _summary(records: Path) -> Sequence[Part]:
    record = _read_whole(records / "peers.json")
    subjects = side_by_side(record)
    tasks = list(subjects[OURS])
    columns = [Column(_NAME.title, lambda rows: rows[tasks[0]]["name"].replace(OURS, "**fieldrun**"))]
    for task in tasks:
        columns += [_within(task, _ACCURACY, f"{TITLES.get(task, task)}, % (95 % interval)"), _within(task, _P50)]
    ratio = Column("times fieldrun", lambda rows: slashed([_times(OURS)(rows[task]) for task in tasks]))
    columns += [ratio, _within(tasks[0], _ARTIFACT, "size"), _within(tasks[0], _PEAK, "peak memory")]
    return [Table(columns, list(subjects.values())), _notes(record)]


def _again(records: Path) -> Sequence[Part]:
    return [reproduced(*(_read_whole(records / name) for name in ("peers.json", "peers-again.json")))]


def _other_processor(records: Path) -> Sequence[Part]:
    here, there = (side_by_side(_read_whole(records / f"{name}.json")) for name in ("peers", "peers-epyc"))

    def ratios(subject: str, to: str, digits: int) -> str:
        return " and ".join(f"{row['times'][to]['median']:.{digits}f}" for row in there[subject].values())

    mini, ours = (_accuracy(found["MiniLM-L6 int8"]["trec"]).partition(" ")[0] for found in (there, here))
    return [
        f"There `fieldrun` takes {ratios(OURS, TOKENIZER, 1)} times as long as the tokenizer (SST-2 and TREC), int8 "
        f"MiniLM-L6 {ratios('MiniLM-L6 int8', OURS, 0)} times as long as `fieldrun`, fp32 gte-small "
        f"{ratios('gte-small fp32', OURS, 0)} times. The int8 encoders also answer otherwise: int8 MiniLM-L6 has "
        f"{mini} % on TREC there and {ours} % here."
    ]


def _notes(record: Record) -> str:
    workloads = record["workloads"].values()
    pairs = min(ratio["pairs"] for workload in workloads for ratio in workload["ratios"])
    answers = next(iter(workloads))["subjects"][OURS]["about"]["answers"].removeprefix("the labels of ")
    before = (
        f"Ratios: medians of {pairs:,} or more slices in turns on the same texts. `fieldrun native` answers {answers}, "
        "a peer one. Peak memory and cold start: a fresh process to its first label. "
    )
    return conditions(record, before, ("onnxruntime", "numpy", "tokenizers"))


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
    shown = [f"{name}: {', '.join(f'{p} {v}' for p, v in found.items())}" for name, found in made.items() if found]
    return f"Made with: {'; '.join(shown)}."


BLOCKS: dict[str, Block] = {
    "latency": _engines,
    "peers-again": _again,
    "peers-other-processor": _other_processor,
    "peers-whole": _whole,
    "summary": _summary,
}
