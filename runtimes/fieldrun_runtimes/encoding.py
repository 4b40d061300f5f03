"""What one forward pass gives, and how the windows of a long text become one row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Encoding", "pool_windows"]

Floats = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """What one forward pass gives for `n` texts.

    `field (n, dim)` and `logits (n, labels of all exported single tasks)` are float32; the logits of attached heads are
    computed from the field when they are asked for. `tokens (n,)` counts each text's tokens, special tokens included;
    `dropped (n,)` those that were cut off, 0 unless the text was too long and `overflow="truncate"`. Of a very long
    text (64 characters for each token that fits) only the beginning is read, and both count what was read. `known (n,)`
    is the share of a text's tokens, special ones apart, that the vocabulary has: texts of 0 (another script, emoji) all
    have the same field, and what the model says of them means nothing; see `unknown` of `fieldrun.load`.
    """

    field: Floats
    logits: Floats
    tokens: npt.NDArray[np.int64]
    dropped: npt.NDArray[np.int64]
    known: Floats

    def __len__(self) -> int:
        return len(self.field)

    def part(self, start: int, stop: int) -> Encoding:
        """Return the texts `start` to `stop` (excluded) of this encoding."""
        rows = slice(start, stop)
        return Encoding(**{name: getattr(self, name)[rows] for name in Encoding.__slots__})


def pool_windows(values: Floats, weights: Sequence[int], owners: Sequence[int], n: int) -> Floats:
    """Return the mean over each owner's windows, weighted by their tokens, `(n, columns) float32`.

    It has the same bits in any company: an owner's windows are added in their order, and one window alone is kept.
    """
    weight = np.array(weights, np.float32)[:, None]
    total = np.zeros((n, values.shape[1]), np.float32)
    share = np.zeros((n, 1), np.float32)
    np.add.at(total, owners, values * weight)
    np.add.at(share, owners, weight)
    pooled: Floats = total / share
    rows = np.bincount(owners, minlength=n)[owners] == 1  # which are as they would be alone, to the last bit
    pooled[np.asarray(owners)[rows]] = values[rows]
    return pooled
