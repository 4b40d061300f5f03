"""An encoder's fields of many texts, and how large the input of every map gets on the way."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from fieldrun.formats.tensors import Array
from fieldrun.student.windows import pad_ids

from .model import Encoder, forward

__all__ = ["Largest", "fields", "input_ranges", "input_squares"]

_TEXTS = 16  # in one forward pass; texts of similar length together


class Largest:
    """A percentile of at most `most` numbers of which only the largest are kept, linear between ranks as NumPy's."""

    def __init__(self, most: int, percentile: float) -> None:
        self._share = percentile / 100
        self._keep = most - int((most - 1) * self._share)
        self._kept = np.zeros(0, np.float32)
        self._count = 0

    def add(self, values: Array) -> None:
        """Take more of the numbers."""
        self._count += values.size
        both = np.concatenate([self._kept, values.ravel()])
        if len(both) > self._keep:
            both = np.partition(both, len(both) - self._keep)[len(both) - self._keep :]
        self._kept = both

    def value(self) -> float:
        """Return the percentile of all numbers taken."""
        rank = (self._count - 1) * self._share
        ordered = np.sort(self._kept).astype(np.float64)
        first = len(ordered) - (self._count - int(rank))  # where the number below the percentile stands
        above = ordered[min(first + 1, len(ordered) - 1)]
        return float(ordered[first] + (above - ordered[first]) * (rank - int(rank)))


def input_ranges(
    encoder: Encoder,
    sequences: Sequence[Sequence[int]],
    percentile: float,
    progress: Callable[[int, int], None] | None = None,
) -> dict[str, float]:
    """Return the `percentile` of every map's absolute input over `sequences`, by the maps of `DeployedEncoder`.

    `progress` is called with (texts done, texts).
    """
    tokens = sum(len(ids) for ids in sequences)
    seen: dict[str, Largest] = {}

    def watch(name: str, x: Array) -> None:
        name = name.replace(".query", ".qkv")
        if not name.endswith(".context"):
            seen.setdefault(name, Largest(tokens * x.shape[1], percentile)).add(np.abs(x))

    fields(encoder, sequences, watch, progress)
    return {name: largest.value() for name, largest in seen.items()}


def input_squares(encoder: Encoder, sequences: Sequence[Sequence[int]]) -> dict[str, Array]:
    """Return the mean square of every input of every map, `(inputs,) float64`, by the maps of `DeployedEncoder`."""
    totals: dict[str, Array] = {}

    def watch(name: str, x: Array) -> None:
        if not name.endswith(".context"):
            squares = np.square(x, dtype=np.float64).sum(0)
            name = name.replace(".query", ".qkv")
            totals[name] = totals[name] + squares if name in totals else squares

    fields(encoder, sequences, watch)
    tokens = sum(len(ids) for ids in sequences)
    return {name: total / tokens for name, total in totals.items()}


def fields(
    encoder: Encoder,
    sequences: Sequence[Sequence[int]],
    hook: Callable[[str, Array], None] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Array:
    """Return the fields `(n, hidden) float32` of `sequences`, texts of similar length together; `hook` as `forward`'s.

    `progress` is called with (texts done, texts).
    """
    out = np.empty((len(sequences), encoder.config.hidden), np.float32)
    order = np.argsort([len(ids) for ids in sequences], kind="stable")
    for start in range(0, len(order), _TEXTS):
        rows = order[start : start + _TEXTS]
        out[rows] = forward(encoder, pad_ids([sequences[i] for i in rows]), hook)
        if progress is not None:
            progress(start + len(rows), len(order))
    return out
