"""The threads that a fit takes, and its minimum beside scikit-learn's on many rows."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from fieldrun.heads import blas
from fieldrun.heads.blas import one_thread
from fieldrun.heads.fit import fit_fields
from fieldrun.heads.head import head_logits


def test_one_thread_inside_and_as_before_outside() -> None:
    found = blas._openblas()
    if found is None:
        pytest.skip("no OpenBLAS whose threads can be set")
    get, put = found
    before = get()
    try:
        put(2)
        with one_thread():
            assert get() == 1
            with one_thread():
                assert get() == 1
            assert get() == 1
        assert get() == 2
        go, left = threading.Event(), threading.Event()

        def other() -> None:
            with one_thread():
                go.set()
                left.wait(10)

        thread = threading.Thread(target=other)
        thread.start()
        go.wait(10)
        with one_thread():
            left.set()
            thread.join()
            assert get() == 1, "another fit that ended changes nothing"
        assert get() == 2
    finally:
        put(before)


def test_without_openblas_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(blas, "_openblas", lambda: None)
    with one_thread():
        pass


@pytest.mark.slow
def test_many_rows_reach_the_minimum_of_scikit_learn() -> None:
    linear: Any = pytest.importorskip("sklearn.linear_model")
    rng = np.random.default_rng(0)
    rows, classes, inputs = 9000, 64, 256
    axes = np.linalg.qr(rng.standard_normal((inputs, inputs)))[0] * np.exp(-np.arange(inputs) / 70)[:, None]
    centres, y = rng.standard_normal((classes, inputs)) * 0.45, rng.integers(0, classes, rows)
    x = ((centres[y] + rng.standard_normal((rows, inputs))) @ axes / 8).astype(np.float32)
    labels = [f"{label:02d}" for label in np.where(rng.random(rows) < 0.08, rng.integers(0, classes, rows), y)]
    number = np.array([int(label) for label in labels])
    head = fit_fields(x, labels)
    strength = head.about["strength"] * x.var(0, dtype=np.float64).mean()
    with one_thread():
        other = linear.LogisticRegression(C=1 / strength, max_iter=5000, tol=1e-6).fit(x, labels)

    def objective(logits: Any, weight: Any) -> float:
        logits = logits - logits.max(1, keepdims=True)
        losses = np.log(np.exp(logits).sum(1)) - logits[np.arange(rows), number]
        return float(losses.mean() + strength / rows / 2 * np.square(weight).sum())

    found = objective(head_logits(head, x.astype(np.float64)), head.weight.astype(np.float64))
    wanted = objective(x.astype(np.float64) @ other.coef_.T + other.intercept_, other.coef_)
    assert found <= wanted + 1e-5
