"""Accuracy, macro F1, Wilson's interval and the confusion matrix of labels; calibration and ranking of scores."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterable, Sequence

import numpy as np
import numpy.typing as npt

from ..errors import UnknownName, UsageError

__all__ = [
    "accuracy",
    "auroc",
    "balanced_accuracy",
    "confusion_matrix",
    "expected_calibration_error",
    "macro_f1",
    "mean_difference",
    "spearman",
    "wilson_interval",
]

_Z95 = 1.959963984540054  # the 0.975 quantile of the standard normal distribution


def accuracy(truth: Sequence[Hashable], predicted: Sequence[Hashable]) -> float:
    """Return the fraction of predictions that equal the truth, in [0, 1].

    Raises:
        UsageError: the two have different lengths, or are empty.
    """
    _check(truth, predicted)
    return sum(t == p for t, p in zip(truth, predicted, strict=True)) / len(truth)


def macro_f1(truth: Sequence[Hashable], predicted: Sequence[Hashable]) -> float:
    """Return the unweighted mean of the labels' F1 = 2 tp / (2 tp + fp + fn), in [0, 1].

    The mean is over the labels that occur in `truth` or in `predicted`; a label that is never predicted correctly
    counts as 0. It equals scikit-learn's `f1_score(average="macro", zero_division=0)`.

    Raises:
        UsageError: the two have different lengths, or are empty.
    """
    _check(truth, predicted)
    labels = tuple(dict.fromkeys((*truth, *predicted)))
    matrix = confusion_matrix(truth, predicted, labels)
    hits = np.diagonal(matrix)
    f1 = 2.0 * hits / (matrix.sum(axis=0) + matrix.sum(axis=1))
    return min(1.0, math.fsum(f1.tolist()) / len(labels))


def balanced_accuracy(hits: Sequence[float], rows: Sequence[float]) -> tuple[float, float, float]:
    """Return the mean of the labels' recalls, and its 95 % interval: (value, low, high).

    `hits` of the `rows` of each label were right; labels without rows are left out. The interval joins the labels'
    Wilson intervals as Zou and Donner, "Construction of confidence limits about effect measures", Statistics in
    Medicine 27 (2008), do: the distances of a sum's ends add up as squares.

    Raises:
        UsageError: no label has rows.
    """
    seen = [(k, n) for k, n in zip(hits, rows, strict=True) if n > 0]
    if not seen:
        raise UsageError("balanced accuracy needs at least one label with rows")
    shares = [k / n for k, n in seen]
    ends = [wilson_interval(k, max(1, n)) for k, n in seen]
    value = math.fsum(shares) / len(seen)
    below = math.sqrt(math.fsum((s - low) ** 2 for s, (low, _) in zip(shares, ends, strict=True))) / len(seen)
    above = math.sqrt(math.fsum((high - s) ** 2 for s, (_, high) in zip(shares, ends, strict=True))) / len(seen)
    return value, max(0.0, value - below), min(1.0, value + above)


def mean_difference(tasks: Sequence[npt.NDArray[np.float64]]) -> tuple[float, float, float]:
    """Return the mean over tasks of row-wise differences, and its 95 % interval: (mean, low, high).

    Each array holds one task's differences, one for each row; every task has the same weight. The interval is +- 1.96
    standard errors, for the sampling of the rows.

    Raises:
        UsageError: there is no task, or a task has no rows.
    """
    if not tasks or not all(len(rows) for rows in tasks):
        raise UsageError("a mean difference needs at least one task, each with rows")
    value = math.fsum(float(rows.mean()) for rows in tasks) / len(tasks)
    half = _Z95 * math.sqrt(math.fsum(float(rows.var()) / len(rows) for rows in tasks)) / len(tasks)
    return value, value - half, value + half


def wilson_interval(k: float, n: float) -> tuple[float, float]:
    """Return the 95 % score interval of the proportion `k / n` as (low, high), both in [0, 1].

    Wilson, "Probable inference, the law of succession, and statistical inference", JASA 22 (1927): the proportions
    that are at most 1.96 of their standard errors away from k / n.

    Raises:
        UsageError: `n` is not positive, or `k` is not in 0..n.
    """
    if n < 1 or not 0 <= k <= n:
        raise UsageError(f"an interval needs 0 <= k <= n and n >= 1, not k={k}, n={n}")
    share, z2 = k / n, _Z95 * _Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 / (1 + z2 / n) * math.sqrt(share * (1 - share) / n + z2 / (4 * n * n))
    # at k = 0 and k = n one end is the proportion itself; rounding must not move it
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


def expected_calibration_error(confidences: npt.ArrayLike, hits: npt.ArrayLike, *, bins: int = 15) -> float:
    """Return the mean distance of confidence and accuracy over bins of equal width, weighted by their rows, in [0, 1].

    `confidences (n,)` are the probabilities of the predicted labels, `hits (n,)` whether each was right. Bin k holds
    the confidences in (k / bins, (k + 1) / bins], the first one 0 too. Guo et al., "On calibration of modern neural
    networks", ICML 2017, equation 3. With a few hundred rows it is some points too large.

    Raises:
        UsageError: different lengths, no rows, a confidence outside [0, 1], or `bins` below 1.
    """
    p, right = _numbers(confidences, hits)
    if p.min() < 0 or p.max() > 1 or bins < 1:
        raise UsageError("confidences must be within 0 and 1, and bins at least 1")
    k = np.clip(np.ceil(p * bins).astype(np.int64) - 1, 0, bins - 1)
    gaps = np.bincount(k, p, bins) - np.bincount(k, right, bins)
    return min(1.0, float(np.abs(gaps).sum()) / len(p))


def auroc(scores: npt.ArrayLike, positive: npt.ArrayLike) -> float:
    """Return the probability that a positive row has a larger score than a negative one, ties counted half.

    It is the area under the receiver operating characteristic, by its rank statistic (Mann and Whitney, 1947).
    `scores (n,)` are any finite numbers, `positive (n,)` is true or 1 for the positive rows.

    Raises:
        UsageError: different lengths, a score that is not finite, or no row of either kind.
    """
    values, marks = _numbers(scores, positive)
    chosen = marks > 0
    n, m = int(chosen.sum()), int((~chosen).sum())
    if not n or not m:
        raise UsageError(f"an AUROC needs positive and negative rows, not {n} and {m}")
    u = float(_ranks(values)[chosen].sum()) - n * (n + 1) / 2
    return u / (n * m)


def spearman(a: npt.ArrayLike, b: npt.ArrayLike) -> float:
    """Return Spearman's rank correlation of `a (n,)` and `b (n,)`, in [-1, 1]: Pearson's of their average ranks.

    Raises:
        UsageError: different lengths, a value that is not finite, or one of the two has all values equal.
    """
    x, y = _numbers(a, b)
    x, y = _ranks(x) - (len(x) + 1) / 2, _ranks(y) - (len(y) + 1) / 2
    norm = math.sqrt(float(x @ x) * float(y @ y))
    if norm == 0:
        raise UsageError("a rank correlation needs two different values on each side")
    return max(-1.0, min(1.0, float(x @ y) / norm))


def _ranks(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return the ranks of `values (n,)` from 1, equal ones sharing the mean of theirs."""
    _, group, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    ranks: npt.NDArray[np.float64] = (last - (counts - 1) / 2)[group.reshape(-1)]
    return ranks


def _numbers(a: npt.ArrayLike, b: npt.ArrayLike) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    x, y = np.asarray(a, np.float64), np.asarray(b, np.float64)
    if x.ndim != 1 or x.shape != y.shape or not len(x):
        raise UsageError(f"a metric needs two equally long lists, not {x.shape} and {y.shape}")
    if not (np.isfinite(x).all() and np.isfinite(y).all()):
        raise UsageError("a metric needs finite numbers; one is NaN or infinite")
    return x, y


def _check(truth: Sequence[Hashable], predicted: Sequence[Hashable]) -> None:
    if len(truth) != len(predicted):
        raise UsageError(f"{len(truth)} true labels against {len(predicted)} predictions")
    if len(truth) == 0:
        raise UsageError("no labels: a metric needs at least one")
