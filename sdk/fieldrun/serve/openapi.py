"""The OpenAPI 3.1 document of the service, with the tasks and limits of the bundle that answers.

(https://spec.openapis.org/oas/v3.1.1)
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fieldrun._version import __version__
from fieldrun_runtimes.model import FieldModel

from .questions import KEYS, Limits

__all__ = ["describe"]


def _type(kind: str, description: str = "", **more: Any) -> dict[str, Any]:
    return {"type": kind} | ({"description": description} if description else {}) | more


def _list(items: Mapping[str, Any], description: str = "", **more: Any) -> dict[str, Any]:
    return _type("array", description, items=items, **more)


def _object(properties: Mapping[str, Any], *optional: str) -> dict[str, Any]:
    return _type("object", required=[name for name in properties if name not in optional], properties=properties)


def _content(description: str, schema: Mapping[str, Any], kind: str = "application/json") -> dict[str, Any]:
    return {"description": description, "content": {kind: {"schema": schema}}}


_NUMBER, _INTEGER, _STRING = _type("number"), _type("integer"), _type("string")
_ERROR = {
    "type": _type("string", "The name of fieldrun's error."),
    "message": _STRING,
    "exit_code": _type("integer", "The exit code that the command line has for it."),
    "index": _type("integer", "The position of the text that it is about."),
}
_ERROR_REF = {"$ref": "#/components/schemas/Error"}
_ERRORS = {
    status: _content(description, _ERROR_REF)
    for status, description in {
        "400": "The request, or one of its texts, is wrong.",
        "408": "The body did not arrive in time.",
        "413": "The body is too large, or has too many texts.",
        "415": "The body is not sent as JSON.",
        "500": "The service failed; its log has the details.",
        "503": "Too many requests at once, or no answer in time; try again.",
    }.items()
}
_BUNDLE = _type("string", "The first 12 digits of the sha256 of the bundle that gave this answer.")
_LABELS = _list(
    _object({"label": _STRING, "score": _NUMBER}),
    "The best labels, best first; none for a text that the service rejects.",
)
_SCORES = _list(_NUMBER, "One probability per label, in the order of `labels`.")
_COUNTS = {
    "tokens": _type("integer", "Tokens read, special tokens included; of a pair, those of both texts."),
    "known": _type("number", "The share of its tokens that the vocabulary has; of a pair, the smaller share."),
    "dropped": _type("integer", "Tokens cut off because the text is too long."),
}
_ENDPOINTS: Mapping[str, tuple[str, dict[str, Any], dict[str, Any]]] = {
    "/predict": ("The best labels of each text.", {"task": _STRING}, {"labels": _LABELS}),
    "/scores": (
        "The probability of every label of a task.",
        {"task": _STRING, "labels": _list(_STRING)},
        {"scores": _SCORES, "rejection": _type("number", "Larger: less like any of the labels.")},
    ),
    "/field": (
        "The meaning field of each text.",
        {"dim": _INTEGER},
        {"field": _list(_NUMBER, "The meaning field, float32.")},
    ),
}
"""What each endpoint does, what its answer says once, and what it says of each text."""


def describe(model: FieldModel, limits: Limits) -> dict[str, Any]:
    """Return the document."""
    keys, tasks = _keys(model, limits), model.tasks
    paths: dict[str, Any] = {}

    def add(method: str, path: str, summary: str, responses: Mapping[str, Any], **more: Any) -> None:
        paths[path] = {method: {"summary": summary, "operationId": path[1:], "responses": responses, **more}}

    for path, (summary, facts, result) in _ENDPOINTS.items():
        given: dict[str, Any] = {"text": "a film to remember"}
        if path != "/field" and tasks:
            given["task"] = next((task for task in tasks if model.kind(task) == "single"), tasks[0])
        properties = {name: keys[name] for name in KEYS[path]}
        body = _type("object", additionalProperties=False, properties=properties, examples=[given])
        asked = {"required": True, "content": {"application/json": {"schema": body}}}
        results = _list({"oneOf": [_object(result | _COUNTS), _ERROR_REF]})
        answer = _content("One result per text, in order.", _object({"bundle": _BUNDLE, **facts, "results": results}))
        add("post", path, summary, {"200": answer} | _ERRORS, requestBody=asked)
    health = {
        "status": _type("string", enum=["ok", "outdated"]),
        "fieldrun": _STRING,
        "bundle": _type("object"),
        "reload_error": {"oneOf": [_object(_ERROR, "index"), _type("null")]},
    }
    summary = "The bundle that answers, and why a newer one could not be loaded."
    add("get", "/health", summary, {"200": _content("The service answers.", _object(health))})
    shown = _content("Metrics as text.", _STRING, "text/plain")
    add("get", "/metrics", "Metrics for Prometheus.", {"200": shown})
    reloaded = _content("The bundle that answers now.", _object({"bundle": _BUNDLE, "reloaded": _type("boolean")}))
    summary = "Load the bundle again if its path leads to another one now."
    add("post", "/reload", summary, {"200": reloaded, "500": _ERRORS["500"]})
    about = "Numbers are exact: read as float64 and rounded to float32, they are those of the model."
    return {
        "openapi": "3.1.0",
        "info": {"title": f"fieldrun: {model.manifest.name}", "version": __version__, "description": about},
        "paths": paths,
        "components": {"schemas": {"Error": _object({"error": _object(_ERROR, "index")})}},
    }


def _keys(model: FieldModel, limits: Limits) -> dict[str, Any]:
    text = _type("string", maxLength=limits.characters)
    pair = _list(text, minItems=2, maxItems=2)
    many: dict[str, Any] = {"minItems": 1, "maxItems": limits.texts}
    what = "For a text that cannot be answered: fail the request, or report an error in its place."
    return {
        "text": text | {"description": "One text. Give exactly one of text, texts, pair and pairs."},
        "texts": _list(text, **many),
        "pair": pair | {"description": "Two texts, for a task that compares them."},
        "pairs": _list(pair, **many),
        "task": _type("string", "May be left out if there is only one.", enum=list(model.tasks)),
        "top_k": _type("integer", "How many labels to return.", minimum=1, default=1),
        "threshold": _type("number", "Leave out labels below it.", minimum=0, maximum=1, default=0),
        "dim": _type(
            "integer", "Keep the first numbers of each field.", minimum=1, maximum=model.get_embedding_dimension()
        ),
        "on_error": _type("string", what, enum=["fail", "report"], default="fail"),
    }
