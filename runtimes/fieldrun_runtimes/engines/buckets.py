"""What engines of graphs share: a graph takes one fixed shape, a bucket, and a request is cut into buckets.

Texts go into the smallest length that fits, full batches first; a single text runs alone.
"""

from __future__ import annotations

import abc
import os
import threading
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from fieldrun.errors import BundleError, EngineError
from fieldrun.formats.bundle import Bucket, Bundle, Manifest, TensorrtGraphs
from fieldrun.formats.tensors import Array

__all__ = ["BucketPlan", "Call", "GraphEngine"]

Call = Callable[[dict[str, Array]], Array]
"""Runs one graph on its inputs by name and returns its output, an array that the next call leaves as it is."""


class BucketPlan:
    """The buckets of a bundle, every batch with every length, and how a request is cut into them."""

    def __init__(self, buckets: Sequence[Bucket]) -> None:
        self._buckets = {(bucket.batch, bucket.length): bucket for bucket in buckets}
        self._lengths = sorted({bucket.length for bucket in buckets})
        self._batches = sorted({bucket.batch for bucket in buckets})

    def bucket_for(self, tokens: int, batch: int = 1) -> Bucket:
        """Return the smallest bucket of `batch` texts that takes `tokens` tokens a text.

        Raises:
            EngineError: the text exceeds the largest bucket.
        """
        for length in self._lengths:
            if tokens <= length:
                return self._buckets[batch, length]
        raise EngineError(f"a text of {tokens} tokens exceeds the largest bucket of {self._lengths[-1]} tokens")

    def batches_for(self, count: int) -> Iterator[tuple[int, int]]:
        """Yield (first row, batch size) until `count` rows are covered.

        Each batch is the largest that the rows left over fill at least to a half, else 1.
        """
        start = 0
        while start < count:
            left = count - start
            batch = next((size for size in reversed(self._batches) if 2 * left >= size), 1)
            yield start, batch
            start += batch

    def cut(self, tokens: Sequence[int]) -> Iterator[tuple[Bucket, list[int]]]:
        """Yield the calls that cover texts of `tokens` tokens each: the bucket, and the numbers of its texts."""
        groups: dict[int, list[int]] = {}
        for row, count in enumerate(tokens):
            groups.setdefault(self.bucket_for(count).length, []).append(row)
        for length, rows in sorted(groups.items()):
            for start, batch in self.batches_for(len(rows)):
                yield self._buckets[batch, length], rows[start : start + batch]


class GraphEngine(abc.ABC):
    """The base of engines that run a bundle's graphs: padding, batches, and each graph opened when first needed.

    A subclass says how one graph is opened. `buckets` and `pair_graphs` are the graphs, as the manifest lists them.
    """

    def __init__(self, bundle: Bundle, graphs: Manifest | TensorrtGraphs) -> None:
        self.buckets, self.pair_graphs = graphs.buckets, graphs.pair_graphs
        self._network = bundle.manifest.network
        tasks = [task for task in bundle.manifest.tasks if not task.attached]
        singles, pairs = (sum(len(t.labels) for t in tasks if t.kind == kind) for kind in ("single", "pair"))
        self._columns, self._pair_columns = bundle.manifest.network.field_dim + singles, pairs
        self._plan = BucketPlan(graphs.buckets)
        self._calls: dict[str, Call] = {}
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._inherited: list[dict[str, Call]] = []

    @abc.abstractmethod
    def _open(self, graph: str) -> Call:
        """Open the file `graph` of the bundle; `EngineError` when it cannot be opened."""

    def run(self, sequences: Sequence[Sequence[int]]) -> tuple[Array, Array]:
        """Return field `(n, dim)` and logits `(n, labels)` float32 of `n` texts' token ids."""
        if len(sequences) == 1:
            return self._split(self._batch(sequences, self._plan.bucket_for(len(sequences[0]))))
        order: list[int] = []
        parts = []
        for bucket, rows in self._plan.cut([len(ids) for ids in sequences]):
            parts.append(self._batch([sequences[row] for row in rows], bucket))
            order += rows
        return self._split(np.concatenate(parts)[np.argsort(order)])

    def run_bucket(self, sequences: Sequence[Sequence[int]], bucket: Bucket) -> tuple[Array, Array]:
        """Return what `run` does, with every text in `bucket` even if a smaller one fits."""
        starts = range(0, len(sequences), bucket.batch)
        return self._split(np.concatenate([self._batch(sequences[i : i + bucket.batch], bucket) for i in starts]))

    def run_pairs(self, a: Array, b: Array) -> Array:
        """Return the logits of all pair tasks `(n, labels) float32` for two fields `(n, dim) float32`."""
        calls = self._plan.batches_for(len(a))
        return np.concatenate([self.run_pair_graph(a[i : i + batch], b[i : i + batch], batch) for i, batch in calls])

    def run_pair_graph(self, a: Array, b: Array, batch: int) -> Array:
        """Return what `run_pairs` does, with every pair in the graph of `batch` pairs."""
        graph, parts = self.pair_graphs[batch], []
        for start in range(0, len(a), batch):
            rows = np.minimum(np.arange(start, start + batch), len(a) - 1)  # the last batch repeats the last pair
            output = self._checked(graph, {"a": a[rows], "b": b[rows]}, batch, self._pair_columns)
            parts.append(output[: len(a) - start])
        return np.concatenate(parts)

    def _batch(self, sequences: Sequence[Sequence[int]], bucket: Bucket) -> Array:
        """Return field and logits in one, `(n, dim + labels)`, of at most `bucket.batch` texts."""
        ids = self._network.frame(sequences, bucket.batch, bucket.length)
        return self._checked(bucket.graph, {"ids": ids}, bucket.batch, self._columns)[: len(sequences)]

    def _checked(self, graph: str, inputs: dict[str, Array], rows: int, columns: int) -> Array:
        """Run `graph` and return its output `(rows, columns)`, whose numbers are all finite."""
        output = self._call(graph)(inputs)
        if output.shape != (rows, columns) or not np.isfinite(output).all():
            raise BundleError(
                f"{graph} gives numbers that are not finite, or not {rows} times {columns} of them; export again"
            )
        return output

    def _split(self, output: Array) -> tuple[Array, Array]:
        return output[:, : self._network.field_dim], output[:, self._network.field_dim :]

    def _call(self, graph: str) -> Call:
        if self._process != os.getpid():
            self._start_again()
        call = self._calls.get(graph)
        if call is None:
            with self._lock:
                if graph not in self._calls:
                    self._calls[graph] = self._open(graph)
                call = self._calls[graph]
        return call

    def _start_again(self) -> None:
        """Open all graphs anew after a fork: a process has none of its parent's threads, and locks as they stood.

        The parent's graphs are kept, and never used: to close one would wait for its threads.
        """
        self._inherited.append(self._calls)
        self._calls, self._lock, self._process = {}, threading.Lock(), os.getpid()
