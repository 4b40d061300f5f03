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

    Args:
        deployed: the deployed form in float32, as `fold` leaves it.
        sequences: token ids of real texts, `LEAST_TEXTS` or more.
        plan: how many features each site keeps.

    Raises:
        RecipeError: the student has no such site, or not more features than are to be kept.
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
    """Return the numbers, in order, of the features that are kept of those whose worth is `worth (n,)`.

    Args:
        worth: not negative.
        keep: how many, or the share of the whole worth that the fewest features must reach.
    """
    order = np.argsort(-worth, kind="stable")
    if isinstance(keep, float):
        share = np.cumsum(worth[order]) / max(float(worth.sum()), 1e-30)
        keep = int(np.searchsorted(share, keep)) + 1
    return np.sort(order[:keep])


def refit(x: Array, y: Array, start: Array) -> Array:
    """Return the weight `(features, outputs)` for which `x @ weight` is nearest to `y`, held near `start`.

    Least squares with a ridge towards `start`: (x'x + r) w = x'y + r start, r a share of the features' mean square.

    Args:
        x: the features that are kept, `(rows, features)`, and a last column of ones where there is a bias.
        y: what they have to give, `(rows, outputs)`.
        start: the weight of before, `(features, outputs)`.
    """
    x, y = x.astype(np.float64), y.astype(np.float64)
    gram = x.T @ x
    ridge = _RIDGE * float(np.trace(gram)) / len(gram)
    weight: Array = np.linalg.solve(gram + ridge * np.eye(len(gram)), x.T @ y + ridge * start)
    return weight


def _shrink(
    deployed: Deployed, sequences: Sequence[Sequence[int]], site: str, keep: int | float
) -> tuple[Deployed, Mapping[str, Any]]:
    net = deployed.network
    sizes = {"width": net.width, "mixer": net.mixer_width, "hidden": net.hidden}
    if not sizes[site] or (site == "width" and not net.mixer_kernel):
        raise RecipeError(f"lowrank.{site}: the student has no layer there; leave it out")
    if isinstance(keep, int) and keep >= sizes[site]:
        raise RecipeError(
            f"lowrank.{site} keeps {keep} features, the student has {sizes[site]}; give fewer, or leave it out"
        )
    after_pool = "hidden" if net.hidden else "output"
    reader = {"width": "mixer", "mixer": after_pool, "hidden": "output"}[site]
    before = _inputs(deployed, sequences, reader)
    weight = deployed.tensors[f"{reader}.weight"].astype(np.float64)
    times = len(weight) // sizes[site]  # a feature is read once per token of the mixer, or as mean and as maximum
    each = np.square(before, dtype=np.float64).mean(0) * np.square(weight).sum(1)
    worth = each.reshape(times, -1).sum(0)
    kept = select(worth, keep)
    if len(kept) == sizes[site]:
        raise RecipeError(f"lowrank.{site}: a share of {keep} keeps all {len(kept)} features; give less")
    smaller = _without(deployed, site, kept)
    rows = (np.arange(times)[:, None] * sizes[site] + kept).ravel()
    bias = deployed.tensors.get(f"{reader}.bias")
    start, after = weight[rows], _inputs(smaller, sequences, reader)
    wanted = before @ deployed.tensors[f"{reader}.weight"]
    if bias is not None:
        start, wanted = np.vstack([start, bias]), wanted + bias
        after = np.hstack([after, np.ones((len(after), 1), np.float32)])
    fitted = refit(after, wanted, start)
    spread = np.square(wanted - wanted.mean(0)).sum(dtype=np.float64)
    errors = [float(np.sqrt(np.square(after @ w - wanted).sum(dtype=np.float64) / spread)) for w in (start, fitted)]
    tensors = dict(smaller.tensors) | {f"{reader}.weight": fitted[: len(rows)].astype(np.float32)}
    if bias is not None:
        tensors[f"{reader}.bias"] = fitted[-1].astype(np.float32)
    facts = {
        "features_before": sizes[site],
        "features_after": len(kept),
        "worth_kept": float(worth[kept].sum() / max(worth.sum(), 1e-30)),
        "output_error_selected": errors[0],
        "output_error": errors[1],
        "bytes_before": deployed.nbytes(),
        "bytes_after": sum(t.nbytes for t in tensors.values()),
    }
    return replace(smaller, tensors=tensors), facts


def _without(deployed: Deployed, site: str, kept: Array) -> Deployed:
    """Return `deployed` with the features `kept` of a site; the map that reads them has only their rows."""
    net, tensors = deployed.network, dict(deployed.tensors)
    if site == "width":
        tensors["table"] = np.ascontiguousarray(tensors["table"][:, kept])
        reader, times, size = "mixer", net.mixer_kernel, net.width
        net = replace(net, width=len(kept))
    elif site == "mixer":
        tensors["mixer.weight"] = np.ascontiguousarray(tensors["mixer.weight"][:, kept])
        if net.mean:
            tensors["score.weight"] = np.ascontiguousarray(tensors["score.weight"][kept])
        reader, times, size = "hidden" if net.hidden else "output", 2 if net.mean else 1, net.mixer_width
        net = replace(net, mixer_width=len(kept))
    else:
        tensors["hidden.weight"] = np.ascontiguousarray(tensors["hidden.weight"][:, kept])
        tensors["hidden.bias"] = np.ascontiguousarray(tensors["hidden.bias"][kept])
        reader, times, size = "output", 1, net.hidden
        net = replace(net, hidden=len(kept))
    rows = (np.arange(times)[:, None] * size + kept).ravel()
    tensors[f"{reader}.weight"] = np.ascontiguousarray(tensors[f"{reader}.weight"][rows])
    return replace(deployed, network=net, tensors=tensors)


def _inputs(deployed: Deployed, sequences: Sequence[Sequence[int]], layer: str) -> Array:
    """Return the input of `layer` over `sequences`, `(rows, inputs) float32`."""
    seen: list[Array] = []
    outputs(deployed, sequences, lambda name, x: seen.append(x) if name == layer else None)
    return np.concatenate(seen)
