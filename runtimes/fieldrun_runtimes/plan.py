"""Which texts go through which bucket: the smallest length that fits, full batches first, single texts alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fieldrun.bundle import Bucket
from fieldrun.tensors import Array

__all__ = ["BucketPlan", "Chunk", "fill"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One call of the engine: `rows` of the request, and the filled `(batch, length) int64` ids."""

    rows: list[int]
    ids: Array


class BucketPlan:
    """The fixed shapes of a bundle, and how a request is cut into them."""

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        self.lengths = sorted({bucket.length for bucket in buckets})
        self.batches = sorted({bucket.batch for bucket in buckets})
        self.longest = self.lengths[-1]

    def length_for(self, tokens: int) -> int:
        """Return the smallest bucket length that takes `tokens`."""
        return next(length for length in self.lengths if tokens <= length)

    def chunks(self, sequences: Sequence[Sequence[int]]) -> Iterator[Chunk]:
        """Yield the calls that cover `sequences`; a batch is filled up with copies of its first row."""
        if len(sequences) == 1:
            yield self._chunk(sequences, [0], 1, self.length_for(len(sequences[0])))
            return
        groups: dict[int, list[int]] = {}
        for row, ids in enumerate(sequences):
            groups.setdefault(self.length_for(len(ids)), []).append(row)
        for length, rows in sorted(groups.items()):
            start = 0
            while start < len(rows):
                batch = self.batch_for(len(rows) - start)
                yield self._chunk(sequences, rows[start : start + batch], batch, length)
                start += batch

    def batch_for(self, count: int) -> int:
        """Return the batch size for `count` waiting rows: the largest that they fill at least to a half, else 1."""
        return next((batch for batch in reversed(self.batches) if 2 * count >= batch), 1)

    @staticmethod
    def _chunk(sequences: Sequence[Sequence[int]], rows: list[int], batch: int, length: int) -> Chunk:
        return Chunk(rows=rows, ids=fill([sequences[row] for row in rows], batch, length))


def fill(sequences: Sequence[Sequence[int]], batch: int, length: int) -> Array:
    """Return token ids as `(batch, length) int64`: padded with id 0, filled up with copies of the first row."""
    ids = np.zeros((batch, length), np.int64)
    for row, sequence in enumerate(sequences):
        ids[row, : len(sequence)] = sequence
    ids[len(sequences) :] = ids[0]
    return ids
