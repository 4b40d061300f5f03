"""What A3 is compared with: A3 as published, and two singular value decompositions of single maps.

`a3-published` weighs keys by R with the key bias as one more row, [P, 1] likewise, and fits nothing again. The other
two take every map for itself and replace its weight by two factors of rank r, which cost r (inputs + outputs) numbers:
`svd` by the weight alone, `activation-svd` by least |X (W - W~)|_F with a free bias, W~ = C^(-1/2) SVD_r(C^(1/2) W),
which is W V V' with the first r right singular vectors of C^(1/2) W. They may keep as many numbers of each map as A3
does, the last rank rounded up in their favour. Their product is stored: only its quality and its size are studied.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from fieldrun.errors import ExportError
from fieldrun.formats.progress import Progress
from fieldrun.formats.tensors import Array
from fieldrun_exporters.encoder import lowrank as a3
from fieldrun_exporters.encoder.activations import Moments
from fieldrun_exporters.encoder.lowrank import Changed, Component, inner_size
from fieldrun_exporters.encoder.model import MAPS, Encoder
from fieldrun_exporters.recipe import COMPONENTS
from fieldrun_exporters.student.passes import PassReport

__all__ = ["METHODS", "lowrank"]

METHODS = ("svd", "activation-svd", "a3-published", "a3")


def lowrank(
    encoder: Encoder, moments: Moments, ratio: float, method: str = "a3", progress: Progress | None = None
) -> tuple[Encoder, PassReport]:
    """Take the share `ratio` of the numbers of every dense map away by one of `METHODS`; 0 changes no field.

    Raises:
        ExportError: an unknown method, or as of `fieldrun_exporters.encoder.lowrank`.
    """
    if method not in METHODS:
        raise ExportError(f"lowrank: unknown method {method!r}; known: {', '.join(METHODS)}")
    if method == "a3":
        return a3.lowrank(encoder, moments, dict.fromkeys(COMPONENTS, ratio), progress)
    tensors = dict(encoder.tensors)
    changed: dict[str, Mapping[str, Any]] = {}
    for k in range(encoder.config.layers):
        made = _Published(encoder, moments, k, ratio)
        steps: list[Callable[[], Changed]] = [made.qk, made.ov, made.mlp]
        if method != "a3-published":
            aware = method == "activation-svd"
            steps = [partial(_factored, encoder, moments, f"layer{k}.{name}", ratio, aware) for name in MAPS]
        for step in steps:
            new, facts = step()
            tensors |= new
            changed |= facts
    before, after = (sum(facts[f"bytes_{when}"] for facts in changed.values()) for when in ("before", "after"))
    report = PassReport(name="lowrank", bytes_before=before, bytes_after=after, changed=changed)
    return replace(encoder, tensors=tensors), report


class _Published(Component):
    """A3 as the paper has it."""

    def qk(self) -> Changed:
        R = self.moments.augmented(f"{self.layer}.query")
        pairs, errors = self.per_head(self.rows("query"), self.rows("key"), lambda _: R, R)
        queries, keys = (np.concatenate(side, axis=1) for side in zip(*pairs, strict=True))
        return self.made_qk(queries, keys, errors)

    def ov(self) -> Changed:
        W_o, R = self.old["attention.weight"], self.moments.augmented(f"{self.layer}.context")
        out = np.stack([part.T for part in np.split(W_o, self.heads)])
        pairs, errors = self.per_head(self.rows("value"), out, lambda h: R[h], np.eye(W_o.shape[1]))
        values, outs = (np.concatenate(side, axis=1) for side in zip(*pairs, strict=True))
        return self.made_ov(values, outs, self.old["attention.bias"], errors)

    def mlp(self) -> Changed:
        return self.selected(refit=False)


def _factored(encoder: Encoder, moments: Moments, name: str, ratio: float, aware: bool) -> Changed:
    """Return the map `name` as the product of two factors of the rank that its share of numbers pays for."""
    W = encoder.tensors[f"{name}.weight"].astype(np.float64)
    bias: Array = encoder.tensors[f"{name}.bias"].astype(np.float64)
    inputs, outputs = W.shape
    layer, own = name.split(".")
    axis = 0 if own in ("attention", "down") else 1
    groups = 1 if own in ("up", "down") else encoder.config.heads
    kept = groups * inner_size(W.shape[axis] // groups, ratio) * W.shape[1 - axis]
    seen = f"{layer}.{'query' if own in ('key', 'value') else own}"
    C, mean = moments.covariance(seen), moments.mean[seen]
    rank = -(-kept // (inputs + outputs))
    new, size = W, W.size
    if kept < W.size:
        gram = W.T @ C @ W if aware else W.T @ W
        axes = np.linalg.eigh(gram)[1][:, ::-1][:, :rank]
        new, size = W @ axes @ axes.T, rank * (inputs + outputs)
        if aware:
            bias = bias + mean @ (W - new)
    step = W - new
    shift = mean @ step + encoder.tensors[f"{name}.bias"] - bias
    lost = float(np.sum(step * (C @ step)) + shift @ shift)
    output = float(np.sum(W * (moments.second[seen] @ W)))
    facts: Mapping[str, Any] = {
        "parameters_before": W.size + len(bias),
        "parameters_after": size + len(bias),
        "bytes_before": 4 * (W.size + len(bias)),
        "bytes_after": 4 * (size + len(bias)),
        "weight_error": float(np.linalg.norm(step) / np.linalg.norm(W)),
        "output_error": float(np.sqrt(max(lost, 0.0) / output)) if output else 0.0,
        **({"rank": rank} if kept < W.size else {}),
    }
    tensors = {f"{name}.weight": new.astype(np.float32), f"{name}.bias": bias.astype(np.float32)}
    return tensors, {name: facts}
