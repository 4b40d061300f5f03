"""The penalty and the temperature of a head, chosen by stratified cross-validation.

The strength is the largest of `STRENGTHS` whose held-out log-loss, each at its best temperature, is within two standard
errors of the lowest. The temperature comes from the same held-out logits. The rule was fixed on the shipped student's
tasks, their report files among the texts: its results on these are a little optimistic.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..evaluation.metrics import balanced_accuracy, wilson_interval
from ..formats.progress import Progress
from ..formats.tensors import Array
from .logistic import solve

__all__ = [
    "SEARCH_ROWS",
    "STRENGTHS",
    "Choice",
    "Problem",
    "best_temperature",
    "choose",
    "deal",
    "in_percent",
    "sample",
]

STRENGTHS = tuple(10 ** (k / 2) for k in range(6, -5, -1))
"""The penalties that are tried, strongest first: 1000, 316, 100, ... 0.01."""

SEARCH_ROWS = 4000
"""Strengths are compared on about so many rows; the last fits use all."""

_UNTRIED = 10**1.5  # the strength for one example a label, where nothing can be held out
_FOLDS = 5
_REPEATS = 3  # of the cross-validation, below so many rows:
_FEW_ROWS = 1000
_TOLERANCE = 1e-4  # nats, of many rows: strengths that are told apart differ by hundreds of these
_TOLERANCE_OF_FEW = 1e-5


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Problem:
    """Rows in the eigenbasis of their inputs, `z (n, rank + 1) float32`, and their classes `y (n,)`.

    Rows of one of the `groups (n,)` are copies of each other: they never stand on both sides of a split.
    """

    z: Array
    y: Array
    groups: Array
    classes: int
    variance: Array
    scale: float

    def solve(
        self,
        strength: float,
        *,
        rows: Array | None = None,
        start: Array | None = None,
        tolerance: float,
        report: Callable[[float], None] | None = None,
    ) -> Array:
        """Return the solution `(rank + 1, classes)` at `strength` for all rows or some, from `start` or zero."""
        z, y = (self.z, self.y) if rows is None else (self.z[rows], self.y[rows])
        penalty = strength * self.scale / len(y)
        return solve(
            z, y, self.classes, penalty, variance=self.variance, start=start, tolerance=tolerance, report=report
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """The penalty and the temperature, and `cv`: what was measured on held-out rows.

    `start` is a solution for most of the rows, where to begin with all of them.
    """

    strength: float
    temperature: float
    cv: dict[str, Any] | None
    start: Array | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _HeldOut:
    """Logits of rows by models that did not see them, the rows' classes, and the losses at the best temperature."""

    logits: Array
    y: Array
    temperature: float
    losses: Array

    @classmethod
    def of(cls, logits: Array, y: Array) -> _HeldOut:
        temperature = best_temperature(logits, y)
        return cls(logits=logits, y=y, temperature=temperature, losses=_losses(logits / np.float32(temperature), y))


def choose(problem: Problem, report: Progress) -> Choice:
    """Return the penalty and the temperature for `problem`; without two texts of any label, fixed ones."""
    y, groups = problem.y, problem.groups
    searched = sample(y, SEARCH_ROWS)
    whole = len(searched) == len(y)
    folds = min(_FOLDS, int(np.bincount(y[searched[_leads(y, groups, searched)]]).max()))
    if folds < 2:
        return Choice(strength=_UNTRIED, temperature=1.0, cv=None)
    theta = None
    repeats = _REPEATS if len(searched) < _FEW_ROWS else 1
    splits = [split for turn in range(repeats) for split in deal(y, searched, folds, turn, groups)]
    strength, held = _search(problem, splits, repeats, report)
    if not whole:  # accuracy and temperature of a model of all rows are measured on a fifth of them
        repeats, splits = 1, list(deal(y, np.arange(len(y)), _FOLDS, 0, groups))[:1]
        trained, out = splits[0]
        theta = problem.solve(strength, rows=trained, tolerance=1e-6, report=in_percent(report, "measure"))
        held = _HeldOut.of(problem.z[out] @ theta.astype(np.float32), problem.y[out])
        report("measure", 100, 100)
    outs = np.concatenate([out for _, out in splits[: len(splits) // repeats]])
    n = len(np.unique(groups[outs]))  # texts: their copies say nothing new
    share = float((held.logits.argmax(1) == held.y).mean())
    cv = {"n": n, "accuracy": round(share, 5), "ci95": [round(end, 5) for end in wilson_interval(round(share * n), n)]}
    of_label = np.bincount(held.y, minlength=problem.classes)
    hits = np.bincount(held.y[held.logits.argmax(1) == held.y], minlength=problem.classes)
    balanced, *ends = balanced_accuracy((hits / repeats).tolist(), (of_label / repeats).tolist())
    cv |= {"balanced_accuracy": round(balanced, 5), "balanced_ci95": [round(end, 5) for end in ends]}
    cv |= {"never_held_out": np.flatnonzero(of_label == 0).tolist()}
    cv |= {"log_loss": round(float(held.losses.mean()), 5), "folds": len(splits) // repeats, "repeats": repeats}
    return Choice(strength=strength, temperature=held.temperature, cv=cv, start=theta)


def in_percent(report: Progress, phase: str) -> Callable[[float], None]:
    """Return a callback for the share that is done of `phase`."""
    return lambda share: report(phase, int(100 * share), 100)


def _search(
    problem: Problem, splits: list[tuple[Array, Array]], repeats: int, report: Progress
) -> tuple[float, _HeldOut]:
    """Follow the strengths from the strongest, each fold from its last solution, until they have become too weak."""
    held_out = np.concatenate([out for _, out in splits])
    truth, order = problem.y[held_out], np.argsort(held_out, kind="stable")
    starts: list[Array | None] = [None] * len(splits)
    tried: list[_HeldOut] = []
    best = 0
    tolerance = _TOLERANCE if len(splits[0][0]) >= _FEW_ROWS else _TOLERANCE_OF_FEW
    for k, strength in enumerate(STRENGTHS):
        logits = []
        for s, (trained, out) in enumerate(splits):
            theta = problem.solve(strength, rows=trained, start=starts[s], tolerance=tolerance)
            starts[s] = theta
            logits.append(problem.z[out] @ theta.astype(np.float32))
            report("fit", k * len(splits) + s + 1, len(STRENGTHS) * len(splits))
        tried.append(_HeldOut.of(np.concatenate(logits), truth))
        best = k if tried[k].losses.mean() < tried[best].losses.mean() else best
        if k >= best + 3:
            break
    report("fit", len(STRENGTHS) * len(splits), len(STRENGTHS) * len(splits))
    for strength, held in zip(STRENGTHS, tried, strict=False):
        worse = (held.losses - tried[best].losses)[order].reshape(-1, repeats).mean(1)  # of each row
        if worse.mean() <= 2 * worse.std() / math.sqrt(len(worse)):
            return strength, held
    return STRENGTHS[best], tried[best]


def sample(y: Array, limit: int) -> Array:
    """Return at most about `limit` rows, the first of each class in proportion, at least as many as folds."""
    if len(y) <= limit:
        return np.arange(len(y))
    taken = [rows[: max(_FOLDS, round(len(rows) * limit / len(y)))] for rows in _by_class(y)]
    return np.sort(np.concatenate(taken))


def deal(y: Array, rows: Array, folds: int, turn: int, groups: Array | None = None) -> Iterator[tuple[Array, Array]]:
    """Yield (trained, held out) rows: the groups of each class are dealt to the folds, whole.

    A class of one group is never held out, and no class is held out entirely.
    """
    own_groups = np.arange(len(y)) if groups is None else groups
    fold = np.full(int(own_groups.max()) + 1, -1)  # of each group
    dealt, shuffle = 0, np.random.default_rng(turn)
    leads = _leads(y, own_groups, rows)
    kept = []
    for own in sorted(_by_class(y[rows]), key=lambda own: int(own[0]) if len(own) else -1):
        leading = own[np.isin(own, leads, assume_unique=True)]
        if len(leading) > 1:
            fold[own_groups[rows[shuffle.permutation(leading)]]] = (dealt + np.arange(len(leading))) % folds
            dealt += len(leading)
        elif len(own):
            kept.append(own_groups[rows[own[0]]])
    fold[kept] = -1
    of_row = fold[own_groups[rows]]
    for k in range(folds):
        yield rows[of_row != k], rows[of_row == k]


def _leads(y: Array, groups: Array, rows: Array) -> Array:
    """Return, of `rows`, the position of the first row of every group, of the rarest class in it."""
    rarity = np.bincount(y[rows])[y[rows]]
    order = np.lexsort((np.arange(len(rows)), rarity, groups[rows]))
    first = np.append(True, np.diff(groups[rows][order]) != 0)
    return np.sort(order[first])


def _by_class(y: Array) -> list[Array]:
    return np.split(np.argsort(y, kind="stable"), np.cumsum(np.bincount(y))[:-1])


def best_temperature(logits: Array, y: Array) -> float:
    """Return the temperature at which `softmax(logits (n, c) / temperature)` has the lowest mean log-loss on `y`.

    The targets are smoothed by 1 / (n + 2), after Platt, "Probabilistic outputs for support vector machines" (1999):
    without a single error among few rows, no finite temperature would be the best.
    """
    smooth = 1 / (len(y) + 2)
    wanted = (1 - smooth) * logits[np.arange(len(y)), y] + smooth * logits.mean(1)
    target = float(wanted.mean(dtype=np.float64))
    spread = float(logits.std(1).mean(dtype=np.float64))
    if not spread > 0:
        return 1.0
    low, high = 1e-3 / spread, 1e4 / spread
    inverse = 1 / spread
    for _ in range(60):  # Newton on a convex function of 1 / temperature, kept within a shrinking bracket
        p = logits * np.float32(inverse)
        p -= p.max(1, keepdims=True)
        np.exp(p, out=p)
        p /= p.sum(1, keepdims=True)
        mean = (p * logits).sum(1)
        slope = float(mean.mean(dtype=np.float64)) - target
        curve = float(((p * logits * logits).sum(1) - mean * mean).mean(dtype=np.float64))
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        step = inverse - slope / curve if curve > 0 else 0.0
        following = step if low < step < high else math.sqrt(low * high)
        if abs(following - inverse) <= 1e-4 * inverse:
            break
        inverse = following
    return min(max(1 / inverse, 1e-3), 999.0)


def _losses(logits: Array, y: Array) -> Array:
    shifted = logits - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(y)), y]
    return np.asarray(losses, np.float64)
