"""The harness with planted subjects: what is measured, what happens to one that refuses, crashes or hangs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldrun.errors import DatasetError, EngineError, FieldrunError, UnknownName, UsageError
from fieldrun.evaluation.dataset import read_tsv
from fieldrun.formats.storage import write_json
from fieldrun_benchmarks.harness import bench, loadgen
from fieldrun_benchmarks.harness.bench import measure
from fieldrun_benchmarks.harness.scenario import (
    SAMPLES_PER_QUERY,
    multi_stream,
    offline,
    poisson_arrivals,
    server,
    timed_calls,
)
from fieldrun_benchmarks.harness.settings import SCENARIOS, Settings
from fieldrun_benchmarks.harness.subject import open_subject, packages_of, parse_subject, program_of
from fieldrun_benchmarks.harness.warn import warnings_of
from fieldrun_benchmarks.harness.worker import Worker
from fieldrun_benchmarks.harness.worker_process import WorkerProcess
from fieldrun_benchmarks.harness.workload import Workload, read_workload, sample_files
from fieldrun_benchmarks.machine.sensors import Sensors
from fieldrun_benchmarks.subjects.null import NullSubject
from tests.benchmarks.planted import Counting
from tests.toy import PAIR_TASK, TASKS

PLANTED = "python:tests.benchmarks.planted"
TEXTS = tuple(f"{'word ' * (1 + i % 9)}{i}" for i in range(60))
SHORT = Settings(
    repeats=2, seconds=0.01, slice_calls=20, stage_calls=8, short_s=0.01, batches=(1, 4), threads=(1, 2),
    server_loads=(0.5,), cold_runs=1, scenarios=("stages", "multi_stream", "offline", "server"), timeout_s=60,
)  # fmt: skip


class HereProcess:
    """A worker in this process: what is measured is the same, and starting it costs nothing."""

    alive, hung = True, False

    def __init__(self, spec: Any, texts: Any, *, timeout_s: float) -> None:
        self._worker = Worker(spec, list(texts))

    def ask(self, command: str, **arguments: Any) -> Any:
        return getattr(self._worker, command)(**arguments)

    def close(self) -> None:
        pass

    def __enter__(self) -> HereProcess:
        return self

    def __exit__(self, *_: object) -> None:
        pass


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bench, "WorkerProcess", HereProcess)


@pytest.fixture
def rows(tmp_path: Path) -> dict[str, Any]:
    path = tmp_path / "rows.tsv"
    path.write_text("text\tlabel\na\tshort\nb\tlong\n" + f"{'c' * 30}\tlong\n", "utf-8")
    return {"length": read_tsv(path), "not answered": read_tsv(path)}


def _workload() -> Workload:
    return Workload(texts=TEXTS, sources=(), seed=0)


def test_everything_is_measured(here: None, rows: dict[str, Any]) -> None:
    phases: list[str] = []
    specs = [replace(parse_subject(f"{PLANTED}:Counting"), name=name) for name in ("one", "two")]
    values = measure(specs, _workload(), SHORT, rows, progress=lambda phase, *_: phases.append(phase))
    assert [*dict.fromkeys(phases)] == ["harness", "load", "single stream", "scenarios", "accuracy", "cold start"]
    one = values["subjects"]["one"]
    single = one["single_stream"]
    assert single["calls"] >= SHORT.repeats * SHORT.slice_calls
    assert len(single["repeats_p50_us"]) == 2
    assert single["min_us"] <= single["p50_us"] <= single["max_us"]
    assert [share for share, _ in single["ecdf"]] == sorted(share for share, _ in single["ecdf"])
    assert set(one["stages"]) == {"end_to_end", "tokenize", "engine"}
    assert sum(row["calls"] for row in one["by_length"]["classes"]) == single["calls"]
    assert [(row["batch"], row["threads"]) for row in one["offline"]] == [(1, 1), (4, 1), (4, 2)]
    assert one["accuracy"] == {"length": one["accuracy"]["length"] | {"n": 3, "accuracy": 2 / 3, "file": "rows.tsv"}}
    assert "unavailable" in one["cold_start"]
    assert "left out" in one["loadgen"]["unavailable"]
    (ratio,) = values["ratios"]
    assert (ratio["of"], ratio["to"]) == ("two", "one")
    assert ratio["pairs"] >= SHORT.repeats
    assert values["harness"]["own_loop"]["p50_us"] < 2  # what the harness adds to a call


def test_what_a_subject_does_wrong_costs_its_own_value_only(here: None, tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("text\tlabel\na\tshort\nb\tshort\n", "utf-8")
    specs = [parse_subject(f"{PLANTED}:{name}") for name in ("Counting", "Forgetful")]
    values = measure(specs, _workload(), SHORT, {"length": read_tsv(path)})
    good, bad = values["subjects"].values()
    assert good["accuracy"]["length"]["accuracy"] == 1
    assert bad["cold_start"] == {"unavailable": "ValueError: no program for tests.benchmarks.planted:Forgetful"}
    assert bad["accuracy"]["unavailable"].endswith("predict returned 1 labels for 2 texts")
    assert bad["memory"]["after"]
    assert "ended_early" not in bad


def test_labels_of_another_set_are_not_scored(here: None, tmp_path: Path) -> None:
    path = tmp_path / "rows.tsv"
    path.write_text("text\tlabel\na\tpositive\n", "utf-8")
    values = measure([parse_subject(f"{PLANTED}:Counting")], _workload(), SHORT, {"length": read_tsv(path)})
    (subject,) = values["subjects"].values()
    assert "'positive', which the subject does not know" in subject["accuracy"]["length"]["unavailable"]


@pytest.fixture
def importable(repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a worker's process import the planted subjects."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(repository), os.environ.get("PYTHONPATH", "")]))


def _ask(name: str, command: str, *, timeout_s: float = 60, **arguments: Any) -> Any:
    with WorkerProcess(parse_subject(f"{PLANTED}:{name}"), TEXTS, timeout_s=timeout_s) as worker:
        worker.ask("memory")  # started
        worker._timeout_s = 0.5 if name == "Hanging" else timeout_s
        try:
            return worker.ask(command, **arguments)
        finally:
            assert worker.hung == (name == "Hanging")
            worker.close()  # may be closed twice: one that hung is, for another in its place


def test_a_subject_that_prints_does_not_break_the_protocol(importable: None) -> None:
    assert _ask("Printing", "load")["about"]["engine"] == "none"


@pytest.mark.parametrize(
    ("name", "error", "words"),
    [
        ("Refusing", EngineError, "this machine lacks what it needs"),
        ("Crashing", FieldrunError, "exit code 7: out of luck"),
        ("Hanging", FieldrunError, r"no answer to load within 0\.5 s; it was stopped"),
    ],
)
def test_a_subject_that_does_not_load_is_quoted(
    importable: None, name: str, error: type[FieldrunError], words: str
) -> None:
    with pytest.raises(error, match=words):
        _ask(name, "load")


def test_one_that_fails_does_not_take_the_others_along(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    class Half(HereProcess):
        slices = 0

        def ask(self, command: str, **arguments: Any) -> Any:
            if command == "slice" and "bad" in self._worker._spec.name:
                type(self).slices += 1
                if type(self).slices > 5:
                    self.alive = False
                    raise FieldrunError("bad: its process ended with exit code 1")
            return super().ask(command, **arguments)

    monkeypatch.setattr(bench, "WorkerProcess", Half)
    spec = parse_subject(f"{PLANTED}:Counting")
    values = measure([replace(spec, name="good"), replace(spec, name="bad")], _workload(), SHORT, {})
    assert "exit code 1" in values["subjects"]["bad"]["ended_early"]
    assert values["subjects"]["bad"]["single_stream"]["calls"] > 0
    assert "exit code 1" in values["subjects"]["bad"]["server"]["unavailable"]
    assert values["subjects"]["good"]["single_stream"]["calls"] > 0
    assert any(entry["about"] == "bad" and "it ended early" in entry["text"] for entry in values["warnings"])


def test_one_that_fails_alone_has_a_record(here: None) -> None:
    values = measure([parse_subject(f"{PLANTED}:Refusing")], _workload(), SHORT, {})
    (subject,) = values["subjects"].values()
    assert subject["failed"] == "this machine lacks what it needs"
    assert [entry["text"] for entry in values["warnings"] if entry["about"] != "machine"] == [
        f"it failed: {subject['failed']}"
    ]


def test_a_python_that_is_not_there_fails_alone(importable: None) -> None:
    specs = [replace(parse_subject("null"), name="lost", python="/no/python"), parse_subject("null")]
    values = measure(specs, _workload(), replace(SHORT, scenarios=()), {})
    assert "cannot start /no/python" in values["subjects"]["lost"]["failed"]
    assert values["subjects"]["null"]["single_stream"]["calls"] > 0


def test_one_that_hangs_in_a_scenario_is_started_again(
    here: None, rows: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Stuck(HereProcess):
        def ask(self, command: str, **arguments: Any) -> Any:
            asked.append(arguments.get("name", command))
            if asked[-1] == "server":
                self.alive, self.hung = False, True
                raise FieldrunError("it: no answer to server within 60 s; it was stopped")
            assert self.alive
            return super().ask(command, **arguments)

    asked: list[str] = []
    monkeypatch.setattr(bench, "WorkerProcess", Stuck)
    spec = replace(parse_subject(f"{PLANTED}:Counting"), name="it")
    values = measure([spec], _workload(), SHORT, rows)
    one = values["subjects"]["it"]
    assert asked.count("server") == 1
    assert "no answer to server" in one["server"]["unavailable"]
    assert one["multi_stream"]["queries"] > 0
    assert one["accuracy"]["length"]["n"] == 3
    assert one["memory"]["after"]
    assert "ended_early" not in one
    assert any("did not answer server in time and was restarted" in entry["text"] for entry in values["warnings"])


def test_a_crash_is_told_in_the_values_and_the_rest_is_measured(importable: None) -> None:
    good, bad = (parse_subject(f"{PLANTED}:{name}") for name in ("Counting", "Crashing"))
    values = measure([good, bad], _workload(), replace(SHORT, seconds=0.05), {})
    assert "exit code 7: out of luck" in values["subjects"][bad.name]["failed"]
    assert values["subjects"][good.name]["single_stream"]["calls"] > 0
    (ratio,) = values["ratios"]
    assert ratio["unavailable"] == "one of the two failed"


def test_planted_noise_raises_the_warnings() -> None:
    quiet = {"unavailable": "none"}
    sensors: dict[str, Any] = {"other_cores": 1.2, "stolen_cores": 0.3, "throttled": {"events": 2.0}}
    sensors |= {"clock_mhz": {"min": 800, "max": 2000, "mean": 1500}, "governor": "powersave"}
    single = {"variation": 0.06, "minutes": {"ratio": 1.08}, "p50_us": 1.0}
    values = {"sensors": sensors, "harness": {"own_loop": {"p50_us": 0.1}}}
    values["subjects"] = {"a": {"kind": "bundle", "single_stream": single}}
    text = " | ".join(entry["text"] for entry in warnings_of(values))
    for words in ("1.20 cores busy", "hypervisor", "throttled 2 times", "800 and 2000", "powersave", "6.0 %", "1.080"):
        assert words in text
    assert "harness itself" in text
    calm = {"variation": 0.01, "minutes": quiet, "p50_us": 50.0}
    values["sensors"] = {"other_cores": 0.01, "stolen_cores": 0.0, "throttled": quiet, "clock_mhz": quiet}
    values["sensors"] |= {"governor": quiet}
    values["subjects"] = {"a": {"kind": "bundle", "single_stream": calm}}
    assert warnings_of(values) == []


class _Crowded(Sensors):
    """Counters of a machine on which others keep two cores busy."""

    def busy(self) -> dict[str, float]:
        return {"busy": 4 * time.monotonic(), "stolen": 0.0}  # bench and worker, here in one process, count one each


class _Quiet(Sensors):
    def busy(self) -> dict[str, float]:
        return {"busy": 0.0, "stolen": 0.0}


def test_the_benchs_own_work_is_not_anothers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A worker that warms up for half a second of CPU time before each slice, on a machine with nobody else."""

    class Warming(HereProcess):
        used = 0.0

        def ask(self, command: str, **arguments: Any) -> Any:
            answer = super().ask(command, **arguments)
            if command != "slice":
                return answer
            Warming.used += 0.5
            return answer | {"process_cpu_s": Warming.used}

    class Alone(Sensors):
        def busy(self) -> dict[str, float]:
            return {"busy": Warming.used + time.process_time(), "stolen": 0.0}

    monkeypatch.setattr(bench, "WorkerProcess", Warming)
    assert _noise(Alone()) == []


def _noise(sensors: Sensors, settings: Settings = SHORT) -> list[str]:
    values = measure([parse_subject("null")], _workload(), settings, {}, sensors=sensors)
    return [entry["text"] for entry in values["warnings"] if "cores busy" in entry["text"]]


def test_a_slow_subject_gets_less_to_do(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """A text takes 1 ms or 10 us: 50 and 200 a slice of 0.05 s, batches of 64 and 256 in a tenth of a second."""

    class Slow(HereProcess):
        def ask(self, command: str, **arguments: Any) -> Any:
            answer = super().ask(command, **arguments)
            if command == "slice":
                nanos = 1_000_000 if self._worker._spec.name == "slow" else 10_000
                return answer | {"nanos": [nanos] * arguments["count"]}
            if arguments.get("name") == "offline":
                asked.append((self._worker._spec.name, arguments["batch"]))
            return answer

    asked: list[tuple[str, int]] = []
    monkeypatch.setattr(bench, "WorkerProcess", Slow)
    spec = parse_subject(f"{PLANTED}:Counting")
    settings = replace(SHORT, slice_calls=200, slice_s=0.05, short_s=0.3, batches=(1, 256), threads=(1,))
    values = measure(
        [replace(spec, name="fast"), replace(spec, name="slow")],
        _workload(),
        replace(settings, scenarios=("offline",)),
        {},
        against=("slow", "fast"),
    )
    fast, slow = (values["subjects"][name] for name in ("fast", "slow"))
    assert (fast["slice_calls"], slow["slice_calls"]) == (200, 50)
    assert {row["batch"] for row in slow["offline"]} == {1, 64}
    assert {row["batch"] for row in fast["offline"]} == {1, 256}
    assert [name for name, batch in asked if batch in (64, 256)] == ["fast", "slow"] * 3  # in turns
    assert [(ratio["of"], ratio["to"], ratio["median"]) for ratio in values["ratios"]] == [
        ("fast", "slow", 0.01),
        ("slow", "fast", 100.0),
    ]
    assert {one["by_length"]["unit"] for one in (fast, slow)} == {"tokens"}
    assert fast["server"] == {"unavailable": "left out of this bench"}


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """A clock that goes 10 us further each time it is read; what is returned lets it jump."""
    now = 0.0

    def wait(seconds: float) -> None:
        nonlocal now
        now += seconds

    def clock() -> float:
        wait(1e-5)
        return now

    monkeypatch.setattr("time.perf_counter", clock)
    monkeypatch.setattr("time.sleep", wait)
    monkeypatch.setattr("time.perf_counter_ns", lambda: int(1e9 * clock()))
    return wait


def test_a_fast_one_is_compared_where_it_is_warm(
    here: None, ticking: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The fast one takes 40 us for the first 60 texts of a slice and 10 us for the rest, the slow one always 1 ms."""

    class Cold(HereProcess):
        def ask(self, command: str, **arguments: Any) -> Any:
            answer = super().ask(command, **arguments)
            if command != "slice":
                return answer
            name, count = self._worker._spec.name, arguments["count"]
            asked.extend([(name, arguments["start"], count)] if name in names else [])
            nanos = np.where(np.arange(count) < 60, 40_000, 10_000) if name == "fast" else np.full(count, 1_000_000)
            return answer | {"nanos": nanos.tolist()}

    asked: list[tuple[str, int, int]] = []
    monkeypatch.setattr(bench, "WorkerProcess", Cold)
    spec = parse_subject(f"{PLANTED}:Counting")
    names = ("fast", "slow", "third", "fourth")
    settings = replace(SHORT, slice_calls=200, slice_s=0.05, seconds=0.6, scenarios=())
    values = measure([replace(spec, name=name) for name in names], _workload(), settings, {})
    assert [values["subjects"][name]["slice_calls"] for name in ("fast", "slow")] == [200, 50]
    assert {ratio["of"]: ratio["median"] for ratio in values["ratios"]}["slow"] == 100
    turns = [asked[i : i + 4] for i in range(12, len(asked), 4)]  # three slices each found out how slow they are
    assert all(len({(start + count) % len(TEXTS) for _, start, count in turn}) == 1 for turn in turns)
    assert all({name for name, *_ in turn} == set(names) for turn in turns)
    order = [name for turn in turns for name, *_ in turn]
    neighbours = {(a, b) for a, b in pairwise(order) if a != b}
    assert len(neighbours) == 12  # everyone follows everyone else


def test_no_scenario_of_a_slow_one_takes_much_longer_than_it_is_given(
    ticking: Callable[[float], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text takes 1 s."""
    worker = Worker(parse_subject(f"{PLANTED}:Counting"), list(TEXTS))
    worker.load()
    monkeypatch.setattr(Counting, "run", lambda self, texts: ticking(len(texts)))
    stages = worker.stages(count=300, seconds=10.0)
    assert 2 <= len(stages["end_to_end"]) <= 6  # each is called twice
    assert len(worker.scenario("multi_stream", seconds=10.0)) == 2  # of 8 texts each
    assert len(worker.scenario("server", per_second=0.5, seconds=10.0, seed=0)["nanos"]) <= 20


def test_loadgen_does_not_run_what_would_take_too_long(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 10 ms a text, 662 queries of 8 would take 53 s; a scenario has 30 s here."""

    class Slow(HereProcess):
        def ask(self, command: str, **arguments: Any) -> Any:
            if arguments.get("name") == "loadgen":
                return {"queries": 64}
            answer = super().ask(command, **arguments)
            if command != "slice":
                return answer
            return answer | {"nanos": [10_000_000] * arguments["count"]}

    monkeypatch.setattr(bench, "WorkerProcess", Slow)
    settings = replace(SHORT, short_s=3.0, timeout_s=120.0, scenarios=("loadgen",))
    values = measure([parse_subject(f"{PLANTED}:Counting")], _workload(), settings, {})
    (subject,) = values["subjects"].values()
    found = subject["loadgen"]
    assert "would take 53 s, over 30 s" in found.pop("MultiStream")["unavailable"]
    assert set(found) == {"SingleStream", "Offline", "Server"}
    assert all(one == {"queries": 64} for one in found.values())


def test_a_crowded_machine_is_warned_of(here: None) -> None:
    (text,) = _noise(_Crowded())
    assert float(text.split()[3]) >= 1.9
    assert _noise(_Quiet()) == []


def test_a_busy_second_process_raises_the_warning(here: None) -> None:
    if Sensors().busy() is None:
        pytest.skip("/proc/stat cannot be read here")
    spin = "print(flush=True)\nwhile True: pass"
    busy = [subprocess.Popen([sys.executable, "-c", spin], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for process in busy:
            assert process.stdout is not None
            process.stdout.readline()  # it spins from here on
        assert _noise(Sensors(), replace(SHORT, seconds=0.4))
    finally:
        for process in busy:
            process.kill()
            process.communicate()


def test_scenarios_answer_every_text_they_count() -> None:
    seen: list[list[str]] = []

    def run(texts: list[str]) -> None:
        seen.append(texts)

    nanos = timed_calls(run, [["a"], ["b"]])
    assert seen == [["a"], ["b"]]
    assert len(nanos) == 2
    assert min(nanos) >= 0
    seen.clear()
    queries = multi_stream(run, ["a", "b", "c"], seconds=0.005)
    assert len(seen) == len(queries) + 1
    assert all(len(texts) == SAMPLES_PER_QUERY for texts in seen)
    assert offline(run, ["a", "b", "c"], batch=2, threads=2, seconds=0.005) > 0

    def fail(texts: list[str]) -> None:
        raise EngineError("no")

    with pytest.raises(EngineError):
        multi_stream(fail, ["a"], seconds=0.005)


def test_arrivals_are_poisson() -> None:
    moments = poisson_arrivals(1000.0, 20_000, 3)
    gaps = np.diff(moments)
    assert gaps.mean() == pytest.approx(1e-3, rel=0.05)
    assert gaps.std() == pytest.approx(1e-3, rel=0.05)  # of an exponential distribution: equal to its mean
    assert (poisson_arrivals(1000.0, 5, 3) == moments[:5]).all()


def test_waiting_counts_under_load(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def clock() -> float:
        nonlocal now
        now += 1e-6
        return now

    def pass_by(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr("time.perf_counter", clock)
    monkeypatch.setattr("time.sleep", pass_by)

    def slow(texts: list[str]) -> None:
        pass_by(0.010)

    found = server(slow, ["a"], per_second=200.0, seconds=1.0, seed=0)
    assert found["nanos"][-1] > 50 * 10_000_000  # twice as much as it can do: the queue has grown
    idle = server(slow, ["a"], per_second=1.0, seconds=10.0, seed=1)
    assert np.median(idle["nanos"]) == pytest.approx(10_000_000, rel=0.01)
    assert idle["unsent"] == 0


def test_loadgen_runs_the_null_subject_or_says_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("mlperf_loadgen", reason="mlcommons-loadgen is not installed")
    null = NullSubject(parse_subject("null"))
    found = loadgen.run_loadgen(null.run, TEXTS, "SingleStream", seconds=0.01)
    assert found["queries"] >= 64
    assert found["p50_us"] > 0


def test_loadgens_percentiles_need_calls_too(tmp_path: Path) -> None:
    """64 queries bear a 90th percentile, 662 a 99th (the rule of LoadGen itself)."""
    log = tmp_path / "mlperf_log_detail.txt"
    for count, names in ((64, {"p50_us", "p90_us"}), (661, {"p50_us", "p90_us", "p95_us"}), (662, {"p99_us"})):
        entries = [{"key": "result_query_count", "value": count}]
        for share in ("50.00", "90.00", "95.00", "99.00"):
            entries.append({"key": f"result_{share}_percentile_latency_ns", "value": 5000})
        log.write_text("".join(f":::MLLOG {json.dumps(entry)}\n" for entry in entries), "utf-8")
        found = loadgen._read(log)
        assert found.pop("queries") == count
        assert names <= set(found)
        assert ("p99_us" in found) == (count == 662)
        assert ("p95_us" in found) == (count > 64)


@pytest.mark.parametrize(
    ("count", "unsent", "met"),
    [(5, 0, {"unavailable": "needs 662 queries, there are 5"}), (5, 3, False), (662, 0, True)],
)
def test_a_bound_needs_enough_queries(
    here: None, monkeypatch: pytest.MonkeyPatch, count: int, unsent: int, met: object
) -> None:
    class Counted(HereProcess):
        def ask(self, command: str, **arguments: Any) -> Any:
            answer = super().ask(command, **arguments)
            return {"nanos": [1] * count, "unsent": unsent} if arguments.get("name") == "server" else answer

    monkeypatch.setattr(bench, "WorkerProcess", Counted)
    values = measure([parse_subject("null")], _workload(), replace(SHORT, scenarios=("server",)), {})
    (load,) = values["subjects"]["null"]["server"]["loads"]
    assert load["bound_met"] == met


def test_loadgen_where_it_has_no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)
    monkeypatch.setattr("platform.machine", lambda: "aarch64")
    with pytest.raises(FieldrunError, match="no wheel for aarch64, only for x86_64"):
        loadgen.run_loadgen(lambda texts: None, TEXTS, "SingleStream", seconds=0.01)


def test_without_loadgen_the_rest_goes_on(here: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlperf_loadgen", None)  # what makes an import fail
    spec = parse_subject("null")
    values = measure([spec], _workload(), replace(SHORT, scenarios=SCENARIOS), {})
    assert "mlcommons-loadgen" in values["subjects"]["null"]["loadgen"]["unavailable"]
    assert "mlcommons-loadgen" in values["harness"]["loadgen"]["unavailable"]


def test_subjects_are_read_from_their_names(tmp_path: Path) -> None:
    found = parse_subject("reference@numpy", threads=2)
    assert (found.kind, found.place, found.variant, found.threads) == ("bundle", "reference", "numpy", 2)
    assert "engine='numpy'" in (program_of(found) or "")
    assert parse_subject("reference", engine="native").variant == "native"
    one = parse_subject("reference@native#sst2")
    assert (one.place, one.variant, one.task, one.name) == ("reference", "native", "sst2", "reference@native#sst2")
    assert packages_of(replace(one, variant="onnxruntime")) == ("fieldrun[ort]",)
    assert packages_of(one) == ("fieldrun",)
    assert packages_of(parse_subject("null")) is None
    assert parse_subject("tokenizer:reference").name == "tokenizer:reference"
    assert program_of(parse_subject("null")) is None
    folder = tmp_path / "a@b"
    assert parse_subject(f"{folder}/c").place == str(folder / "c")
    write_json(tmp_path / "peer.json", {"python": "/elsewhere/bin/python"})
    assert parse_subject(f"peer:{tmp_path}").python == "/elsewhere/bin/python"
    with pytest.raises(UsageError, match=r"no readable peer\.json"):
        parse_subject(f"peer:{folder}")
    with pytest.raises(UnknownName, match="kind of subject 'onnxx'"):
        parse_subject("onnxx:thing")
    with pytest.raises(UsageError, match="names no place"):
        parse_subject("tokenizer:")
    with pytest.raises(UsageError, match="cannot be imported"):
        program_of(parse_subject("python:no.such.module:Class"))


def test_our_subjects_answer_all_tasks_or_one(toy_bundle: Path) -> None:
    single = [task for task in TASKS if task != PAIR_TASK]
    task = single[0]
    every, one = (open_subject(parse_subject(f"{toy_bundle}@numpy{mark}")) for mark in ("", f"#{task}"))
    assert sorted(every.tasks()) == sorted(single)
    assert list(one.tasks()) == [task]
    assert one.run(["a good film"]) == every.predict(["a good film"], task)
    assert one.about()["answers"] == f"the label of {task}"
    with pytest.raises(UnknownName, match="single task 'nothing'"):
        open_subject(parse_subject(f"{toy_bundle}#nothing"))
    for name in (f"{toy_bundle}@numpy", f"{toy_bundle}@numpy#{task}", f"tokenizer:{toy_bundle}"):
        exec(compile(program_of(parse_subject(name)) or "", "program", "exec"), {})


def test_a_workload_is_real_text_with_its_lengths(tmp_path: Path) -> None:
    shipped = read_workload([])
    assert len(shipped.texts) == sum(source["texts"] for source in shipped.sources) == 800
    assert {source["file"] for source in shipped.sources} == {path.name for path in sample_files().values()}
    about = shipped.to_dict()
    assert sum(row["texts"] for row in about["characters"]["histogram"]) == 800
    assert read_workload([], seed=1).texts != shipped.texts
    lines = tmp_path / "lines.txt"
    lines.write_text("one\n\n  two words \n", "utf-8")
    assert sorted(read_workload([lines]).texts) == ["one", "two words"]
    assert len(read_workload([lines], limit=1).texts) == 1


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("a.txt", b"", "has no texts"),
        ("a.txt", b"\xff", "UTF-8"),
        ("a.txt", None, "cannot read"),
        ("a.tsv", b"text\tlabel\n", "no records after the header"),
    ],
)
def test_a_workload_that_cannot_be_used(tmp_path: Path, name: str, data: bytes | None, words: str) -> None:
    path = tmp_path / name
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(DatasetError, match=words):
        read_workload([path])


@pytest.mark.parametrize(
    "change",
    [
        {"repeats": 1},
        {"seconds": 0},
        {"batches": ()},
        {"threads": (0,)},
        {"cold_runs": 0},
        {"slice_warm_up_s": 0},
        {"scenarios": ("x",)},
    ],
)
def test_settings_that_make_no_sense(change: dict[str, Any]) -> None:
    with pytest.raises(UsageError):
        replace(SHORT, **change)
    assert Settings.quick(cores=1).threads == (1,)
    assert Settings.whole(cores=4).threads == (1, 2, 4)
    assert Settings.whole().repeats * Settings.whole().seconds > 120


def test_a_worker_needs_to_load_first() -> None:
    call: Callable[[], Any] = Worker(parse_subject("null"), ["a"]).tokens
    with pytest.raises(RuntimeError, match="load its subject first"):
        call()
    assert isinstance(Sensors(), Sensors)
