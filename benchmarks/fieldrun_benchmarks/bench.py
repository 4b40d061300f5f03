"""One bench: subjects in processes of their own, every scenario, every sensor, one set of values for a record.

SingleStream comes first and alone decides the comparison: in every turn each subject is timed on a slice that starts
at the same text, in an order that rotates, so that what slows the machine slows them all. A slow subject gets shorter
slices, and is compared on the texts that both were timed on. What fails is said in the place of its value, and the rest
goes on.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fieldrun.dataset import Dataset
from fieldrun.errors import FieldrunError
from fieldrun.metrics import wilson_interval

from .cold_start import cold_starts
from .install_size import install_size
from .loadgen import SCENARIOS as LOADGEN_SCENARIOS
from .percentiles import median_interval, percentiles
from .sampler import Sampler
from .sensors import Sensors, Unavailable
from .settings import Settings
from .single_stream import Slice, by_length, single_values
from .subject import SubjectSpec, packages_of, program_of
from .warn import warnings_of
from .worker_process import WorkerProcess, unpack
from .workload import Workload

__all__ = ["Progress", "measure"]

Progress = Callable[[str, int, int], None]
_BOUND = 10.0  # of the median: Server's latency bound
_FEWEST = 4  # texts of a slice
_OFFLINE_TURNS = 3
_LEFT_OUT = "left out of this bench"
_NULL = SubjectSpec(name="null", kind="null")


@dataclass(slots=True, kw_only=True, eq=False)
class _Running:
    """A subject that is being measured, and its values so far."""

    spec: SubjectSpec
    worker: WorkerProcess
    values: dict[str, Any]
    calls: int = 0  # of a slice
    labels: dict[str, set[str]] = field(default_factory=dict)  # by task
    rates: dict[tuple[int, int], list[float]] = field(default_factory=dict)  # texts a second by batch and threads
    slices: list[Slice] = field(default_factory=list)
    failed: str | None = None


def measure(
    specs: Sequence[SubjectSpec],
    workload: Workload,
    settings: Settings,
    labelled: Mapping[str, Dataset],
    *,
    against: Sequence[str] = (),
    sensors: Sensors | None = None,
    progress: Progress = lambda *_: None,
) -> dict[str, Any]:
    """Measure every subject and return the values of a record of kind `bench`.

    Args:
        specs: the subjects; names must differ.
        workload: the texts.
        settings: how long and how often.
        labelled: rows to measure accuracy on, by task; a subject is measured on the tasks that it answers.
        against: names of the subjects that all are compared with; else the first one.
        sensors: the machine's; other ones are for tests.
        progress: is told (phase, done, total).

    Raises:
        FieldrunError: every subject failed to load. One that fails later, or beside others, is said in its values.
    """
    sensors = sensors or Sensors()
    phases = ["harness", "load", "single stream", "stages", "other scenarios", "accuracy", "cold start"]

    def enter(name: str) -> None:
        progress(name, phases.index(name), len(phases))

    values: dict[str, Any] = {"workload": workload.to_dict(), "settings": settings.to_dict()}
    enter("harness")
    values["harness"] = _harness(workload, settings)
    with Sampler(sensors) as idle:
        time.sleep(min(1.0, settings.short_s))
    values["idle"] = idle.summary()
    with ExitStack() as stack:
        enter("load")
        running = [_start(spec, workload, settings, stack) for spec in specs]
        if all(one.failed for one in running):
            raise FieldrunError("; ".join(one.failed or "" for one in running))
        enter("single stream")
        with Sampler(sensors) as sampler:
            cpu = time.process_time()
            seconds = _single_stream(running, len(workload.texts), settings)
            cpu = time.process_time() - cpu
        own = cpu + sum(piece.cpu_ns for one in running for piece in one.slices) / 1e9
        values["single_stream_s"] = round(seconds, 1)
        values["sensors"] = sampler.summary(own)
        lengths = _lengths(running)
        for one in running:
            if one.slices:  # also of a subject that ended meanwhile
                one.values["single_stream"] = single_values(one.slices, settings.repeats)
            _guard(one, "by_length", _by_length, workload, lengths)
        enter("stages")
        for one in running:
            _scenario(one, "stages", settings)
        enter("other scenarios")
        for _ in range(_OFFLINE_TURNS):
            for one in running:
                _scenario(one, "offline", settings)
        for one in running:
            for name in ("multi_stream", "server", "loadgen"):
                _scenario(one, name, settings)
        enter("accuracy")
        for one in running:
            _guard(one, "accuracy", _accuracy, labelled)
            _guard(one, "memory", _memory)
        enter("cold start")
    for one in running:
        _guard(one, "cold_start", _cold_start, settings)
        _guard(one, "install", _install)
        if one.failed:  # one that ended after SingleStream keeps what was measured of it
            measured = "p50_us" in one.values.get("single_stream", {})
            one.values["ended_early" if measured else "failed"] = one.failed
    values["subjects"] = {one.spec.name: one.values for one in running}
    values["ratios"] = [ratio for name in against or [specs[0].name] for ratio in _ratios(running, name)]
    values["warnings"] = warnings_of(values)
    progress("done", len(phases), len(phases))
    return values


def _guard(one: _Running, name: str, call: Callable[..., Any], *arguments: Any) -> None:
    """Put what `call(one, ...)` returns into the values, or why there is nothing; who died is not asked again."""
    if one.failed:
        one.values.setdefault(name, Unavailable(f"not measured: {one.failed}").to_dict())
        return
    try:
        one.values[name] = call(one, *arguments)
    except FieldrunError as error:
        one.values[name] = Unavailable(str(error)).to_dict()
        if not one.worker.alive:
            one.failed = str(error)


def _scenario(one: _Running, name: str, settings: Settings) -> None:
    if name not in settings.scenarios:
        one.values[name] = Unavailable(_LEFT_OUT).to_dict()
        return
    calls = {
        "stages": _stages, "multi_stream": _multi_stream, "offline": _offline, "server": _server, "loadgen": _loadgen,
    }  # fmt: skip
    _guard(one, name, calls[name], settings)


def _harness(workload: Workload, settings: Settings) -> dict[str, Any]:
    """Measure the null subject: what the harness adds to a call, and the memory of its process."""
    with WorkerProcess(_NULL, workload.texts, timeout_s=settings.timeout_s) as worker:
        loaded = worker.ask("load")
        nanos = unpack(worker.ask("slice", start=0, count=4000, warm_up=500)["nanos"])
        found = {
            "own_loop": {"p50_us": round(float(np.median(nanos)) / 1e3, 3), "calls": len(nanos)},
            "memory": loaded["memory_loaded"],
        }
        try:
            if "loadgen" not in settings.scenarios:
                raise FieldrunError(_LEFT_OUT)
            about = worker.ask(
                "loadgen", scenario="SingleStream", seconds=0.2, expected_us=5.0, per_second=0.0, bound_ms=0.0
            )
            found["loadgen"] = {"p50_us": about.get("p50_us"), "calls": about.get("queries")}
        except FieldrunError as error:
            found["loadgen"] = Unavailable(str(error)).to_dict()
    return found


def _start(spec: SubjectSpec, workload: Workload, settings: Settings, stack: ExitStack) -> _Running:
    worker = stack.enter_context(WorkerProcess(spec, workload.texts, timeout_s=settings.timeout_s))
    one = _Running(spec=spec, worker=worker, values={"kind": spec.kind, "threads": spec.threads})
    most = max(_FEWEST, settings.slice_calls)
    try:
        loaded = worker.ask("load")
        one.calls = _FEWEST
        for _ in range(3):  # what is opened on first use must not count as slow
            nanos = unpack(worker.ask("slice", start=0, count=one.calls, warm_up=one.calls)["nanos"])
            one.calls = int(np.clip(settings.slice_s * 1e9 / max(1.0, float(np.median(nanos))), _FEWEST, most))
    except FieldrunError as error:
        one.failed = str(error)
        return one
    one.values["slice_calls"] = one.calls
    one.values |= {name: loaded[name] for name in ("about", "load_ms", "first_answer_ms")}
    one.labels = {task: set(labels) for task, labels in loaded["tasks"].items()}
    one.values["memory"] = {"before_load": loaded["memory_before"], "loaded": loaded["memory_loaded"]}
    return one


def _single_stream(running: Sequence[_Running], n: int, settings: Settings) -> float:
    """Time slices in turns until every repeat has had its time; return the seconds that all of it took."""
    begin = time.perf_counter()
    turn = 0
    for repeat in range(settings.repeats):
        end = time.perf_counter() + settings.seconds
        while time.perf_counter() < end or not any(piece.repeat == repeat for one in running for piece in one.slices):
            alive = [one for one in running if not one.failed]
            if not alive:
                break
            start = turn * (settings.slice_calls + 1) % n  # one further, so that short slices see every text in time
            for one in alive[turn % len(alive) :] + alive[: turn % len(alive)]:
                at = time.perf_counter() - begin
                try:
                    warm_up = -(-settings.slice_warm_up * one.calls // settings.slice_calls)
                    answer = one.worker.ask("slice", start=start, count=one.calls, warm_up=warm_up)
                except FieldrunError as error:
                    one.failed = str(error)
                    continue
                micros = unpack(answer["nanos"]) / 1e3
                cpu, switches = answer["cpu_ns"], answer["switches"]
                one.slices.append(
                    Slice(at_s=at, repeat=repeat, start=start, micros=micros, cpu_ns=cpu, switches=switches)
                )
            turn += 1
    return time.perf_counter() - begin


def _lengths(running: Sequence[_Running]) -> list[int] | None:
    """Return the tokens of every text by the first subject that counts any: one axis for all."""
    for one in running:
        with suppress(FieldrunError):
            counts: list[int] | None = None if one.failed else one.worker.ask("tokens")
            if counts is not None:
                return counts
    return None


def _by_length(one: _Running, workload: Workload, lengths: list[int] | None) -> dict[str, Any]:
    return by_length(one.slices, workload.texts, lengths)


def _stages(one: _Running, settings: Settings) -> dict[str, Any]:
    found = {name: unpack(nanos) / 1e3 for name, nanos in one.worker.ask("stages", count=settings.stage_calls).items()}
    result: dict[str, Any] = {}
    for name, micros in found.items():
        interval = median_interval(micros)
        low, high = interval if interval else (float("nan"),) * 2
        ends = [round(low, 3), round(high, 3)] if interval else None
        result[name] = {"calls": len(micros), "p50_us": round(float(np.median(micros)), 3), "ci95": ends}
    return result


def _multi_stream(one: _Running, settings: Settings) -> dict[str, Any]:
    micros = unpack(one.worker.ask("multi_stream", seconds=settings.short_s)["nanos"]) / 1e3
    return {"loop": "own", "samples_per_query": 8, "queries": len(micros), "percentiles": percentiles(micros)}


def _offline(one: _Running, settings: Settings) -> list[dict[str, Any]]:
    """Time every batch once more; one that would take longer than it is timed for is made smaller."""
    most = max(1, int(settings.short_s / 3 * 1e6 / one.values["single_stream"]["mean_us"]))
    batches = [*dict.fromkeys(min(batch, 1 << most.bit_length() - 1) for batch in settings.batches)]
    found = []
    for batch, threads in [(b, 1) for b in batches] + [(batches[-1], t) for t in settings.threads if t > 1]:
        rates = one.rates.setdefault((batch, threads), [])
        rates.append(one.worker.ask("offline", batch=batch, threads=threads, seconds=settings.short_s / 3))
        low, middle, high = (round(float(value), 1) for value in (min(rates), np.median(rates), max(rates)))
        found.append({"batch": batch, "threads": threads, "texts_per_s": middle, "min": low, "max": high})
    return found


def _server(one: _Running, settings: Settings) -> dict[str, Any]:
    p50_us, mean_us = (one.values["single_stream"][name] for name in ("p50_us", "mean_us"))
    bound_ms = _BOUND * p50_us / 1e3
    loads = []
    for share in settings.server_loads:
        per_second = share * 1e6 / mean_us
        answer = one.worker.ask("server", per_second=per_second, seconds=settings.short_s, seed=settings.seed)
        micros = unpack(answer["nanos"]) / 1e3
        met = bool(np.mean(micros <= 1e3 * bound_ms) >= 0.99 and not answer["unsent"])
        loads.append(
            {
                "load": share,
                "offered_per_s": round(per_second, 1),
                "queries": len(micros),
                "unsent": answer["unsent"],
                "percentiles": percentiles(micros),
                "bound_met": met,
            }
        )
    return {"loop": "own", "arrivals": "Poisson", "bound_ms": round(bound_ms, 4), "bound": "p99", "loads": loads}


def _loadgen(one: _Running, settings: Settings) -> dict[str, Any]:
    """Let LoadGen repeat the scenarios, as a second opinion on the own loops."""
    mean_us, p50_us = (one.values["single_stream"][name] for name in ("mean_us", "p50_us"))
    found: dict[str, Any] = {}
    for scenario in LOADGEN_SCENARIOS:
        half = 0.5e6 / mean_us
        found[scenario] = one.worker.ask(
            "loadgen",
            scenario=scenario,
            seconds=settings.short_s,
            expected_us=p50_us,
            per_second=half if scenario == "Server" else 2 * half,
            bound_ms=_BOUND * p50_us / 1e3,
        )
    return found


def _accuracy(one: _Running, labelled: Mapping[str, Dataset]) -> dict[str, Any]:
    if not one.labels:
        return Unavailable("the subject answers no task").to_dict()
    found: dict[str, Any] = {}
    for task, data in labelled.items():
        if task not in one.labels:
            continue
        strange = sorted(set(data.labels) - one.labels[task])
        if strange:
            found[task] = Unavailable(f"{data.path.name} has the label {strange[0]!r}, which the task lacks").to_dict()
            continue
        texts = [str(text) for text in data.texts]
        hits = 0
        for start in range(0, len(texts), 256):
            labels = one.worker.ask("predict", texts=texts[start : start + 256], task=task)
            hits += sum(a == b for a, b in zip(labels, data.labels[start : start + 256], strict=True))
        found[task] = {
            "n": len(texts),
            "accuracy": hits / len(texts),
            "ci95": list(wilson_interval(hits, len(texts))),
            "file": data.path.name,
            "sha256": data.sha256,
        }
    return found or Unavailable("no labelled rows of its tasks: give --data TASK=FILE.tsv").to_dict()


def _memory(one: _Running) -> dict[str, Any]:
    before: dict[str, Any] = one.values["memory"]
    return before | {"after": one.worker.ask("memory")}


def _cold_start(one: _Running, settings: Settings) -> dict[str, Any]:
    program = program_of(one.spec)
    if program is None:
        return Unavailable("the subject has no program of its own").to_dict()
    name, bare = one.spec.name, "python alone"
    measured = cold_starts(
        {bare: "pass", name: program},
        runs=settings.cold_runs,
        pythons={name: one.spec.python, bare: one.spec.python},
        timeout_s=settings.timeout_s,
    )
    return measured[name].to_dict() | {"python_alone_s": measured[bare].wall_s, "page_cache": "warm"}


def _install(one: _Running) -> dict[str, Any]:
    packages = packages_of(one.spec)
    if packages is None:
        return Unavailable("the subject does not say which packages it needs").to_dict()
    return {"requirements": list(packages), **install_size(packages, python=one.spec.python)}


def _ratios(running: Sequence[_Running], to: str) -> list[dict[str, Any]]:
    """Return how many times `to`'s time every other takes: medians of slices, paired by turn, on their common texts."""
    (base,) = (one for one in running if one.spec.name == to)
    found: list[dict[str, Any]] = []
    for one in running:
        if one is base:
            continue
        common = min(one.calls, base.calls)
        pairs = [
            float(np.median(a.micros[:common]) / np.median(b.micros[:common]))
            for a, b in zip(one.slices, base.slices, strict=False)
            if a.start == b.start and a.repeat == b.repeat
        ]
        entry: dict[str, Any] = {"of": one.spec.name, "to": to, "pairs": len(pairs)}
        if not pairs:
            found.append(entry | Unavailable("one of the two failed").to_dict())
            continue
        interval = median_interval(pairs)
        ends = [round(value, 4) for value in interval] if interval else None
        found.append(entry | {"median": round(float(np.median(pairs)), 4), "ci95": ends})
    return found
