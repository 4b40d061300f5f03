"""A request's body in, the answer's body out: the work of a model thread."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from fieldrun.errors import FieldrunError, InputTextError, TextTooLong
from fieldrun_runtimes.model import Encoding, FieldModel

from .current import Served
from .questions import Limits, Question, Refused, error_object, status_of

__all__ = ["answer", "as_json"]


def as_json(value: Any) -> bytes:
    """Return `value` as UTF-8 JSON. A float has the digits that give the same float64 again."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8")


def answer(served: Served, endpoint: str, body: bytes, limits: Limits) -> tuple[bytes, int, list[FieldrunError]]:
    """Answer the request `body` to `endpoint` with the model of `served` alone.

    Returns the answer's body, the number of texts (or pairs) answered, and the errors that it reports in their place.

    Texts that cannot be answered fail the request, or are reported in their place if it asks for that; the others are
    run together, as one call of Python would run them.

    Raises:
        Refused: the request is wrong, or one of its texts.
    """
    question = Question.read(endpoint, body, limits)
    try:
        facts, name = _facts(served.model, endpoint, question)
        bad = _bad(served.model, question, limits, encode=False)
        good = [item for i, item in enumerate(question.items) if i not in bad]
        try:
            found = _rows(served.model, endpoint, question, name, good) if good else []
        except (InputTextError, TextTooLong):  # only the model finds a text without tokens, or one with too many
            bad = _bad(served.model, question, limits, encode=True)
            good = [item for i, item in enumerate(question.items) if i not in bad]
            found = _rows(served.model, endpoint, question, name, good) if good else []
        rows = iter(found)
    except FieldrunError as error:
        raise Refused(status_of(error), error) from error
    results = [{"error": error_object(bad[i], i)} if i in bad else next(rows) for i in range(len(question.items))]
    value = {"bundle": served.short, **facts, "results": results}
    return as_json(value), len(good), list(bad.values())


def _facts(model: FieldModel, endpoint: str, question: Question) -> tuple[dict[str, Any], str]:
    """Return what is said once for all texts, and the name of the task; raise `UsageError` for a wrong one."""
    if endpoint == "/field":
        return {"dim": question.dim or model.get_embedding_dimension()}, ""
    labels = model.labels(question.task)
    name = question.task or model.tasks[0]
    if (model.kind(name) == "pair") != question.paired:
        raise InputTextError(f"task {name!r} takes {'pairs' if model.kind(name) == 'pair' else 'single texts'}")
    return {"task": name} | ({"labels": labels} if endpoint == "/scores" else {}), name


def _bad(model: FieldModel, question: Question, limits: Limits, *, encode: bool) -> dict[int, FieldrunError]:
    """Return the errors of the texts that cannot be answered, by position; the first is raised unless reported.

    `encode` runs each of them, one by one.
    """
    bad: dict[int, FieldrunError] = {}
    for i, item in enumerate(question.items):
        try:
            question.check(i, limits)
            if encode:
                for text in item if question.paired else [item]:
                    model.forward([text])
        except (InputTextError, TextTooLong) as cause:
            error = type(cause)(str(cause).replace("text 0 ", f"text {i} ", 1))
            if not question.report:
                raise Refused(400, error, index=i) from cause
            bad[i] = error
    return bad


def _rows(
    model: FieldModel, endpoint: str, question: Question, task: str, items: Sequence[Any]
) -> list[dict[str, Any]]:
    """Return what is said of each of `items`, all of them good."""
    n = len(items)
    other: Encoding | None = None
    if question.paired:
        both = model.forward([a for a, _ in items] + [b for _, b in items])
        encoding, other = both.part(0, n), both.part(n, 2 * n)
        tokens, dropped = encoding.tokens + other.tokens, encoding.dropped + other.dropped
        known = list(map(min, encoding.known.tolist(), other.known.tolist()))
    else:
        encoding = model.forward(items, dim=question.dim)
        tokens, dropped, known = encoding.tokens, encoding.dropped, encoding.known.tolist()
    each = zip(tokens.tolist(), known, dropped.tolist(), strict=True)
    counts = [{"tokens": a, "known": share, "dropped": b} for a, share, b in each]
    if endpoint == "/field":
        return [{"field": field} | count for field, count in zip(encoding.field.tolist(), counts, strict=True)]
    scores = model.scores_of(encoding, task, other)
    if endpoint == "/scores":
        rejection = model.rejection_of(encoding, task, other).tolist()
        rows = zip(scores.tolist(), rejection, counts, strict=True)
        return [{"scores": row, "rejection": value} | count for row, value, count in rows]
    labels, best = model.labels(task), (-scores).argsort(1, kind="stable")[:, : question.top_k].tolist()
    # in float32, as FieldModel.top_k compares
    shown = ((scores >= question.threshold) & ~model.rejected(encoding, other)[:, None]).tolist()
    return [
        {"labels": [{"label": labels[j], "score": row[j]} for j in order if enough[j]]} | count
        for row, order, enough, count in zip(scores.tolist(), best, shown, counts, strict=True)
    ]
