"""The solver against closed forms and against the conditions of an optimum, worked out apart in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldrun.formats.tensors import Array
from fieldrun.heads.logistic import Basis, objective, solve


def rows(seed: int, n: int, inputs: int, classes: int, rank: int | None = None) -> tuple[Array, Array]:
    """Gaussian rows of `rank`, with classes that depend on them; every class occurs."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, rank or inputs))
    x = x @ rng.standard_normal((x.shape[1], inputs)) / math.sqrt(x.shape[1]) + rng.standard_normal(inputs)
    y = (x @ rng.standard_normal((inputs, classes)) + rng.standard_normal((n, classes))).argmax(1)
    y[:classes] = np.arange(classes)
    return x.astype(np.float32), y


def minimum(x: Array, y: Array, classes: int, strength: float) -> tuple[Array, Array]:
    basis = Basis.of(x)
    return basis.restore(solve(basis.rotate(x), y, classes, strength, variance=basis.variance))


def gradient(x: Array, y: Array, weight: Array, bias: Array, strength: float) -> Array:
    """The gradient of J from its formula, one row at a time, `(inputs + 1, classes) float64`."""
    total = np.zeros((len(weight) + 1, len(bias)))
    for row, own in zip(x.astype(np.float64), y, strict=True):
        z = row @ weight + bias
        p = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
        p[own] -= 1
        total += np.outer(np.append(row, 1.0), p)
    total /= len(x)
    total[:-1] += strength * weight
    return total


@given(
    seed=st.integers(0, 10**6),
    n=st.integers(6, 60),
    inputs=st.integers(1, 24),
    classes=st.integers(2, 6),
    power=st.floats(-4, 2),
)
def test_the_gradient_vanishes_at_the_minimum(seed: int, n: int, inputs: int, classes: int, power: float) -> None:
    x, y = rows(seed, n, inputs, classes)
    weight, bias = minimum(x, y, classes, 10**power)
    assert np.abs(gradient(x, y, weight, bias, 10**power)).max() < 3e-3
    np.testing.assert_allclose(weight.sum(1), 0, atol=1e-9)
    assert abs(bias.sum()) < 1e-6


def test_inputs_without_full_rank_and_with_more_columns_than_rows() -> None:
    for n, inputs, rank in ((40, 30, 5), (12, 64, 64)):
        x, y = rows(3, n, inputs, 3, rank)
        assert len(Basis.of(x).variance) == min(rank, n - 1)
        weight, bias = minimum(x, y, 3, 0.01)
        assert np.abs(gradient(x, y, weight, bias, 0.01)).max() < 1e-3


def test_two_points_by_hand() -> None:
    # x = -1 of class 0, x = +1 of class 1: W = (-w, w), b = 0, and J = log(1 + exp(-2 w)) + strength w^2,
    # so strength w = 1 / (1 + exp(2 w))
    weight, bias = minimum(np.array([[-1.0], [1.0]], np.float32), np.array([0, 1]), 2, 0.1)
    w = float(weight[0, 1])
    assert 0.1 * w == pytest.approx(1 / (1 + math.exp(2 * w)), abs=1e-3)
    np.testing.assert_allclose(weight, [[-w, w]], atol=1e-5)
    np.testing.assert_allclose(bias, 0, atol=1e-5)


def test_equal_rows_give_the_shares_of_the_classes() -> None:
    x = np.ones((6, 4), np.float32)
    weight, bias = minimum(x, np.array([0, 0, 0, 1, 1, 2]), 3, 1.0)
    assert not weight.any()
    p = np.exp(bias) / np.exp(bias).sum()
    np.testing.assert_allclose(p, [3 / 6, 2 / 6, 1 / 6], atol=1e-3)


def test_a_strong_penalty_leaves_the_shares_of_the_classes() -> None:
    x, y = rows(5, 50, 8, 3)
    weight, bias = minimum(x, y, 3, 1e6)
    assert np.abs(weight).max() < 1e-4
    p = np.exp(bias) / np.exp(bias).sum()
    np.testing.assert_allclose(p, np.bincount(y) / 50, atol=1e-3)


def test_the_objective_has_its_gradient() -> None:
    x, y = rows(7, 20, 5, 3)
    z = Basis.of(x).rotate(x).astype(np.float64)
    rng = np.random.default_rng(0)
    theta, direction = rng.standard_normal((2, z.shape[1], 3))
    value, slope, spread = objective(z, y, theta, 0.3)
    ahead, behind = (objective(z, y, theta + h * direction, 0.3)[0] for h in (1e-5, -1e-5))
    assert (ahead - behind) / 2e-5 == pytest.approx(float(np.vdot(slope, direction)), rel=1e-6)
    logits = z @ theta
    losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(20), y]
    assert value == pytest.approx(losses.mean() + 0.15 * (theta[:-1] ** 2).sum(), rel=1e-12)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    assert spread == pytest.approx((p * (1 - p)).mean(), rel=1e-9)


def test_many_rows_are_summed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    from fieldrun.heads import logistic

    x, y = rows(11, 300, 6, 4)
    whole = minimum(x, y, 4, 0.01)
    monkeypatch.setattr(logistic, "_ROWS", 64)
    for found, expected in zip(minimum(x, y, 4, 0.01), whole, strict=True):
        np.testing.assert_allclose(found, expected, atol=2e-3)


def test_a_start_leads_to_the_same_minimum() -> None:
    x, y = rows(13, 80, 10, 3)
    basis = Basis.of(x)
    z = basis.rotate(x)
    cold = solve(z, y, 3, 0.01, variance=basis.variance)
    start = solve(z, y, 3, 1.0, variance=basis.variance)
    kept = start.copy()
    warm = solve(z, y, 3, 0.01, variance=basis.variance, start=start)
    np.testing.assert_array_equal(start, kept)
    np.testing.assert_allclose(warm - warm.mean(1, keepdims=True), cold - cold.mean(1, keepdims=True), atol=5e-3)
