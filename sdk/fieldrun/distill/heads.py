"""Finish the heads on the student's own fields: refit the pair heads, calibrate every head, report accuracy."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fieldrun.evaluation.metrics import expected_calibration_error, spearman, wilson_interval
from fieldrun.formats.tensors import Array
from fieldrun.heads.head import Head
from fieldrun.heads.logistic import Basis, objective, solve

from .compressor import pair_input
from .pool import Split, TaskData

__all__ = ["calibrate", "finish_head", "fit_pair_head", "score", "score_similarity"]

_PENALTIES = tuple(10 ** (k / 2) for k in range(6, -7, -1))  # 1000, 316, ... 0.001


def _inputs(fields: torch.Tensor, position: Mapping[int, int], split: Split) -> torch.Tensor:
    """Return the head's input for the rows of `split`, `(n, dim)` or `(n, 4 * dim)`."""
    rows = np.vectorize(position.__getitem__, otypes=[np.int64])(split.rows)
    if rows.ndim == 2:
        return pair_input(fields[rows[:, 0]], fields[rows[:, 1]])
    return fields[rows]


def fit_pair_head(
    x: torch.Tensor, y: torch.Tensor, x_held: torch.Tensor, y_held: torch.Tensor, labels: int
) -> nn.Linear:
    """Return a linear head on pair features: logistic regression with the penalty of least loss on the held-out slice.

    Inputs are scaled to a variance of 1, because the four parts of pair features differ in size. The student has been
    trained on the train rows, so their fields predict their labels better than fields of new text do; the penalty is
    therefore chosen on held-out rows, and is a strong one.
    """
    scale = x.std(0).numpy() + 1e-3
    inputs, held = (np.ascontiguousarray(part.numpy() / scale, np.float32) for part in (x, x_held))
    basis = Basis.of(inputs)
    z, z_held = basis.rotate(inputs), basis.rotate(held)
    theta, best = None, (np.inf, np.zeros((z.shape[1], labels)))
    for strength in _PENALTIES:
        theta = solve(z, y.numpy(), labels, strength, variance=basis.variance, start=theta, tolerance=1e-6)
        loss, _, _ = objective(z_held, y_held.numpy(), theta, 0.0)
        if loss < best[0]:
            best = loss, theta
    weight, bias = basis.restore(best[1])
    head = nn.Linear(x.shape[1], labels)
    with torch.no_grad():
        head.weight.copy_(torch.from_numpy(weight.T / scale))
        head.bias.copy_(torch.from_numpy(bias))
    return head


def calibrate(logits: torch.Tensor, y: torch.Tensor) -> float:
    """Return the temperature within 0.3..5 that minimises the cross entropy of `logits / temperature`."""
    temperatures = torch.logspace(np.log10(0.3), np.log10(5), 60)
    losses = torch.stack([functional.cross_entropy(logits / t, y) for t in temperatures])
    return round(float(temperatures[int(losses.argmin())]), 4)


def score(head: nn.Linear, x: torch.Tensor, y: Array, temperature: float = 1.0) -> dict[str, Any]:
    """Return n, accuracy with its 95 % Wilson interval, and the calibration error of `head` on `x` with labels `y`."""
    with torch.inference_mode():
        confidence, predicted = (part.numpy() for part in functional.softmax(head(x) / temperature, 1).max(1))
    right = predicted == y
    hits = int(right.sum())
    low, high = wilson_interval(hits, len(y))
    return {
        "n": len(y),
        "accuracy": round(hits / len(y), 5),
        "ci95": [round(low, 5), round(high, 5)],
        "ece": round(expected_calibration_error(confidence, right), 4),
    }


def score_similarity(fields: torch.Tensor, position: Mapping[int, int], split: Split) -> dict[str, Any]:
    """Return n and Spearman's correlation of the fields' cosines with the grades of `split`, whole and of prefixes."""
    rows = np.vectorize(position.__getitem__, otypes=[np.int64])(split.rows)
    result: dict[str, Any] = {"n": len(split)}
    for dim in (fields.shape[1], 128, 64):
        cosine = functional.cosine_similarity(fields[rows[:, 0], :dim], fields[rows[:, 1], :dim])
        name = "spearman" if dim == fields.shape[1] else f"spearman_{dim}"
        result[name] = round(spearman(cosine.numpy(), split.labels), 5)
    return result


def finish_head(
    task: TaskData, start: nn.Linear, fields: torch.Tensor, position: Mapping[int, int]
) -> tuple[Head, dict[str, Any]]:
    """Return the calibrated head of `task` and its results on the held-out slice and on the report split.

    `fields` are the student's, and `position` maps a text of the pool to its row in them.
    """
    x_held = _inputs(fields, position, task.held_out)
    y_held = torch.from_numpy(task.held_out.labels)
    head = start
    if task.kind == "pair":
        x, y = _inputs(fields, position, task.train), torch.from_numpy(task.train.labels)
        head = fit_pair_head(x, y, x_held, y_held, len(task.labels))
    with torch.inference_mode():
        temperature = calibrate(head(x_held), y_held)
    results = {"held_out": score(head, x_held, task.held_out.labels, temperature)}
    if task.report is not None:
        results["report"] = score(head, _inputs(fields, position, task.report), task.report.labels, temperature)
    finished = Head(
        name=task.name,
        kind=task.kind,
        labels=task.labels,
        weight=np.ascontiguousarray(head.weight.detach().numpy().T),
        bias=head.bias.detach().numpy().copy(),
        temperature=temperature,
    )
    return finished, results
