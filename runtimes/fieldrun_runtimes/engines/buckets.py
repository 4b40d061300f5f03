"""Which texts go through which bucket: the smallest length that fits, full batches first, single texts alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from fieldrun.formats.bundle import Bucket, GraphNetwork, Network
from fieldrun.formats.tensors import Array

__all__ = ["BucketPlan", "Chunk"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Chunk:
    """One call of the engine: `rows` of the request, and the framed ids of a bucket (`Network.frame`)."""

    rows: list[int]
    ids: Array


class BucketPlan:
    """The fixed shapes of a bundle, and how a request is cut into them."""

    def __init__(self, network: Network | GraphNetwork, buckets: Sequence[Bucket]) -> None:
        self._frame = network.frame
        self.lengths = sorted({bucket.length for bucket in buckets})
        self.batches = sorted({bucket.batch for bucket in buckets})
        self.longest = self.lengths[-1]
        fitting = (next(length for length in self.lengths if n <= length) for n in range(self.longest + 1))
        self._length_for = list(fitting)
        left, right = network.margins
        pad = [network.pad_id]
        self._before, self._after = pad * left, [pad * (n + right) for n in range(self.longest + 1)]

    def length_for(self, tokens: int) -> int:
        """Return the smallest bucket length that takes `tokens`."""
        return self._length_for[tokens]

    def one(self, sequence: Sequence[int]) -> Array:
        """Return the ids of a call for one text alone: what `Network.frame` gives, from one list."""
        n = len(sequence)
        return np.array([[*self._before, *sequence, *self._after[self._length_for[n] - n]]], np.int32)

    def chunks(self, sequences: Sequence[Sequence[int]]) -> Iterator[Chunk]:
        """Yield the calls that cover `sequences`; a batch is filled up with copies of its first row."""
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

    def _chunk(self, sequences: Sequence[Sequence[int]], rows: list[int], batch: int, length: int) -> Chunk:
        return Chunk(rows=rows, ids=self._frame([sequences[row] for row in rows], batch, length))
