"""The threads that a fit takes, and its minimum beside scikit-learn's on many rows."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fieldrun
from fieldrun.heads import blas
from fieldrun.heads.blas import one_thread
from fieldrun.heads.fit import fit_fields
from fieldrun.heads.head import Head, head_logits
from fieldrun_runtimes.engines.numpy_engine import _Dense


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


def test_every_product_of_an_answer_runs_on_one_thread(toy_bundle: Path) -> None:
    found = blas._openblas()
    if found is None:
        pytest.skip("no OpenBLAS whose threads can be set")
    get, put = found
    before, seen = get(), []

    class Watched(np.ndarray):
        """Notes the number of threads at every product."""

        def __array_ufunc__(self, ufunc: Any, method: str, *inputs: Any, out: Any = None, **kept: Any) -> Any:
            if ufunc is np.matmul:
                seen.append(get())
            plain = [np.asarray(each) for each in inputs]
            return getattr(ufunc, method)(*plain, out=tuple(map(np.asarray, out)) if out else None, **kept)

    try:
        put(2)
        with fieldrun.load(toy_bundle, engine="numpy") as model:
            weight = np.ones((32, 3), np.float32)
            model.attach(Head(name="mine", kind="single", labels=("a", "b", "c"), weight=weight, bias=weight[0]))
            layers = [value for value in vars(model._engine).values() if isinstance(value, _Dense)]
            layers += model._engine._pairs._layers.values()  # type: ignore[attr-defined]
            for layer in layers:
                layer._weight = layer._weight.view(Watched)
            own = model.attached["mine"]
            object.__setattr__(own, "weight", own.weight.view(Watched))
            model.predict(["good film", "bad"], "mood")
            count = len(seen)
            model.predict([("good film", "bad")], "same")
            assert len(seen) > count > 0
            count = len(seen)
            head_logits(own, np.ones((2, 32), np.float32))
            assert len(seen) == count + 1
        assert set(seen) == {1}
        assert get() == 2
    finally:
        put(before)


FORK = """
import os, threading
import numpy
import fieldrun
from fieldrun.heads import blas

get, put = blas._openblas()
put(2)
inside, leave = threading.Event(), threading.Event()
def work():
    with blas.one_thread():
        inside.set()
        leave.wait()
thread = threading.Thread(target=work)
thread.start()
inside.wait()
child = os.fork()  # the thread that would set the number back is not in the child
if not child:
    if get() != 2 or blas._depth:
        os._exit(3)
    with blas.one_thread():
        ok = get() == 1
    os._exit(0 if ok and get() == 2 else 4)
leave.set()
thread.join()
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert get() == 2
with blas.one_thread():
    child = os.fork()
    if not child:
        blas.one_thread().__exit__(None, None, None)
        os._exit(0 if get() == 2 else 5)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
assert get() == 2
"""


def test_a_fork_inside_sets_the_number_back(unmeasured: dict[str, str]) -> None:
    if blas._openblas() is None:
        pytest.skip("no OpenBLAS whose threads can be set")
    argv = [sys.executable, "-W", "ignore", "-c", FORK]
    done = subprocess.run(argv, env=unmeasured, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


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
