"""An encoder on many texts: its fields, and what its dense maps take as input on the way.

Low rank works from second moments: with `x (tokens, features)` the inputs of a map, R = X'X / tokens, uncentred, in
float64 (A3, arXiv 2505.12942, section 3). The means are kept too, because BERT's maps have biases, and so is the
covariance of the tokens about the mean of their own text, which is all that a softmax over the keys of a text depends
on.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fieldrun.errors import ExportError
from fieldrun.formats.progress import Progress
from fieldrun.formats.tensors import Array
from fieldrun.student.windows import pad_ids

from ..calibrate import Largest
from .model import Encoder, forward

__all__ = ["Moments", "accumulate", "by_length", "fields", "input_ranges", "input_squares"]

_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """Moments of the inputs of `layer<k>.query` (shared by key and value), `.context`, `.attention`, `.up`, `.down`.

    `layer<k>.context` is the input of the value-output product per head: its arrays have a leading axis of heads.
    """

    tokens: int
    second: Mapping[str, Array]
    """`(features, features) float64`: X'X / tokens."""
    mean: Mapping[str, Array]
    """`(features,) float64`."""
    within: Mapping[str, Array]
    """`(features, features) float64` of `layer<k>.query`: the covariance of tokens about the mean of their text."""

    def covariance(self, name: str) -> Array:
        """Return the centred second moment of `name`, `(features, features) float64`."""
        mean = self.mean[name]
        centred: Array = self.second[name] - mean[..., :, None] * mean[..., None, :]
        return centred

    def augmented(self, name: str) -> Array:
        """Return R of the input with a constant 1 appended, `(features + 1, features + 1)`: a bias is its last row."""
        mean = self.mean[name][..., None]
        one = np.ones((*mean.shape[:-2], 1, 1))
        top = np.concatenate([self.second[name], mean], axis=-1)
        bottom = np.concatenate([mean.swapaxes(-1, -2), one], axis=-1)
        whole: Array = np.concatenate([top, bottom], axis=-2)
        return whole


def by_length(sequences: Sequence[Sequence[int]], batch: int) -> list[list[int]]:
    """Return the numbers of `sequences` in batches of similar length, which have little padding."""
    order = sorted(range(len(sequences)), key=lambda i: (len(sequences[i]), i))
    return [order[start : start + batch] for start in range(0, len(order), batch)]


def fields(
    encoder: Encoder,
    sequences: Sequence[Sequence[int]],
    hook: Callable[[str, Array], None] | None = None,
    progress: Progress | None = None,
    phase: str = "fields",
) -> Array:
    """Return the fields `(n, hidden) float32` of `sequences`; `hook` as in `forward`."""
    out, done = np.empty((len(sequences), encoder.config.hidden), np.float32), 0
    for rows in by_length(sequences, _BATCH):
        out[rows] = forward(encoder, pad_ids([sequences[i] for i in rows]), hook)
        done += len(rows)
        if progress is not None:
            progress(phase, done, len(sequences))
    return out


def input_ranges(
    encoder: Encoder, sequences: Sequence[Sequence[int]], percentile: float, progress: Progress | None = None
) -> dict[str, float]:
    """Return the `percentile` of every map's absolute input over `sequences`, by the maps of `DeployedEncoder`."""
    tokens = sum(len(ids) for ids in sequences)
    seen: dict[str, Largest] = {}

    def see(name: str, x: Array) -> None:
        if not name.endswith(".context"):
            seen.setdefault(_deployed(name), Largest(tokens * x.shape[1], percentile)).add(np.abs(x))

    fields(encoder, sequences, see, progress, "calibrate")
    return {name: largest.value() for name, largest in seen.items()}


def input_squares(encoder: Encoder, sequences: Sequence[Sequence[int]]) -> dict[str, Array]:
    """Return the mean square of every input of every map, `(inputs,) float64`, by the maps of `DeployedEncoder`."""
    totals: dict[str, Array] = {}

    def see(name: str, x: Array) -> None:
        if not name.endswith(".context"):
            _add(totals, _deployed(name), np.square(x, dtype=np.float64).sum(0))

    fields(encoder, sequences, see)
    tokens = sum(len(ids) for ids in sequences)
    return {name: total / tokens for name, total in totals.items()}


def _deployed(name: str) -> str:
    """Return the deployed map that takes the input `name`: query, key and value are one."""
    return name.replace(".query", ".qkv")


def accumulate(
    encoder: Encoder,
    sequences: Sequence[Sequence[int]],
    progress: Progress | None = None,
) -> Moments:
    """Return the moments of every map's input over `sequences` of token ids.

    Raises:
        ExportError: no text has two tokens or more.
    """
    if not any(len(ids) > 1 for ids in sequences):
        raise ExportError(
            "calibration needs texts of two tokens or more; give a few hundred texts like those you will run"
        )
    second: dict[str, Array] = {}
    mean: dict[str, Array] = {}
    within: dict[str, Array] = {}
    starts = np.zeros(1, np.int64)
    tokens = 0

    def see(name: str, x: Array) -> None:
        wide = x.astype(np.float64)
        if name.endswith(".context"):
            heads = wide.reshape(len(x), encoder.config.heads, -1).transpose(1, 0, 2)
            _add(second, name, heads.swapaxes(1, 2) @ heads)
            _add(mean, name, heads.sum(1))
            return
        _add(second, name, wide.T @ wide)
        _add(mean, name, wide.sum(0))
        if name.endswith(".query"):
            counts = np.diff(np.append(starts, len(wide)))
            centred = wide - np.repeat(np.add.reduceat(wide, starts) / counts[:, None], counts, axis=0)
            _add(within, name, centred.T @ centred)

    used = [ids for ids in sequences if len(ids)]
    for number, rows in enumerate(batches := by_length(used, _BATCH)):
        lengths = np.array([len(used[i]) for i in rows])
        starts = np.cumsum(lengths) - lengths
        forward(encoder, pad_ids([used[i] for i in rows]), see)
        tokens += int(lengths.sum())
        if progress is not None:
            progress("activations", number + 1, len(batches))
    return Moments(
        tokens=tokens,
        second={name: total / tokens for name, total in second.items()},
        mean={name: total / tokens for name, total in mean.items()},
        within={name: total / tokens for name, total in within.items()},
    )


def _add(totals: dict[str, Array], name: str, value: Array) -> None:
    totals[name] = totals[name] + value if name in totals else value
