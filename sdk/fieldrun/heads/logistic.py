"""Multinomial logistic regression with an L2 penalty, in NumPy: the solver under `fieldrun.heads.fit`.

With `x (n, inputs)`, `y (n,)` and `c` classes it minimises, over `W (inputs, c)` and `b (c,)`,

    J(W, b) = mean_i( logsumexp(z_i) - z_i[y_i] ) + strength / 2 * |W|^2        z_i = x_i W + b

The bias is free, so J has one minimum in W, and in b up to a constant that changes no probability. The method is L-BFGS
(Nocedal and Wright, "Numerical Optimization", algorithm 7.4) in the eigenbasis of the inputs' covariance: a rotation
changes neither J nor |W|, directions without variance drop out, and the Hessian is nearly diagonal there, so that its
diagonal as a first guess leaves few steps to do.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ..formats.tensors import Array

__all__ = ["Basis", "objective", "solve"]

_ROWS = 8192  # rows whose logits are in memory at once
_MEMORY = 12  # pairs of steps and gradient changes that L-BFGS keeps
_TINY = 1e-7  # directions with less than this share of the largest variance are left out


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Basis:
    """The eigenbasis of the inputs' covariance.

    `mean (inputs,)`, `axes (inputs, rank)` orthonormal columns, `variance (rank,)`, all float64, largest first.
    """

    mean: Array
    axes: Array
    variance: Array

    @classmethod
    def of(cls, x: Array) -> Basis:
        """Return the basis of the rows `x (n, inputs)`; its rank is 0 when all rows are equal."""
        mean = x.mean(0, dtype=np.float64)
        covariance = np.zeros((x.shape[1], x.shape[1]))
        for start in range(0, len(x), _ROWS):
            part = x[start : start + _ROWS] - mean
            covariance += part.T @ part
        variance, axes = np.linalg.eigh(covariance / len(x))
        kept = np.flatnonzero(variance > _TINY * max(float(variance[-1]), 1e-30))[::-1]
        return cls(mean=mean, axes=axes[:, kept], variance=variance[kept])

    def rotate(self, x: Array) -> Array:
        """Return `x (n, inputs)` in this basis with a last column of ones, `(n, rank + 1) float32`."""
        z = np.ones((len(x), len(self.variance) + 1), np.float32)
        axes, shift = self.axes.astype(np.float32), (self.mean @ self.axes).astype(np.float32)
        for start in range(0, len(x), _ROWS):
            rows = slice(start, start + _ROWS)
            z[rows, :-1] = x[rows] @ axes - shift
        return z

    def restore(self, theta: Array) -> tuple[Array, Array]:
        """Return weight `(inputs, c)` and bias `(c,)`, float64, of a solution `theta (rank + 1, c)` in this basis."""
        weight = self.axes @ (theta[:-1] - theta[:-1].mean(1, keepdims=True))  # a common part changes no probability
        bias = theta[-1] - self.mean @ weight
        return weight, bias - bias.mean()


def objective(z: Array, y: Array, theta: Array, strength: float) -> tuple[float, Array, float]:
    """Return J, its gradient `(rank + 1, c) float64`, and the mean of p (1 - p) over rows and classes.

    `z (n, rank + 1) float32` has a last column of ones, `y (n,)` the class of each row; `theta[-1]` is the bias.
    """
    n, classes = len(z), theta.shape[1]
    small = theta.astype(z.dtype)
    loss = squares = 0.0
    gradient = np.zeros(theta.shape)
    for start in range(0, n, _ROWS):
        part, own = z[start : start + _ROWS], y[start : start + _ROWS]
        p = part @ small
        p -= p.max(1, keepdims=True)
        at = np.arange(len(part)), own
        loss -= float(p[at].sum(dtype=np.float64))
        np.exp(p, out=p)
        total = p.sum(1, keepdims=True)
        loss += float(np.log(total).sum(dtype=np.float64))
        p /= total
        squares += float(np.vdot(p, p))
        p[at] -= 1
        gradient += part.T @ p
    gradient /= n
    gradient[:-1] += strength * theta[:-1]
    penalty = 0.5 * strength * float(np.vdot(theta[:-1], theta[:-1]))
    return loss / n + penalty, gradient, max(1 - squares / n, 1e-6) / classes


def solve(
    z: Array,
    y: Array,
    classes: int,
    strength: float,
    *,
    variance: Array,
    start: Array | None = None,
    tolerance: float = 1e-8,
    max_steps: int = 500,
    report: Callable[[float], None] | None = None,
) -> Array:
    """Return the `theta (rank + 1, classes) float64` that minimises J, from `start` or zero.

    It stops when the estimated distance of J from its minimum, g^T D g / 2 with `D` the inverse of the Hessian's
    diagonal, is below `tolerance` (J is in nats), or when rounding allows no smaller J. `report` is called after every
    step with the share of the way that is done, in orders of magnitude of that distance.
    """
    theta = np.zeros((z.shape[1], classes)) if start is None else start.copy()
    value, gradient, spread = objective(z, y, theta, strength)
    scale = 1 / (spread * np.append(variance, 1.0) + np.append(np.full(len(variance), strength), 0.0))[:, None]
    past: deque[tuple[Array, Array, float]] = deque(maxlen=_MEMORY)
    first = furthest = 0.0
    for _ in range(max_steps):
        distance = 0.5 * float(np.vdot(gradient, scale * gradient))
        if distance < tolerance:
            break
        first = first or distance
        if report is not None:
            way = math.log(first / tolerance)
            furthest = max(furthest, math.log(first / distance) / way if way > 0 else 0.0)
            report(min(furthest, 1.0))
        direction = _direction(gradient, scale, past)
        slope = float(np.vdot(gradient, direction))
        length = 1.0
        while True:
            there = theta + length * direction
            new_value, new_gradient, _ = objective(z, y, there, strength)
            if new_value <= value + 1e-4 * length * slope:
                break
            length *= 0.5
            if length < 1e-6:
                return theta
        step, change = there - theta, new_gradient - gradient
        curvature = float(np.vdot(step, change))
        if curvature > 0:
            past.append((step, change, 1 / curvature))
        theta, value, gradient = there, new_value, new_gradient
    return theta


def _direction(gradient: Array, scale: Array, past: deque[tuple[Array, Array, float]]) -> Array:
    """Return minus the L-BFGS estimate of H^-1 g, with `scale` (times the newest curvature) as the first estimate."""
    q = gradient.copy()
    shares = []
    for step, change, inverse in reversed(past):
        share = inverse * float(np.vdot(step, q))
        q -= share * change
        shares.append(share)
    q *= scale
    if past:
        _, change, inverse = past[-1]
        q *= 1 / (inverse * float(np.vdot(change, scale * change)))
    for (step, change, inverse), share in zip(past, reversed(shares), strict=True):
        q += (share - inverse * float(np.vdot(change, q))) * step
    return -q
