"""One bench: subjects in processes of their own, every scenario, every sensor, one set of values for a record.

SingleStream comes first and alone decides the comparison: in every turn each subject is timed on a slice that ends with
the same text, in an order drawn anew, so that what slows the machine slows them all and nobody always follows the same
neighbour. A slow subject gets shorter slices, and is compared on the texts that both were timed on. What fails is said
in the place of its value, and the rest goes on.
"""

from __future__ import annotations

import random
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np

from fieldrun.errors import FieldrunError
from fieldrun.evaluation.dataset import Dataset
from fieldrun.evaluation.metrics import wilson_interval
from fieldrun.formats.progress import Progress

from ..machine.install_size import install_size
from ..machine.sampler import Sampler
from ..machine.sensors import Sensors, Unavailable
from ..subjects.subject import SubjectSpec, packages_of, program_of
from .cold_start import cold_starts
from .latency import order_of_turn
from .other_scenarios import CALLS
from .running import Running, reason
from .settings import Settings
from .single_stream import Slice, by_length, paired_ratio, single_values
from .warn import warnings_of
from .worker_process import WorkerProcess, unpack
from .workload import Workload

__all__ = ["Progress", "measure"]

_FEWEST = 4  # texts of a slice
_FEWEST_WARM = 2  # texts before it
_PREDICTED = 256  # rows that are asked for at once
_OFFLINE_TURNS = 3
_LEFT_OUT = "left out of this bench"
_NULL = SubjectSpec(name="null", kind="null")


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

    A subject that fails is said in its values, also when it is the only one.

    Raises:
        FieldrunError: the harness itself cannot run.
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
        enter("single stream")
        with Sampler(sensors) as sampler:
            seconds = _single_stream(running, len(workload.texts), settings)
        own = sum(one.slices[-1].process_cpu_s - one.cpu_s for one in running if one.slices)
        values["single_stream_s"] = round(seconds, 1)
        values["sensors"] = sampler.summary(own)
        lengths = _lengths(running)
        for one in running:
            if one.slices:  # also of a subject that ended meanwhile
                one.values["single_stream"] = single_values(one.slices, settings.repeats)
            one.guard("by_length", _by_length, workload, lengths)
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
            one.guard("accuracy", _accuracy, labelled, settings)
            one.guard("memory", _memory)
        enter("cold start")
    for one in running:
        one.guard("cold_start", _cold_start, settings)
        one.guard("install", _install)
        if one.failed:  # one that ended after SingleStream keeps what was measured of it
            measured = "p50_us" in one.values.get("single_stream", {})
            one.values["ended_early" if measured else "failed"] = one.failed
    values["subjects"] = {one.spec.name: one.values for one in running}
    values["ratios"] = [ratio for name in against or [specs[0].name] for ratio in _ratios(running, name)]
    values["warnings"] = warnings_of(values)
    progress("done", len(phases), len(phases))
    return values


def _scenario(one: Running, name: str, settings: Settings) -> None:
    if name not in settings.scenarios:
        one.values[name] = Unavailable(_LEFT_OUT).to_dict()
    elif name not in one.values.get("restarted_after", ()):  # it would hang once more
        one.guard(name, CALLS[name], settings, again=True)


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


def _start(spec: SubjectSpec, workload: Workload, settings: Settings, stack: ExitStack) -> Running:
    def start() -> WorkerProcess:
        return stack.enter_context(WorkerProcess(spec, workload.texts, timeout_s=settings.timeout_s))

    one = Running(spec=spec, open=start, values={"kind": spec.kind, "threads": spec.threads})
    most = max(_FEWEST, settings.slice_calls)
    try:
        loaded = one.worker.ask("load")
        one.calls = one.warm_up = _FEWEST
        for _ in range(3):  # what is opened on first use must not count as slow
            answer = one.worker.ask("slice", start=0, count=one.calls, warm_up=one.warm_up)
            median_s = max(1e-9, float(np.median(unpack(answer["nanos"]))) / 1e9)
            one.calls = int(np.clip(settings.slice_s / median_s, _FEWEST, most))
            one.warm_up = int(np.clip(settings.slice_warm_up_s / median_s, _FEWEST_WARM, one.calls))
            one.cpu_s = answer["process_cpu_s"]
    except Exception as error:  # whatever a subject does, the others are measured
        one.failed = reason(error)
        return one
    one.values["slice_calls"] = one.calls
    one.values |= {name: loaded[name] for name in ("about", "load_ms", "first_answer_ms")}
    one.labels = {task: set(labels) for task, labels in loaded["tasks"].items()}
    one.values["memory"] = {"before_load": loaded["memory_before"], "loaded": loaded["memory_loaded"]}
    return one


def _single_stream(running: Sequence[Running], n: int, settings: Settings) -> float:
    """Time slices in turns until every repeat has had its time; return the seconds that all of it took.

    The slices of a turn end with the same text, so that a slow subject's few texts are the last of a fast one's many,
    which that one answers as warm as it gets.
    """
    begin = time.perf_counter()
    turn = 0
    draw = random.Random(settings.seed)
    for repeat in range(settings.repeats):
        end = time.perf_counter() + settings.seconds
        while time.perf_counter() < end or not any(piece.repeat == repeat for one in running for piece in one.slices):
            alive = [one for one in running if not one.failed]
            if not alive:
                break
            last = turn * (settings.slice_calls + 1) % n  # one further, so that short slices see every text in time
            for one in order_of_turn(alive, turn, draw):
                at = time.perf_counter() - begin
                start = (last - one.calls) % n
                try:
                    answer = one.worker.ask("slice", start=start, count=one.calls, warm_up=one.warm_up)
                except Exception as error:
                    one.failed = reason(error)
                    continue
                one.slices.append(
                    Slice(
                        at_s=at,
                        turn=turn,
                        repeat=repeat,
                        start=start,
                        micros=unpack(answer["nanos"]) / 1e3,
                        cpu_ns=answer["cpu_ns"],
                        process_cpu_s=answer["process_cpu_s"],
                        switches=answer["switches"],
                    )
                )
            turn += 1
    return time.perf_counter() - begin


def _lengths(running: Sequence[Running]) -> list[int] | None:
    """Return the tokens of every text by the first subject that counts any: one axis for all."""
    for one in running:
        if one.failed:
            continue
        try:
            counts: list[int] | None = one.worker.ask("tokens")
        except FieldrunError as error:
            if not one.worker.alive:
                one.failed = reason(error)
            continue
        if counts is not None:
            return counts
    return None


def _by_length(one: Running, workload: Workload, lengths: list[int] | None) -> dict[str, Any]:
    return by_length(one.slices, workload.texts, lengths)


def _accuracy(one: Running, labelled: Mapping[str, Dataset], settings: Settings) -> dict[str, Any]:
    if not one.labels:
        return Unavailable("the subject answers no task").to_dict()
    in_time = settings.timeout_s / 4 * 1e6 / one.values["single_stream"]["mean_us"]
    size = int(np.clip(in_time, 1, _PREDICTED))
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
        for start in range(0, len(texts), size):
            asked = texts[start : start + size]
            labels = one.worker.ask("predict", texts=asked, task=task)
            if len(labels) != len(asked):
                raise FieldrunError(f"{one.spec.name}: predict gave {len(labels)} labels for {len(asked)} texts")
            hits += sum(a == b for a, b in zip(labels, data.labels[start : start + size], strict=True))
        found[task] = {
            "n": len(texts),
            "accuracy": hits / len(texts),
            "ci95": list(wilson_interval(hits, len(texts))),
            "file": data.path.name,
            "sha256": data.sha256,
        }
    return found or Unavailable("no labelled rows of its tasks: give --data TASK=FILE.tsv").to_dict()


def _memory(one: Running) -> dict[str, Any]:
    before: dict[str, Any] = one.values["memory"]
    return before | {"after": one.worker.ask("memory")}


def _cold_start(one: Running, settings: Settings) -> dict[str, Any]:
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


def _install(one: Running) -> dict[str, Any]:
    packages = packages_of(one.spec)
    if packages is None:
        return Unavailable("the subject does not say which packages it needs").to_dict()
    return {"requirements": list(packages), **install_size(packages, python=one.spec.python)}


def _ratios(running: Sequence[Running], to: str) -> list[dict[str, Any]]:
    """Return how many times `to`'s time every other takes."""
    (base,) = (one for one in running if one.spec.name == to)
    return [
        {"of": one.spec.name, "to": to, **paired_ratio(one.slices, base.slices)} for one in running if one is not base
    ]
