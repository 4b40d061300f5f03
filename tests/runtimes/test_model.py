"""The model: text in, field or labels out, whichever way it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fieldrun
from fieldrun.errors import BundleError, InputTextError, TextTooLong, UnknownName, UsageError
from fieldrun.formats.tensors import Array
from fieldrun.heads.head import Head
from fieldrun.serve import app
from fieldrun_runtimes.engines.numpy_engine import NumpyEngine
from fieldrun_runtimes.model import FieldModel, Scored
from tests.serve.conftest import ask

TEXTS = ["a good film", "nothing works", "how do i transfer cash to the card", "rain"]
PAIRS = [("it rains", "it is wet"), ("a film", "a card"), ("you wrote this", "who wrote it")]


@pytest.fixture(scope="module")
def model(toy_bundle: Path) -> Iterator[FieldModel]:
    with fieldrun.load(toy_bundle, engine="numpy") as opened:
        yield opened


def test_what_a_model_says_of_itself(model: FieldModel, toy_bundle: Path) -> None:
    assert model.tasks == ("mood", "intent", "same")
    assert model.labels("intent") == ("card", "cash", "other", "transfer")
    assert (model.kind("mood"), model.kind("same")) == ("single", "pair")
    assert model.path == toy_bundle
    assert repr(model) == "FieldModel('toy', recipe='cpu-int8', engine='numpy')"
    assert model.manifest.name == "toy"


def test_fields_and_token_counts(model: FieldModel) -> None:
    encoding = model.forward(TEXTS)
    assert len(encoding) == 4
    assert encoding.field.shape == (4, 32)
    assert encoding.field.dtype == encoding.logits.dtype == np.float32
    assert encoding.tokens.tolist()[0] == 5
    assert encoding.tokens.dtype == encoding.dropped.dtype == np.int64
    assert not encoding.dropped.any()
    np.testing.assert_array_equal(model.field(TEXTS), encoding.field)
    part = encoding.part(1, 3)
    assert len(part) == 2
    np.testing.assert_array_equal(part.field, encoding.field[1:3])
    np.testing.assert_array_equal(part.tokens, encoding.tokens[1:3])


@pytest.mark.parametrize("task", ["mood", "intent", "same"])
def test_scores_are_distributions_and_predict_takes_the_best(model: FieldModel, task: str) -> None:
    texts: Any = PAIRS if model.kind(task) == "pair" else TEXTS
    scores = model.predict_proba(texts, task)
    assert scores.shape == (len(texts), len(model.labels(task)))
    assert scores.dtype == np.float32
    assert scores.min() >= 0
    np.testing.assert_allclose(scores.sum(1), 1, rtol=0, atol=1e-6)
    assert model.predict(texts, task) == [model.labels(task)[int(row.argmax())] for row in scores]
    assert all(type(label) is str for label in model.predict(texts, task))


def test_scores_of_an_encoding_are_the_scores(model: FieldModel) -> None:
    encoding = model.forward(TEXTS)
    for task in ("mood", "intent"):
        np.testing.assert_array_equal(model.scores_of(encoding, task), model.predict_proba(TEXTS, task))
    first, second = (model.forward([pair[k] for pair in PAIRS]) for k in (0, 1))
    np.testing.assert_allclose(
        model.scores_of(first, "same", second), model.predict_proba(PAIRS, "same"), rtol=0, atol=1e-5
    )
    with pytest.raises(UsageError, match="takes two encodings"):
        model.scores_of(first, "same")
    with pytest.raises(UsageError, match="takes one encoding"):
        model.scores_of(first, "mood", second)


def test_one_forward_pass_serves_all_heads(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[int] = []
    run = NumpyEngine.run

    def counted(self: NumpyEngine, sequences: Sequence[Sequence[int]]) -> tuple[Array, Array]:
        calls.append(len(sequences))
        return run(self, sequences)

    monkeypatch.setattr(NumpyEngine, "run", counted)
    with fieldrun.load(toy_bundle, engine="numpy") as model:
        encoding = model.forward(["a film"])
        for task in ("mood", "intent"):
            model.scores_of(encoding, task)
        model.scores_of(encoding, "same", encoding)
        model.predict_proba(["a film"], "mood")
        model.predict([("a film", "a card")], "same")
        assert calls == [1, 1, 2]


def test_pairs_in_lists_and_beyond_a_batch(model: FieldModel) -> None:
    expected = model.predict_proba(PAIRS, "same")
    np.testing.assert_array_equal(model.predict_proba([list(pair) for pair in PAIRS], "same"), expected)
    many = [PAIRS[k % 3] for k in range(75)]
    np.testing.assert_allclose(
        model.predict_proba(many, "same"), expected[[k % 3 for k in range(75)]], rtol=0, atol=1e-5
    )


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("one text", "pairs must be a list, not str"),
        (None, "pairs must be a list, not NoneType"),
        (3, "pairs must be a list, not int"),
        (["a text", "another"], "item 0 is not a pair"),
        ([("a", "b"), ("a",)], "item 1 is not a pair"),
        ([("a", "b", "c")], "item 0 is not a pair"),
        ([b"ab"], "item 0 is not a pair"),
        ([None], "item 0 is not a pair"),
        ([("a", None)], "is NoneType, not a string"),
        ([("a", " ")], "empty or only whitespace"),
        ([("\ud800", "a")], "lone surrogate"),
        ([("a", "\x00")], "no token"),
        ([], "give at least one"),
    ],
)
def test_pairs_that_are_none_are_refused(model: FieldModel, texts: Any, message: str) -> None:
    with pytest.raises(InputTextError, match=message):
        model.predict(texts, "same")


@pytest.mark.parametrize("call", ["field", "forward", "predict_proba", "predict"])
@pytest.mark.parametrize("texts", ["one text", [], [""], None, [None], ["\ud800"], ["\x00"], [("a", "b")], b"a", {}])
def test_every_way_in_refuses_the_same_texts(model: FieldModel, call: str, texts: Any) -> None:
    arguments = (texts, "mood") if call in ("predict_proba", "predict") else (texts,)
    with pytest.raises(InputTextError) as caught:
        getattr(model, call)(*arguments)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def test_the_best_labels_and_those_that_are_allowed(model: FieldModel) -> None:
    scores, labels = model.predict_proba(TEXTS, "intent"), model.labels("intent")
    ranked = model.top_k(TEXTS, "intent", k=3)
    for row, found in zip(scores, ranked, strict=True):
        assert [label for label, _ in found] == [labels[i] for i in np.argsort(-row)[:3]]
        assert [score for _, score in found] == sorted(row.tolist(), reverse=True)[:3]
    assert model.top_k(TEXTS, "intent")[0][0] == Scored(label=ranked[0][0].label, score=ranked[0][0].score)
    assert [len(found) for found in model.top_k(TEXTS, "intent")] == [4] * 4
    assert model.top_k(TEXTS, "intent", threshold=1.1) == [[]] * 4
    cut = model.top_k(TEXTS, "intent", threshold=0.25)
    assert [len(found) for found in cut] == (scores >= 0.25).sum(1).tolist()
    some = ["cash", "card"]
    choices: list[dict[str, Any]] = [{"allow": some}, {"deny": ("other", "transfer")}, {"allow": {*some}}]
    for chosen in choices:
        rows = model.top_k(TEXTS, "intent", **chosen)
        assert {label for row in rows for label, _ in row} == {*some}
        np.testing.assert_array_equal([row[0].score for row in rows], scores[:, :2].max(1))
        assert model.predict(TEXTS, "intent", **chosen) == [row[0].label for row in rows]
    assert model.top_k(PAIRS, "same", k=1)[0][0].label == model.predict(PAIRS, "same")[0]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"k": 0}, "k must be a positive integer"),
        ({"k": True}, "k must be a positive integer"),
        ({"allow": ["cash"], "deny": ["card"]}, "not both"),
        ({"allow": "cash"}, r"write \['cash'\]"),
        ({"allow": []}, "no label of task 'intent' is left"),
        ({"deny": ["card", "cash", "other", "transfer"]}, "no label of task 'intent' is left"),
        ({"deny": ["cards"]}, "unknown label 'cards'; known: card, cash"),
    ],
)
def test_choices_of_labels_that_make_no_sense(model: FieldModel, settings: Any, message: str) -> None:
    with pytest.raises((UsageError, UnknownName), match=message):
        model.top_k(TEXTS, "intent", **settings)
    if "k" not in settings:
        with pytest.raises((UsageError, UnknownName), match=message):
            model.predict(TEXTS, "intent", **settings)


def test_the_only_task_need_not_be_named(toy_bundle: Path, model: FieldModel) -> None:
    for call in (model.predict, model.predict_proba, model.top_k, model.rejection):
        with pytest.raises(UsageError, match="name the task: mood, intent, same"):
            call(TEXTS)
    with fieldrun.load("reference", engine="numpy") as other:
        assert len(other.tasks) > 1


def test_an_unknown_task_is_refused_before_any_work(model: FieldModel) -> None:
    calls: list[Callable[[str], object]] = [model.labels, model.kind]
    calls += [lambda task: model.predict_proba([], task), lambda task: model.predict([], task)]
    for call in calls:
        with pytest.raises(UnknownName, match="known: mood, intent, same"):
            call("moods")


LONG = " ".join(["a good film to remember"] * 80)  # 402 tokens; the largest bucket takes 256


def test_a_long_text_is_an_error_cut_or_windowed(toy_bundle: Path) -> None:
    texts = ["rain", LONG, "a card"]
    with fieldrun.load(toy_bundle, engine="numpy", overflow="error") as strict:
        with pytest.raises(TextTooLong, match="text 1 has 402 tokens, the largest bucket takes 256"):
            strict.field(texts)
        short = strict.forward(["rain", "a card"])
    with fieldrun.load(toy_bundle, engine="numpy") as cutting:
        cut = cutting.forward(texts)
        assert cut.tokens.tolist() == [3, 402, 4]
        assert cut.dropped.tolist() == [0, 146, 0]
        np.testing.assert_allclose(cut.field[1:2], cutting.field([" ".join(LONG.split()[:254])]), rtol=0, atol=1e-5)
        windows = [" ".join(LONG.split()[k : k + 254]) for k in (0, 254)]
        parts = cutting.forward(windows)
    with fieldrun.load(toy_bundle, engine="numpy", overflow="window") as sliding:
        whole = sliding.forward(texts)
        assert whole.tokens.tolist() == [3, 402, 4]
        assert not whole.dropped.any()
        weights = parts.tokens[:, None] / parts.tokens.sum()
        np.testing.assert_allclose(whole.field[1], (parts.field * weights).sum(0), rtol=0, atol=1e-5)
        np.testing.assert_allclose(whole.logits[1], (parts.logits * weights).sum(0), rtol=0, atol=1e-5)
        alone = sliding.forward([LONG])
        np.testing.assert_allclose(alone.field[0], whole.field[1], rtol=0, atol=1e-5)
        assert len(sliding.predict([(LONG, "rain"), ("rain", LONG)], "same")) == 2
    for encoding in (cut, whole):
        np.testing.assert_allclose(encoding.field[[0, 2]], short.field, rtol=0, atol=1e-5)


def test_a_megabyte_is_cut(model: FieldModel) -> None:
    encoding = model.forward(["rain " * 200_000])
    assert encoding.dropped.tolist() == (encoding.tokens - 256).tolist()
    assert encoding.dropped[0] > 2000, "of the beginning, which is read"
    assert np.isfinite(encoding.field).all()


@pytest.mark.parametrize("threads", [0, -1, 1.0, "1", None, True])
def test_threads_must_be_a_positive_integer(toy_bundle: Path, threads: Any) -> None:
    with pytest.raises(UsageError, match="threads must be a positive integer") as caught:
        fieldrun.load(toy_bundle, threads=threads)
    assert caught.value.exit_code == 2


def test_wrong_arguments_are_refused(toy_bundle: Path) -> None:
    with pytest.raises(UnknownName, match="unknown overflow 'cut'"):
        fieldrun.load(toy_bundle, overflow="cut")
    with pytest.raises(BundleError, match="no bundle at"):
        fieldrun.load(toy_bundle / "nowhere")


def test_a_closed_model_says_so(toy_bundle: Path) -> None:
    model = fieldrun.load(toy_bundle, engine="numpy")
    encoding = model.forward(["a film"])
    with model:
        model.close()
    model.close()
    with pytest.raises(UsageError, match="was closed"):
        model.field(["a film"])
    with pytest.raises(UsageError, match="was closed"):
        model.scores_of(encoding, "same", encoding)
    assert model.tasks == ("mood", "intent", "same")


UNKNOWN = ["\U0001f600 \U0001f680", "\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", "x" * 300]
"""Texts without a known token."""


def test_the_share_of_known_tokens_is_reported() -> None:
    with fieldrun.load(engine="numpy") as model:
        texts = [*UNKNOWN[::2], "a good film", "a \U0001f600 film \U0001f680"]
        alone = [float(model.forward([text]).known[0]) for text in texts]
        assert model.forward(texts).known.tolist() == alone == [0, 0, 1, 0.5]
        (found,) = fieldrun.answer(model, texts[:1], ["sst2"])
        assert (found["known"], found["label"] is None) == (0.0, False)


@pytest.mark.parametrize(("biases", "best"), [([0, 1e-9, 0], "b"), ([0, 0, 1e-9], "c"), ([0, 0, 0], "a")])
def test_every_way_names_the_same_label_in_a_tie(
    toy_bundle: Path, tmp_path: Path, biases: list[float], best: str
) -> None:
    """Different logits may have the same probability in float32; of equal logits, the first label is the best."""
    with fieldrun.load(toy_bundle) as model:
        weight = np.zeros((model.get_embedding_dimension(), 3), np.float32)
        bias = np.array(biases, np.float32)
        model.attach(Head(name="tie", kind="single", labels=("a", "b", "c"), weight=weight, bias=bias))
        assert len(set(model.predict_proba(TEXTS, "tie").ravel().tolist())) == 1
        for texts in (TEXTS, TEXTS[:1]):
            wanted = [best] * len(texts)
            assert model.predict(texts, "tie") == model.predict_all(texts)["tie"] == wanted
            assert [found[0].label for found in model.top_k(texts, "tie")] == wanted
            answers = list(fieldrun.answer(model, texts, ["tie"]))
            assert [found["label"] for found in answers] == [next(iter(found["scores"])) for found in answers] == wanted
        application = app(model.save(tmp_path / "tied"))
    for row in ask(application, "/predict", {"texts": TEXTS, "task": "tie"}).json["results"]:
        assert row["labels"][0]["label"] == best


def test_a_text_with_nothing_known_is_answered_rejected_or_an_error() -> None:
    texts = [UNKNOWN[0], "a good film", UNKNOWN[2]]
    with fieldrun.load(engine="numpy") as model:
        plain, scores = model.predict(texts, "sst2"), model.predict_proba(texts, "sst2")
        assert plain[0] == plain[2]
    with fieldrun.load(engine="numpy", unknown="reject") as model:
        assert model.predict(texts, "sst2") == [None, plain[1], None]
        assert model.predict(texts[:1], "sst2", allow=["positive"]) == [None]
        assert [bool(best) for best in model.top_k(texts, "sst2")] == [False, True, False]
        assert model.predict_all(texts[:1])["sst2"] == [None]
        assert model.predict_all(texts)["sst2"] == [None, plain[1], None]
        rejection = model.rejection(texts, "sst2")
        assert rejection.argsort().tolist()[0] == 1
        assert rejection[1] <= 0 < rejection[0] == rejection[2] == 1
        np.testing.assert_array_equal(model.rejection_of(model.forward(texts), "sst2"), rejection)
        np.testing.assert_array_equal(model.predict_proba(texts, "sst2"), scores)
        pairs = [("it rains", texts[0]), ("it rains", "it is wet")]
        assert [label is None for label in model.predict(pairs, "rte")] == [True, False]
        assert [found["label"] is None for found in fieldrun.answer(model, pairs, ["rte"])] == [True, False]
    with fieldrun.load(engine="numpy", unknown="error") as model:
        for batch, place in ((texts, 0), (texts[1:], 1), (texts[:1], 0)):
            with pytest.raises(InputTextError, match=f"text {place} has no known token"):
                model.predict(batch, "sst2")
        assert model.predict(texts[1:2], "sst2") == plain[1:2]
        reported = list(fieldrun.answer(model, texts, ["sst2"], on_error="report"))
        assert ["error" in found for found in reported] == [True, False, True]
    with pytest.raises(UnknownName, match="unknown unknown 'ignore'"):
        fieldrun.load(unknown="ignore")
