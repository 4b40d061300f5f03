"""A subject that is being measured, and what is measured of it after SingleStream.

Each function returns the value of a record for one subject. How long a scenario may take follows from the mean time of
one text, so that slow subjects get fewer queries.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fieldrun.errors import FieldrunError
from fieldrun.evaluation.dataset import Dataset
from fieldrun.evaluation.evaluate import Evaluation

from ..machine.install_size import install_size
from .cold_start import cold_starts
from .loadgen import SCENARIOS as LOADGEN_SCENARIOS
from .loadgen import least_seconds
from .percentiles import calls_needed, median_interval, percentiles
from .scenario import SAMPLES_PER_QUERY, SliceTimes
from .settings import Settings
from .single_stream import Stream
from .subject import SubjectSpec, packages_of, program_of
from .worker_process import WorkerProcess

__all__ = [
    "SCENARIO_VALUES",
    "Running",
    "accuracy_value",
    "cold_start_value",
    "install_value",
    "memory_value",
    "reason",
]

_BOUND = 10.0  # of the median: Server's latency bound
_WITHIN = 0.99  # of the answers must keep the bound
_STAGES = 2  # times `short_s` for the boundaries
_LOADGEN = 10  # times `short_s`, that LoadGen's least number of queries may take
_PREDICTED = 256  # rows that are asked for at once
_PYTHON = "python alone"


@dataclass(slots=True, kw_only=True, eq=False)
class Running:
    """A subject and what was measured of it; `open` starts a process for it."""

    spec: SubjectSpec
    open: Callable[[], WorkerProcess]
    values: dict[str, Any] = field(init=False)
    stream: Stream = field(init=False)
    labels: dict[str, set[str]] = field(default_factory=dict)  # by task
    rates: dict[tuple[int, int], list[float]] = field(default_factory=dict)  # texts a second by batch and threads
    _worker: WorkerProcess | None = None

    def __post_init__(self) -> None:
        self.values = {"kind": self.spec.kind, "threads": self.spec.threads}
        self.stream = Stream(ask=self._slice)

    @property
    def failed(self) -> str | None:
        """Why the subject can no longer be measured."""
        return self.stream.failed

    @property
    def worker(self) -> WorkerProcess:
        """The subject's process, started on first use; raises `FieldrunError` when it cannot start."""
        if self._worker is None:
            self._worker = self.open()
        return self._worker

    def load(self, settings: Settings) -> None:
        """Load the subject in its process and find out how fast it is; a failure is noted."""
        try:
            loaded = self.worker.ask("load")
            self.stream.fit(settings)
        except Exception as error:  # whatever a subject does, the others are measured
            self.stream.failed = reason(error)
            return
        self.labels = {task: set(labels) for task, labels in loaded.pop("tasks").items()}
        self.values |= {"slice_calls": self.stream.calls, **loaded}

    def guard(self, name: str, call: Callable[..., Any], *arguments: Any, again: bool = False) -> None:
        """Put what `call(self, ...)` returns into the values, or the reason why there is no value.

        A subject that has failed is not asked. With `again`, one that gave no answer in time is started again.
        """
        if self.failed:
            self.values.setdefault(name, {"unavailable": f"not measured: {self.failed}"})
            return
        lived = self.worker.alive
        try:
            self.values[name] = call(self, *arguments)
        except Exception as error:  # the code of a subject may raise anything; the values of the others must be kept
            self.values[name] = {"unavailable": reason(error)}
            if not lived or self.worker.alive:
                return
            if again and self.worker.hung:
                self._restart(name)
            else:
                self.stream.failed = reason(error)

    def _restart(self, name: str) -> None:
        self.values.setdefault("restarted_after", []).append(name)
        self.worker.close()
        self._worker = None
        try:
            self.worker.ask("load")
        except FieldrunError as error:
            self.stream.failed = reason(error)

    def _slice(self, start: int, count: int, warm_up: int) -> SliceTimes:
        answer = self.worker.ask("slice", start=start, count=count, warm_up=warm_up)
        return SliceTimes(**answer | {"nanos": np.array(answer["nanos"], np.int64)})


def reason(error: Exception) -> str:
    """Return the message of an error, with its class unless that is one of ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, FieldrunError) else f"{type(error).__name__}: {text}".rstrip(": ")


def _stages(one: Running, settings: Settings) -> dict[str, Any]:
    answer = one.worker.ask("stages", count=settings.stage_calls, seconds=_STAGES * settings.short_s)
    found: dict[str, Any] = {}
    for name, nanos in answer.items():
        micros = np.array(nanos) / 1e3
        interval = median_interval(micros)
        ends = [round(value, 3) for value in interval] if interval else None
        found[name] = {"calls": len(micros), "p50_us": round(float(np.median(micros)), 3), "ci95": ends}
    return found


def _multi_stream(one: Running, settings: Settings) -> dict[str, Any]:
    micros = np.array(one.worker.ask("scenario", name="multi_stream", seconds=settings.short_s)) / 1e3
    return {
        "loop": "own",
        "samples_per_query": SAMPLES_PER_QUERY,
        "queries": len(micros),
        "percentiles": percentiles(micros),
    }


def _offline(one: Running, settings: Settings) -> list[dict[str, Any]]:
    """Time every batch once more; a batch that would take longer than it is timed for is made smaller."""
    most = max(1, int(settings.short_s / 3 * 1e6 / one.values["single_stream"]["mean_us"]))
    batches = [*dict.fromkeys(min(batch, 1 << most.bit_length() - 1) for batch in settings.batches)]
    found = []
    for batch, threads in [(b, 1) for b in batches] + [(batches[-1], t) for t in settings.threads if t > 1]:
        rates = one.rates.setdefault((batch, threads), [])
        seconds = settings.short_s / 3
        rates.append(one.worker.ask("scenario", name="offline", batch=batch, threads=threads, seconds=seconds))
        low, middle, high = (round(float(value), 1) for value in (min(rates), np.median(rates), max(rates)))
        found.append({"batch": batch, "threads": threads, "texts_per_s": middle, "min": low, "max": high})
    return found


def _server(one: Running, settings: Settings) -> dict[str, Any]:
    p50_us, mean_us = (one.values["single_stream"][name] for name in ("p50_us", "mean_us"))
    bound_ms = _BOUND * p50_us / 1e3
    loads = []
    for share in settings.server_loads:
        load = {"per_second": share * 1e6 / mean_us, "seconds": settings.short_s, "seed": settings.seed}
        answer = one.worker.ask("scenario", name="server", **load)
        micros = np.array(answer["nanos"]) / 1e3
        met: Any = bool(np.mean(micros <= 1e3 * bound_ms) >= _WITHIN and not answer["unsent"])
        if len(micros) < calls_needed(_WITHIN) and not answer["unsent"]:
            met = {"unavailable": f"needs {calls_needed(_WITHIN)} queries, there are {len(micros)}"}
        loads.append(
            {
                "load": share,
                "offered_per_s": round(load["per_second"], 1),
                "queries": len(micros),
                "unsent": answer["unsent"],
                "percentiles": percentiles(micros),
                "bound_met": met,
            }
        )
    return {"loop": "own", "arrivals": "Poisson", "bound_ms": round(bound_ms, 4), "bound": "p99", "loads": loads}


def _loadgen(one: Running, settings: Settings) -> dict[str, Any]:
    """Let LoadGen repeat the scenarios, as a check of our own loops."""
    mean_us, p50_us = (one.values["single_stream"][name] for name in ("mean_us", "p50_us"))
    found: dict[str, Any] = {}
    budget_s = min(_LOADGEN * settings.short_s, settings.timeout_s / 2)
    half = 0.5e6 / mean_us
    for scenario in LOADGEN_SCENARIOS:
        least_s = least_seconds(scenario, mean_us)
        if least_s > budget_s:
            why = f"the fewest queries that LoadGen counts would take {least_s:,.0f} s, over {budget_s:g} s"
            found[scenario] = {"unavailable": why}
            continue
        found[scenario] = one.worker.ask(
            "scenario",
            name="loadgen",
            scenario=scenario,
            seconds=settings.short_s,
            expected_us=p50_us,
            per_second=half if scenario == "Server" else 2 * half,
            bound_ms=_BOUND * p50_us / 1e3,
        )
    return found


SCENARIO_VALUES: dict[str, Callable[[Running, Settings], Any]] = {
    "stages": _stages,
    "multi_stream": _multi_stream,
    "offline": _offline,
    "server": _server,
    "loadgen": _loadgen,
}
"""What measures each scenario of `settings.SCENARIOS` for a subject that SingleStream has measured."""


def accuracy_value(one: Running, labelled: Mapping[str, Dataset], settings: Settings) -> dict[str, Any]:
    """Return the accuracy on the rows of every task that the subject answers, with its 95 % interval."""
    if not one.labels:
        return {"unavailable": "the subject answers no task"}
    in_time = settings.timeout_s / 4 * 1e6 / one.values["single_stream"]["mean_us"]
    size = int(np.clip(in_time, 1, _PREDICTED))
    found: dict[str, Any] = {}
    for task, data in labelled.items():
        if task not in one.labels:
            continue
        if unknown := sorted(set(data.labels) - one.labels[task]):
            why = f"{data.path.name} has the label {unknown[0]!r}, which the subject does not know"
            found[task] = {"unavailable": why}
            continue
        texts = [str(text) for text in data.texts]
        predicted: list[str] = []
        for start in range(0, len(texts), size):
            asked = texts[start : start + size]
            labels = one.worker.ask("predict", texts=asked, task=task)
            if len(labels) != len(asked):
                raise FieldrunError(f"{one.spec.name}: predict returned {len(labels)} labels for {len(asked)} texts")
            predicted += labels
        scored = Evaluation.of(data.labels, predicted, sorted(one.labels[task]))
        right = {"n": scored.n, "accuracy": scored.accuracy, "ci95": [*scored.ci95]}
        found[task] = right | {"file": data.path.name, "sha256": data.sha256}
    return found or {"unavailable": "no labelled rows of its tasks; give --data TASK=FILE.tsv"}


def memory_value(one: Running) -> dict[str, Any]:
    """Return the memory of the subject's process before loading, after loading, and now."""
    before: dict[str, Any] = one.values["memory"]
    return before | {"after": one.worker.ask("memory")}


def cold_start_value(one: Running, settings: Settings) -> dict[str, Any]:
    """Return wall time and peak memory of fresh processes that give one answer, in turns with Python alone."""
    program = program_of(one.spec)
    if program is None:
        return {"unavailable": "the subject has no program of its own"}
    measured = cold_starts(
        {_PYTHON: "pass", one.spec.name: program},
        runs=settings.cold_runs,
        pythons={one.spec.name: one.spec.python, _PYTHON: one.spec.python},
        timeout_s=settings.timeout_s,
    )
    return measured[one.spec.name] | {"python_alone_s": measured[_PYTHON]["wall_s"], "page_cache": "warm"}


def install_value(one: Running) -> dict[str, Any]:
    """Return the disk space of the packages that the subject needs."""
    packages = packages_of(one.spec)
    if packages is None:
        return {"unavailable": "the subject does not say which packages it needs"}
    return {"requirements": list(packages), **install_size(packages, python=one.spec.python)}
