"""`bench`: subjects in processes of their own, every scenario, every sensor, one record.

SingleStream comes first, and it alone decides the comparison of subjects (`single_stream`). A value that cannot be
measured is replaced by the reason, and the bench continues.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from fieldrun.errors import DatasetError, FieldrunError, UsageError
from fieldrun.evaluation.dataset import Dataset, read_tsv
from fieldrun.formats.progress import Progress, silent
from fieldrun.formats.storage import write_bytes

from ..machine.sampler import Sampler
from ..machine.sensors import Sensors
from ..report.canvas import check_matplotlib
from ..report.metrics import Metric, metrics
from ..report.render import page
from ..report.sections import claim
from .measurements import (
    SCENARIO_VALUES,
    Running,
    accuracy_value,
    cold_start_value,
    install_value,
    memory_value,
    reason,
)
from .record import append_record, conditions, cores_allowed, make_folder, new_record
from .settings import SCENARIOS, Settings
from .single_stream import by_length, paired_ratio, single_values, take_turns, turns
from .subject import SubjectSpec, parse_subject
from .warn import warnings_of
from .worker_process import WorkerProcess
from .workload import Workload, read_workload, sample_files

__all__ = ["BenchReport", "bench", "measure"]

Item = TypeVar("Item")
_OFFLINE_TURNS = 3
_LEFT_OUT = "left out of this bench"
_NULL = SubjectSpec(name="null", kind="null")


@dataclass(frozen=True, slots=True, kw_only=True)
class BenchReport:
    """What a bench found.

    Attributes:
        record: the record, of kind `bench`.
        claim: the first subject in one sentence, with its warnings.
        metrics: the figures one by one.
        failures: why subjects failed or ended early, by subject.
        path: the file of the record, None without a folder.
        page: `report.html`, None without a folder.
    """

    record: Mapping[str, Any]
    claim: str
    metrics: tuple[Metric, ...]
    failures: Mapping[str, str]
    path: Path | None
    page: Path | None

    def to_dict(self) -> dict[str, Any]:
        """Return the record."""
        return dict(self.record)


def bench(
    subjects: Sequence[str | SubjectSpec] = ("reference",),
    *,
    workload: Sequence[Path] | Workload = (),
    limit: int | None = None,
    data: Mapping[str, Dataset | Path] | None = None,
    quick: bool = False,
    repeats: int | None = None,
    seconds: float | None = None,
    timeout_s: float | None = None,
    loadgen: bool = True,
    engine: str = "auto",
    threads: int = 1,
    seed: int = 0,
    report: Path | None = None,
    system: Callable[..., Mapping[str, Any]] | None = None,
    progress: Progress = silent,
) -> BenchReport:
    """Measure latency, throughput, cold start, memory, energy and accuracy of subjects, each in its own process.

    Several subjects are compared in alternating slices of the same texts.

    Args:
        subjects: names (`harness.subject` has the table) or specs.
        workload: files of texts to send; the shipped samples when empty.
        limit: send at most this many texts, drawn at random.
        data: labelled rows to measure accuracy on, by task; the shipped samples when None.
        quick: measure for some 20 s instead of some four minutes.
        repeats: repeats of SingleStream, instead of 5.
        seconds: seconds of one repeat.
        timeout_s: seconds after which a subject counts as hung.
        loadgen: whether MLPerf LoadGen repeats the scenarios, where it is installed.
        engine: of bundles whose name has none.
        threads: CPU threads of the engine.
        seed: of the order of texts and of arrivals.
        report: a folder for a new record and `report.html`; records are never replaced.
        system: `fieldrun.doctor.examine`, for the facts of the machine in the record; `fieldrun.bench` passes it.
        progress: told how far the bench is.

    A subject that fails is named in the record and in `failures`, and is not an error.

    Raises:
        UsageError: two subjects have the same name, or a setting makes no sense.
        UnknownName: a kind of subject that does not exist.
        DatasetError: texts or rows cannot be used.
        MissingDependency: `report` needs the extra `bench`.
        StorageError: the record cannot be written.
    """
    if report is not None:
        check_matplotlib()
        make_folder(report)
    specs = [
        one if isinstance(one, SubjectSpec) else parse_subject(one, engine=engine, threads=threads) for one in subjects
    ]
    if len({spec.name for spec in specs}) < len(specs):
        raise UsageError("two subjects have the same name; give one another folder name or engine")
    sent = workload if isinstance(workload, Workload) else read_workload(workload, limit=limit, seed=seed)
    chosen: dict[str, Any] = {"repeats": repeats, "seconds": seconds, "timeout_s": timeout_s}
    settings = replace(
        (Settings.quick if quick else Settings.whole)(seed=seed, cores=cores_allowed()),
        scenarios=SCENARIOS if loadgen else tuple(name for name in SCENARIOS if name != "loadgen"),
        **{name: value for name, value in chosen.items() if value is not None},
    )
    rows = {task: _rows(found) for task, found in (sample_files() if data is None else data).items()}
    before = conditions()
    values = measure(specs, sent, settings, rows, progress=progress)
    values |= {"system": system(commands=False) if system else None, "conditions": before}
    options = {
        "quick": quick,
        "workload": () if isinstance(workload, Workload) else workload,
        "limit": limit,
        "data": [f"{task}={rows[task].path}" for task in data or ()],
        "repeats": repeats,
        "seconds": seconds,
        "timeout": timeout_s,
        "no-loadgen": not loadgen,
        "engine": None if engine == "auto" else engine,
        "threads": None if threads == 1 else threads,
        "seed": seed,
        "report": report,
    }
    record = new_record("bench", _command([spec.name for spec in specs], options), values)
    path, shown = None, None
    if report is not None:
        path, shown = append_record(report, record), report / "report.html"
        write_bytes(shown, page([record]).encode("utf-8"))
    ends = {name: one.get("failed", one.get("ended_early")) for name, one in values["subjects"].items()}
    failures = {name: why for name, why in ends.items() if why}
    facts: dict[str, Any] = {"claim": claim(record), "metrics": tuple(metrics(record)), "failures": failures}
    return BenchReport(record=record, path=path, page=shown, **facts)


def _command(names: Sequence[str], options: Mapping[str, Any]) -> str:
    """Return the command that repeats a bench, with paths from the current folder on."""
    words = ["fieldrun", "bench", *names]
    for name, value in options.items():
        for one in value if isinstance(value, list | tuple) else [value]:
            words += [f"--{name}" if one is True else f"--{name}={one}"] if one else []
    return shlex.join(words).replace(str(Path.cwd()) + os.sep, "")


def _rows(data: Dataset | Path) -> Dataset:
    rows = data if isinstance(data, Dataset) else read_tsv(data)
    if rows.kind != "single":
        raise DatasetError(f"{rows.path} holds pairs; a bench measures accuracy on single texts")
    return rows


def measure(
    specs: Sequence[SubjectSpec],
    workload: Workload,
    settings: Settings,
    labelled: Mapping[str, Dataset],
    *,
    against: Sequence[str] = (),
    sensors: Sensors | None = None,
    progress: Progress = silent,
) -> dict[str, Any]:
    """Measure every subject and return the values of a record of kind `bench`.

    Args:
        specs: the subjects; names must differ.
        workload: the texts.
        settings: how long and how often.
        labelled: rows to measure accuracy on, by task; a subject is measured on the tasks that it answers.
        against: names of the subjects that all are compared with; the first subject when empty.
        sensors: the machine's, unless a test has others.
        progress: told how far the bench is.

    Raises:
        FieldrunError: the harness itself cannot run. A subject that fails is noted in its values.
    """
    sensors = sensors or Sensors()
    values: dict[str, Any] = {"workload": workload.to_dict(), "settings": asdict(settings)}
    for _ in _each("harness", [None], progress):
        values["harness"] = _harness(workload, settings)
        with Sampler(sensors) as idle:
            time.sleep(min(1.0, settings.short_s))
        values["idle"] = idle.summary()
    with ExitStack() as stack:

        def start(spec: SubjectSpec) -> WorkerProcess:
            return stack.enter_context(WorkerProcess(spec, workload.texts, timeout_s=settings.timeout_s))

        running = [Running(spec=spec, open=partial(start, spec)) for spec in specs]
        for one in _each("load", running, progress):
            one.load(settings)
        _single_stream(running, workload, settings, sensors, values, progress)
        jobs = [(one, "stages") for one in running]
        jobs += [(one, "offline") for _ in range(_OFFLINE_TURNS) for one in running]
        jobs += [(one, name) for one in running for name in ("multi_stream", "server", "loadgen")]
        for one, name in _each("scenarios", jobs, progress):
            if name not in settings.scenarios:
                one.values[name] = {"unavailable": _LEFT_OUT}
            elif name not in one.values.get("restarted_after", ()):  # it would hang once more
                one.guard(name, SCENARIO_VALUES[name], settings, again=True)
        for one in _each("accuracy", running, progress):
            one.guard("accuracy", accuracy_value, labelled, settings)
            one.guard("memory", memory_value)
    for one in _each("cold start", running, progress):
        one.guard("cold_start", cold_start_value, settings)
        one.guard("install", install_value)
        if one.failed:  # a subject that ended after SingleStream keeps what was measured
            one.values["ended_early" if "single_stream" in one.values else "failed"] = one.failed
    values["subjects"] = {one.spec.name: one.values for one in running}
    values["ratios"] = [ratio for name in against or [specs[0].name] for ratio in _ratios(running, name)]
    values["warnings"] = warnings_of(values)
    return values


def _each(phase: str, items: Sequence[Item], progress: Progress) -> Iterator[Item]:
    """Yield the items, and tell how many are done."""
    for done, item in enumerate(items):
        progress(phase, done, len(items))
        yield item
    progress(phase, len(items), len(items))


def _harness(workload: Workload, settings: Settings) -> dict[str, Any]:
    """Measure the null subject: what the harness adds to a call, and the memory of its process."""
    with WorkerProcess(_NULL, workload.texts, timeout_s=settings.timeout_s) as worker:
        memory = worker.ask("load")["memory"]["loaded"]
        nanos = worker.ask("slice", start=0, count=4000, warm_up=500)["nanos"]
        found = {
            "own_loop": {"p50_us": round(float(np.median(nanos)) / 1e3, 3), "calls": len(nanos)},
            "memory": memory,
            "loadgen": {"unavailable": _LEFT_OUT},
        }
        if "loadgen" in settings.scenarios:
            try:
                about = worker.ask("scenario", name="loadgen", scenario="SingleStream", seconds=0.2, expected_us=5.0)
                found["loadgen"] = {"p50_us": about.get("p50_us"), "calls": about.get("queries")}
            except FieldrunError as error:
                found["loadgen"] = {"unavailable": str(error)}
    return found


def _single_stream(
    running: Sequence[Running],
    workload: Workload,
    settings: Settings,
    sensors: Sensors,
    values: dict[str, Any],
    progress: Progress,
) -> None:
    streams, n = [one.stream for one in running], len(workload.texts)
    with Sampler(sensors) as sampler:
        seconds = take_turns(streams, turns(settings, n, progress), n=n, seed=settings.seed, reason=reason)
    values["single_stream_s"] = round(seconds, 1)
    values["sensors"] = sampler.summary(sum(stream.cpu_s[1] - stream.cpu_s[0] for stream in streams))
    lengths = _lengths(running)
    for one in running:
        if one.stream.slices:  # also of a subject that has failed since
            one.values["single_stream"] = single_values(one.stream.slices)
        one.guard("by_length", lambda one: by_length(one.stream.slices, workload.texts, lengths))


def _lengths(running: Sequence[Running]) -> list[int] | None:
    """Return the tokens of every text as the first subject that has tokens counts them: one axis for all."""
    for one in running:
        if not one.failed:
            one.guard("tokens", lambda one: one.worker.ask("tokens"))
            counts = one.values.pop("tokens")
            if isinstance(counts, list):
                return counts
    return None


def _ratios(running: Sequence[Running], to: str) -> list[dict[str, Any]]:
    """Return how many times `to`'s time every other subject takes."""
    (base,) = (one for one in running if one.spec.name == to)
    return [
        {"of": one.spec.name, "to": to, **paired_ratio(one.stream.slices, base.stream.slices)}
        for one in running
        if one is not base
    ]
