"""A bundle as a class that maps batches of columns, alone and in a real Ray."""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fieldrun
from fieldrun.errors import InputTextError, UnknownName, UsageError
from fieldrun.ray import Labeller
from tests.toy import PAIR_TASK, TASKS, WORDS


def _texts(n: int) -> np.ndarray[Any, np.dtype[Any]]:
    return np.array([f"{WORDS[i % len(WORDS)]} {WORDS[i * 7 % len(WORDS)]}" for i in range(n)], object)


def test_columns_are_the_models_answers(toy_bundle: Path) -> None:
    texts = _texts(40)
    found = Labeller(str(toy_bundle), list(TASKS), "line", engine="numpy")({"line": texts, "id": np.arange(40)})
    assert list(found) == ["line", "id", "mood", "mood_score", "intent", "intent_score"]
    with fieldrun.load(toy_bundle, engine="numpy") as model:
        for task in TASKS:
            assert found[task].tolist() == model.predict(texts.tolist(), task)
            assert np.array_equal(found[f"{task}_score"], model.predict_proba(texts.tolist(), task).max(1))


def test_an_empty_batch_keeps_its_columns(toy_bundle: Path) -> None:
    found = Labeller(str(toy_bundle), ["mood"], engine="numpy")({"text": np.zeros(0, object)})
    assert {name: len(column) for name, column in found.items()} == {"text": 0, "mood": 0, "mood_score": 0}


def test_what_cannot_be_answered_is_named(toy_bundle: Path) -> None:
    labeller = Labeller(str(toy_bundle), ["mood"], engine="numpy")
    with pytest.raises(UnknownName, match="unknown column 'text'; known: line"):
        labeller({"line": _texts(1)})
    with pytest.raises(UsageError, match="already has the column 'mood'"):
        labeller({"text": _texts(1), "mood": _texts(1)})
    with pytest.raises(InputTextError, match="column 'text': text 1 is empty"):
        labeller({"text": np.array(["good", " "], object)})
    with pytest.raises(UsageError, match=PAIR_TASK):
        Labeller(str(toy_bundle), [PAIR_TASK], engine="numpy")
    with pytest.raises(UsageError, match="none"):
        Labeller(str(toy_bundle))


def test_a_bad_row_is_reported_on_request(toy_bundle: Path) -> None:
    labeller = Labeller(str(toy_bundle), ["mood"], engine="numpy", on_error="report")
    found = labeller({"text": np.array(["a good film", " ", None, "\u200b", "rain"], object)})
    assert [label is None for label in found["mood"]] == [False, True, True, True, False]
    assert np.isnan(found["mood_score"]).tolist() == [False, True, True, True, False]
    assert labeller({"text": np.array([" "], object)})["mood"].tolist() == [None]
    with pytest.raises(UnknownName, match="unknown on_error 'skip'"):
        Labeller(str(toy_bundle), ["mood"], on_error="skip")


def test_a_text_of_which_nothing_is_known_is_treated_as_asked(toy_bundle: Path) -> None:
    batch = {"text": np.array(["good film", "\U0001f600", " ", "rain"], object)}
    for unknown, none in (("answer", [2]), ("reject", [1, 2]), ("error", [1, 2])):
        labeller = Labeller(str(toy_bundle), ["mood", "intent"], engine="numpy", on_error="report", unknown=unknown)
        found = labeller(batch)
        for task in ("mood", "intent"):
            assert [i for i, label in enumerate(found[task]) if label is None] == none
            assert np.flatnonzero(np.isnan(found[f"{task}_score"])).tolist() == none
    with pytest.raises(InputTextError, match="column 'text': text 1 has no known token"):
        Labeller(str(toy_bundle), ["mood"], engine="numpy", unknown="error")({"text": batch["text"][:2]})


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_ray_data_maps_a_bundle(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if importlib.util.find_spec("ray") is None:
        pytest.skip("ray is not installed: pip install 'ray[data]'")
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([*map(str, _roots()), os.environ.get("PYTHONPATH", "")]))
    ray: Any = importlib.import_module("ray")
    importlib.import_module("ray.data")
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level="ERROR")
    try:
        rows = [{"id": i, "text": text} for i, text in enumerate(_texts(300).tolist())]
        settings = {"bundle": str(toy_bundle), "tasks": ["mood"], "engine": "numpy"}
        mapped = ray.data.from_items(rows).map_batches(
            Labeller, fn_constructor_kwargs=settings, batch_size=64, compute=ray.data.ActorPoolStrategy(size=2)
        )
        found = sorted(mapped.take_all(), key=lambda row: row["id"])
    finally:
        ray.shutdown()
    assert [row["id"] for row in found] == list(range(300))
    with fieldrun.load(toy_bundle, engine="numpy") as model:
        assert [row["mood"] for row in found] == model.predict([row["text"] for row in rows], "mood")


def _roots() -> list[Path]:
    import fieldrun_runtimes

    return [Path(str(package.__file__)).parents[1] for package in (fieldrun, fieldrun_runtimes)]
