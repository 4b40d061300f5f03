"""The exact GELU in NumPy, which has no error function."""

from __future__ import annotations

import numpy as np

from fieldrun.formats.tensors import Array

__all__ = ["erf", "gelu"]

_REACH = 3.832506856900711  # beyond it erf is 1 within the error of the approximation
_NUMERATOR = (
    0.00022905065861350646,
    0.0034082910107109506,
    0.050955695062380861,
    0.18520832239976145,
    1.128379143519084,
)
_DENOMINATOR = (
    -1.1791602954361697e-7,
    0.000023547966471313185,
    0.0010179625278914885,
    0.014070470171167667,
    0.11098505178285362,
    0.49746925110067538,
    1.0,
)
_CHUNK = 1 << 14  # numbers whose working copies stay in a second-level cache


def erf(x: Array) -> Array:
    """Return the error function of `x`, float32 of its shape, with an absolute error below 1e-7.

    x P(x^2) / Q(x^2), the minimax rational approximation of Eigen and XLA (`generic_fast_erf_float`), evaluated in
    float64: in float32 the rounding of its sums alone is three times that error.
    """
    flat = np.asarray(x, np.float32).ravel()
    out = np.empty_like(flat)
    for start in range(0, len(flat), _CHUNK):
        t = flat[start : start + _CHUNK].astype(np.float64).clip(-_REACH, _REACH)
        square = t * t
        ratio = t * _polynomial(_NUMERATOR, square)
        ratio /= _polynomial(_DENOMINATOR, square)
        out[start : start + _CHUNK] = np.where(np.abs(t) == _REACH, np.sign(t), ratio)
    return out.reshape(np.shape(x))


def _polynomial(coefficients: tuple[float, ...], x: Array) -> Array:
    out = np.full_like(x, coefficients[0])
    for coefficient in coefficients[1:]:
        out *= x
        out += coefficient
    return out


def gelu(x: Array) -> Array:
    """Return x (1 + erf(x / sqrt 2)) / 2, float32 of the shape of `x` (Hendrycks and Gimpel 2016, the exact form)."""
    return np.float32(0.5) * x * (np.float32(1) + erf(x * np.float32(np.sqrt(0.5))))
