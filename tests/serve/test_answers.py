"""Answers are those of `FieldModel`, to the bit, and each wrong request has an error that says why."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fieldrun
from fieldrun.errors import FieldrunError
from fieldrun.serve import Application, Limits, app
from tests.serve.conftest import JSON, ask

TEXTS = ["the rain was wet", "a very good film", "transfer my cash to the card", "good, bad, and this one too: 7!"]
PAIRS = [["the rain", "it is wet"], ["a good film", "a bad film"]]


@pytest.fixture(scope="module", params=["native", "numpy"])
def model(request: pytest.FixtureRequest, toy_bundle: Path) -> fieldrun.FieldModel:
    try:
        return fieldrun.load(toy_bundle, engine=request.param)
    except FieldrunError:
        pytest.skip("the native engine was not compiled")


@pytest.fixture(scope="module")
def application(model: fieldrun.FieldModel) -> Application:
    return app(model.path, engine=model.engine)


def test_predict_is_top_k(application: Application, model: fieldrun.FieldModel) -> None:
    found = ask(application, "/predict", {"texts": TEXTS, "task": "intent", "top_k": 3, "threshold": 0.2}).json
    expected = model.top_k(TEXTS, "intent", k=3, threshold=0.2)
    assert found["task"] == "intent"
    assert [[(s["label"], s["score"]) for s in row["labels"]] for row in found["results"]] == expected
    assert {len(row["labels"]) for row in found["results"]} != {3}, "the threshold must leave some out"
    best = ask(application, "/predict", {"texts": TEXTS, "task": "mood"}).json["results"]
    assert [row["labels"][0]["label"] for row in best] == model.predict(TEXTS, "mood")


def test_a_threshold_is_compared_as_python_compares_it(application: Application, model: fieldrun.FieldModel) -> None:
    score = model.top_k(TEXTS[:1], "mood", k=1)[0][0].score
    threshold = float(str(np.float32(score)))  # rounded to float32 it is the score, as float64 it may be above
    found = ask(application, "/predict", {"text": TEXTS[0], "task": "mood", "threshold": threshold}).json
    assert len(found["results"][0]["labels"]) == len(model.top_k(TEXTS[:1], "mood", k=1, threshold=threshold)[0]) == 1


def test_scores_are_predict_proba(application: Application, model: fieldrun.FieldModel) -> None:
    found = ask(application, "/scores", {"texts": TEXTS, "task": "intent"}).json
    assert tuple(found["labels"]) == model.labels("intent")
    scores = np.array([row["scores"] for row in found["results"]], np.float32)
    assert scores.tobytes() == model.predict_proba(TEXTS, "intent").tobytes()
    rejection = np.array([row["rejection"] for row in found["results"]], np.float32)
    assert rejection.tobytes() == model.rejection(TEXTS, "intent").tobytes()


def test_pairs(application: Application, model: fieldrun.FieldModel) -> None:
    found = ask(application, "/scores", {"pairs": PAIRS, "task": "same"}).json["results"]
    expected = model.predict_proba([(a, b) for a, b in PAIRS], "same")
    assert np.array([row["scores"] for row in found], np.float32).tobytes() == expected.tobytes()
    one = ask(application, "/scores", {"pair": PAIRS[0], "task": "same"}).json["results"]
    assert one[0]["tokens"] == sum(len(ids) for ids in model.token_ids(PAIRS[0]))


def test_fields(application: Application, model: fieldrun.FieldModel) -> None:
    for settings, expected in (({}, model.field(TEXTS)), ({"dim": 5}, model.field(TEXTS, dim=5))):
        found = ask(application, "/field", {"texts": TEXTS, **settings}).json
        assert found["dim"] == expected.shape[1]
        assert np.array([row["field"] for row in found["results"]], np.float32).tobytes() == expected.tobytes()


def test_a_text_that_was_cut_says_so(application: Application, model: fieldrun.FieldModel) -> None:
    text = "rain " * 400
    (found,) = ask(application, "/predict", {"text": text, "task": "mood"}).json["results"]
    expected = model.forward([text])
    assert (found["tokens"], found["dropped"]) == (expected.tokens[0], expected.dropped[0])
    assert found["dropped"] > 0


def test_the_task_may_be_left_out_where_there_is_one(toy_bundle: Path, application: Application) -> None:
    assert ask(application, "/predict", {"text": "good"}).error["message"] == "name the task: mood, intent, same"


BAD_TEXTS: list[Any] = ["good", " ", "bad", 7, "\ud800", "x" * 300, None]


def test_bad_texts_are_reported_in_their_place(toy_bundle: Path) -> None:
    application = app(toy_bundle, limits=Limits(characters=200))
    found = ask(application, "/predict", {"texts": BAD_TEXTS, "task": "mood", "on_error": "report"})
    assert found.status == 200
    results = found.json["results"]
    with fieldrun.load(toy_bundle) as model:
        assert [results[i]["labels"][0]["label"] for i in (0, 2)] == model.predict(["good", "bad"], "mood")
    errors = {i: row["error"] for i, row in enumerate(results) if "error" in row}
    assert {i: (error["type"], error["exit_code"], error["index"]) for i, error in errors.items()} == {
        1: ("InputTextError", 2, 1),
        3: ("InputTextError", 2, 3),
        4: ("InputTextError", 2, 4),
        5: ("TextTooLong", 10, 5),
        6: ("InputTextError", 2, 6),
    }
    assert errors[1]["message"] == "text 1 is empty or only whitespace; leave it out"
    assert errors[3]["message"] == "text 3 is int, not a string"
    metrics = ask(application, "/metrics").body.decode()
    assert 'fieldrun_errors_total{type="InputTextError"} 4' in metrics
    assert "fieldrun_texts_total 2" in metrics


def test_a_bad_text_fails_the_request_unless_it_is_to_be_reported(application: Application) -> None:
    found = ask(application, "/predict", {"texts": ["good", "", 7], "task": "mood"})
    assert (found.status, found.error["index"], found.error["type"]) == (400, 1, "InputTextError")
    found = ask(application, "/scores", {"pairs": [["a", "b"], ["a"]], "task": "same"})
    assert found.error["message"].startswith("item 1 is not a pair")


UNKNOWN = "\U0001f600 \u0e44"
CONTROL = "\u200b"


def test_what_only_the_model_refuses_is_reported_in_its_place(application: Application) -> None:
    found = ask(application, "/predict", {"texts": ["good", CONTROL, "bad"], "task": "mood", "on_error": "report"})
    assert [row.get("error", {}).get("index") for row in found.json["results"]] == [None, 1, None]
    assert found.json["results"][1]["error"]["message"].startswith("text 1 has no token")
    found = ask(application, "/scores", {"texts": ["good", CONTROL], "task": "mood"})
    assert (found.status, found.error["index"]) == (400, 1)
    found = ask(application, "/scores", {"pairs": [["a", "b"], ["a", CONTROL]], "task": "same", "on_error": "report"})
    assert found.json["results"][1]["error"]["index"] == 1


@pytest.mark.parametrize("unknown", ["answer", "reject", "error"])
def test_a_text_of_which_nothing_is_known_is_treated_as_asked(toy_bundle: Path, unknown: str) -> None:
    application = app(toy_bundle, unknown=unknown)
    found = ask(application, "/predict", {"texts": ["good", UNKNOWN], "task": "mood", "on_error": "report"})
    good, nothing = found.json["results"]
    assert (good["known"], len(good["labels"])) == (1.0, 1)
    if unknown == "error":
        assert nothing["error"]["message"].startswith("text 1 has no known token")
    else:
        assert (nothing["known"], len(nothing["labels"])) == (0.0, unknown == "answer")
    pairs = {"pairs": [["good", UNKNOWN], ["good", "bad"]], "task": "same", "on_error": "report"}
    first, second = ask(application, "/predict", pairs).json["results"]
    assert (bool(first.get("labels")), len(second["labels"])) == (unknown == "answer", 1)
    if unknown == "reject":
        scores = ask(application, "/scores", {"texts": ["good", UNKNOWN], "task": "mood"}).json["results"]
        assert scores[1]["rejection"] == 1 > scores[0]["rejection"]


def test_all_texts_may_be_bad(application: Application) -> None:
    found = ask(application, "/field", {"texts": ["", " "], "on_error": "report"}).json["results"]
    assert [row["error"]["index"] for row in found] == [0, 1]


def test_a_text_over_the_token_limit_is_an_error_if_asked_for(toy_bundle: Path) -> None:
    application = app(toy_bundle, overflow="error")
    texts = ["good", "rain " * 400]
    found = ask(application, "/field", {"texts": texts, "on_error": "report"}).json["results"]
    assert "field" in found[0]
    assert found[1]["error"]["type"] == "TextTooLong"
    assert ask(application, "/field", {"texts": texts}).error["exit_code"] == 10


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("/predict", {"text": "good", "task": "nope"}, "unknown task 'nope'; known: mood, intent, same"),
        ("/predict", {"text": "good", "task": "same"}, "task 'same' takes pairs"),
        ("/predict", {"pair": ["good", "bad"], "task": "mood"}, "task 'mood' takes single texts"),
        ("/predict", {"task": "mood"}, "give exactly one of text or texts or pair or pairs"),
        ("/predict", {"text": "a", "texts": ["b"], "task": "mood"}, "give exactly one of"),
        ("/predict", {"texts": [], "task": "mood"}, "texts must be a list with at least one item"),
        ("/predict", {"texts": "good", "task": "mood"}, "texts must be a list"),
        ("/predict", {"text": "good", "task": 3}, "task must be a string"),
        ("/predict", {"text": "good", "task": "mood", "top_k": 0}, "top_k must be a positive integer"),
        ("/predict", {"text": "good", "task": "mood", "top_k": True}, "top_k must be a positive integer"),
        ("/predict", {"text": "good", "task": "mood", "threshold": 1.5}, "threshold must be a number from 0 to 1"),
        ("/predict", {"text": "good", "task": "mood", "on_error": []}, "on_error must be 'fail' or 'report'"),
        ("/predict", {"text": "good", "tsk": "mood"}, "unknown key 'tsk'; /predict takes: text, texts, on_error"),
        ("/scores", {"text": "good", "task": "mood", "top_k": 2}, "unknown key 'top_k'"),
        ("/field", {"text": "good", "dim": 0}, "dim must be a whole number from 1 to 32"),
        ("/field", {"text": "good", "dim": 33}, "dim must be a whole number from 1 to 32"),
        ("/field", {"pair": ["good", "bad"]}, "unknown key 'pair'"),
        ("/field", ["good"], "the body must be a JSON object"),
    ],
)
def test_a_wrong_request_says_why(application: Application, path: str, value: object, message: str) -> None:
    found = ask(application, path, value)
    assert found.status == 400
    assert message in found.error["message"]
    assert found.error["exit_code"] == 2
    assert len(found.json["bundle"]) == 12


@pytest.mark.parametrize(
    "body", [b"", b"{", b'{"text": NaN}', b"\xff\xfe", b'{"text": "\xff"}', b"[" * 100_000, b'{"text": 1e999}']
)
def test_what_is_no_json_is_refused(application: Application, body: bytes) -> None:
    assert ask(application, "/field", chunks=[body]).status == 400


def test_a_byte_order_mark_is_no_part_of_the_text(application: Application) -> None:
    body = b"\xef\xbb\xbf" + json.dumps({"text": "good"}).encode()
    assert ask(application, "/field", chunks=[body[:7], body[7:]]).status == 200


def test_paths_methods_and_types(application: Application) -> None:
    found = ask(application, "/nope")
    assert (found.status, found.error["type"]) == (404, "UnknownName")
    found = ask(application, "/predict", method="GET")
    assert (found.status, found.headers["allow"]) == (405, "POST")
    assert ask(application, "/health", method="HEAD").status == 200
    body = {"text": "good"}
    assert ask(application, "/field", body, headers={"content-type": "text/plain"}).status == 415
    assert ask(application, "/field", body, headers=JSON | {"content-encoding": "gzip"}).status == 415
    assert ask(application, "/field", body, headers={"content-type": "application/json; charset=utf-8"}).status == 200
    assert ask(application, "/field", body, root_path="/model").status == 200


def test_answers_fit_their_description(application: Application) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    document = ask(application, "/openapi.json").json

    def check(path: str, value: object, status: int = 200) -> None:
        call = document["paths"][path]["get" if value is None else "post"]
        found = ask(application, path, value)
        assert found.status == status
        schema = call["responses"][str(status)]["content"]["application/json"]["schema"]
        jsonschema.validate(found.json, schema | {"components": document["components"]})
        if value is not None and status == 200:
            body = call["requestBody"]["content"]["application/json"]["schema"]
            jsonschema.validate(value, body)
            jsonschema.validate(body["examples"][0], body)

    check("/predict", {"texts": TEXTS, "task": "intent", "top_k": 2})
    check("/predict", {"texts": ["good", ""], "task": "mood", "on_error": "report"})
    check("/predict", {"text": "good", "task": "nope"}, 400)
    check("/scores", {"pairs": PAIRS, "task": "same"})
    check("/field", {"text": "good", "dim": 3})
    check("/health", None)


def test_the_page_needs_no_network(application: Application) -> None:
    found = ask(application, "/docs")
    assert found.headers["content-type"] == "text/html; charset=utf-8"
    assert not re.findall(rb"(?:https?:)?//[\w.]+\.\w+", found.body)
    assert "connect-src 'self'" in found.headers["content-security-policy"]
