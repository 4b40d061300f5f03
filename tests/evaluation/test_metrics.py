"""The metrics against values worked out by hand, and their invariants."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldrun.errors import UnknownName, UsageError
from fieldrun.evaluation.metrics import (
    accuracy,
    auroc,
    confusion_matrix,
    expected_calibration_error,
    macro_f1,
    mean_difference,
    spearman,
    wilson_interval,
)

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


NUMBERS = st.lists(st.tuples(st.integers(-5, 5).map(float), st.integers(-5, 5).map(float)), min_size=2, max_size=40)


def test_expected_calibration_error_by_hand() -> None:
    # two bins: (0, 0.5] holds 0.2 and 0.4 with one hit, (0.5, 1] holds 0.9 with one hit
    found = expected_calibration_error([0.2, 0.4, 0.9], [0, 1, 1], bins=2)
    assert found == pytest.approx(2 / 3 * abs(0.3 - 0.5) + 1 / 3 * abs(0.9 - 1.0))
    assert expected_calibration_error([0.0, 1.0], [False, True]) == 0.0
    assert expected_calibration_error([1.0, 1.0], [False, False]) == 1.0
    # 0.2 is the upper end of the third of fifteen bins, and a bin's lower end is not in it
    assert expected_calibration_error([0.2, 0.1999], [1, 0]) == pytest.approx(abs(0.3999 - 1) / 2)


def test_expected_calibration_error_of_calibrated_rows_is_small() -> None:
    rng = np.random.default_rng(0)
    p = rng.random(20_000)
    assert expected_calibration_error(p, rng.random(20_000) < p) < 0.02
    assert expected_calibration_error(p, rng.random(20_000) < p / 2) == pytest.approx(0.25, abs=0.02)


@given(pairs=st.lists(st.tuples(st.floats(0, 1), st.booleans()), min_size=1, max_size=50), bins=st.integers(1, 20))
def test_expected_calibration_error_is_bounded_by_its_ends(pairs: list[tuple[float, bool]], bins: int) -> None:
    p, hits = zip(*pairs, strict=True)
    value = expected_calibration_error(p, hits, bins=bins)
    assert abs(np.mean(p) - np.mean(hits)) - 1e-12 <= value <= 1.0
    assert value == pytest.approx(expected_calibration_error(p[::-1], hits[::-1], bins=bins), abs=1e-12)


def test_auroc_by_hand() -> None:
    assert auroc([1, 2, 3, 4], [0, 0, 1, 1]) == 1.0
    assert auroc([4, 3, 2, 1], [0, 0, 1, 1]) == 0.0
    assert auroc([1, 1, 1], [0, 1, 0]) == 0.5
    # of the six pairs (positive, negative) four are in order and one is tied
    assert auroc([0.1, 0.4, 0.4, 0.35, 0.8], [0, 0, 1, 1, 0]) == pytest.approx((2 * 1 + 0.5) / 6)


@given(rows=st.lists(st.tuples(st.integers(-4, 4), st.booleans()), min_size=2, max_size=40))
def test_auroc_counts_pairs(rows: list[tuple[int, bool]]) -> None:
    positive, negative = [s for s, p in rows if p], [s for s, p in rows if not p]
    if not positive or not negative:
        with pytest.raises(UsageError, match="positive and negative"):
            auroc([s for s, _ in rows], [p for _, p in rows])
        return
    share = sum((a > b) + 0.5 * (a == b) for a in positive for b in negative) / (len(positive) * len(negative))
    value = auroc([s for s, _ in rows], [p for _, p in rows])
    assert value == pytest.approx(share, abs=1e-12)
    assert auroc([math.exp(s) for s, _ in rows], [p for _, p in rows]) == pytest.approx(value, abs=1e-12)
    assert auroc([-s for s, _ in rows], [p for _, p in rows]) == pytest.approx(1 - value, abs=1e-12)


def test_spearman_by_hand() -> None:
    # without ties 1 - 6 sum d^2 / (n (n^2 - 1)): the ranks 1 2 3 4 5 against 2 1 4 3 5 have sum d^2 = 4
    assert spearman([1, 2, 3, 4, 5], [2, 1, 4, 3, 5]) == pytest.approx(1 - 6 * 4 / (5 * 24))
    # the average ranks of [1, 1, 2] are 1.5 1.5 3: Pearson with 1 2 3 is 1.5 / sqrt(1.5 * 2)
    assert spearman([1, 1, 2], [1, 2, 3]) == pytest.approx(1.5 / math.sqrt(1.5 * 2))
    assert spearman([1, 10, 100], [3, 2, 1]) == -1.0


@given(rows=NUMBERS)
def test_spearman_is_symmetric_and_sees_only_order(rows: list[tuple[float, float]]) -> None:
    a, b = zip(*rows, strict=True)
    if len(set(a)) == 1 or len(set(b)) == 1:
        with pytest.raises(UsageError, match="two different values"):
            spearman(a, b)
        return
    value = spearman(a, b)
    assert -1 <= value <= 1
    assert spearman(b, a) == pytest.approx(value, abs=1e-12)
    assert spearman([math.exp(x) for x in a], [y**3 for y in b]) == pytest.approx(value, abs=1e-12)
    assert spearman([-x for x in a], b) == pytest.approx(-value, abs=1e-12)
    assert spearman(a, a) == 1.0


@pytest.mark.parametrize("metric", [expected_calibration_error, auroc, spearman])
def test_numbers_are_checked(metric: Callable[..., float]) -> None:
    for a, b in (([], []), ([0.5], [0, 1]), ([[0.5]], [[1]]), (0.5, 1)):
        with pytest.raises(UsageError, match="two equally long lists"):
            metric(a, b)
    with pytest.raises(UsageError, match="NaN or infinite"):
        metric([0.5, math.nan], [0, 1])


def test_confidences_are_probabilities() -> None:
    for p, bins in ((1.5, 15), (-0.1, 15), (0.5, 0)):
        with pytest.raises(UsageError, match="within 0 and 1"):
            expected_calibration_error([p], [1], bins=bins)


def test_the_mean_difference_of_one_task_is_the_normal_interval() -> None:
    rows = np.random.default_rng(0).choice([-1.0, 0.0, 1.0], size=500, p=[0.1, 0.7, 0.2])
    mean, low, high = mean_difference([rows])
    assert mean == pytest.approx(rows.mean())
    assert high - mean == pytest.approx(mean - low) == pytest.approx(1.96 * rows.std() / np.sqrt(500), rel=1e-3)


def test_tasks_count_the_same_whatever_their_rows() -> None:
    mean, low, high = mean_difference([np.ones(10), np.zeros(1000)])
    assert (mean, low, high) == (0.5, 0.5, 0.5)
    for wrong in ([], [np.zeros(0)]):
        with pytest.raises(UsageError, match="each with rows"):
            mean_difference(wrong)
