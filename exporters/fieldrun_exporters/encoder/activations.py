"""What the dense maps of an encoder see on real text: second moments and means, which the methods work from.

With `x (tokens, features)` the inputs of a map, R = X'X / tokens, uncentred and accumulated in float64 (A3, arXiv
2505.12942, section 3). Means are kept beside it, since BERT's maps have biases, and so is the covariance of the tokens
about the mean of their own text: that is all that a softmax over the keys of a text can see of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from fieldrun.errors import ExportError
from fieldrun.formats.progress import Progress
from fieldrun.formats.tensors import Array
from fieldrun.student.windows import pad_ids

from .model import Encoder, forward

__all__ = ["Moments", "accumulate", "by_length", "map_errors"]

_BATCH = 16


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Moments:
    """Moments of the inputs of `layer<k>.query` (shared by key and value), `.context`, `.attention`, `.up`, `.down`.

    Of `layer<k>.context`, the per-head input of the value-output product, every array has a leading axis of heads.
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
        """Return R of the input with a constant 1 behind it, `(features + 1, features + 1)`: a bias is its last row."""
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


def accumulate(
    encoder: Encoder,
    sequences: Sequence[Sequence[int]],
    progress: Progress | None = None,
) -> Moments:
    """Run `sequences` of token ids through the NumPy encoder and return the moments of every map's input.

    Raises:
        ExportError: no text has two tokens, of which nothing could be learnt.
    """
    if not any(len(ids) > 1 for ids in sequences):
        raise ExportError("calibration needs texts of two tokens or more; give some hundreds like those to come")
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


def map_errors(name: str, before: Array, after: Array, moments: Moments | None) -> dict[str, float]:
    """Return how far the weight `after` of the map `name` is from `before`, as relative root mean squares.

    `weight_error` of the numbers, and with `moments` `output_error` of what the map gives on the calibration text.
    `name` is that of the weight, `layer<k>.<map>.weight`; both are `(inputs, outputs)`.
    """
    step, old = np.asarray(before - after, np.float64), before.astype(np.float64)
    size = float(np.square(old).sum())
    errors = {"weight_error": float(np.sqrt(np.square(step).sum() / size)) if size else 0.0}
    if moments is not None:
        layer, own, _ = name.split(".")
        R = moments.second[f"{layer}.{'query' if own in ('key', 'value') else own}"]
        output = float(np.sum(old * (R @ old)))
        errors["output_error"] = float(np.sqrt(max(float(np.sum(step * (R @ step))), 0.0) / output)) if output else 0.0
    return errors


def _add(totals: dict[str, Array], name: str, value: Array) -> None:
    totals[name] = totals[name] + value if name in totals else value
