"""Token ids as arrays: padded, seen from a position, and as the n-gram buckets of a student."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..formats.tensors import Array
from .config import HASH_MULTIPLIERS, StudentConfig

__all__ = ["buckets_of", "pad_ids", "shift"]


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


def buckets_of(config: StudentConfig, ids: Array) -> Array:
    """Return the n-gram buckets of every position of `ids (batch, length) int64`, `(batch, length, n-grams) int64`."""
    rows = np.zeros((*ids.shape, len(config.ngrams)), np.int64)
    for number, gram in enumerate(config.ngrams):
        for i, offset in enumerate(gram):
            rows[:, :, number] += shift(ids, offset) * HASH_MULTIPLIERS[(i + number) % len(HASH_MULTIPLIERS)]
    return rows % max(1, config.ngram_buckets)
