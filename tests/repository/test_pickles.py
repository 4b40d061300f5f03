"""Errors and models cross processes: a pool hangs for ever on an error that it cannot unpickle."""

from __future__ import annotations

import concurrent.futures
import copy
import multiprocessing
import os
import pickle
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fieldrun
from fieldrun import errors
from fieldrun.errors import FieldrunError, IntegrityError, UnknownName, UsageError
from fieldrun.heads.head import Head

TEXTS = ["good film", "no rain"]
GIVEN = {
    "UnknownName": ("task", "moods", ["mood", "intent"]),
    "MissingDependency": ("onnx", "export"),
    "EngineStale": ("b1.engine", {"tensorrt": ("10.1", "10.3")}, "build again"),
}


def kinds(kind: type[FieldrunError] = FieldrunError) -> Iterator[type[FieldrunError]]:
    yield kind
    for each in kind.__subclasses__():
        yield from kinds(each)


@pytest.mark.parametrize("kind", sorted({kind.__name__: kind for kind in kinds()}.values(), key=str))
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_every_error_survives_pickling(kind: type[FieldrunError], protocol: int) -> None:
    arguments = GIVEN.get(kind.__name__, ("it is broken; mend it",))
    error = kind(*arguments)
    error.add_note("a note") if hasattr(error, "add_note") else None
    for again in (pickle.loads(pickle.dumps(error, protocol)), copy.copy(error)):
        assert type(again) is kind
        assert str(again) == str(error)
        assert again.args == error.args
        assert vars(again) == vars(error)
        assert again.exit_code == error.exit_code


def test_all_errors_are_in_one_module() -> None:
    ours = {kind for kind in kinds() if kind.__module__.partition(".")[0].startswith("fieldrun")}
    assert ours == {getattr(errors, name) for name in errors.__all__}


def fail(name: str) -> None:
    raise UnknownName("task", name, ["mood"])


def answer(model: fieldrun.FieldModel) -> tuple[tuple[str, ...], list[str], np.ndarray]:
    return model.tasks, model.predict(TEXTS, "mine"), model.field(TEXTS)


def head(seed: int = 0) -> Head:
    rng = np.random.default_rng(seed)
    weight, bias = rng.standard_normal((32, 2)).astype(np.float32), np.zeros(2, np.float32)
    return Head(name="mine", kind="single", labels=("no", "yes"), weight=weight, bias=bias)


def test_a_spawned_worker_gets_the_model_and_returns_its_errors(toy_bundle: Path) -> None:
    context = multiprocessing.get_context("spawn")
    with (
        fieldrun.load(toy_bundle, engine="numpy", overflow="window") as model,
        concurrent.futures.ProcessPoolExecutor(1, mp_context=context) as pool,
    ):
        model.attach(head())
        tasks, labels, field = pool.submit(answer, model).result(timeout=120)
        assert (tasks, labels) == (model.tasks, model.predict(TEXTS, "mine"))
        np.testing.assert_array_equal(field, model.field(TEXTS))
        with pytest.raises(UnknownName, match="unknown task 'moods'"):
            pool.submit(fail, "moods").result(timeout=120)


@pytest.mark.parametrize("start", ["spawn", "forkserver"])
def test_a_pool_of_processes_answers_and_raises(start: str, toy_bundle: Path) -> None:
    """`multiprocessing.Pool` waits for ever for a result that it cannot unpickle."""
    with fieldrun.load(toy_bundle, engine="numpy") as model:
        model.attach(head())
        context = multiprocessing.get_context(start)
        with context.Pool(2) as pool:
            rows = [pool.apply_async(model.predict, (TEXTS, "mine")) for _ in range(4)]
            assert [row.get(120) for row in rows] == [model.predict(TEXTS, "mine")] * 4
            with pytest.raises(UnknownName, match="unknown task 'moods'"):
                pool.apply_async(model.predict, (TEXTS, "moods")).get(120)


def test_joblib_answers_and_raises(toy_bundle: Path, tmp_path: Path) -> None:
    joblib: Any = pytest.importorskip("joblib")
    loky: Any = pytest.importorskip("joblib.externals.loky")
    try:
        with fieldrun.load(toy_bundle, engine="numpy", overflow="window") as model:
            model.attach(head())
            expected = model.field(TEXTS)
            parallel = joblib.Parallel(n_jobs=2, backend="loky")
            for tasks, labels, field in parallel(joblib.delayed(answer)(model) for _ in range(4)):
                assert (tasks, labels) == (model.tasks, model.predict(TEXTS, "mine"))
                np.testing.assert_array_equal(field, expected)
            assert parallel(joblib.delayed(os.getpid)() for _ in range(4)).count(os.getpid()) == 0
            with pytest.raises(UnknownName, match="unknown task 'moods'"):
                parallel(joblib.delayed(model.predict)(TEXTS, task) for task in ("mine", "moods"))
            joblib.dump(model, tmp_path / "model.joblib")
            np.testing.assert_array_equal(joblib.load(tmp_path / "model.joblib").field(TEXTS), expected)
    finally:
        loky.get_reusable_executor().shutdown(wait=True)


def test_a_pickled_model_is_the_same_bundle_or_an_error(toy_bundle: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(toy_bundle, tmp_path / "own"))
    with fieldrun.load(own, engine="numpy", unknown="reject") as model:
        model.attach(head())
        model.save(tmp_path / "saved")
        assert not any(pickle.loads(pickle.dumps(model)).predict(["\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35"], "mine"))
    with fieldrun.load(tmp_path / "saved", engine="numpy") as saved:
        saved.detach("mine")
        again = pickle.loads(pickle.dumps(saved))
        assert again.tasks == saved.tasks
        assert again.engine == "numpy"
        kept = pickle.dumps(saved)
        with fieldrun.load(own, engine="numpy") as model:
            model.save(tmp_path / "saved", overwrite=True)
        with pytest.raises(IntegrityError, match="was replaced after the model was pickled"):
            pickle.loads(kept)
    with pytest.raises(UsageError, match="was closed, so it cannot be pickled"):
        pickle.dumps(saved)
    assert str(tmp_path) not in pickle.dumps(fieldrun.load(engine="null")).decode("latin1")
