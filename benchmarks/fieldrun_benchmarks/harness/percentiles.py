"""Percentiles with an upper bound, and intervals of medians.

The upper bound is the early-stopping estimate of MLPerf LoadGen: of n calls the t slowest are left out, where t is the
largest number with P(Binomial(n, 1 - p) <= t) <= 1 - c; the slowest call that remains is above the true percentile with
confidence c. At least one call must be left out, so a 99th percentile needs 662 calls and a 90th needs 64. With fewer
calls the percentile is not given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
    ordered = np.sort(micros)
    found: dict[str, Any] = {}
    for p in PERCENTILES:
        name, left_out = f"p{100 * p:g}", _left_out(len(ordered), p)
        if left_out < 1:
            found[name] = {"unavailable": f"needs {calls_needed(p)} calls, there are {len(ordered)}"}
        else:
            value, upper = float(np.quantile(ordered, p)), float(ordered[len(ordered) - 1 - left_out])
            found[name] = {"value_us": round(value, 3), "upper_us": round(max(value, upper), 3)}
    return found


def calls_needed(p: float) -> int:
    """Return how many calls the percentile `p` needs: the least n with which one call can be left out."""
    low, high = 1, 2
    while _below(high, p, 1) > 1 - CONFIDENCE:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _below(middle, p, 1) <= 1 - CONFIDENCE else (middle, high)
    return high


def median_interval(values: Sequence[float] | Floats) -> tuple[float, float] | None:
    """Return a distribution-free 95 % interval of the median, or None for fewer than 6 values.

    The ends are the order statistics between which Binomial(n, 1/2) has 95 % (the interval of the sign test).
    """
    ordered = np.sort(np.asarray(values, np.float64))
    n = len(ordered)
    left_out = -1
    while _below(n, 0.5, left_out + 1) <= 0.025:
        left_out += 1
    if left_out < 0:
        return None
    return float(ordered[left_out]), float(ordered[n - 1 - left_out])


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


def _left_out(n: int, p: float) -> int:
    """Return the largest t with P(Binomial(n, 1 - p) <= t) <= 1 - CONFIDENCE, -1 when even t = 0 is too much."""
    low, high = -1, n
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if _below(n, p, middle) <= 1 - CONFIDENCE else (low, middle)
    return low


def _below(n: int, p: float, t: int) -> float:
    """Return P(Binomial(n, 1 - p) <= t), summed from the logarithms of its terms."""
    if t < 0:
        return 0.0
    k = np.arange(min(t, n) + 1, dtype=np.float64)
    logs = _log_factorials(n)
    terms = logs[n] - logs[: len(k)] - logs[n - k.astype(np.int64)] + k * math.log1p(-p) + (n - k) * math.log(p)
    top = float(terms.max())
    return min(1.0, math.exp(top) * float(np.exp(terms - top).sum()))


def _log_factorials(n: int) -> Floats:
    if len(_LOGS[0]) <= n:
        size = max(2 * len(_LOGS[0]), n + 1)
        _LOGS[0] = np.concatenate([[0.0], np.cumsum(np.log(np.arange(1, size, dtype=np.float64)))])
    return _LOGS[0]


_LOGS: list[Floats] = [np.zeros(1)]
