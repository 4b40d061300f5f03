"""Low rank: fewer features inside the student, chosen by what reaches the output (A3, arXiv 2505.12942).

A3 shrinks the inner dimension of a component and adds nothing at run time. Of its three kinds of components the student
has one, two linear maps around a non-linearity, in three places:

| Inner dimension | between | and |
|---|---|---|
| `width`, the features of a position | the tables, ReLU | the mixer |
| `mixer`, the features after it | the mixer, ReLU, mean and maximum over the text | the layer after the pool |
| `hidden`, the features after the pool | that layer, ReLU | field and logits |

Columns inside a non-linearity cannot be mixed, so they are selected: feature i is worth E[x_i^2] |w_i|^2, with x its
activations on calibration text and w_i its rows of the map that reads it (the paper's rule for MLPs). That map is then
fitted again by least squares on the remaining features, held near the old one by a small ridge: after the pool a text
is only one row, and there are hundreds of features. A smaller `width` makes every row of the tables smaller.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fieldrun.errors import ExportError, RecipeError
from fieldrun.formats.tensors import Array

from ...recipe import LEAST_TEXTS, SITES, LowRank
from ..deployed import Deployed
from ..simulate import outputs
from . import PassReport

__all__ = ["lowrank", "refit", "select"]

_RIDGE = 1e-3  # of the mean square of the features


def lowrank(deployed: Deployed, sequences: Sequence[Sequence[int]], plan: LowRank) -> tuple[Deployed, PassReport]:
    """Return the student with fewer features, and what each site lost on calibration text.

    `deployed` is in float32, as `fold` makes it; `sequences` are token ids of real texts, `LEAST_TEXTS` or more.

    Raises:
        RecipeError: the student has no such site, or no more features than the recipe keeps.
        ExportError: too few texts, or nothing became smaller.
    """
    for name in plan.wanted:
        if name not in SITES:
            raise RecipeError(f"lowrank.{name} is for an encoder; a student has {', '.join(SITES)}")
    if len(sequences) < LEAST_TEXTS:
        raise ExportError(
            f"lowrank: {len(sequences)} texts are too few to tell what a feature is worth; give at least {LEAST_TEXTS}"
        )
    result, changed = deployed, {}
    for site in plan.wanted:
        result, facts = _shrink(result, sequences, site, getattr(plan, site))
        changed[site] = facts
    return result, PassReport.of("lowrank", deployed, result, changed)


def select(worth: Array, keep: int | float) -> Array:
    """Return the numbers, in order, of the features that are kept, of those whose worth is `worth (n,)`.

    `keep` is how many, or the share of the whole worth that the fewest features must reach.
    """
    order = np.argsort(-worth, kind="stable")
    if isinstance(keep, float):
        share = np.cumsum(worth[order]) / max(float(worth.sum()), 1e-30)
        keep = int(np.searchsorted(share, keep)) + 1
    return np.sort(order[:keep])


def refit(x: Array, y: Array, start: Array) -> Array:
    """Return the weight `(features, outputs)` for which `x @ weight` is nearest to `y`, held near `start`.

    Least squares with a ridge towards `start`: (x'x + r) w = x'y + r start, r a share of the features' mean square.
    `x (rows, features)` has a last column of ones if there is a bias; `y` is `(rows, outputs)`.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    gram = x.T @ x
    ridge = _RIDGE * float(np.trace(gram)) / len(gram)
    weight: Array = np.linalg.solve(gram + ridge * np.eye(len(gram)), x.T @ y + ridge * start)
    return weight


def _shrink(
    deployed: Deployed, sequences: Sequence[Sequence[int]], site: str, keep: int | float
) -> tuple[Deployed, Mapping[str, Any]]:
    net, tensors = deployed.network, dict(deployed.tensors)
    written, attribute, reader = {
        "width": (("table",), "width", "mixer"),
        "mixer": (("mixer.weight",), "mixer_width", "hidden" if net.hidden else "output"),
        "hidden": (("hidden.weight", "hidden.bias"), "hidden", "output"),
    }[site]
    size = getattr(net, attribute)
    if not size or (site == "width" and not net.mixer_kernel):
        raise RecipeError(f"lowrank.{site}: the student has no layer there; leave it out")
    if isinstance(keep, int) and keep >= size:
        raise RecipeError(f"lowrank.{site} keeps {keep} features, the student has {size}; give fewer, or leave it out")
    before, read = _inputs(deployed, sequences, reader), tensors[f"{reader}.weight"]
    weight = read.astype(np.float64)
    times = len(weight) // size  # a feature is read once per token of the mixer, or as mean and as maximum
    each = np.square(before, dtype=np.float64).mean(0) * np.square(weight).sum(1)
    worth = each.reshape(times, -1).sum(0)
    kept = select(worth, keep)
    if len(kept) == size:
        raise RecipeError(f"lowrank.{site}: a share of {keep} keeps all {len(kept)} features; give less")
    rows = (np.arange(times)[:, None] * size + kept).ravel()
    tensors |= {name: np.ascontiguousarray(tensors[name][..., kept]) for name in written}
    tensors[f"{reader}.weight"] = np.ascontiguousarray(read[rows])
    if site == "mixer" and net.mean:
        tensors["score.weight"] = np.ascontiguousarray(tensors["score.weight"][kept])
    sizes: dict[str, Any] = {attribute: len(kept)}
    smaller = replace(deployed, network=replace(net, **sizes), tensors=tensors)
    bias = tensors.get(f"{reader}.bias")
    start, after, wanted = weight[rows], _inputs(smaller, sequences, reader), before @ read
    if bias is not None:
        start, wanted = np.vstack([start, bias]), wanted + bias
        after = np.hstack([after, np.ones((len(after), 1), np.float32)])
    fitted = refit(after, wanted, start)
    spread = np.square(wanted - wanted.mean(0)).sum(dtype=np.float64)
    errors = [float(np.sqrt(np.square(after @ w - wanted).sum(dtype=np.float64) / spread)) for w in (start, fitted)]
    tensors = tensors | {f"{reader}.weight": fitted[: len(rows)].astype(np.float32)}
    if bias is not None:
        tensors[f"{reader}.bias"] = fitted[-1].astype(np.float32)
    facts = {
        "features_before": size,
        "features_after": len(kept),
        "worth_kept": float(worth[kept].sum() / max(worth.sum(), 1e-30)),
        "output_error_selected": errors[0],
        "output_error": errors[1],
        "bytes_before": deployed.nbytes(),
        "bytes_after": sum(t.nbytes for t in tensors.values()),
    }
    return replace(smaller, tensors=tensors), facts


def _inputs(deployed: Deployed, sequences: Sequence[Sequence[int]], layer: str) -> Array:
    """Return the input of `layer` over `sequences`, `(rows, inputs) float32`."""
    seen: list[Array] = []
    outputs(deployed, sequences, lambda name, x: seen.append(x) if name == layer else None)
    return np.concatenate(seen)
