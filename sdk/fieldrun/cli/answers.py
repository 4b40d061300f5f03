"""Records -> scores of the asked tasks, one forward pass for all of them; an error names the record it belongs to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from fieldrun.errors import InputTextError, TextTooLong, UnknownName, UsageError

from .inputs import Record
from .output import note

if TYPE_CHECKING:
    from fieldrun_runtimes.model import FieldModel

__all__ = ["Answers", "answer", "best_first", "choose_tasks", "json_objects", "note_dropped"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """What the model says of `n` records, in their order."""

    records: Sequence[Record]
    field: npt.NDArray[np.float32] | None
    """`(n, 256) float32`; None for pairs."""
    scores: dict[str, npt.NDArray[np.float32]]
    """Task -> probabilities `(n, labels) float32`."""
    rejection: dict[str, npt.NDArray[np.float32]]
    """Task -> how little a record looks like any of its labels, `(n,) float32`."""
    tokens: npt.NDArray[np.int64]
    """`(n,)`, tokens read; of a pair, those of both texts."""
    dropped: npt.NDArray[np.int64]
    """`(n,)`, tokens cut off."""


def choose_tasks(model: FieldModel, wanted: Sequence[str], *, paired: bool) -> list[str]:
    """Return the tasks to answer, each once, all of one kind.

    `"all"` stands for every task that takes single texts, or every pair task when `paired` or when there are no others.

    Raises:
        UnknownName: the bundle has no such task.
        UsageError: some take single texts and some pairs, or pairs were given to tasks that take single texts.
    """
    single = [task for task in model.tasks if model.kind(task) == "single"]
    pair = [task for task in model.tasks if model.kind(task) == "pair"]
    chosen: dict[str, None] = {}
    for name in wanted:
        if name in model.tasks:
            chosen[name] = None
        elif name == "all":
            chosen |= dict.fromkeys(pair if paired or not single else single)
        else:
            raise UnknownName("task", name, [*model.tasks, "all"])
    kinds = {model.kind(task) for task in chosen}
    if len(kinds) > 1:
        apart = (", ".join(task for task in chosen if task in of_kind) for of_kind in (pair, single))
        raise UsageError("{} takes pairs, {} single texts; run them apart".format(*apart))
    if paired and kinds != {"pair"}:
        listed = ", ".join(pair) or "this bundle has none"
        raise UsageError(f"--pair is for pair tasks ({listed}); give single texts instead")
    return list(chosen)


def answer(model: FieldModel, records: Sequence[Record], tasks: Sequence[str]) -> Iterator[Answers]:
    """Yield the answers to `records`: all at once, or one by one up to the first that the model refuses.

    Raises:
        InputTextError, TextTooLong: a text the model refuses; the message starts with the record's place.
    """
    try:
        yield _answer(model, records, tasks)
        return
    except (InputTextError, TextTooLong) as error:
        if len(records) == 1:
            raise type(error)(f"{records[0].where}: {error}") from error
    for record in records:
        yield from answer(model, [record], tasks)


def _answer(model: FieldModel, records: Sequence[Record], tasks: Sequence[str]) -> Answers:
    values: list[Any] = [record.value for record in records]
    if isinstance(values[0], tuple):
        n = len(values)
        encoding = model.forward([a for a, _ in values] + [b for _, b in values])
        first, second = encoding.part(0, n), encoding.part(n, 2 * n)
        return Answers(
            records=records,
            field=None,
            scores={task: model.scores_of(first, task, second) for task in tasks},
            rejection={task: model.rejection_of(first, task, second) for task in tasks},
            tokens=encoding.tokens[:n] + encoding.tokens[n:],
            dropped=encoding.dropped[:n] + encoding.dropped[n:],
        )
    encoding = model.forward(values)
    return Answers(
        records=records,
        field=encoding.field,
        scores={task: model.scores_of(encoding, task) for task in tasks},
        rejection={task: model.rejection_of(encoding, task) for task in tasks},
        tokens=encoding.tokens,
        dropped=encoding.dropped,
    )


def note_dropped(dropped: int, cut: int, total: int) -> None:
    """Say on stderr how many texts were cut, when any was."""
    if cut:
        note(f"{cut} of {total} texts were too long and lost {dropped} tokens; --overflow window reads them whole")


def json_objects(answers: Answers, labels: dict[str, tuple[str, ...]], top: int | None) -> Iterator[dict[str, Any]]:
    """Yield one object per record and task: text, task, label, scores (the `top` best), rejection, tokens, dropped."""
    for i, record in enumerate(answers.records):
        for task, names in labels.items():
            best = best_first(names, answers.scores[task][i])
            yield {
                "text": record.value,
                "task": task,
                "label": best[0][0],
                "scores": dict(best[:top]),
                "rejection": float(str(answers.rejection[task][i])),
                "tokens": int(answers.tokens[i]),
                "dropped": int(answers.dropped[i]),
            }


def best_first(names: tuple[str, ...], scores: Any) -> list[tuple[str, float]]:
    """Return (label, probability), best first; the float has as many digits as the float32 it came from."""
    order = (-scores).argsort(kind="stable")
    return [(names[j], float(str(scores[j]))) for j in order]
