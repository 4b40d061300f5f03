"""How good a model is on labelled texts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import DatasetError, UsageError
from ..formats.progress import Progress, silent
from .caveats import caveats
from .copies import Copies, count_copies, text_key
from .copies import join_labels as joined
from .dataset import Dataset, read_tsv
from .metrics import (
    accuracy,
    balanced_accuracy,
    confusion_matrix,
    expected_calibration_error,
    macro_f1,
    wilson_interval,
)
from .rows import run_located, split_pairs

__all__ = ["Evaluation", "evaluate"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Evaluation:
    """What predictions are worth against the true labels of `n` rows; shares are fractions of 1.

    `ci95` is Wilson's 95 % interval of the accuracy. `balanced_accuracy` is the mean of the labels' recalls, in which
    rare labels count as much as frequent ones, and `balanced_ci95` its interval. `confusion (labels, labels) int64` has
    a row for each true label and a column for each predicted one. `recall` is None for a label without rows,
    `calibration_error` (15 bins) where the probabilities are not known, `dropped` (tokens cut off, in `cut` texts)
    where the model does not count them.
    """

    n: int
    labels: tuple[str, ...]
    accuracy: float
    ci95: tuple[float, float]
    balanced_accuracy: float
    balanced_ci95: tuple[float, float]
    macro_f1: float
    recall: Mapping[str, float | None]
    confusion: npt.NDArray[np.int64]
    calibration_error: float | None = None
    dropped: int | None = None
    cut: int | None = None
    warnings: tuple[str, ...] = ()
    """What the figures do not cover: labels without rows or with few, rows that repeat others, labels in conflict."""

    @classmethod
    def of(
        cls,
        truth: Sequence[str],
        predicted: Sequence[str],
        labels: Sequence[str],
        *,
        confidence: npt.ArrayLike | None = None,
        dropped: int | None = None,
        cut: int | None = None,
        copies: Copies | None = None,
    ) -> Evaluation:
        """Compare `predicted` with `truth`, both of `labels`.

        `confidence (n,)` are the predictions' probabilities, `copies` is what was counted in the texts.

        Raises:
            UsageError: `truth` is empty or not as long as `predicted`.
            UnknownName: one of them has a label that is not in `labels`.
        """
        share = accuracy(truth, predicted)
        matrix = confusion_matrix(truth, predicted, labels)
        rows, hits = matrix.sum(1).tolist(), np.diagonal(matrix).tolist()
        error = None
        if confidence is not None:  # a softmax of float32 may exceed 1 by its rounding
            right = [t == p for t, p in zip(truth, predicted, strict=True)]
            error = expected_calibration_error(np.minimum(confidence, 1), right)
        balanced, low, high = balanced_accuracy(hits, rows)
        counts = dict(zip(labels, rows, strict=True))
        return cls(
            n=len(truth),
            labels=tuple(labels),
            accuracy=share,
            ci95=wilson_interval(sum(hits), len(truth)),
            balanced_accuracy=balanced,
            balanced_ci95=(low, high),
            macro_f1=macro_f1(truth, predicted),
            recall={name: hit / of if of else None for name, hit, of in zip(labels, hits, rows, strict=True)},
            confusion=matrix,
            calibration_error=error,
            dropped=dropped,
            cut=cut,
            warnings=tuple(caveats(counts, copies or Copies(copies=0, conflicting=0), weigh="each of them weighs")),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the evaluation as JSON."""
        lists = {name: [*getattr(self, name)] for name in ("labels", "ci95", "balanced_ci95", "warnings")}
        return asdict(self) | lists | {"confusion": self.confusion.tolist()}


def evaluate(
    model: Any,
    data: Dataset | str | Path,
    task: str | None = None,
    *,
    join_labels: bool = False,
    batch_size: int = 1024,
    progress: Progress = silent,
) -> Evaluation:
    """Measure how well `model` predicts the labels of `data`.

    Args:
        model: a loaded bundle, or any classifier with `predict_proba(texts)` and its labels in `classes_`.
        data: a TSV file (see `fieldrun.evaluation.dataset`), or labelled texts: `Dataset.of(texts, labels)`.
        task: a task of the model; may be left out where it has only one.
        join_labels: take a label of the data for the model's label that is equal but for case, whitespace and Unicode
            form.
        batch_size: rows in one call of the model.
        progress: called with (phase, done, total).

    Raises:
        DatasetError: the file cannot be read, holds pairs for a task of single texts or the other way round, or has a
            label that the task does not have; the message names the line.
        InputTextError, TextTooLong: the model refuses a text; the message names the line.
        UnknownName: the model has no such task.
        UsageError: the task must be named, or `batch_size` is not positive.
    """
    rows = data if isinstance(data, Dataset) else read_tsv(data)
    if batch_size < 1:
        raise UsageError(f"batch_size must be at least 1, not {batch_size}")
    is_bundle = hasattr(model, "scores_of")
    labels = tuple(model.labels(task)) if is_bundle else tuple(map(str, model.classes_))
    truth = joined(rows.labels, labels) if join_labels else list(rows.labels)
    _check(rows, truth, task, model.kind(task) if is_bundle else rows.kind, labels)
    predicted: list[str] = []
    confidence: list[float] = []
    dropped = cut = 0

    def run(texts: Sequence[Any]) -> Any:
        nonlocal dropped, cut
        if not is_bundle:
            return np.asarray(model.predict_proba(list(texts)))
        sides = [model.forward(side) for side in (split_pairs(texts) if rows.kind == "pair" else [list(texts)])]
        lost = np.stack([side.dropped for side in sides])
        dropped, cut = dropped + int(lost.sum()), cut + int((lost > 0).sum())
        return model.scores_of(sides[0], task, *sides[1:])

    for start in range(0, len(rows), batch_size):
        part = rows.texts[start : start + batch_size]
        scores = run_located(run, part, rows.where, start=start)
        predicted += [labels[i] for i in scores.argmax(1)]
        confidence += scores.max(1).tolist()
        progress(f"evaluate {task}" if task else "evaluate", len(predicted), len(rows))
    counts: dict[str, Any] = {"dropped": dropped, "cut": cut} if is_bundle else {}
    counts["copies"] = count_copies([text_key(text) for text in rows.texts], truth)
    return Evaluation.of(truth, predicted, labels, confidence=confidence, **counts)


def _check(rows: Dataset, truth: Sequence[str], task: str | None, kind: str, labels: tuple[str, ...]) -> None:
    named = "the model" if task is None else f"the task {task!r}"
    if rows.kind != kind:
        single, pair = ("single texts", "text<TAB>label"), ("pairs", "text_a<TAB>text_b<TAB>label")
        what, wanted = single if kind == "single" else pair
        if rows.sha256 is None:
            raise DatasetError(f"{named} takes {what}, and these are {pair[0] if kind == 'single' else single[0]}")
        raise DatasetError(f"{rows.path}, line 1: {named} takes {what}; the header must be {wanted!r}")
    known = set(labels)
    for i, label in enumerate(truth):
        if label not in known:
            near = next((name for name in labels if text_key(name) == text_key(label)), None)
            if near is not None:
                raise DatasetError(
                    f"{rows.where(i)}: {named} has no label {label!a}, but {near!a}; correct it or join such labels "
                    "(join_labels=True, --join-labels)"
                )
            raise DatasetError(f"{rows.where(i)}: {named} has no label {label!r}; known: {', '.join(labels)}")
