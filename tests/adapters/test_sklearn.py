"""The estimators in scikit-learn's own checks, pipelines, searches, copies and pickles."""

from __future__ import annotations

import io
import pickle
from collections import UserDict, UserList, deque
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fieldrun
from fieldrun.errors import BundleError, InputTextError, LabelError, UnknownName
from tests.toy import WORDS

pytest.importorskip("sklearn")
joblib: Any = pytest.importorskip("joblib")

from sklearn.base import clone  # noqa: E402
from sklearn.exceptions import NotFittedError  # noqa: E402
from sklearn.linear_model import LogisticRegression  # noqa: E402
from sklearn.model_selection import GridSearchCV, cross_val_score  # noqa: E402
from sklearn.pipeline import make_pipeline  # noqa: E402
from sklearn.utils import estimator_checks  # noqa: E402

from fieldrun.sklearn import FieldClassifier, FieldEncoder  # noqa: E402

GOOD, BAD = ("good", "great", "film"), ("card", "cash", "transfer")
TEXTS = [f"{a} {b} {WORDS[i]}" for side in (GOOD, BAD) for i, a in enumerate(side) for b in side]
LABELS = ["up"] * 9 + ["down"] * 9


CHECKS = dict(enumerate(estimator_checks.estimator_checks_generator(FieldClassifier())))


@pytest.mark.parametrize("check", CHECKS, ids=lambda i: str(CHECKS[i][1].func.__name__))
def test_the_classifier_passes_every_check_on_fields(check: int) -> None:
    estimator, run = CHECKS[check]
    run(estimator)


@pytest.mark.parametrize(
    "check",
    [
        estimator_checks.check_estimator_cloneable,
        estimator_checks.check_estimator_repr,
        estimator_checks.check_do_not_raise_errors_in_init_or_set_params,
        estimator_checks.check_get_params_invariance,
        estimator_checks.check_mixin_order,
        estimator_checks.check_no_attributes_set_in_init,
        estimator_checks.check_parameters_default_constructible,
        estimator_checks.check_set_params,
        estimator_checks.check_valid_tag_types,
    ],
)
def test_the_encoder_passes_the_checks_that_need_no_numbers(check: Any) -> None:
    check("FieldEncoder", FieldEncoder())


@pytest.fixture
def encoder(toy_bundle: Path) -> FieldEncoder:
    return FieldEncoder(toy_bundle, engine="numpy")


@pytest.fixture
def classifier(toy_bundle: Path) -> FieldClassifier:
    return FieldClassifier(str(toy_bundle), engine="numpy", name="mine")


def test_texts_become_fields(encoder: FieldEncoder, toy_bundle: Path) -> None:
    with fieldrun.load(toy_bundle, engine="numpy") as model:
        fields = model.field(TEXTS)
        np.testing.assert_array_equal(encoder.fit_transform(TEXTS), fields)
        np.testing.assert_array_equal(encoder.transform(np.array(TEXTS)), fields)
        short = encoder.set_params(dim=8, normalize=True).transform(TEXTS)
        np.testing.assert_array_equal(short, model.encode(TEXTS, truncate_dim=8, normalize_embeddings=True))
    assert [*encoder.get_feature_names_out()] == [f"fieldencoder{i}" for i in range(8)]
    with pytest.raises(InputTextError, match="text 1 is empty"):
        encoder.transform(["a", ""])
    with pytest.raises(BundleError, match="no bundle at"):
        encoder.set_params(bundle=toy_bundle / "nowhere").fit(TEXTS)


def test_a_frame_of_fields_keeps_its_index(encoder: FieldEncoder) -> None:
    pandas: Any = pytest.importorskip("pandas")
    texts = pandas.Series(TEXTS, index=range(5, 5 + len(TEXTS)))
    frame = encoder.set_output(transform="pandas").fit_transform(texts)
    assert (frame.shape, frame.index[0], frame.columns[-1]) == ((18, 32), 5, "fieldencoder31")


def test_a_classifier_of_texts_is_a_head(classifier: FieldClassifier, toy_bundle: Path) -> None:
    with pytest.raises(NotFittedError):
        classifier.predict(TEXTS)
    assert classifier.fit(TEXTS, LABELS).score(TEXTS, LABELS) == 1
    assert classifier.classes_.tolist() == ["down", "up"]
    with fieldrun.load(toy_bundle, engine="numpy") as model:
        model.attach(classifier.head_)
        np.testing.assert_allclose(classifier.predict_proba(TEXTS), model.predict_proba(TEXTS, "mine"), atol=1e-6)
        assert classifier.predict(TEXTS).tolist() == model.predict(TEXTS, "mine")
        on_fields = clone(classifier).fit(model.field(TEXTS), LABELS)
    np.testing.assert_array_equal(on_fields.head_.weight, classifier.head_.weight)
    with pytest.raises(ValueError, match="requires y"):
        classifier.fit(TEXTS, None)  # type: ignore[arg-type]
    with pytest.raises(LabelError, match="y has 1 class, 'up'"):
        classifier.fit(TEXTS[:9], LABELS[:9])


@pytest.mark.parametrize("labels", [[1, 10] * 9, [True, False] * 9, [-1, 2, 10] * 6])
def test_classes_keep_their_type_and_order(classifier: FieldClassifier, labels: list[int]) -> None:
    classifier.fit(TEXTS, labels)
    assert classifier.classes_.tolist() == sorted(set(labels))
    assert {*classifier.predict(TEXTS).tolist()} <= set(labels)
    found = classifier.predict_proba(TEXTS)
    assert found.shape == (18, len(set(labels)))
    named = [classifier.head_.labels.index(str(label)) for label in classifier.classes_.tolist()]
    assert sorted(named) == [*range(len(named))]


def test_every_list_of_texts_is_taken(classifier: FieldClassifier) -> None:
    expected = classifier.fit(TEXTS, LABELS).predict(TEXTS).tolist()
    kinds: list[Any] = [tuple, iter, deque, UserList, np.array, lambda texts: dict(enumerate(texts)).values()]
    for kind in kinds:
        assert classifier.predict(kind(TEXTS)).tolist() == expected
        assert clone(classifier).fit(kind(TEXTS), LABELS).predict(TEXTS).tolist() == expected
    pairs = list(zip(TEXTS, TEXTS, strict=True))
    paired = clone(classifier).fit(iter(pairs), LABELS)
    assert paired.predict(zip(TEXTS, TEXTS, strict=True)).tolist() == paired.predict(pairs).tolist()
    with pytest.raises(InputTextError, match="this classifier was fitted on pairs"):
        paired.predict(TEXTS)


def test_what_is_no_list_of_texts_is_refused_by_name(classifier: FieldClassifier) -> None:
    pandas: Any = pytest.importorskip("pandas")
    classifier.fit(TEXTS, LABELS)
    frame = pandas.DataFrame({"id": range(18), "text": TEXTS})
    for texts in (set(TEXTS), dict.fromkeys(TEXTS), UserDict(dict.fromkeys(TEXTS)), frame, "a text"):
        for use in (classifier.predict, lambda rows: clone(classifier).fit(rows, LABELS)):
            with pytest.raises(InputTextError, match=f"texts must be a list, not {type(texts).__name__}"):
                use(texts)
    wrong: list[tuple[Any, str]] = [
        ([None, *TEXTS[1:]], "text 0 is NoneType"),
        (np.array(TEXTS).reshape(-1, 1), "item 0 is not a pair"),
        ([text.encode() for text in TEXTS], "text 0 is bytes"),
    ]
    for bad, message in wrong:
        with pytest.raises(InputTextError, match=message):
            classifier.predict(bad)


def test_copies_weigh_once_and_stand_on_one_side(classifier: FieldClassifier) -> None:
    copies = [*TEXTS, *(f" {text.upper()}\u200b" for text in TEXTS), TEXTS[0].replace("o", "\uff4f")]
    assert classifier.fit(copies, [*LABELS * 2, LABELS[0]]).head_.about["copies"] == 19
    pairs = list(zip(TEXTS, TEXTS, strict=True))
    assert clone(classifier).fit([*pairs, *pairs], LABELS * 2).head_.about["copies"] == 18


def test_a_text_of_which_nothing_is_known_is_an_error_on_request(classifier: FieldClassifier) -> None:
    classifier.fit(TEXTS, LABELS)
    assert len(classifier.predict(["\U0001f600"])) == 1
    with pytest.raises(InputTextError, match="text 0 has no known token"):
        classifier.set_params(unknown="error").predict(["\U0001f600"])
    with pytest.raises(UnknownName, match="unknown unknown 'reject'; known: answer, error"):
        classifier.set_params(unknown="reject").predict(TEXTS)


def test_pairs_of_texts(classifier: FieldClassifier) -> None:
    pairs = [(a, b) for a in TEXTS[::4] for b in TEXTS[::4]]
    labels = [LABELS[TEXTS.index(a)] == LABELS[TEXTS.index(b)] for a, b in pairs]
    assert classifier.fit(pairs, labels).head_.kind == "pair"
    assert classifier.score(pairs, labels) > 0.8


def test_pipelines_searches_and_cross_validation(encoder: FieldEncoder, classifier: FieldClassifier) -> None:
    pipeline = make_pipeline(encoder, LogisticRegression())
    assert pipeline.fit(TEXTS, LABELS).score(TEXTS, LABELS) == 1
    search = GridSearchCV(pipeline, {"fieldencoder__dim": [1, 32], "logisticregression__C": [1.0, 10.0]}, cv=3)
    assert search.fit(TEXTS, LABELS).best_score_ > 0.7
    assert {*search.cv_results_["params"][0]} == {"fieldencoder__dim", "logisticregression__C"}
    assert make_pipeline(encoder, FieldClassifier()).fit(TEXTS, LABELS).predict(TEXTS).tolist() == LABELS
    scores = cross_val_score(classifier, TEXTS, LABELS, cv=3, n_jobs=1)
    assert scores.mean() > 0.7


def test_copies_and_pickles_hold_a_path_and_settings(
    encoder: FieldEncoder, classifier: FieldClassifier, tmp_path: Path
) -> None:
    pipeline = make_pipeline(encoder, classifier).fit(TEXTS, LABELS)
    expected = pipeline.predict_proba(TEXTS)
    stored = io.BytesIO()
    joblib.dump(pipeline, stored)
    assert len(stored.getvalue()) < 10_000
    stored.seek(0)
    for copy in (pickle.loads(pickle.dumps(pipeline)), joblib.load(stored)):
        np.testing.assert_array_equal(copy.predict_proba(TEXTS), expected)
    again = clone(pipeline)
    assert again[0].bundle == encoder.bundle
    with pytest.raises(NotFittedError):
        again.predict(TEXTS)


def test_evaluate_takes_an_estimator(classifier: FieldClassifier, tmp_path: Path) -> None:
    from fieldrun.evaluation.evaluate import evaluate

    rows = "\n".join(f"{text}\t{label}" for text, label in zip(TEXTS, LABELS, strict=True))
    (tmp_path / "dev.tsv").write_text(f"text\tlabel\n{rows}\n", "utf-8")
    found = evaluate(classifier.fit(TEXTS, LABELS), tmp_path / "dev.tsv")
    assert (found.accuracy, found.labels) == (1, ("down", "up"))
