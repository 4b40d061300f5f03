"""A bundle as a class that labels batches of columns, for Ray Data and engines like it.

    import ray
    from fieldrun.ray import Labeller

    texts = ray.data.read_parquet("texts.parquet")
    texts.map_batches(
        Labeller,
        fn_constructor_kwargs={"bundle": "reference", "tasks": ["sst2"]},
        batch_size=1024,
        compute=ray.data.ActorPoolStrategy(size=4),
    ).write_parquet("labelled")

Ray makes each `Labeller` an actor, so that a bundle is opened once in each process. Nothing here imports Ray: a batch
is a dict of NumPy arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from fieldrun.errors import InputTextError, TextTooLong, UnknownName, UsageError
from fieldrun_runtimes.model import load

__all__ = ["Labeller"]

Column = npt.NDArray[Any]


class Labeller:
    """Adds to a batch, for each task, the columns `TASK` (the best label) and `TASK_score` (its probability, float32).

    Args:
        bundle: a bundle folder that every machine can read, or `"reference"`.
        tasks: the tasks to answer, of single texts.
        column: the name of the column of texts.
        engine, threads, overflow: as `fieldrun.load`.
        on_error: what a text that cannot be answered does: `"fail"` raises its error, `"report"` gives the label None
            and the score NaN.
        unknown: what a text without a known token gets, see `fieldrun.load`; with `"reject"`, the label None and the
            score NaN.

    Raises:
        UnknownName: `on_error` has another value, or the bundle has no such task.
        UsageError: a task takes pairs, or no task is given.
    """

    def __init__(
        self,
        bundle: str = "reference",
        tasks: Sequence[str] = (),
        column: str = "text",
        *,
        engine: str = "auto",
        threads: int = 1,
        overflow: str = "truncate",
        on_error: str = "fail",
        unknown: str = "answer",
    ) -> None:
        if on_error not in ("fail", "report"):
            raise UnknownName("on_error", on_error, ("fail", "report"))
        self._report = on_error == "report"
        self._model = load(bundle, engine=engine, threads=threads, overflow=overflow, unknown=unknown)
        self._column = column
        self._labels = {task: np.array(self._model.labels(task), object) for task in tasks}
        pairs = [task for task in tasks if self._model.kind(task) == "pair"]
        if pairs or not tasks:
            raise UsageError(f"a Labeller answers tasks of single texts, not {', '.join(pairs) or 'none'}")

    def __call__(self, batch: Mapping[str, Column]) -> dict[str, Column]:
        """Return `batch` with the new columns, its rows in the same order; a batch may be empty.

        Raises:
            UnknownName: the batch has no such column.
            UsageError: it already has a column of a task's name.
            InputTextError, TextTooLong: with `"fail"`, a text is blank, is not a string or does not fit; Ray stops and
                shows it, or drops the batch if told to.
        """
        if self._column not in batch:
            raise UnknownName("column", self._column, [str(name) for name in batch])
        there = [name for task in self._labels for name in (task, f"{task}_score") if name in batch]
        if there:
            raise UsageError(f"the batch already has the column {there[0]!r}; rename or drop it")
        texts = batch[self._column].tolist()
        added: dict[str, Column] = {}
        good = np.ones(len(texts), bool)
        try:
            encoding = self._model.forward(texts) if texts else None
        except (InputTextError, TextTooLong) as error:
            if not self._report:
                raise type(error)(f"column {self._column!r}: {error}") from error
            good = np.array([self._takes(text) for text in texts])
            kept = [text for text, fits in zip(texts, good, strict=True) if fits]
            encoding = self._model.forward(kept) if kept else None
        if encoding is not None:
            taken = ~self._model.rejected(encoding)
            answered = np.flatnonzero(good)[taken]
        for task, labels in self._labels.items():
            best, score = np.full(len(texts), None, object), np.full(len(texts), np.nan, np.float32)
            if encoding is not None:
                scores = self._model.scores_of(encoding, task)
                best[answered], score[answered] = labels[scores.argmax(1)][taken], scores.max(1)[taken]
            added |= {task: best, f"{task}_score": score}
        return {**batch, **added}

    def _takes(self, text: object) -> bool:
        try:
            self._model.forward([text])  # type: ignore[list-item]  # that is the question
        except (InputTextError, TextTooLong):
            return False
        return True
