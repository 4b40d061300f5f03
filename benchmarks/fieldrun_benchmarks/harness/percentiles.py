"""Percentiles with an upper bound, and intervals of medians.

The upper bound is the early-stopping estimate of MLPerf LoadGen: of n calls the t slowest are left out, where t is the
largest number with P(Binomial(n, 1 - p) <= t) <= 1 - c; the slowest call that remains is above the true percentile with
confidence c. At least one call must be left out, so a 99th percentile needs 662 calls and a 90th needs 64. With fewer
calls the percentile is not given.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import numpy.typing as npt

__all__ = [
    "CONFIDENCE",
    "PERCENTILES",
    "calls_needed",
    "median_interval",
    "percentiles",
    "ratio_interval",
]

Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.99
PERCENTILES = (0.5, 0.9, 0.95, 0.99, 0.999)
_RESAMPLES = 2000


def percentiles(micros: Floats) -> dict[str, Any]:
    """Return every percentile of the calls `(n,)` by name ("p99"), or the reason why it is not given.

    `value_us` is the percentile of these calls; `upper_us` is at or above the true one with 99 % confidence.
    """
    ordered, found = np.sort(micros), {}
    for p in PERCENTILES:
        left_out = _left_out(len(ordered), p, 1 - CONFIDENCE)
        if left_out < 1:
            about: dict[str, Any] = {"unavailable": f"needs {calls_needed(p)} calls, there are {len(ordered)}"}
        else:
            value, upper = float(np.quantile(ordered, p)), float(ordered[-1 - left_out])
            about = {"value_us": round(value, 3), "upper_us": round(max(value, upper), 3)}
        found[f"p{100 * p:g}"] = about
    return found


@cache
def calls_needed(p: float) -> int:
    """Return how many calls the percentile `p` needs: the least n with which one call can be left out."""
    return next(n for n in itertools.count(1) if p**n + n * (1 - p) * p ** (n - 1) <= 1 - CONFIDENCE)


def median_interval(values: Sequence[float] | Floats) -> tuple[float, float] | None:
    """Return a distribution-free 95 % interval of the median, or None for fewer than 6 values.

    The ends are the order statistics between which Binomial(n, 1/2) has 95 % (the interval of the sign test).
    """
    ordered = np.sort(np.asarray(values, np.float64))
    left_out = _left_out(len(ordered), 0.5, 0.025)
    return None if left_out < 0 else (float(ordered[left_out]), float(ordered[-1 - left_out]))


def ratio_interval(new: Sequence[Sequence[float]], old: Sequence[Sequence[float]], *, seed: int = 0) -> dict[str, Any]:
    """Return the ratio of two runs' medians with its 95 % interval, by a bootstrap of two levels.

    `new` and `old` hold the medians of windows, one list per repeat. Repeats are resampled, then windows within them,
    because windows of one repeat are alike (Davison and Hinkley, "Bootstrap methods", 1997, section 3.8).
    """
    draw = np.random.default_rng(seed)
    value = float(np.median(np.concatenate(new)) / np.median(np.concatenate(old)))
    ratios = _medians(new, draw) / _medians(old, draw)
    low, high = np.quantile(ratios, (0.025, 0.975))
    return {"ratio": round(value, 4), "ci95": [round(float(low), 4), round(float(high), 4)]}


def _medians(repeats: Sequence[Sequence[float]], draw: np.random.Generator) -> Floats:
    arrays = [np.asarray(repeat, np.float64) for repeat in repeats]
    found = np.empty(_RESAMPLES)
    for i in range(_RESAMPLES):
        chosen = draw.integers(0, len(arrays), len(arrays))
        found[i] = np.median(np.concatenate([draw.choice(arrays[j], len(arrays[j])) for j in chosen]))
    return found


def _left_out(n: int, p: float, most: float) -> int:
    """Return the largest t with P(Binomial(n, 1 - p) <= t) <= `most`, -1 when even t = 0 is too much."""
    k = np.arange(n + 1)
    logs = np.cumsum(np.log(np.maximum(k, 1)))  # of the factorials
    terms = np.exp(logs[n] - logs - logs[::-1] + k * math.log1p(-p) + (n - k) * math.log(p))
    return int(np.searchsorted(np.cumsum(terms), most, side="right")) - 1
