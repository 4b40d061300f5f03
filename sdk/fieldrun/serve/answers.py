"""A request's body in, the answer's body out: the work of a model thread."""

from __future__ import annotations

import json
import re
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
        bad = _bad(question, limits)
        rows = iter(_good_rows(served.model, endpoint, question, name, bad))
    except FieldrunError as error:
        raise Refused(status_of(error), error) from error
    results = [{"error": error_object(bad[i], i)} if i in bad else next(rows) for i in range(len(question.items))]
    value = {"bundle": served.short, **facts, "results": results}
    return as_json(value), len(results) - len(bad), list(bad.values())


def _facts(model: FieldModel[str | None], endpoint: str, question: Question) -> tuple[dict[str, Any], str]:
    """Return what is said once for all texts, and the name of the task; raise `UsageError` for a wrong one."""
    if endpoint == "/field":
        return {"dim": question.dim or model.get_embedding_dimension()}, ""
    labels = model.labels(question.task)
    name = question.task or model.tasks[0]
    if (model.kind(name) == "pair") != question.paired:
        raise InputTextError(f"task {name!r} takes {'pairs' if model.kind(name) == 'pair' else 'single texts'}")
    return {"task": name} | ({"labels": labels} if endpoint == "/scores" else {}), name


def _bad(question: Question, limits: Limits) -> dict[int, FieldrunError]:
    """Return the errors of the texts that are not well formed, by position; the first is raised unless reported."""
    bad: dict[int, FieldrunError] = {}
    for i in range(len(question.items)):
        try:
            question.check(i, limits)
        except (InputTextError, TextTooLong) as error:
            _note(question, bad, i, error)
    return bad


def _note(question: Question, bad: dict[int, FieldrunError], i: int, error: FieldrunError) -> None:
    """Note the error of the text at position `i`, or raise it unless it is to be reported."""
    if not question.report:
        raise Refused(400, error, index=i) from error
    bad[i] = error


def _good_rows(
    model: FieldModel[str | None], endpoint: str, question: Question, task: str, bad: dict[int, FieldrunError]
) -> list[dict[str, Any]]:
    """Return what is said of each item that is not in `bad`, and add to it those that the model refuses."""
    good = [i for i in range(len(question.items)) if i not in bad]
    try:
        return _rows(model, endpoint, question, task, [question.items[i] for i in good]) if good else []
    except (InputTextError, TextTooLong):  # which ones are they?
        before = len(bad)
        for i in good:
            try:
                model.forward(question.items[i] if question.paired else [question.items[i]])
            except (InputTextError, TextTooLong) as error:
                _note(question, bad, i, type(error)(re.sub(r"^text \d+", f"text {i}", str(error))))
        if len(bad) == before:
            raise
        return _good_rows(model, endpoint, question, task, bad)


def _rows(
    model: FieldModel[str | None], endpoint: str, question: Question, task: str, items: Sequence[Any]
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
    each = zip(known, tokens.tolist(), dropped.tolist(), strict=True)
    counts = [{"known": share, "tokens": read, "dropped": lost} for share, read, lost in each]
    if endpoint == "/field":
        return [{"field": field} | count for field, count in zip(encoding.field.tolist(), counts, strict=True)]
    if endpoint == "/scores":
        scores = model.scores_of(encoding, task, other).tolist()
        rejection = model.rejection_of(encoding, task, other).tolist()
        rows = zip(scores, rejection, counts, strict=True)
        return [{"scores": row, "rejection": value} | count for row, value, count in rows]
    order, best = model.best_of(encoding, task, other, k=question.top_k)
    labels, rejected = model.labels(task), model.rejected(encoding, other)
    shown = (best >= question.threshold) & ~rejected[:, None]  # in float32, as FieldModel.top_k compares
    return [
        {"labels": [{"label": labels[j], "score": row[i]} for i, j in enumerate(js) if kept[i]]} | count
        for js, row, kept, count in zip(order.tolist(), best.tolist(), shown.tolist(), counts, strict=True)
    ]
