"""A tuned ridge probe: least squares on one-hot labels, its settings chosen on a held-out slice of train.

For centred inputs X `(n, d)` and centred one-hot labels Y the weights are W = (X'X + p I)^-1 X'Y (Hoerl and Kennard,
"Ridge regression", Technometrics 12, 1970). One eigendecomposition of X'X gives W for every penalty p; with more
columns than rows, X'(XX' + p I)^-1 Y is the same and smaller.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fieldrun.errors import FieldrunError

__all__ = [
    "PENALTIES",
    "SCALINGS",
    "Features",
    "Floats",
    "Integers",
    "Moments",
    "Probe",
    "accumulate",
    "fit",
    "fit_rows",
]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Features = Callable[[Integers], Floats]
"""Text numbers `(n,)`, or of pairs `(n, 2)`, to the probe's inputs `(n, d)`."""

SCALINGS = ("centred", "standardised")
PENALTIES = tuple(10.0 ** (i / 2) for i in range(-10, 7))
"""In units of the mean eigenvalue of X'X."""

_CHUNK = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Moments:
    """What a probe needs of its train rows: their number, means, and sums of centred products, all float64.

    `mean (d,)`, `gram (d, d)` = X'X, `cross (d, labels)` = X'Y, `shares (labels,)` of every label.
    """

    n: int
    mean: Floats
    gram: Floats
    cross: Floats
    shares: Floats

    def part(self, columns: Integers) -> Moments:
        """Return the moments of some columns."""
        gram = np.ascontiguousarray(self.gram[np.ix_(columns, columns)])
        return Moments(n=self.n, mean=self.mean[columns], gram=gram, cross=self.cross[columns], shares=self.shares)

    def deviation(self) -> Floats:
        """Return the standard deviation of every column `(d,)`; 1 for one that is constant but for rounding."""
        return _deviation(np.diagonal(self.gram) / self.n, self.mean)


@dataclass(frozen=True, slots=True, kw_only=True)
class Probe:
    """`argmax(x @ weight + bias)`, with the settings that the held-out slice chose and its accuracy there."""

    weight: Floats
    bias: Floats
    scaling: str
    penalty: float
    held_out: float

    def predict(self, x: Floats) -> Integers:
        """Return the label numbers `(n,)` of inputs `(n, d)`."""
        labels: Integers = (x @ self.weight + self.bias).argmax(1).astype(np.int64)
        return labels


def accumulate(features: Features, rows: Integers, labels: Integers | None = None, n_labels: int = 0) -> Moments:
    """Return the moments of `features(rows)`, read some thousand rows at a time; without `labels` the inputs' alone."""
    total: Floats | None = None
    gram = cross = np.zeros((0, 0))
    counts = np.zeros(n_labels)
    for start in range(0, len(rows), _CHUNK):
        x = features(rows[start : start + _CHUNK])
        y = np.zeros((len(x), n_labels)) if labels is None else _one_hot(labels[start : start + _CHUNK], n_labels)
        if total is None:
            total, gram, cross = np.zeros(x.shape[1]), np.zeros((x.shape[1],) * 2), np.zeros((x.shape[1], n_labels))
        total += x.sum(0)
        counts += y.sum(0)
        gram += x.T @ x
        cross += x.T @ y
    if total is None:
        raise FieldrunError("a probe needs at least one row to learn from")
    n = len(rows)
    mean, shares = total / n, counts / n
    gram -= n * np.outer(mean, mean)
    cross -= n * np.outer(mean, shares)
    return Moments(n=n, mean=mean, gram=gram, cross=cross, shares=shares)


def fit(moments: Moments, x_held: Floats, y_held: Integers) -> Probe:
    """Return the probe whose scaling and penalty hit most of the held-out rows `(m, d)`, ties by squared error."""

    def decompose(scale: Floats) -> _Parts:
        values, vectors = np.linalg.eigh(moments.gram * np.outer(scale, scale))
        return values, scale[:, None] * vectors, vectors.T @ (moments.cross * scale[:, None])

    return _choose(decompose, moments.mean, moments.deviation(), moments.shares, x_held, y_held)


def fit_rows(x: Floats, y: Integers, n_labels: int, x_held: Floats, y_held: Integers) -> Probe:
    """Return the same probe from the train rows `(n, d)` themselves: less work for more columns than rows."""
    target = _one_hot(y, n_labels)
    mean, shares = x.mean(0), target.mean(0)

    def decompose(scale: Floats) -> _Parts:
        scaled = (x - mean) * scale
        values, vectors = np.linalg.eigh(scaled @ scaled.T)
        return values, scale[:, None] * (scaled.T @ vectors), vectors.T @ (target - shares)

    return _choose(decompose, mean, _deviation(x.var(0), mean), shares, x_held, y_held)


_Parts = tuple[Floats, Floats, Floats]
"""Eigenvalues `(r,)`, `back (d, r)` and `targets (r, labels)`: the weights are back @ (targets / (values + p))."""


def _choose(
    decompose: Callable[[Floats], _Parts],
    mean: Floats,
    deviation: Floats,
    shares: Floats,
    x_held: Floats,
    y_held: Integers,
) -> Probe:
    target = _one_hot(y_held, len(shares))
    best: tuple[tuple[float, float], Probe] | None = None
    for scaling in SCALINGS:
        values, back, targets = decompose(1 / deviation if scaling == "standardised" else np.ones_like(mean))
        values = np.maximum(values, 0)
        unit = max(float(values.sum()) / len(mean), np.finfo(np.float64).tiny)
        rotated = (x_held - mean) @ back
        trials = []
        for penalty in PENALTIES:
            scores = rotated @ (targets / (values + penalty * unit)[:, None]) + shares
            error = float(np.square(scores - target).mean())
            trials.append((-float((scores.argmax(1) == y_held).mean()), error, penalty))
        *rank, penalty = min(trials)
        if best is None or (rank[0], rank[1]) < best[0]:
            weight = back @ (targets / (values + penalty * unit)[:, None])
            bias = shares - mean @ weight
            probe = Probe(weight=weight, bias=bias, scaling=scaling, penalty=penalty, held_out=-rank[0])
            best = ((rank[0], rank[1]), probe)
    assert best is not None  # SCALINGS is not empty
    return best[1]


def _deviation(variance: Floats, mean: Floats) -> Floats:
    return np.sqrt(np.where(variance <= 1e-12 * (mean**2 + variance), 1.0, variance))


def _one_hot(labels: Integers, n_labels: int) -> Floats:
    result = np.zeros((len(labels), n_labels))
    result[np.arange(len(labels)), labels] = 1
    return result
