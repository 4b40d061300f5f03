"""The null engine: zeros in the right shapes, to measure the cost of everything around an engine."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from fieldrun.formats.bundle import Bundle
from fieldrun.formats.tensors import Array

__all__ = ["NullEngine"]


class NullEngine:
    """Returns zero fields and logits; for measuring overhead and for tests, never for answers."""

    def __init__(self, bundle: Bundle, threads: int, weights: Mapping[str, Array] | None = None) -> None:
        del threads, weights
        tasks = bundle.manifest.tasks
        self._dim = bundle.manifest.network.field_dim
        self._single = sum(len(task.labels) for task in tasks if task.kind == "single")
        self._pair = sum(len(task.labels) for task in tasks if task.kind == "pair")

    def run(self, sequences: Sequence[Sequence[int]]) -> tuple[Array, Array]:
        """Return zeros, `(n, dim)` and `(n, labels)` float32."""
        n = len(sequences)
        return np.zeros((n, self._dim), np.float32), np.zeros((n, self._single), np.float32)

    def run_pairs(self, a: Array, b: Array) -> Array:
        """Return zeros, `(n, labels) float32`."""
        del b
        return np.zeros((len(a), self._pair), np.float32)
