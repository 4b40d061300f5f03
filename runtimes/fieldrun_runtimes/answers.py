"""Texts in, the answers of several tasks out, from one forward pass: what `fieldrun run` and `fieldrun label` print."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, Literal, TypedDict, overload

import numpy as np
import numpy.typing as npt

from fieldrun.errors import FieldrunError, InputTextError, TextTooLong, UnknownName, UsageError
from fieldrun.evaluation.rows import as_list, split_pairs

from .model import FieldModel

__all__ = [
    "BATCH",
    "ON_ERROR",
    "Answer",
    "Failed",
    "FailedWhy",
    "Text",
    "answer",
    "check_on_error",
    "choose_tasks",
    "failed",
    "parse_line",
]

BATCH = 256
"""So many texts are answered at once: answers come early, and memory stays small."""

ON_ERROR = ("fail", "skip", "report")
"""What a text that cannot be answered does, see `answer`."""

Text = str | tuple[str, str]
"""A text, or a pair of texts."""


class Answer(TypedDict):
    """What the model says about one text, or one pair of texts, in one task."""

    text: Text
    task: str
    label: str | None
    """The best label; None for a text that the model was loaded to reject."""
    scores: dict[str, float]
    """Label -> probability, best first."""
    rejection: float
    """How little the text looks like any of the labels; larger is less."""
    known: float
    """The share of its tokens that the vocabulary has; of a pair, the smaller share."""
    tokens: int
    """Tokens that were read; of a pair, those of both texts."""
    dropped: int
    """Tokens that were cut off."""


class FailedWhy(TypedDict):
    """The name of an error's class, and its message."""

    type: str
    message: str


class Failed(TypedDict):
    """What stands in the place of the answers to a text that cannot be answered."""

    line: int
    """The number of the text, from 1."""
    error: FailedWhy


@overload
def answer(
    model: FieldModel,
    texts: Iterable[Text | FieldrunError],
    tasks: Sequence[str] = (),
    *,
    top: int | None = None,
    on_error: Literal["fail", "skip"] = "fail",
    lines: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> Iterator[Answer]: ...
@overload
def answer(
    model: FieldModel,
    texts: Iterable[Text | FieldrunError],
    tasks: Sequence[str] = (),
    *,
    top: int | None = None,
    on_error: str,
    lines: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> Iterator[Answer | Failed]: ...
def answer(
    model: FieldModel,
    texts: Iterable[Text | FieldrunError],
    tasks: Sequence[str] = (),
    *,
    top: int | None = None,
    on_error: str = "fail",
    lines: Sequence[int] | None = None,
    names: Sequence[str] | None = None,
) -> Iterator[Answer | Failed]:
    """Yield an answer for each text and task, in the order of the texts; one forward pass serves all the tasks.

    Args:
        model: a loaded model.
        texts: strings, or pairs of strings for pair tasks. An error of `parse_line` in the place of a text is treated
            like the error of a text that the model refuses.
        tasks: the tasks to answer, all of one kind; by default every task for such texts.
        top: the number of labels in `scores`; all by default.
        on_error: what a text that cannot be answered does: `"fail"` raises its error, after the texts before it are
            answered; `"skip"` leaves it out; `"report"` yields one `Failed` in its place.
        lines: the number of each text in `Failed`, from 1 on by default.
        names: what errors call each text, such as "line 3".

    Raises:
        InputTextError, TextTooLong: with `"fail"`, a text that the model refuses.
        UnknownName, UsageError: the model does not have a task, or not for such texts.
    """
    check_on_error(on_error)
    listed = as_list(texts, "texts")
    good = next((text for text in listed if not isinstance(text, FieldrunError)), None)
    if good is not None:
        paired = not isinstance(good, str)
        chosen = choose_tasks(model, tasks, paired=paired)
        if any((model.kind(task) == "pair") != paired for task in chosen):
            raise UsageError(f"{chosen[0]} takes {'single texts, not pairs' if paired else 'pairs, not single texts'}")
        labels = {task: model.labels(task) for task in chosen}
    for start in range(0, len(listed), BATCH):
        batch = listed[start : start + BATCH]
        if not any(isinstance(text, FieldrunError) for text in batch):
            with contextlib.suppress(InputTextError, TextTooLong):
                yield from _answer(model, batch, labels, top)
                continue
        for i, text in enumerate(batch, start):  # which ones are they?
            try:
                if isinstance(text, FieldrunError):
                    raise text
                yield from _answer(model, [text], labels, top)
            except (InputTextError, TextTooLong) as error:
                if on_error == "fail":
                    if error is text:
                        raise
                    place, said = names[i] if names else f"text {i}", str(error)
                    at = f"{place}{said[6:]}" if said.startswith("text 0 ") else f"{place}: {said}"
                    raise type(error)(at) from error
                if on_error == "report":
                    yield failed(error, lines[i] if lines else i + 1, names[i] if names else "")


def check_on_error(on_error: str) -> None:
    """Raise `UnknownName` unless `on_error` is one of `ON_ERROR`."""
    if on_error not in ON_ERROR:
        raise UnknownName("on_error", on_error, ON_ERROR)


def failed(error: FieldrunError, line: int, name: str = "") -> Failed:
    """Return what stands in the place of line `line`, whose text `error` refused; `name` is cut off the message."""
    said = str(error).removeprefix(f"{name}: ")
    said = f"the text {said.removeprefix('text 0 ')}" if said.startswith("text 0 ") else said
    return {"line": line, "error": {"type": type(error).__name__, "message": said}}


def _answer(
    model: FieldModel, texts: Sequence[Text], labels: dict[str, tuple[str, ...]], top: int | None
) -> list[Answer]:
    n = len(texts)
    firsts: Sequence[Any] = texts
    seconds: list[str] = []
    if not isinstance(texts[0], str):
        firsts, seconds = split_pairs(texts)
    both = model.forward([*firsts, *seconds])
    first, second = (both.part(0, n), both.part(n, 2 * n)) if seconds else (both, None)
    tokens, dropped, known = first.tokens, first.dropped, first.known
    if second is not None:
        tokens, dropped = tokens + second.tokens, dropped + second.dropped
        known = np.minimum(known, second.known)
    rejected = model.rejected(first, second)
    found = {
        task: (names, model.scores_of(first, task, second), model.rejection_of(first, task, second))
        for task, names in labels.items()
    }
    answers: list[Answer] = []
    for i, text in enumerate(texts):
        for task, (names, scores, rejection) in found.items():
            best = _best_first(names, scores[i], top)
            answers.append(
                {
                    "text": text if isinstance(text, str) else (text[0], text[1]),
                    "task": task,
                    "label": None if rejected[i] else next(iter(best)),
                    "scores": best,
                    "rejection": float(str(rejection[i])),
                    "known": float(str(known[i])),
                    "tokens": int(tokens[i]),
                    "dropped": int(dropped[i]),
                }
            )
    return answers


def _best_first(names: tuple[str, ...], scores: npt.NDArray[np.float32], top: int | None) -> dict[str, float]:
    """Return label -> probability, best first; each has as many digits as the float32 that it is."""
    order = (-scores).argsort(kind="stable")[:top]
    return {names[j]: float(str(scores[j])) for j in order}


def choose_tasks(model: FieldModel, wanted: Sequence[str] = (), *, paired: bool = False) -> tuple[str, ...]:
    """Return the tasks to answer, each once, all of one kind.

    By default these are all tasks for single texts, or all pair tasks if `paired` or if there are no others.

    Raises:
        UnknownName: the model does not have such a task.
        UsageError: the tasks are of both kinds, or for single texts although `paired`.
    """
    single = [task for task in model.tasks if model.kind(task) == "single"]
    pair = [task for task in model.tasks if model.kind(task) == "pair"]
    chosen = tuple(dict.fromkeys([wanted] if isinstance(wanted, str) else wanted)) or tuple(
        pair if paired or not single else single
    )
    if not chosen:
        raise UsageError("this bundle has no task; add one with 'fieldrun fit', or use its fields")
    kinds = {model.kind(task) for task in chosen}
    if len(kinds) > 1:
        pairs, texts = (", ".join(task for task in chosen if task in of_kind) for of_kind in (pair, single))
        raise UsageError(f"{pairs} takes pairs, {texts} single texts; run them separately")
    if paired and kinds != {"pair"}:
        raise UsageError(f"pairs are for pair tasks ({', '.join(pair) or 'this bundle has none'}); give single texts")
    return chosen


def parse_line(line: str | bytes, name: str, *, paired: bool) -> Text:
    """Return the text on a line or, if `paired`, the two texts of `a<TAB>b`. `InputTextError` begins with `name`."""
    if isinstance(line, bytes):
        try:
            line = line.decode("utf-8")
        except UnicodeDecodeError as error:
            raise InputTextError(f"{name}: not valid UTF-8; convert the input to UTF-8") from error
    line = line.removeprefix("\ufeff")
    if not line.strip():
        raise InputTextError(f"{name}: the text is empty; leave it out")
    if not paired:
        return line
    parts = line.split("\t")
    if len(parts) != 2:
        raise InputTextError(f"{name}: a pair is two texts with one tab between them, not {len(parts) - 1} tabs")
    if not all(part.strip() for part in parts):
        raise InputTextError(f"{name}: one text of the pair is empty; leave the pair out")
    return parts[0], parts[1]
