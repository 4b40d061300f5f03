"""The student in NumPy, written from the formulas of `fieldrun.student.config`: the oracle that proves every export.

It runs the trained form in float32 or float64, one plain operation per line, without folding, quantization or buckets.
`float64=True` gives the value that everything else is measured against.

Only proofs import this module. It has its own padding, pair features and softmax, so that a mistake in the code that
runs on a device cannot hide in its proof.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from ..formats.tensors import Array
from .config import HASH_MULTIPLIERS, SCORE_FLOOR, StudentConfig

__all__ = ["forward", "head_logits", "pad_ids", "pair_features", "shift", "softmax"]


def pad_ids(sequences: Sequence[Sequence[int]], length: int | None = None) -> Array:
    """Return `sequences` of token ids as `(n, length) int64`, padded with id 0; the longest decides when None."""
    longest = max(len(sequence) for sequence in sequences)
    ids = np.zeros((len(sequences), longest if length is None else length), np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
    return ids


def shift(x: Array, offset: int) -> Array:
    """Return `x (batch, length, ...)` with position `t` holding `x[:, t + offset]`, zero outside."""
    out = np.zeros_like(x)
    if offset >= x.shape[1] or -offset >= x.shape[1]:
        return out
    if offset > 0:
        out[:, :-offset] = x[:, offset:]
    elif offset < 0:
        out[:, -offset:] = x[:, :offset]
    else:
        out[:] = x
    return out


def forward(
    config: StudentConfig,
    weights: Mapping[str, Array],
    ids: Array,
    *,
    float64: bool = False,
    record: Callable[[str, Array], None] | None = None,
) -> Array:
    """Return the field of `ids`.

    Args:
        config: the student's shape.
        weights: the trained form, `config.shapes()`.
        ids: `(batch, length) int64`, padded at the end with id 0; every row has at least one other id.
        float64: compute in float64.
        record: called with (name, activations) at the input of every dense layer, for calibration; activations are
            `(rows, inputs)` without padding positions.

    Returns:
        `(batch, field_dim)` float32, or float64 when asked for.
    """
    w = {name: tensor.astype(np.float64 if float64 else np.float32, copy=False) for name, tensor in weights.items()}
    mask = (ids != 0)[:, :, None]
    seen = record or _ignore

    y = np.zeros((*ids.shape, config.width), w["window.bias"].dtype) + w["window.bias"]
    for o, matrix in zip(config.offsets, w["window.weight"], strict=True):
        y = y + w["embedding"][shift(ids, o)] @ matrix
    for number, gram in enumerate(config.ngrams):
        factors = [HASH_MULTIPLIERS[(i + number) % len(HASH_MULTIPLIERS)] for i in range(len(gram))]
        rows = sum(shift(ids, o) * factor for o, factor in zip(gram, factors, strict=True)) % config.ngram_buckets
        y = y + w["ngram"][rows]
    g = np.maximum(y, 0) * mask

    if config.mixer_kernel:
        together = np.concatenate([shift(g, k) for k in range(config.mixer_kernel)], axis=-1)
        seen("mixer", together[together.any(-1)])
        g = np.maximum(together @ w["mixer.weight"], 0)

    pooled = g.max(1)
    if config.mean:
        a = g @ w["pool.weight"]
        pooled = np.concatenate([(a * g).sum(1) / (a.sum(1) + SCORE_FLOOR), pooled], axis=-1)

    if config.hidden:
        seen("hidden", pooled)
        pooled = np.maximum(pooled @ w["hidden.weight"] + w["hidden.bias"], 0)
    seen("field", pooled)
    return np.asarray(pooled @ w["field.weight"] + w["field.bias"])


def _ignore(name: str, x: Array) -> None:
    del name, x


def pair_features(a: Array, b: Array) -> Array:
    """Return `[a; b; |a - b|; a * b]` of two fields `(batch, dim)`, as `(batch, 4 * dim)`."""
    return np.concatenate([a, b, np.abs(a - b), a * b], axis=-1)


def head_logits(weight: Array, bias: Array, x: Array) -> Array:
    """Return a head's logits `(batch, labels)` for its input `x`: fields, or `pair_features` for a pair task."""
    return np.asarray(x @ weight + bias)


def softmax(logits: Array, temperature: float = 1.0) -> Array:
    """Return `softmax(logits / temperature)` over the last axis; rows sum to 1."""
    scaled = logits / np.asarray(temperature, logits.dtype)
    e = np.exp(scaled - scaled.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))
