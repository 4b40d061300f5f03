"""The OpenAPI 3.1 document of the service, with the tasks and limits of the bundle that answers.

(https://spec.openapis.org/oas/v3.1.1)
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fieldrun._version import __version__
from fieldrun_runtimes.model import FieldModel

from .limits import Limits
from .questions import KEYS

__all__ = ["describe"]

_ERRORS = {
    "400": "The request, or one of its texts, is wrong.",
    "408": "The body did not arrive in time.",
    "413": "The body is too large, or has too many texts.",
    "415": "The body is not sent as JSON.",
    "500": "The service failed; its log has the details.",
    "503": "Too many requests at once, or no answer in time; try again.",
}
_NUMBER, _INTEGER, _STRING = {"type": "number"}, {"type": "integer"}, {"type": "string"}
_COUNTS = {
    "tokens": _INTEGER | {"description": "Tokens read, special tokens included; of a pair, those of both texts."},
    "dropped": _INTEGER | {"description": "Tokens cut off because the text is too long."},
}


def describe(model: FieldModel, limits: Limits) -> dict[str, Any]:
    """Return the document."""
    tasks = list(model.tasks)
    keys = _keys(tasks, limits, model.get_embedding_dimension())
    scored = _object({"label": _STRING, "score": _NUMBER})
    results = {
        "/predict": {"labels": _list(scored) | {"description": "The best labels, best first."}},
        "/scores": {
            "scores": _list(_NUMBER) | {"description": "One probability per label, in the order of `labels`."},
            "rejection": _NUMBER | {"description": "Larger: less like any of the labels."},
        },
        "/field": {"field": _list(_NUMBER) | {"description": "The meaning field, float32."}},
    }
    facts: Mapping[str, Mapping[str, Any]] = {
        "/predict": {"task": _STRING},
        "/scores": {"task": _STRING, "labels": _list(_STRING)},
        "/field": {"dim": _INTEGER},
    }
    about = {
        "/predict": "The best labels of each text.",
        "/scores": "The probability of every label of a task.",
        "/field": "The meaning field of each text.",
    }
    paths: dict[str, Any] = {}
    for path, names in KEYS.items():
        result = {"oneOf": [_object(results[path] | _COUNTS), {"$ref": "#/components/schemas/Error"}]}
        answer = _object({"bundle": _BUNDLE, **facts[path], "results": _list(result)})
        body = {"type": "object", "additionalProperties": False, "properties": {name: keys[name] for name in names}}
        given: dict[str, Any] = {"text": "a film to remember"}
        if path != "/field" and tasks:
            given["task"] = next((task for task in tasks if model.kind(task) == "single"), tasks[0])
        body["examples"] = [given]
        paths[path] = {
            "post": {
                "summary": about[path],
                "operationId": path[1:],
                "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
                "responses": {"200": _content("One result per text, in order.", answer)} | _errors(*_ERRORS),
            }
        }
    return {
        "openapi": "3.1.0",
        "info": {
            "title": f"fieldrun: {model.manifest.name}",
            "version": __version__,
            "description": "Numbers are exact: read as float64 and rounded to float32, they are those of the model.",
        },
        "paths": paths | _plain(),
        "components": {"schemas": {"Error": _object({"error": _ERROR})}},
    }


_BUNDLE = _STRING | {"description": "The first 12 digits of the sha256 of the bundle that gave this answer."}
_ERROR = {
    "type": "object",
    "required": ["type", "message", "exit_code"],
    "properties": {
        "type": _STRING | {"description": "The name of fieldrun's error."},
        "message": _STRING,
        "exit_code": _INTEGER | {"description": "The exit code that the command line has for it."},
        "index": _INTEGER | {"description": "The position of the text that it is about."},
    },
}


def _keys(tasks: Sequence[str], limits: Limits, dim: int) -> dict[str, Any]:
    text = _STRING | {"maxLength": limits.characters}
    pair = _list(text) | {"minItems": 2, "maxItems": 2}
    many = {"minItems": 1, "maxItems": limits.texts}
    return {
        "text": text | {"description": "One text. Give exactly one of text, texts, pair and pairs."},
        "texts": _list(text) | many,
        "pair": pair | {"description": "Two texts, for a task that compares them."},
        "pairs": _list(pair) | many,
        "task": _STRING | {"enum": list(tasks), "description": "May be left out if there is only one."},
        "top_k": _INTEGER | {"minimum": 1, "default": 1, "description": "How many labels to return."},
        "threshold": _NUMBER | {"minimum": 0, "maximum": 1, "default": 0, "description": "Leave out labels below it."},
        "dim": _INTEGER | {"minimum": 1, "maximum": dim, "description": "Keep the first numbers of each field."},
        "on_error": _STRING
        | {
            "enum": ["fail", "report"],
            "default": "fail",
            "description": "For a text that cannot be answered: fail the request, or report an error in its place.",
        },
    }


def _plain() -> dict[str, Any]:
    """Return the paths without a body."""
    health = {
        "type": "object",
        "required": ["status", "fieldrun", "bundle", "reload_error"],
        "properties": {
            "status": _STRING | {"enum": ["ok", "outdated"]},
            "fieldrun": _STRING,
            "bundle": {"type": "object"},
            "reload_error": {"oneOf": [_ERROR, {"type": "null"}]},
        },
    }
    reloaded = _object({"bundle": _BUNDLE, "reloaded": {"type": "boolean"}})
    metrics = {"200": {"description": "Metrics as text.", "content": {"text/plain": {"schema": _STRING}}}}
    return {
        "/health": {
            "get": {
                "summary": "The bundle that answers, and why a newer one could not be loaded.",
                "operationId": "health",
                "responses": {"200": _content("The service answers.", health)},
            }
        },
        "/metrics": {
            "get": {"summary": "Metrics for Prometheus.", "operationId": "metrics", "responses": metrics},
        },
        "/reload": {
            "post": {
                "summary": "Load the bundle again if its path leads to another one now.",
                "operationId": "reload",
                "responses": {"200": _content("The bundle that answers now.", reloaded)} | _errors("500"),
            }
        },
    }


def _list(items: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "array", "items": items}


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "required": list(properties), "properties": properties}


def _content(description: str, schema: Mapping[str, Any]) -> dict[str, Any]:
    return {"description": description, "content": {"application/json": {"schema": schema}}}


def _errors(*statuses: str) -> dict[str, Any]:
    error = {"$ref": "#/components/schemas/Error"}
    return {status: _content(_ERRORS[status], error) for status in statuses}
