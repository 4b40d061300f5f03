"""Accuracies with their intervals, means over tasks, and differences of two methods on the same rows."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fieldrun.evaluation.metrics import mean_difference, wilson_interval

__all__ = ["COMPARED", "Hits", "compare", "counted", "difference", "published", "scored"]

_Z95 = 1.959963984540054
COMPARED = (
    ("sentence", "raw"),
    ("pca256", "raw"),
    ("field_head", "raw"),
    ("field_probe", "raw"),
    ("field_head", "sentence"),
    ("field_head", "pca256"),
    ("student", "raw"),
    ("student", "field_head"),
)
"""Pairs of methods; the second is subtracted from the first."""


@dataclass(frozen=True, slots=True)
class Hits:
    """How often each row was labelled right `(n,) float64`, a share of the runs where there are several."""

    rows: npt.NDArray[np.float64]

    @classmethod
    def of(cls, entries: Sequence[Mapping[str, Any]]) -> Hits:
        """Return the hits of one task, over the runs in `entries`."""
        return cls(np.array([[digit == "1" for digit in entry["hits"]] for entry in entries], np.float64).mean(0))


def counted(hits: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Return n, accuracy and its 95 % Wilson interval of hits `(n,)`."""
    k, n = int(hits.sum()), len(hits)
    return {"n": n, "accuracy": k / n, "ci95": list(wilson_interval(k, n))}


def scored(hits: npt.NDArray[np.bool_]) -> dict[str, Any]:
    """Return `counted`, and the hits as digits."""
    return counted(hits) | {"hits": "".join("01"[int(hit)] for hit in hits)}


def published(
    methods: Mapping[str, Sequence[Mapping[str, Mapping[str, Any]]]], kinds: Mapping[str, str]
) -> dict[str, Any]:
    """Return per method and task what `scored` found in every run, their mean, and the means over tasks.

    The interval of several runs' mean accuracy is Wilson's at that accuracy and n: the rows are the same in each run.
    """
    result: dict[str, dict[str, Any]] = {"tasks": {}, "means": {}}
    for method, runs in methods.items():
        tasks: dict[str, Any] = {}
        for task in kinds:
            entries = [run[task] for run in runs]
            n, accuracy = entries[0]["n"], math.fsum(entry["accuracy"] for entry in entries) / len(entries)
            low, high = wilson_interval(round(accuracy * n), n)
            tasks[task] = {"n": n, "accuracy": _r(accuracy), "ci95": [_r(low), _r(high)]}
            if len(runs) > 1:
                tasks[task]["runs"] = [_r(entry["accuracy"]) for entry in entries]
            if "probe" in entries[0]:
                tasks[task]["probe"] = [entry["probe"] for entry in entries]
        result["tasks"][method] = tasks
        result["means"][method] = {
            group: _mean([tasks[task] for task in names]) for group, names in _groups(kinds).items()
        }
    return result


def compare(
    methods: Mapping[str, Sequence[Mapping[str, Mapping[str, Any]]]],
    student: Mapping[str, Hits],
    kinds: Mapping[str, str],
) -> dict[str, Any]:
    """Return the differences of accuracy of `COMPARED`, per task and as means over tasks.

    The interval is mean +- 1.96 standard errors of the row-wise differences. It covers the drawing of the report rows
    and neither that of the train rows nor the seeds.
    """
    hits = {name: {task: Hits.of([run[task] for run in runs]) for task in kinds} for name, runs in methods.items()}
    hits["student"] = dict(student)
    result = {}
    for first, second in COMPARED:
        if first not in hits or second not in hits:
            continue
        rows = {task: hits[first][task].rows - hits[second][task].rows for task in kinds}
        entry = {"tasks": {task: difference([values]) for task, values in rows.items()}}
        entry |= {group: difference([rows[task] for task in names]) for group, names in _groups(kinds).items()}
        result[f"{first} - {second}"] = entry
    return result


def _groups(kinds: Mapping[str, str]) -> dict[str, list[str]]:
    groups = {kind: [task for task in kinds if kinds[task] == kind] for kind in ("single", "pair")}
    return {name: tasks for name, tasks in groups.items() if tasks} | {"all": list(kinds)}


def _mean(entries: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    value = math.fsum(entry["accuracy"] for entry in entries) / len(entries)
    variance = math.fsum(entry["accuracy"] * (1 - entry["accuracy"]) / entry["n"] for entry in entries)
    half = _Z95 * math.sqrt(variance) / len(entries)
    return {"tasks": len(entries), "accuracy": _r(value), "ci95": [_r(value - half), _r(value + half)]}


def difference(tasks: Sequence[npt.NDArray[np.float64]]) -> dict[str, Any]:
    """Return the mean of row-wise differences, one array a task, and its 95 % interval, +- 1.96 standard errors."""
    value, low, high = mean_difference(tasks)
    return {"difference": _r(value), "ci95": [_r(low), _r(high)]}


def _r(value: float) -> float:
    return round(value, 5)
