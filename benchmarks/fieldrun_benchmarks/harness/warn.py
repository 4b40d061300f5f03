"""What a reader must know before trusting a bench: noise, throttling, drift, a harness that is too slow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["LIMITS", "warnings_of"]

LIMITS = {
    "variation": 0.025,  # standard deviation of the repeats' medians
    "drift": 0.025,  # last minute against the first
    "other_cores": 0.1,
    "stolen_cores": 0.02,
    "clock_drop": 0.1,
    "harness": 0.05,  # of the subject's median
}


def warnings_of(values: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return the warnings about the values of a bench, each `{about, text}`; about is a subject or "machine"."""
    found = [("machine", text) for text in _machine(values["sensors"])]
    for name, subject in values["subjects"].items():
        found += [(name, text) for text in _subject(subject, values["harness"])]
    return [{"about": about, "text": text} for about, text in found]


def _machine(sensors: Mapping[str, Any]) -> Iterator[str]:
    others, stolen, clock = sensors["other_cores"], sensors["stolen_cores"], sensors["clock_mhz"]
    if isinstance(others, float) and others > LIMITS["other_cores"]:
        yield f"other processes kept {others:.2f} cores busy during single stream; trust the ratios, not the times"
    if isinstance(stolen, float) and stolen > LIMITS["stolen_cores"]:
        yield f"the hypervisor took away {stolen:.2f} cores during single stream"
    if events := sensors["throttled"].get("events"):
        yield f"the processor or the container was throttled {events:g} times"
    if flags := sensors["throttled"].get("flags"):
        yield f"the board reported {', '.join(flags)} during single stream"
    if "min" in clock and clock["min"] < (1 - LIMITS["clock_drop"]) * clock["max"]:
        yield f"the clock varied between {clock['min']:.0f} and {clock['max']:.0f} MHz; fix the governor"
    if sensors["governor"] in ("powersave", "ondemand", "conservative"):
        yield f"the governor is {sensors['governor']}; 'performance' gives steadier figures"


def _subject(subject: Mapping[str, Any], harness: Mapping[str, Any]) -> Iterator[str]:
    if "failed" in subject:
        yield f"it failed: {subject['failed']}"
        return
    if "ended_early" in subject:
        yield f"it ended early: {subject['ended_early']}"
    if "restarted_after" in subject:
        yield f"it did not answer {', '.join(subject['restarted_after'])} in time and was restarted"
    single = subject["single_stream"]
    variation, minutes, overhead = single["variation"], single["minutes"], harness["own_loop"]["p50_us"]
    if variation is not None and variation > LIMITS["variation"]:
        yield f"the medians of the repeats vary by {100 * variation:.1f} %, more than 2.5 %; use a quieter machine"
    if "ratio" in minutes and abs(minutes["ratio"] - 1) > LIMITS["drift"]:
        yield f"the last minute took {minutes['ratio']:.3f} times as long as the first"
    if overhead > LIMITS["harness"] * single["p50_us"] and subject["kind"] != "null":
        yield f"the harness itself takes {overhead:.2f} us of the median of {single['p50_us']:.2f} us"
