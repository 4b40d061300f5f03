"""The scenarios after SingleStream, as values of a record; how long each may take follows from a text's mean time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..machine.sensors import Unavailable
from .loadgen import SCENARIOS as LOADGEN_SCENARIOS
from .loadgen import least_seconds
from .percentiles import calls_needed, median_interval, percentiles
from .running import Running
from .settings import Settings
from .worker_process import unpack

__all__ = ["CALLS"]

_BOUND = 10.0  # of the median: Server's latency bound
_KEPT = 0.99  # of the answers keep it
_STAGES = 2  # times `short_s` for the boundaries
_LOADGEN = 10  # times `short_s`, that LoadGen's least number of queries may take


def _stages(one: Running, settings: Settings) -> dict[str, Any]:
    answer = one.worker.ask("stages", count=settings.stage_calls, seconds=_STAGES * settings.short_s)
    found = {name: unpack(nanos) / 1e3 for name, nanos in answer.items()}
    result: dict[str, Any] = {}
    for name, micros in found.items():
        interval = median_interval(micros)
        low, high = interval if interval else (float("nan"),) * 2
        ends = [round(low, 3), round(high, 3)] if interval else None
        result[name] = {"calls": len(micros), "p50_us": round(float(np.median(micros)), 3), "ci95": ends}
    return result


def _multi_stream(one: Running, settings: Settings) -> dict[str, Any]:
    micros = unpack(one.worker.ask("multi_stream", seconds=settings.short_s)["nanos"]) / 1e3
    return {"loop": "own", "samples_per_query": 8, "queries": len(micros), "percentiles": percentiles(micros)}


def _offline(one: Running, settings: Settings) -> list[dict[str, Any]]:
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


def _server(one: Running, settings: Settings) -> dict[str, Any]:
    p50_us, mean_us = (one.values["single_stream"][name] for name in ("p50_us", "mean_us"))
    bound_ms = _BOUND * p50_us / 1e3
    loads = []
    for share in settings.server_loads:
        per_second = share * 1e6 / mean_us
        answer = one.worker.ask("server", per_second=per_second, seconds=settings.short_s, seed=settings.seed)
        micros = unpack(answer["nanos"]) / 1e3
        met: Any = bool(np.mean(micros <= 1e3 * bound_ms) >= _KEPT and not answer["unsent"])
        if len(micros) < calls_needed(_KEPT) and not answer["unsent"]:
            met = Unavailable(f"needs {calls_needed(_KEPT)} queries, there are {len(micros)}").to_dict()
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


def _loadgen(one: Running, settings: Settings) -> dict[str, Any]:
    """Let LoadGen repeat the scenarios, as a second opinion on the own loops."""
    mean_us, p50_us = (one.values["single_stream"][name] for name in ("mean_us", "p50_us"))
    found: dict[str, Any] = {}
    budget_s = min(_LOADGEN * settings.short_s, settings.timeout_s / 2)
    for scenario in LOADGEN_SCENARIOS:
        half = 0.5e6 / mean_us
        least_s = least_seconds(scenario, mean_us)
        if least_s > budget_s:
            why = f"the fewest queries that LoadGen counts would take {least_s:,.0f} s, over {budget_s:g} s"
            found[scenario] = Unavailable(why).to_dict()
            continue
        found[scenario] = one.worker.ask(
            "loadgen",
            scenario=scenario,
            seconds=settings.short_s,
            expected_us=p50_us,
            per_second=half if scenario == "Server" else 2 * half,
            bound_ms=_BOUND * p50_us / 1e3,
        )
    return found


CALLS: dict[str, Callable[[Running, Settings], Any]] = {
    "stages": _stages,
    "multi_stream": _multi_stream,
    "offline": _offline,
    "server": _server,
    "loadgen": _loadgen,
}
"""By name: what measures a scenario of a subject that SingleStream has measured."""
