"""How the variance of a field spreads over directions, and the projection on the first of them."""

from __future__ import annotations

from typing import Any

import numpy as np

from .probe import Floats, Moments

__all__ = ["FORMS", "MARKS", "SHARES", "cumulative", "principal", "spectra"]

FORMS = ("uncentred", "centred", "standardised")
MARKS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 768, 1536, 2688)
"""Numbers of directions at which the share of the variance is written down."""

SHARES = (90, 95, 99)
"""Per cent of the variance for which the number of directions is written down."""


def cumulative(matrix: Floats) -> Floats:
    """Return the shares of the trace `(d,)` in the first 1, 2, ... d directions of a covariance matrix `(d, d)`."""
    values = np.maximum(np.linalg.eigvalsh(matrix)[::-1], 0)
    total = float(values.sum())
    return np.minimum(np.cumsum(values) / total, 1.0) if total > 0 else np.ones(len(values))


def spectra(moments: Moments, columns: slice) -> dict[str, Any]:
    """Return, for some columns of a field in each of `FORMS`, the shares at `MARKS` and the directions for `SHARES`."""
    gram, mean = moments.gram[columns, columns], moments.mean[columns]
    scale = 1 / moments.deviation()[columns]
    matrices = (gram + moments.n * np.outer(mean, mean), gram, gram * np.outer(scale, scale))
    result = {}
    for form, matrix in zip(FORMS, matrices, strict=True):
        shares = cumulative(matrix)
        needed = {str(share): min(int(np.searchsorted(shares, share / 100)) + 1, len(shares)) for share in SHARES}
        marks = {str(k): round(float(shares[k - 1]), 5) for k in MARKS if k <= len(shares)}
        result[form] = {"share": marks, "directions": needed}
    return result


def principal(moments: Moments, k: int) -> tuple[Floats, Floats]:
    """Return `(offset (k,), projection (d, k))`: `x @ projection - offset` are the first `k` principal components.

    They are those of the standardised field (Pearson, 1901), the strongest first.
    """
    scale = 1 / moments.deviation()
    _, vectors = np.linalg.eigh(moments.gram * np.outer(scale, scale))
    projection = scale[:, None] * vectors[:, ::-1][:, :k]
    return moments.mean @ projection, projection
