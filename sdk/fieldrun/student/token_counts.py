"""How often the training text uses every token and every n-gram bucket: what an export may spend fewer bytes on.

Use is far from even: the most frequent fifth of a vocabulary makes some nine tenths of a text (Zipf's law).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from ..errors import CheckpointError
from ..formats.tensors import Array
from .config import StudentConfig
from .windows import buckets_of, pad_ids

__all__ = ["check_usage", "count_usage"]

_BATCH = 512
_MOST = np.iinfo(np.int32).max


def count_usage(config: StudentConfig, sequences: Sequence[Sequence[int]]) -> dict[str, Array]:
    """Return how often `sequences` of token ids use each token and bucket.

    Returns:
        `tokens (vocab_size,) int32` and, for a student with n-grams, `ngrams (ngram_buckets,) int32`.
    """
    tokens = np.zeros(config.vocab_size, np.int64)
    ngrams = np.zeros(config.ngram_buckets, np.int64)
    order = np.argsort([len(ids) for ids in sequences], kind="stable")
    for start in range(0, len(order), _BATCH):
        ids = pad_ids([sequences[i] for i in order[start : start + _BATCH]])
        text = ids != 0
        tokens += np.bincount(ids[text], minlength=config.vocab_size)
        if config.ngrams:
            ngrams += np.bincount(buckets_of(config, ids)[text].ravel(), minlength=config.ngram_buckets)
    found = {"tokens": tokens} | ({"ngrams": ngrams} if config.ngrams else {})
    return {name: np.minimum(counts, _MOST).astype(np.int32) for name, counts in found.items()}


def check_usage(config: StudentConfig, usage: Mapping[str, Array]) -> None:
    """Check counts against a student's shape, none at all being allowed; raises `CheckpointError`."""
    wanted = {"tokens": (config.vocab_size,)} | ({"ngrams": (config.ngram_buckets,)} if config.ngrams else {})
    found = {name: counts.shape for name, counts in usage.items()}
    if usage and (found != wanted or any(counts.dtype != np.int32 for counts in usage.values())):
        raise CheckpointError(f"usage: the counts must be int32 of the shapes {wanted}, not {found}; restore the file")
