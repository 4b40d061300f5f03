"""Accuracy, macro F1, Wilson's interval and the confusion matrix, from lists of labels."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from .errors import UnknownName, UsageError

__all__ = ["accuracy", "confusion_matrix", "macro_f1", "wilson_interval"]

_Z95 = 1.959963984540054  # the 0.975 quantile of the standard normal distribution


def accuracy(truth: Sequence[Hashable], predicted: Sequence[Hashable]) -> float:
    """Return the fraction of predictions that equal the truth, in [0, 1].

    Raises:
        UsageError: the two have different lengths, or none.
    """
    _check(truth, predicted)
    return sum(t == p for t, p in zip(truth, predicted, strict=True)) / len(truth)


def macro_f1(truth: Sequence[Hashable], predicted: Sequence[Hashable]) -> float:
    """Return the unweighted mean of the labels' F1 = 2 tp / (2 tp + fp + fn), in [0, 1].

    The mean is over the labels that occur in `truth` or in `predicted`: one that occurs in neither has no F1 and does
    not count; one that is never hit counts as 0. It is scikit-learn's `f1_score(average="macro", zero_division=0)`.

    Raises:
        UsageError: the two have different lengths, or none.
    """
    _check(truth, predicted)
    labels = tuple(dict.fromkeys((*truth, *predicted)))
    matrix = confusion_matrix(truth, predicted, labels)
    hits = np.diagonal(matrix)
    f1 = 2.0 * hits / (matrix.sum(axis=0) + matrix.sum(axis=1))
    return min(1.0, math.fsum(f1.tolist()) / len(labels))


def wilson_interval(k: int, n: int) -> tuple[float, float]:
    """Return the 95 % score interval of the proportion `k / n` as (low, high), both in [0, 1].

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927): the proportions
    whose distance from k / n is at most 1.96 of their own standard errors.

    Raises:
        UsageError: `n` is not positive, or `k` is not in 0..n.
    """
    if n < 1 or not 0 <= k <= n:
        raise UsageError(f"an interval needs 0 <= k <= n and n >= 1, not k={k}, n={n}")
    share, z2 = k / n, _Z95 * _Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # At k = 0 and k = n one end is the proportion itself; rounding must not push it past.
    return max(0.0, min(share, centre - half)), min(1.0, max(share, centre + half))


def confusion_matrix(
    truth: Iterable[Hashable], predicted: Iterable[Hashable], labels: Sequence[Hashable]
) -> npt.NDArray[np.int64]:
    """Count the pairs: `(labels, labels) int64`, one row per true label, one column per predicted label.

    Raises:
        UsageError: the two have different lengths.
        UnknownName: one of them has a label that is not in `labels`.
    """
    index = {label: i for i, label in enumerate(labels)}
    matrix = np.zeros((len(labels), len(labels)), np.int64)
    try:
        for t, p in zip(truth, predicted, strict=True):
            matrix[index[t], index[p]] += 1
    except KeyError as error:
        raise UnknownName("label", error.args[0], tuple(map(str, labels))) from error
    except ValueError as error:
        raise UsageError("truth and predictions have different lengths") from error
    return matrix


def _check(truth: Sequence[Hashable], predicted: Sequence[Hashable]) -> None:
    if len(truth) != len(predicted):
        raise UsageError(f"{len(truth)} true labels against {len(predicted)} predictions")
    if len(truth) == 0:
        raise UsageError("no labels: a metric needs at least one")
