"""A model's accuracy on labelled texts, in one place for bundles and for other classifiers."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fieldrun
from fieldrun.errors import DatasetError, InputTextError, TextTooLong, UnknownName, UsageError
from fieldrun.evaluation.dataset import Dataset
from fieldrun.evaluation.evaluate import Evaluation, evaluate
from fieldrun_runtimes.model import FieldModel

TEXTS = ["a good film", "nothing works", "how do i transfer cash to the card", "rain", "it is wet"]
PAIRS = [("it rains", "it is wet"), ("a film", "a card"), ("you wrote this", "who wrote it")]


@pytest.fixture(scope="module")
def model(toy_bundle: Path) -> Iterator[FieldModel]:
    with fieldrun.load(toy_bundle, engine="numpy") as opened:
        yield opened


def tsv(path: Path, texts: Sequence[str], labels: Sequence[str]) -> Path:
    lines = ["text\tlabel", *(f"{text}\t{label}" for text, label in zip(texts, labels, strict=True))]
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def test_counts_and_shares() -> None:
    found = Evaluation.of(list("aaab"), list("aabb"), ["a", "b", "c"], confidence=[1, 1, 0.5, 1.0000001])
    assert (found.n, found.labels, found.accuracy) == (4, ("a", "b", "c"), 0.75)
    assert found.confusion.tolist() == [[2, 1, 0], [0, 1, 0], [0, 0, 0]]
    assert found.recall == {"a": 2 / 3, "b": 1.0, "c": None}
    assert found.macro_f1 == pytest.approx((4 / 5 + 2 / 3) / 2)
    assert found.calibration_error == pytest.approx(0.125)
    assert found.ci95 == pytest.approx((0.3006, 0.9544), abs=1e-4)
    assert json.loads(json.dumps(found.to_dict()))["confusion"] == found.confusion.tolist()
    assert Evaluation.of("a", "a", "a").calibration_error is None
    with pytest.raises(UnknownName, match="unknown label 'd'"):
        Evaluation.of("ad", "aa", "abc")
    for truth, predicted in (("", ""), ("ab", "a")):
        with pytest.raises(UsageError):
            Evaluation.of(truth, predicted, "ab")


@pytest.mark.parametrize("size", [1, 2, 1024])
def test_a_bundle_on_a_file(model: FieldModel, tmp_path: Path, size: int) -> None:
    right = model.predict(TEXTS, "intent")
    labels = [*right[:-1], next(label for label in model.labels("intent") if label != right[-1])]
    steps: list[tuple[str, int, int]] = []
    path = tsv(tmp_path / "dev.tsv", TEXTS, labels)
    found = evaluate(model, path, "intent", batch_size=size, progress=lambda *step: steps.append(step))
    assert (found.n, found.accuracy, found.labels) == (5, 0.8, model.labels("intent"))
    assert (found.dropped, found.cut) == (0, 0)
    assert found.confusion.sum() == 5
    confidence = model.predict_proba(TEXTS, "intent").max(1)
    assert found.calibration_error == pytest.approx(
        Evaluation.of(labels, right, found.labels, confidence=confidence).calibration_error, abs=1e-5
    )
    assert steps[-1] == ("evaluate intent", 5, 5)
    assert len(steps) == -(-5 // size)


def test_pairs_and_texts_that_are_cut(model: FieldModel, tmp_path: Path) -> None:
    labels = model.predict(PAIRS, "same")
    path = tmp_path / "pairs.tsv"
    long = " ".join(["rain"] * 300)
    rows = [*((*pair, label) for pair, label in zip(PAIRS, labels, strict=True)), (long, long, labels[0])]
    path.write_text("\n".join(map("\t".join, [("text_a", "text_b", "label"), *rows])), "utf-8")
    found = evaluate(model, path, "same")
    assert (found.n, found.cut, found.dropped) == (4, 2, 2 * (302 - 256))
    assert found.accuracy >= 0.75


def test_texts_and_labels_of_a_program(model: FieldModel) -> None:
    truth = model.predict(TEXTS, "intent")
    found = evaluate(model, Dataset.of(np.array(TEXTS), truth), "intent")
    assert (found.n, found.accuracy) == (5, 1)
    pairs = Dataset.of([[*pair] for pair in PAIRS], model.predict(PAIRS, "same"))
    assert (pairs.kind, pairs.texts[0]) == ("pair", PAIRS[0])
    assert evaluate(model, pairs, "same").accuracy == 1
    assert Dataset.of(["a", "b"], [True, 3]).labels == ("True", "3")
    with pytest.raises(DatasetError, match="the task 'mood' takes single texts, and these are pairs"):
        evaluate(model, pairs, "mood")
    with pytest.raises(DatasetError, match="texts, record 1: the task 'intent' has no label 'no'"):
        evaluate(model, Dataset.of(TEXTS[:2], [truth[0], "no"]), "intent")


def test_any_classifier_with_predict_proba(tmp_path: Path) -> None:
    class Length:
        classes_ = np.array([0, 1])

        def predict_proba(self, texts: list[str]) -> Any:
            return np.array([[0.2, 0.8] if len(text) > 4 else [0.9, 0.1] for text in texts])

    found = evaluate(Length(), tsv(tmp_path / "dev.tsv", TEXTS, "11101"))
    assert (found.accuracy, found.labels, found.dropped) == (1, ("0", "1"), None)
    assert found.calibration_error == pytest.approx(0.18)


@pytest.mark.parametrize(
    ("header", "rows", "error", "message"),
    [
        ("text\tlabel", ["a\tdown", "b\tsideways"], DatasetError, r"line 3: the task 'mood' has no label 'sideways'"),
        ("text_a\ttext_b\tlabel", ["a\tb\tdown"], DatasetError, "line 1: the task 'mood' takes single texts"),
        ("text\tlabel", ["a\tdown", "\x00\tdown"], InputTextError, "dev.tsv, line 3 has no token"),
        ("text\tlabel", ["a\tdown", "rain " * 300 + "\tdown"], TextTooLong, "dev.tsv, line 3 has 302 tokens"),
    ],
)
def test_errors_name_the_line(
    toy_bundle: Path, tmp_path: Path, header: str, rows: list[str], error: type[Exception], message: str
) -> None:
    path = tmp_path / "dev.tsv"
    with fieldrun.load(toy_bundle, engine="numpy", overflow="error") as model:
        known = dict(zip(("down", "up"), model.labels("mood"), strict=True))
        text = "\n".join([header, *(row.replace("\tdown", f"\t{known['down']}") for row in rows)])
        path.write_text(text, "utf-8")
        with pytest.raises(error, match=message):
            evaluate(model, path, "mood")
        with pytest.raises(UsageError, match="name the task"):
            evaluate(model, path)
        with pytest.raises(UsageError, match="batch_size must be at least 1"):
            evaluate(model, path, "mood", batch_size=0)
