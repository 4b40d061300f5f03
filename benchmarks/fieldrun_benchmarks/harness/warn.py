"""What a reader must know before believing a bench: noise, throttling, drift, a harness that is too heavy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["LIMITS", "warnings_of"]

LIMITS = {
    "variation": 0.025,  # of the repeats' medians, one standard deviation
    "drift": 0.025,  # last minute against the first
    "other_cores": 0.1,
    "stolen_cores": 0.02,
    "clock_drop": 0.1,
    "harness": 0.05,  # of the subject's median
}


def warnings_of(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return what speaks against the values of a bench, each `{about, text}`; about is a subject or "machine"."""
    found = list(_machine(values["sensors"]))
    for name, subject in values["subjects"].items():
        found += _subject(name, subject, values["harness"])
    return [{"about": about, "text": text} for about, text in found]


def _machine(sensors: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    others, stolen = sensors["other_cores"], sensors["stolen_cores"]
    if isinstance(others, float) and others > LIMITS["other_cores"]:
        found.append(f"other processes kept {others:.2f} cores busy while single stream was timed: read the ratios")
    if isinstance(stolen, float) and stolen > LIMITS["stolen_cores"]:
        found.append(f"the hypervisor took {stolen:.2f} cores away while single stream was timed")
    events = sensors["throttled"].get("events")
    if events:
        found.append(f"the processor or the container was throttled {events:g} times")
    if flags := sensors["throttled"].get("flags"):
        found.append(f"the board reported {', '.join(flags)} while single stream was timed")
    clock = sensors["clock_mhz"]
    if "min" in clock and clock["min"] < (1 - LIMITS["clock_drop"]) * clock["max"]:
        found.append(f"the clock went between {clock['min']:.0f} and {clock['max']:.0f} MHz; fix the governor")
    if sensors["governor"] in ("powersave", "ondemand", "conservative"):
        found.append(f"the governor is {sensors['governor']}; 'performance' gives steadier figures")
    return [("machine", text) for text in found]


def _subject(name: str, subject: Mapping[str, Any], harness: Mapping[str, Any]) -> list[tuple[str, str]]:
    if "failed" in subject:
        return [(name, f"it failed: {subject['failed']}")]
    found = [f"it ended early: {subject['ended_early']}"] if "ended_early" in subject else []
    if "restarted_after" in subject:
        found.append(f"it gave no answer to {', '.join(subject['restarted_after'])} in time and was started again")
    single = subject["single_stream"]
    variation, minutes = single["variation"], single["minutes"]
    if variation is not None and variation > LIMITS["variation"]:
        found.append(
            f"the medians of the repeats vary by {100 * variation:.1f} %, more than 2.5 %: measure again, quieter"
        )
    if "ratio" in minutes and abs(minutes["ratio"] - 1) > LIMITS["drift"]:
        found.append(f"the last minute took {minutes['ratio']:.3f} times as long as the first")
    overhead = harness["own_loop"]["p50_us"]
    if overhead > LIMITS["harness"] * single["p50_us"] and subject["kind"] != "null":
        found.append(f"the harness itself takes {overhead:.2f} us of the {single['p50_us']:.2f} us median")
    return [(name, text) for text in found]
