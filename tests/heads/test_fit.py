"""Fitting heads: what comes out, what does not depend on order or names, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fieldrun
from fieldrun.errors import FieldrunError, InputTextError, LabelError, TextTooLong, UsageError
from fieldrun.formats.tensors import Array
from fieldrun.heads.fit import HeadTrainer, fit_fields, fit_head
from fieldrun.heads.head import Head, head_logits, pair_features, softmax
from fieldrun.heads.selection import SEARCH_ROWS, STRENGTHS, best_temperature, deal, sample


def clusters(
    seed: int, per_class: int, classes: int, inputs: int = 16, distance: float = 1.0
) -> tuple[Array, list[str]]:
    """Rows around one random centre for each label."""
    rng = np.random.default_rng(seed)
    centres = np.random.default_rng(99).standard_normal((classes, inputs)) * distance
    x = np.repeat(centres, per_class, axis=0) + rng.standard_normal((classes * per_class, inputs))
    return x.astype(np.float32), [f"label {k}" for k in range(classes) for _ in range(per_class)]


def accuracy(head: Head, x: Array, labels: Sequence[str]) -> float:
    best = head_logits(head, x).argmax(1)
    return float(np.mean([head.labels[k] == label for k, label in zip(best, labels, strict=True)]))


class Letters:
    """A model whose field counts the letters of a text: enough to tell words apart, and quick."""

    def __init__(self) -> None:
        self.calls: list[int] = []

    def forward(self, texts: Sequence[str]) -> Any:
        self.calls.append(len(texts))
        if "too long" in texts:
            raise TextTooLong(f"text {list(texts).index('too long')} has 999 tokens")
        field = np.array([[text.count(c) for c in "abcdefghijklmnop"] for text in texts], np.float32)
        dropped = np.array([max(0, len(text) - 40) for text in texts], np.int64)
        return SimpleNamespace(field=field, dropped=dropped)


TEXTS = ["aaa", "aab", "aba", "ccc", "ccd", "cdc", "ppp", "ppo", "opp"]
LABELS = ["x", "x", "x", "y", "y", "y", "z", "z", "z"]


@pytest.mark.parametrize("per_class", [1, 2, 3, 8, 40])
@pytest.mark.parametrize("classes", [2, 5])
def test_heads_of_few_and_of_more_examples(per_class: int, classes: int) -> None:
    x, labels = clusters(0, per_class, classes, distance=2.0)
    head = fit_fields(x, labels, name="mine")
    assert (head.name, head.kind, head.labels) == ("mine", "single", tuple(sorted(set(labels))))
    assert head.weight.dtype == head.bias.dtype == np.float32
    head.validate(16)
    test, truth = clusters(1, 50, classes, distance=2.0)
    assert accuracy(head, test, truth) > 0.85
    assert head.about["n"] == per_class * classes
    assert head.about["labels"] == dict.fromkeys(head.labels, per_class)
    if per_class == 1:
        assert head.about["cv"] is None
        assert head.temperature == 1.0
        return
    cv = head.about["cv"]
    assert head.about["strength"] in STRENGTHS
    assert cv["n"] == per_class * classes
    assert cv["folds"] == min(5, per_class)
    assert 0 <= cv["ci95"][0] <= cv["accuracy"] <= cv["ci95"][1] <= 1


def test_the_head_is_the_minimum_of_what_is_stated() -> None:
    x, labels = clusters(2, 30, 4)
    head = fit_fields(x, labels)
    y = np.array([head.labels.index(label) for label in labels])
    p = softmax(head_logits(head, x.astype(np.float64)))
    p[np.arange(len(y)), y] -= 1
    penalty = head.about["strength"] * x.var(0, dtype=np.float64).mean() / len(x)
    assert np.abs(x.T.astype(np.float64) @ p / len(x) + penalty * head.weight).max() < 1e-3
    assert np.abs(p.mean(0)).max() < 1e-3


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), per_class=st.integers(1, 9), classes=st.integers(2, 4))
def test_the_order_of_the_rows_changes_nothing(seed: int, per_class: int, classes: int) -> None:
    x, labels = clusters(seed, per_class, classes)
    order = np.random.default_rng(seed).permutation(len(x))
    one, other = fit_fields(x, labels), fit_fields(x[order], [labels[i] for i in order])
    np.testing.assert_array_equal(one.weight, other.weight)
    np.testing.assert_array_equal(one.bias, other.bias)
    assert (one.temperature, one.about) == (other.temperature, other.about)


@settings(max_examples=15)
@given(seed=st.integers(0, 10**6), per_class=st.integers(1, 9), classes=st.integers(2, 4))
def test_the_names_of_the_labels_change_nothing(seed: int, per_class: int, classes: int) -> None:
    x, labels = clusters(seed, per_class, classes)
    names = [f"{9 - int(label[-1])} renamed" for label in labels]
    one, other = fit_fields(x, labels), fit_fields(x, names)
    np.testing.assert_allclose(one.weight, other.weight[:, ::-1], atol=2e-2 * np.abs(one.weight).max())
    assert one.about["strength"] == other.about["strength"]
    assert one.temperature == pytest.approx(other.temperature, rel=0.05)


def test_units_do_not_matter() -> None:
    x, labels = clusters(4, 12, 3)
    one, other = fit_fields(x, labels), fit_fields(100 * x, labels)
    assert 0.05 < one.about["strength"] / other.about["strength"] < 20, "other folds, but the same scale"
    test, truth = clusters(8, 50, 3)
    assert abs(accuracy(one, test, truth) - accuracy(other, 100 * test, truth)) < 0.05


def test_labels_of_one_row_are_never_held_out() -> None:
    x, labels = clusters(5, 6, 3)
    head = fit_fields(x[:13], labels[:13])  # 6, 6 and 1
    assert head.about["labels"] == {"label 0": 6, "label 1": 6, "label 2": 1}
    assert head.about["cv"]["n"] == 12


def test_folds_hold_every_row_out_once_and_keep_every_class() -> None:
    y = np.array([0] * 7 + [1] * 2 + [2] + [3] * 11)
    splits = list(deal(y, np.arange(len(y)), 5, 0))
    held = np.concatenate([out for _, out in splits])
    assert sorted(held.tolist()) == [i for i in range(len(y)) if y[i] != 2]
    for trained, out in splits:
        assert set(y[trained]) == {0, 1, 2, 3}
        assert not set(trained.tolist()) & set(out.tolist())
        assert abs(len(out) - 4) <= 1
    assert any((a[1].tolist() != b[1].tolist()) for a, b in zip(splits, deal(y, np.arange(len(y)), 5, 1), strict=True))


def test_many_rows_are_searched_on_a_sample() -> None:
    n = SEARCH_ROWS // 2
    x, labels = clusters(6, n, 3)
    seen: list[tuple[str, int, int]] = []
    head = fit_fields(x, labels, progress=lambda *step: seen.append(step))
    assert head.about["n"] == 3 * n
    assert (head.about["cv"]["n"], head.about["cv"]["folds"]) == (3 * n // 5, 1)
    test, truth = clusters(7, 200, 3)
    share = accuracy(head, test, truth)
    assert share > 0.9
    assert seen[-1] == ("solve", 100, 100)
    assert [*dict.fromkeys(phase for phase, _, _ in seen)] == ["fit", "measure", "solve"]
    for phase in ("fit", "measure", "solve"):
        done = [step for name, step, _ in seen if name == phase]
        assert done == sorted(done)
        assert len(done) > 2
    rare = sample(np.array([0] * 1000 + [1] * 3), 50)
    assert (rare >= 1000).sum() == 3


def test_equal_fields_with_different_labels() -> None:
    head = fit_fields(np.ones((6, 4), np.float32), ["a", "a", "a", "a", "b", "b"])
    assert not head.weight.any()
    assert head.labels[int(head.bias.argmax())] == "a"
    assert np.isfinite(head.bias).all()


def test_the_temperature_minimises_the_log_loss() -> None:
    rng = np.random.default_rng(0)
    logits = rng.standard_normal((4000, 3)).astype(np.float32) * 2
    y = np.array([rng.choice(3, p=row) for row in softmax(logits.astype(np.float64))])
    assert best_temperature(logits, y) == pytest.approx(1, abs=0.05)
    assert best_temperature(logits * 7, y) == pytest.approx(7, rel=0.05)
    assert best_temperature(logits / 500, y) == pytest.approx(1 / 500, rel=0.05)
    found = best_temperature(logits * 3, y)

    def loss(temperature: float) -> float:
        p = softmax(logits.astype(np.float64) * 3, temperature)
        return float(-np.log(p[np.arange(len(y)), y]).mean())

    assert loss(found) <= min(loss(found * 1.02), loss(found / 1.02)) + 1e-6


def test_a_temperature_without_an_error_is_finite_and_without_a_clue_large() -> None:
    logits = np.eye(3, dtype=np.float32)
    sure = best_temperature(logits, np.arange(3))
    assert 0.05 < sure < 1
    assert best_temperature(np.zeros((3, 3), np.float32), np.arange(3)) == 1.0
    assert best_temperature(logits, np.array([1, 2, 0])) > 100  # worse than chance: nearly even scores


def test_a_head_of_texts() -> None:
    model = Letters()
    head = fit_head(model, TEXTS, LABELS, name="letters")
    assert accuracy(head, model.forward(TEXTS).field, LABELS) == 1.0
    assert accuracy(head, model.forward(["aaaa", "cccc", "pppp"]).field, ["x", "y", "z"]) == 1.0
    same = fit_head(model, tuple(reversed(TEXTS)), tuple(reversed(LABELS)), name="letters")
    np.testing.assert_array_equal(same.weight, head.weight)


def test_a_head_of_pairs() -> None:
    model = Letters()
    pairs = [(a, b) for a in TEXTS for b in TEXTS if a != b]
    labels = ["same" if set(a) & set(b) else "other" for a, b in pairs]
    head = fit_head(model, pairs, labels)
    assert (head.kind, head.weight.shape) == ("pair", (64, 2))
    first, second = (model.forward([pair[k] for pair in pairs]).field for k in (0, 1))
    assert accuracy(head, pair_features(first, second), labels) > 0.9
    listed = fit_head(model, [list(pair) for pair in pairs], labels)
    np.testing.assert_array_equal(listed.weight, head.weight)


@pytest.mark.parametrize("make", [list, tuple, np.array, iter, "Series"])
def test_labels_of_other_types_are_strings_in_the_head(make: Any) -> None:
    if make == "Series":
        make = pytest.importorskip("pandas").Series
    expected = fit_head(Letters(), TEXTS, LABELS)
    names = {"x": 10, "y": 2, "z": -1}
    head = fit_head(Letters(), make(TEXTS), make([names[label] for label in LABELS]))
    assert head.labels == ("-1", "10", "2")
    order = [head.labels.index(str(names[label])) for label in expected.labels]
    np.testing.assert_allclose(head.weight[:, order], expected.weight, atol=1e-2 * np.abs(expected.weight).max())
    head = fit_head(Letters(), make(TEXTS), make([label == "x" for label in LABELS]))
    assert head.labels == ("False", "True")
    json.dumps(dict(head.about))


def test_a_frame_is_neither_texts_nor_labels() -> None:
    frame: Any = pytest.importorskip("pandas").DataFrame({"text": TEXTS, "label": LABELS})
    with pytest.raises(InputTextError, match="texts must be a list, not DataFrame"):
        fit_head(Letters(), frame, LABELS)
    with pytest.raises(LabelError, match="labels must be a list, not DataFrame"):
        fit_head(Letters(), TEXTS, frame)


def test_examples_and_labels_that_come_later() -> None:
    model = Letters()
    trainer = HeadTrainer(model, name="letters").add(TEXTS[:6], LABELS[:6])
    assert (len(trainer), trainer.labels, trainer.kind) == (6, ("x", "y"), "single")
    assert trainer.fit().labels == ("x", "y")
    encoded = sum(model.calls)
    assert trainer.add(TEXTS[6:], LABELS[6:]) is trainer
    assert sum(model.calls) - encoded == 3
    later, at_once = trainer.fit(), fit_head(model, TEXTS, LABELS, name="letters")
    assert later.labels == ("x", "y", "z")
    np.testing.assert_array_equal(later.weight, at_once.weight)


def test_texts_that_lost_tokens_are_counted() -> None:
    trainer = HeadTrainer(Letters()).add(["a" * 45, "b", "c" * 41], ["x", "y", "y"])
    assert (trainer.cut, trainer.dropped) == (2, 6)
    trainer = HeadTrainer(Letters()).add([("a" * 45, "a" * 50), ("b", "c")], ["x", "y"])
    assert (trainer.cut, trainer.dropped) == (1, 15)


@pytest.mark.parametrize(
    ("texts", "labels", "kind", "message"),
    [
        (["a", "b"], ["x"], LabelError, "2 texts and 1 labels"),
        (["a", "b"], ["x", "x"], LabelError, "at least two labels, and all 2 are 'x'"),
        (["a", "b"], ["x", ""], LabelError, "label 1 is empty"),
        (["a", "b"], ["x", "  "], LabelError, "label 1 is empty"),
        (["a", "b"], ["x", 1.5], LabelError, r"label 1 is float, not a string, int or bool; write str\(label\)"),
        (["a", "b"], [np.float32(1), "x"], LabelError, "label 0 is float32"),
        (["a", "b"], {"x", "y"}, LabelError, "labels must be a list, not set"),
        (["a", "b"], {"x": 1, "y": 2}, LabelError, "labels must be a list, not dict"),
        ({"a", "b"}, ["x", "y"], InputTextError, "texts must be a list, not set"),
        ({"a": 1, "b": 2}, ["x", "y"], InputTextError, "texts must be a list, not dict"),
        (["a", "b"], [None, "x"], LabelError, "label 0 is NoneType"),
        (["a", "b"], "xy", LabelError, "labels must be a list, not str"),
        (["a", "b"], None, LabelError, "labels must be a list, not NoneType"),
        (["a", ""], ["x", "y"], InputTextError, "text 1 is empty"),
        (["a", "b", " \n"], ["x", "y", "y"], InputTextError, "text 2 is empty"),
        (["a", None], ["x", "y"], InputTextError, "text 1 is NoneType, not a string"),
        ([], [], InputTextError, "texts is empty"),
        ("ab", ["x", "y"], InputTextError, "texts must be a list"),
        (None, ["x", "y"], InputTextError, "texts must be a list"),
        ([("a", "b"), "c"], ["x", "y"], InputTextError, "item 1 is not a pair"),
        ([("a", "b"), ("c",)], ["x", "y"], InputTextError, "item 1 is not a pair"),
        ([("a", "b"), ("c", "")], ["x", "y"], InputTextError, "text 1 is empty"),
        (["a", ("b", "c")], ["x", "y"], InputTextError, "text 1 is tuple, not a string"),
        (["a", "too long"], ["x", "y"], TextTooLong, "text 1 has 999 tokens"),
    ],
)
def test_what_cannot_be_learnt_is_refused(texts: Any, labels: Any, kind: type[FieldrunError], message: str) -> None:
    with pytest.raises(kind, match=message) as caught:
        fit_head(Letters(), texts, labels)
    assert "\n" not in str(caught.value)


def test_an_error_keeps_the_examples_that_were_there() -> None:
    trainer = HeadTrainer(Letters()).add(TEXTS, LABELS)
    with pytest.raises(TextTooLong, match="text 3000 has 999 tokens"):
        trainer.add([*["a"] * 3000, "too long"], ["x"] * 3001)
    with pytest.raises(InputTextError, match="takes single texts, and these are pairs"):
        trainer.add([("a", "b")], ["x"])
    assert len(trainer) == 9
    np.testing.assert_array_equal(trainer.fit().weight, fit_head(Letters(), TEXTS, LABELS).weight)


@pytest.mark.parametrize("name", ["", "my task", "a/b", "../x", None, 3])
def test_names_that_no_file_could_have(name: Any) -> None:
    with pytest.raises(UsageError, match="a head's name must be letters") as caught:
        fit_head(Letters(), TEXTS, LABELS, name=name)
    assert caught.value.exit_code == 2


def test_no_examples_at_all() -> None:
    with pytest.raises(LabelError, match="there are no examples"):
        HeadTrainer(Letters()).fit()


@pytest.mark.parametrize("inputs", [np.ones(4), np.full((4, 2), np.nan), np.ones((4, 2, 2))])
def test_inputs_that_are_no_fields(inputs: Array) -> None:
    with pytest.raises(UsageError, match="inputs must be finite"):
        fit_fields(inputs, ["a", "a", "b", "b"])


def test_the_face_has_it() -> None:
    assert fieldrun.fit_head is fit_head
    assert fieldrun.HeadTrainer is HeadTrainer
    assert fieldrun.Head is Head
