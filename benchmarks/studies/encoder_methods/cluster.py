"""Weight clustering of an encoder, centroid tuning, and the rank experiment (arXiv 2603.17917).

Every dense map's weight becomes `K` shared values: labels of ceil(log2 K) bits into a sorted codebook of K float16
numbers, so that the order of the labels is the order of the values. Tuning moves the centroids, and biases when asked;
the gradient of a centroid is the sum over the weights that share it. The rank experiment keeps the labels and changes
their values.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fieldrun.errors import ExportError
from fieldrun.formats.progress import Progress, silent
from fieldrun.formats.tensors import Array
from fieldrun_exporters.encoder.activations import Moments
from fieldrun_exporters.encoder.model import MAPS, Encoder
from fieldrun_exporters.student.passes.palettize import lloyd

from .errors import map_errors
from .network import need_torch
from .regression import Regression, regress

__all__ = ["ORDERS", "Clustering", "cluster", "reorder", "tune"]

ORDERS = ("kept", "kept-affine", "broken", "broken-near")
"""See `reorder`."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clustering:
    """`codes` of the shape of each weight, uint8, and its `books (K,) float16`, sorted."""

    codes: dict[str, Array]
    books: dict[str, Array]

    def weight(self, name: str) -> Array:
        """Return the weight `name` that codes and codebook say, float32."""
        values: Array = self.books[name].astype(np.float32)[self.codes[name]]
        return values

    def apply(self, encoder: Encoder) -> Encoder:
        """Return `encoder` with the clustered weights."""
        return replace(encoder, tensors=dict(encoder.tensors) | {name: self.weight(name) for name in self.codes})


def cluster(
    encoder: Encoder, entries: int, moments: Moments | None = None, progress: Progress = silent
) -> tuple[Encoder, Clustering, dict[str, Mapping[str, Any]]]:
    """Cluster the weight of every dense map of every block to `entries` values.

    Returns:
        The clustered encoder, its labels and codebooks, and per map the bytes before and after, the relative error of
        the weight and, with `moments`, of the output on the calibration text.

    Raises:
        ExportError: fewer than 2 or more than 256 entries, or a weight beyond float16.
    """
    if type(entries) is not int or not 2 <= entries <= 256:
        raise ExportError(f"cluster: a codebook has 2 to 256 values, not {entries!r}")
    names = [f"layer{k}.{name}.weight" for k in range(encoder.config.layers) for name in MAPS]
    found = Clustering(codes={}, books={})
    changed: dict[str, Mapping[str, Any]] = {}
    for number, name in enumerate(names):
        weight = encoder.tensors[name]
        with np.errstate(over="ignore"):
            book = np.sort(lloyd(weight.ravel(), entries)).astype(np.float16)
        if not np.isfinite(book).all():
            raise ExportError(f"cluster: {name!r} has values beyond float16; leave it out")
        wide = book.astype(np.float32)
        found.codes[name] = np.searchsorted((wide[1:] + wide[:-1]) / 2, weight).astype(np.uint8)
        found.books[name] = book
        bits = max(1, (len(book) - 1).bit_length())
        changed[name] = map_errors(name, weight, found.weight(name), moments) | {
            "bytes_before": weight.nbytes,
            "bytes_after": -(-weight.size * bits // 8) + book.nbytes,
        }
        progress("cluster", number + 1, len(names))
    return found.apply(encoder), found, changed


def tune(
    encoder: Encoder,
    clustering: Clustering,
    sequences: Sequence[Sequence[int]],
    target: Array,
    plan: Regression,
    progress: Progress = silent,
    *,
    biases: bool = False,
) -> tuple[Encoder, dict[str, Any]]:
    """Move the centroids by field regression; labels stay, and centroids stay sorted.

    Args:
        encoder: the encoder that was clustered.
        clustering: what `cluster` found.
        sequences: token ids of real texts; some, drawn, are held out.
        target: `pooled_states` of the original for them.
        plan: of the regression.
        progress: called with ("regression", steps done, steps in all).
        biases: move the biases of the same maps too. They are not clustered, so this costs no bytes. It corrects
            what the clustered weights add to every text, which the few centroids cannot.

    Returns:
        The tuned encoder, and what was gained on held-out texts (`HeldOut.gained`).

    Raises:
        ExportError: too few texts, or the fields are no nearer than before.
        MissingDependency: torch is not installed.
    """
    torch = need_torch()
    books = {name: torch.tensor(book.astype(np.float32), requires_grad=True) for name, book in clustering.books.items()}
    codes = {name: torch.from_numpy(c.astype(np.int32)) for name, c in clustering.codes.items()}
    names = [name.removesuffix("weight") + "bias" for name in books] if biases else []
    added = {name: torch.tensor(encoder.tensors[name], requires_grad=True) for name in names}

    def replaced() -> Mapping[str, Any]:
        weights = {
            name: book.index_select(0, codes[name].reshape(-1)).reshape(codes[name].shape)
            for name, book in books.items()
        }
        return weights | added

    untuned = clustering.apply(encoder)
    held = regress(untuned, replaced, [*books.values(), *added.values()], sequences, target, plan, progress)
    # sorted again: a label's value may move, its rank may not
    found = replace(clustering, books={n: np.sort(b.detach().numpy()).astype(np.float16) for n, b in books.items()})
    moved = {name: bias.detach().numpy() for name, bias in added.items()}
    tuned = found.apply(replace(encoder, tensors=dict(encoder.tensors) | moved))
    return tuned, held.gained(untuned, tuned)


def reorder(
    encoder: Encoder, clustering: Clustering, order: str, layers: Sequence[int], seed: int = 0
) -> tuple[Encoder, dict[str, float]]:
    """Give the labels of `layers` other values, and return the encoder with the mean error of its weights.

    - `kept`: as many values, drawn evenly between the least and the largest and sorted. Only the ranks stay.
    - `kept-affine`: the same, then w' -> a w' + b with a > 0, which restores mean and variance of the matrix.
    - `broken`: the matrix's own values permuted, then mean and variance restored.
    - `broken-near`: neighbours change places at random until the weights are as far from their own as with
      `kept-affine`, then mean and variance restored. It separates the effect of the order from that of the distance.

    Returns:
        The encoder, and the mean over the matrices of `weight_error`, relative to the clustered weight, and of
        `correlation` with it.

    Raises:
        ExportError: an unknown order, or a layer that the encoder lacks.
    """
    if order not in ORDERS:
        raise ExportError(f"reorder: unknown order {order!r}; known: {', '.join(ORDERS)}")
    wanted = [f"layer{k}.{name}.weight" for k in layers for name in MAPS]
    missing = [name for name in wanted if name not in clustering.codes]
    if missing or not wanted:
        raise ExportError(f"reorder: there is no clustered weight {missing[0]!r}" if missing else "reorder: no layers")
    tensors = dict(encoder.tensors)
    errors: list[float] = []
    correlations: list[float] = []
    for name in wanted:
        rng = np.random.default_rng([seed, *name.encode()])
        book, codes = clustering.books[name].astype(np.float64), clustering.codes[name]
        share = np.bincount(codes.ravel(), minlength=len(book)) / codes.size
        values = _ordered(book, share, order, rng)
        tensors[name] = values.astype(np.float32)[codes]
        spread, new = (np.sqrt(share @ np.square(v - share @ v)) for v in (book, values))
        errors.append(_distance(book, values, share))
        product = share @ ((book - share @ book) * (values - share @ values))
        correlations.append(float(product / (spread * new)) if spread * new else 0.0)
    facts = {"weight_error": float(np.mean(errors)), "correlation": float(np.mean(correlations))}
    return replace(encoder, tensors=tensors), facts


def _ordered(book: Array, share: Array, order: str, rng: np.random.Generator) -> Array:
    """Return the values `(K,)` that take the place of `book`, whose entries have `share` of the weights each."""
    drawn = np.sort(rng.uniform(book[0], book[-1], len(book)))
    if order == "kept":
        return drawn
    if order == "kept-affine":
        return _matched(drawn, book, share)
    if order == "broken":
        return _matched(rng.permutation(book), book, share)
    far, places, values = _distance(book, _matched(drawn, book, share), share), np.arange(len(book)), book
    for _ in range(10 * len(book) ** 2):
        if _distance(book, values, share) >= far:
            break
        k = int(rng.integers(0, len(book) - 1))
        places[[k, k + 1]] = places[[k + 1, k]]
        values = _matched(book[places], book, share)
    return values


def _matched(values: Array, book: Array, share: Array) -> Array:
    """Return a `values` + b with the mean and variance that `book` has over the weights (moment matching)."""
    mean, wanted = share @ values, share @ book
    spread, own = (np.sqrt(share @ np.square(v - share @ v)) for v in (book, values))
    a = spread / own if own else 1.0
    matched: Array = a * (values - mean) + wanted
    return matched


def _distance(book: Array, values: Array, share: Array) -> float:
    size = float(share @ np.square(book))
    return float(np.sqrt(share @ np.square(book - values) / size)) if size else 0.0
