"""The same scenarios driven by MLPerf LoadGen (`mlcommons-loadgen`), as a check of our own loops.

LoadGen draws the texts and the arrivals itself, checks that the run was long enough, and logs its settings. Its cost
per query is measured with the null subject, like that of our loops. It logs to a folder that is deleted afterwards.
"""

from __future__ import annotations

import importlib
import json
import platform
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fieldrun.errors import FieldrunError, MissingDependency

from .percentiles import calls_needed
from .scenario import SAMPLES_PER_QUERY

__all__ = ["SCENARIOS", "least_seconds", "run_loadgen"]

SCENARIOS = ("SingleStream", "MultiStream", "Offline", "Server")
_FEWEST = {"SingleStream": 64, "MultiStream": 662, "Offline": 1, "Server": 64}
"""Queries of a valid run."""
_BATCH = 32  # texts that are answered at once in Offline
_WHEELS = "x86_64"
_FASTEST_NS = 20_000  # it plans queries of at least this length, so that a run of the null subject ends
_KEPT = {
    "result_validity": "validity",
    "result_query_count": "queries",
    "early_stopping_result": "early_stopping",
    "result_samples_per_second": "texts_per_s",
    "result_scheduled_samples_per_sec": "offered_per_s",
    "result_completed_samples_per_sec": "texts_per_s",
}
_LATENCY = {0.5: "p50_us", 0.9: "p90_us", 0.95: "p95_us", 0.99: "p99_us"}


def least_seconds(scenario: str, mean_us: float) -> float:
    """Return the shortest duration of `scenario` when a text takes `mean_us`; Server at half load."""
    texts = {"MultiStream": SAMPLES_PER_QUERY, "Server": 2}.get(scenario, 1)
    return _FEWEST[scenario] * texts * mean_us / 1e6


def run_loadgen(
    run: Callable[[list[str]], object],
    texts: Sequence[str],
    scenario: str,
    *,
    seconds: float,
    expected_us: float = 100.0,
    per_second: float = 0.0,
    bound_ms: float = 0.0,
) -> dict[str, Any]:
    """Run one scenario and return LoadGen's own figures: validity, queries, p50_us to p99_us or texts_per_s.

    A percentile that needs more queries (`percentiles.calls_needed`) is left out.

    Args:
        run: answers a list of texts.
        texts: what LoadGen draws from.
        scenario: one of `SCENARIOS`.
        seconds: the shortest time of a valid run.
        expected_us: the mean time of one text, from which LoadGen plans its queries.
        per_second: texts a second that Server sends.
        bound_ms: Server's latency bound, for the 99th percentile.

    Raises:
        MissingDependency: mlcommons-loadgen is not installed.
        FieldrunError: mlcommons-loadgen does not exist for this machine.
    """
    try:
        lg: Any = importlib.import_module("mlperf_loadgen")
    except ImportError as error:
        machine = platform.machine()
        if machine != _WHEELS:  # where the extra `bench` leaves it out
            raise FieldrunError(f"mlcommons-loadgen has no wheel for {machine}, only for {_WHEELS}") from error
        raise MissingDependency("mlcommons-loadgen", "bench") from error
    settings = lg.TestSettings()
    settings.scenario = getattr(lg.TestScenario, scenario)
    settings.mode = lg.TestMode.PerformanceOnly
    settings.min_duration_ms = max(1, round(1000 * seconds))
    settings.min_query_count = _FEWEST[scenario]
    settings.multi_stream_samples_per_query = SAMPLES_PER_QUERY
    settings.single_stream_expected_latency_ns = max(_FASTEST_NS, round(1e3 * expected_us))
    settings.multi_stream_expected_latency_ns = max(_FASTEST_NS, round(1e3 * expected_us * SAMPLES_PER_QUERY))
    if scenario == "Offline":
        settings.offline_expected_qps = per_second or len(texts) / seconds
    if scenario == "Server":
        settings.server_target_qps = per_second
        settings.server_target_latency_ns = round(1e6 * bound_ms)
        settings.server_target_latency_percentile = 0.99
    failures: list[BaseException] = []

    def issue(samples: Any) -> None:
        try:
            for start in range(0, len(samples), _BATCH):
                part = samples[start : start + _BATCH]
                if not failures:  # after a failure queries are only marked as complete, so that LoadGen ends
                    run([texts[sample.index] for sample in part])
                lg.QuerySamplesComplete([lg.QuerySampleResponse(sample.id, 0, 0) for sample in part])
        except BaseException as error:
            failures.append(error)
            lg.QuerySamplesComplete([lg.QuerySampleResponse(sample.id, 0, 0) for sample in samples])

    with tempfile.TemporaryDirectory() as folder:
        log = lg.LogSettings()
        log.log_output.outdir = folder
        log.log_output.copy_summary_to_stdout = False
        log.enable_trace = False
        sut = lg.ConstructSUT(issue, lambda: None)
        library = lg.ConstructQSL(len(texts), len(texts), lambda _: None, lambda _: None)
        try:
            lg.StartTestWithLogSettings(sut, library, settings, log)
        finally:
            lg.DestroyQSL(library)
            lg.DestroySUT(sut)
        if failures:
            raise failures[0]
        return _read(Path(folder) / "mlperf_log_detail.txt")


def _read(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for line in path.read_text("utf-8").splitlines():
        _, mark, text = line.partition(":::MLLOG ")
        if not mark:
            continue
        entry = json.loads(text)
        key, value = entry["key"], entry["value"]
        if key in _KEPT:
            found[_KEPT[key]] = " ".join(value.split()) if isinstance(value, str) else value
        for share, name in _LATENCY.items():
            if key == f"result_{100 * share:.2f}_percentile_latency_ns":
                found[name] = round(value / 1e3, 3)
    few = [name for share, name in _LATENCY.items() if found.get("queries", 0) < calls_needed(share)]
    return {name: value for name, value in found.items() if name not in few}
