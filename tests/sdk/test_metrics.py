"""The metrics against values worked out by hand, and their invariants."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldrun.errors import UnknownName, UsageError
from fieldrun.metrics import accuracy, confusion_matrix, macro_f1, wilson_interval

TRUTH = ["a", "a", "a", "b", "b", "c"]
PREDICTED = ["a", "a", "b", "b", "c", "b"]
PAIRS = st.lists(st.tuples(st.sampled_from("abcd"), st.sampled_from("abcd")), min_size=1, max_size=60)


def test_accuracy_by_hand() -> None:
    assert accuracy(TRUTH, PREDICTED) == 3 / 6
    assert accuracy(["x"], ["x"]) == 1.0
    assert accuracy([0, 1], [1, 0]) == 0.0


def test_macro_f1_by_hand() -> None:
    # a: tp 2, fp 0, fn 1 -> 4/5;  b: tp 1, fp 2, fn 1 -> 2/5;  c: tp 0 -> 0
    assert macro_f1(TRUTH, PREDICTED) == pytest.approx((4 / 5 + 2 / 5 + 0) / 3)
    # A label that occurs only in the predictions counts as 0.
    assert macro_f1(["a", "a"], ["a", "z"]) == pytest.approx((2 / 3 + 0) / 2)
    assert macro_f1(["a"], ["b"]) == 0.0
    assert macro_f1(["a", "b"], ["a", "b"]) == 1.0


def test_confusion_matrix_has_truth_in_rows() -> None:
    matrix = confusion_matrix(TRUTH, PREDICTED, ["a", "b", "c", "unused"])
    assert matrix.dtype == np.int64
    assert matrix.tolist() == [[2, 1, 0, 0], [0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),
    [
        # Newcombe, Statistics in Medicine 17 (1998), table I, method 3
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_against_published_values(k: int, n: int, low: float, high: float) -> None:
    assert wilson_interval(k, n) == pytest.approx((low, high), abs=5e-5)


def test_wilson_ends_solve_the_score_equation() -> None:
    k, n = 767, 872
    for end in wilson_interval(k, n):
        assert abs(k / n - end) == pytest.approx(1.959963984540054 * math.sqrt(end * (1 - end) / n), rel=1e-12)


@pytest.mark.parametrize("call", [accuracy, macro_f1])
def test_lengths_are_checked(call: object) -> None:
    assert callable(call)
    with pytest.raises(UsageError, match="2 true labels against 1"):
        call(["a", "b"], ["a"])
    with pytest.raises(UsageError, match="at least one"):
        call([], [])


def test_confusion_matrix_refuses_what_it_cannot_count() -> None:
    with pytest.raises(UnknownName, match="unknown label 'z'; known: a, b"):
        confusion_matrix(["a"], ["z"], ["a", "b"])
    with pytest.raises(UsageError, match="different lengths"):
        confusion_matrix(["a"], ["a", "a"], ["a"])


@pytest.mark.parametrize(("k", "n"), [(0, 0), (-1, 3), (4, 3)])
def test_wilson_refuses_impossible_counts(k: int, n: int) -> None:
    with pytest.raises(UsageError, match="0 <= k <= n"):
        wilson_interval(k, n)


@given(n=st.integers(1, 10**6), share=st.floats(0, 1))
def test_wilson_is_inside_the_unit_interval_and_holds_the_proportion(n: int, share: float) -> None:
    k = round(share * n)
    low, high = wilson_interval(k, n)
    assert 0.0 <= low <= k / n <= high <= 1.0
    assert low < high


@given(n=st.integers(1, 10**5), share=st.floats(0, 1), factor=st.integers(2, 20))
def test_wilson_shrinks_with_n(n: int, share: float, factor: int) -> None:
    k = round(share * n)
    low, high = wilson_interval(k, n)
    narrow_low, narrow_high = wilson_interval(k * factor, n * factor)
    assert narrow_high - narrow_low < high - low


@given(n=st.integers(1, 10**5), share=st.floats(0, 1))
def test_wilson_is_symmetric(n: int, share: float) -> None:
    k = round(share * n)
    low, high = wilson_interval(k, n)
    assert wilson_interval(n - k, n) == pytest.approx((1 - high, 1 - low), abs=1e-12)


@given(pairs=PAIRS, random=st.randoms(use_true_random=False))
def test_macro_f1_does_not_depend_on_order(pairs: list[tuple[str, str]], random: object) -> None:
    shuffled = list(pairs)
    random.shuffle(shuffled)  # type: ignore[attr-defined]
    value = macro_f1(*zip(*pairs, strict=True))
    assert 0.0 <= value <= 1.0
    assert macro_f1(*zip(*shuffled, strict=True)) == pytest.approx(value, abs=1e-12)


@given(pairs=PAIRS)
def test_confusion_matrix_holds_every_record_and_the_accuracy(pairs: list[tuple[str, str]]) -> None:
    truth, predicted = zip(*pairs, strict=True)
    matrix = confusion_matrix(truth, predicted, "abcd")
    assert matrix.sum() == len(pairs)
    assert np.trace(matrix) / len(pairs) == accuracy(truth, predicted)
    assert matrix.T.tolist() == confusion_matrix(predicted, truth, "abcd").tolist()
