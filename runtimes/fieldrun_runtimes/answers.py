"""Texts in, the answers of several tasks out, from one forward pass: what `fieldrun run` and `fieldrun label` print."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypedDict

import numpy as np
import numpy.typing as npt

from fieldrun.errors import InputTextError, TextTooLong, UsageError

from .model import FieldModel

__all__ = ["BATCH", "Answer", "Text", "answer", "choose_tasks", "parse_line"]

BATCH = 256
"""So many texts are answered at once: answers come early, and memory stays small."""

Text = str | tuple[str, str]
"""A text, or a pair of texts."""


class Answer(TypedDict):
    """What the model says about one text, or one pair of texts, in one task."""

    text: Text
    task: str
    label: str
    """The best label."""
    scores: dict[str, float]
    """Label -> probability, best first."""
    rejection: float
    """How little the text looks like any of the labels; larger is less."""
    tokens: int
    """Tokens that were read; of a pair, those of both texts."""
    dropped: int
    """Tokens that were cut off."""


def answer(
    model: FieldModel,
    texts: Sequence[Text],
    tasks: Sequence[str] = (),
    *,
    top: int | None = None,
    names: Sequence[str] | None = None,
) -> Iterator[Answer]:
    """Yield an answer for each text and task, in the order of the texts; one forward pass serves all the tasks.

    Args:
        model: a loaded model.
        texts: strings, or pairs of strings for pair tasks.
        tasks: the tasks to answer, all of one kind; by default every task for such texts.
        top: the number of labels in `scores`; all by default.
        names: what errors call each text, such as "line 3".

    Raises:
        InputTextError, TextTooLong: a text that the model refuses. The texts before it are answered first.
        UnknownName, UsageError: the model does not have a task, or not for such texts.
    """
    if not texts:
        return
    paired = not isinstance(texts[0], str)
    chosen = choose_tasks(model, tasks, paired=paired)
    if any((model.kind(task) == "pair") != paired for task in chosen):
        raise UsageError(f"{chosen[0]} takes {'single texts, not pairs' if paired else 'pairs, not single texts'}")
    labels = {task: model.labels(task) for task in chosen}
    for start in range(0, len(texts), BATCH):
        batch = texts[start : start + BATCH]
        try:
            yield from _answer(model, batch, labels, top)
        except (InputTextError, TextTooLong):
            for i, text in enumerate(batch, start):  # which one is it?
                try:
                    yield from _answer(model, [text], labels, top)
                except (InputTextError, TextTooLong) as error:
                    raise type(error)(f"{names[i] if names else f'text {i}'}: {error}") from error


def _answer(
    model: FieldModel, texts: Sequence[Text], labels: dict[str, tuple[str, ...]], top: int | None
) -> list[Answer]:
    n = len(texts)
    firsts = [text if isinstance(text, str) else text[0] for text in texts]
    seconds = [text[1] for text in texts if not isinstance(text, str)]
    both = model.forward(firsts + seconds)
    first, second = (both.part(0, n), both.part(n, 2 * n)) if seconds else (both, None)
    tokens, dropped = first.tokens, first.dropped
    if second is not None:
        tokens, dropped = tokens + second.tokens, dropped + second.dropped
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
                    "text": text,
                    "task": task,
                    "label": next(iter(best)),
                    "scores": best,
                    "rejection": float(str(rejection[i])),
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
