"""Calibration of an encoder: its fields on real text, and how large the input of every map gets on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fieldrun.reference import pad_ids
from fieldrun.tensors import Array

from .model import Encoder, forward

__all__ = ["Largest", "fields_and_ranges"]

_TEXTS = 16  # in one forward pass; texts of similar length together


class Largest:
    """A percentile of many numbers of which only the largest are kept: `numpy.percentile`'s, linear between ranks."""

    def __init__(self, count: int, percentile: float) -> None:
        self._rank = (count - 1) * percentile / 100
        self._keep = count - int(self._rank)
        self._kept = np.zeros(0, np.float32)

    def add(self, values: Array) -> None:
        """Take more of the numbers."""
        both = np.concatenate([self._kept, values.ravel()])
        if len(both) > self._keep:
            both = np.partition(both, len(both) - self._keep)[len(both) - self._keep :]
        self._kept = both

    def value(self) -> float:
        """Return the percentile of all numbers taken."""
        ordered = np.sort(self._kept).astype(np.float64)
        above = ordered[min(1, len(ordered) - 1)]
        return float(ordered[0] + (above - ordered[0]) * (self._rank - int(self._rank)))


def fields_and_ranges(
    encoder: Encoder,
    sequences: Sequence[Sequence[int]],
    percentile: float,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[Array, dict[str, float]]:
    """Return the fields `(n, hidden) float32` of `sequences`, and the `percentile` of every map's absolute input.

    Ranges are named as the maps of `DeployedEncoder`. `progress` is called with (texts done, texts).
    """
    tokens = sum(len(ids) for ids in sequences)
    seen: dict[str, Largest] = {}

    def watch(name: str, x: Array) -> None:
        name = name.replace(".query", ".qkv")
        if not name.endswith(".context"):
            seen.setdefault(name, Largest(tokens * x.shape[1], percentile)).add(np.abs(x))

    fields = np.empty((len(sequences), encoder.config.hidden), np.float32)
    order = np.argsort([len(ids) for ids in sequences], kind="stable")
    for start in range(0, len(order), _TEXTS):
        rows = order[start : start + _TEXTS]
        fields[rows] = forward(encoder, pad_ids([sequences[i] for i in rows]), watch)
        if progress is not None:
            progress(start + len(rows), len(order))
    return fields, {name: largest.value() for name, largest in seen.items()}
