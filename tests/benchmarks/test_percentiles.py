"""Percentiles against the binomial distribution written out, intervals of medians, ratios of runs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldrun_benchmarks.harness.percentiles import (
    CONFIDENCE,
    calls_needed,
    median_interval,
    percentiles,
    ratio_interval,
)


def _below(n: int, p: float, t: int) -> float:
    return sum(math.comb(n, k) * (1 - p) ** k * p ** (n - k) for k in range(t + 1))


@pytest.mark.parametrize(("p", "calls"), [(0.9, 64), (0.99, 662)])
def test_the_least_number_of_calls_is_loadgens(p: float, calls: int) -> None:
    assert calls_needed(p) == calls
    assert _below(calls, p, 1) <= 1 - CONFIDENCE < _below(calls - 1, p, 1)


@given(st.integers(1, 400), st.integers(0, 2**32 - 1))
def test_the_upper_value_leaves_out_as_many_as_confidence_allows(n: int, seed: int) -> None:
    micros = np.random.default_rng(seed).permutation(n).astype(float)
    found = percentiles(micros)["p90"]
    left_out = max((t for t in range(n) if _below(n, 0.9, t) <= 1 - CONFIDENCE), default=-1)
    if left_out < 1:
        assert found == {"unavailable": f"needs 64 calls, there are {n}"}
    else:
        assert found["upper_us"] == max(found["value_us"], n - 1 - left_out)


def test_the_upper_value_is_above_the_true_percentile_as_often_as_it_says() -> None:
    draw = np.random.default_rng(1)
    true = -math.log(0.1)  # of the exponential distribution
    hits = [percentiles(draw.exponential(size=200))["p90"]["upper_us"] >= true for _ in range(400)]
    assert np.mean(hits) > 0.97


def test_a_median_has_a_sign_test_interval() -> None:
    assert median_interval(range(5)) is None
    assert median_interval(range(6)) == (0.0, 5.0)
    assert median_interval(range(1, 11)) == (2.0, 9.0)  # tabulated: ranks 2 and 9 of 10


def test_a_ratio_of_runs_has_an_interval_that_knows_of_repeats() -> None:
    draw = np.random.default_rng(0)
    old = [(100 * draw.normal(1, 0.01, 10)).tolist() for _ in range(5)]
    slower = [[1.2 * value for value in repeat] for repeat in old]
    found = ratio_interval(slower, old)
    assert found["ratio"] == pytest.approx(1.2, abs=0.01)
    assert 1.15 < found["ci95"][0] < 1.2 < found["ci95"][1] < 1.25
    low, high = ratio_interval(old, old)["ci95"]
    assert low < 1 < high
    apart = [[value * (1 + 0.1 * i) for value in repeat] for i, repeat in enumerate(old)]
    low, high = ratio_interval(apart, old)["ci95"]
    assert high - low > 0.1  # repeats that differ widen it
