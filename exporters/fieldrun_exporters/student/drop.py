"""What an export costs on labelled text: the accuracy of the deployed form against the same student in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fieldrun.errors import DatasetError, ExportError, UnknownName
from fieldrun.evaluation.dataset import Dataset
from fieldrun.evaluation.metrics import mean_difference
from fieldrun.formats.bundle import TaskSpec
from fieldrun.formats.tensors import Array
from fieldrun.heads.head import Head, pair_features
from fieldrun.heads.trained import Checkpoint

from ..calibrate import tokenize
from .deployed import Deployed
from .simulate import dense, outputs

__all__ = ["accuracy_drop", "check_drop", "check_tasks"]


def check_tasks(heads: Sequence[Head], data: Mapping[str, Dataset]) -> None:
    """Check that the rows of `data` fit the heads of the tasks that they are given for.

    Raises:
        UnknownName: no such task.
        DatasetError: single texts for a task of pairs, pairs for one of single texts, or a label that the task lacks.
    """
    known = {head.name: head for head in heads}
    for name, rows in data.items():
        if name not in known:
            raise UnknownName("task", name, tuple(known))
        head = known[name]
        if rows.kind != head.kind:
            raise DatasetError(f"{rows.path} holds {rows.kind} texts, and the task {name!r} takes {head.kind} texts")
        wrong = next((i for i, label in enumerate(rows.labels) if label not in head.labels), None)
        if wrong is not None:
            raise DatasetError(
                f"{rows.where(wrong)}: the task {name!r} has no label {rows.labels[wrong]!r}; correct it"
            )


def accuracy_drop(
    before: tuple[Checkpoint, Deployed],
    after: tuple[Checkpoint, Deployed],
    data: Mapping[str, Dataset],
    max_length: int,
) -> dict[str, Any]:
    """Return how many points of accuracy are lost, per task of `data` and as their mean.

    `before` and `after` the passes, each is a checkpoint, for its tokenizer, and the student. The 95 % interval is that
    of the row-wise differences: mean +- 1.96 standard errors over the rows. Texts longer than `max_length` are cut.
    """
    result: dict[str, Any] = {}
    every: list[Array] = []
    for task in after[1].tasks:
        if task.name not in data:
            continue
        rows = data[task.name]
        hits = [_hits(source, form, task, rows, max_length) for source, form in (before, after)]
        lost = 100.0 * (hits[0].astype(np.float64) - hits[1])
        every.append(lost)
        result[task.name] = {
            "n": len(rows),
            "fp32": round(float(hits[0].mean()), 5),
            "accuracy": round(float(hits[1].mean()), 5),
            **_rounded("drop", [lost]),
            "sha256": rows.sha256,
        }
    return {"tasks": result, **_rounded("mean_drop", every)}


def _rounded(name: str, lost: list[Array]) -> dict[str, Any]:
    mean, low, high = mean_difference(lost)
    return {name: round(mean, 3), "ci95": [round(low, 3), round(high, 3)]}


def _hits(source: Checkpoint, form: Deployed, task: TaskSpec, rows: Dataset, max_length: int) -> Array:
    dim = form.network.field_dim
    texts = [text for item in rows.texts for text in ([item] if isinstance(item, str) else item)]
    found = outputs(form, tokenize(source, texts, max_length))
    logits = found[:, dim:]
    if task.kind == "pair":
        logits = dense(form.tensors, "pairs", pair_features(found[0::2, :dim], found[1::2, :dim]))
    best = logits[:, task.start : task.start + len(task.labels)].argmax(1)
    number = {label: i for i, label in enumerate(task.labels)}
    hits: Array = best == np.array([number[label] for label in rows.labels])
    return hits


def check_drop(found: Mapping[str, Any], limit: float, parts: Mapping[str, Mapping[str, float]]) -> None:
    """Refuse a mean drop above `limit` points; `ExportError` names the part that changes the fields most."""
    if found["mean_drop"] <= limit:
        return
    what = f"accuracy falls by {found['mean_drop']:.2f} points, the limit is {limit:g}; nothing was written"
    if not parts:
        raise ExportError(what)
    worst = min(parts, key=lambda name: parts[name]["mean_cosine"])
    raise ExportError(
        f"{what}. {worst!r} costs most: on its own it lowers the cosine of the fields to "
        f"{parts[worst]['mean_cosine']:.4f}; give it more bits"
    )
