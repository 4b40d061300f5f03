"""Low rank inside the components of a transformer: A3 (arXiv 2505.12942), with exact biases.

A3 shrinks the inner size of a component (d_qk and d_vo of every head, d_ff) and adds nothing to compute. Row vectors,
y = x W. For two maps A (n, d) and B (m, d) whose product is what counts, the A~ B~' of rank r that is nearest
to A B' in the metrics R and C, least |R^(1/2) (A B' - A~ B~') C^(1/2)|_F, is the truncated singular value decomposition
of R^(1/2) A B' C^(1/2) taken back by the inverse roots. Its left vectors lie in the range of R^(1/2) A, so neither
root nor inverse of R is ever needed: with the small Gram matrices G = A'RA and H = B'CB (d, d), and U S V' the
decomposition of G^(1/2) H^(1/2),

    A~ = A G^(-1/2) U_r S_r^(1/2)        B~ = B H^(-1/2) V_r S_r^(1/2)

Biases, which the paper's models do not have, are treated exactly:

- **QK.** A score is scale (x W_q + b_q) (y W_k + b_k)'. What it has of b_k, (x W_q + b_q) b_k', is the same for every
  key y, and a softmax over the keys does not depend on it: b_k becomes 0 and nothing changes. With [x, 1] for x the
  query bias is one more row of W_q, so A = [W_q; b_q] with the autocorrelation of [x, 1], and B = W_k. For the same
  reason only differences between the keys of one text count, so C is the covariance of the tokens about their text's
  mean (`Moments.within`). The metric is that of independent queries and keys, as in the paper.
- **OV.** The rows of a softmax sum to 1, so b_v W_o is a constant: it moves into the output's bias, b_v becomes 0.
  That bias is free and takes the mean of what is lost, so A = W_v is weighed by the covariance of P = softmax(.) X,
  and B' = W_o. (The paper prints one more factor R^(-1/2) on the right; without it the result is the optimum.)
- **MLP.** Between up and down is a non-linearity, so hidden units are selected, the best E[x_i^2] |w_i|^2 of them, and
  the down map is fitted again to what it gave before, by least squares on the kept units and a free bias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import numpy as np

from fieldrun.errors import ExportError
from fieldrun.formats.progress import Progress
from fieldrun.formats.tensors import Array

from ..recipe import COMPONENTS
from ..student.passes import PassReport
from .activations import Moments
from .model import MAPS, Encoder

__all__ = ["Changed", "Component", "best_product", "inner_size", "lowrank", "product_error"]

_DAMPING = 1e-6  # of the mean variance, in the least-squares fit
_RANK = 1e-10  # directions with a smaller share of a Gram matrix's largest eigenvalue are left out
_BYTES = 4
_TOKENS = 2  # for every feature; with hardly more tokens than features a fit is worse than none

Changed = tuple[dict[str, Array], dict[str, Mapping[str, Any]]]
"""New tensors, and what the report says of them."""


def inner_size(size: int, ratio: float) -> int:
    """Return what is left of an inner size when the share `ratio` is taken away: rounded, at least 1."""
    return max(1, round((1 - ratio) * size))


def best_product(A: Array, B: Array, R: Array, C: Array, rank: int) -> tuple[Array, Array]:
    """Return A~ (n, rank) and B~ (m, rank), float64, with A~ B~' nearest to A B' in the metrics R and C.

    `A (n, d)` and `B (m, d)`, `R (n, n)` and `C (m, m)` symmetric and positive semi-definite. Directions that the
    metrics do not see are left out.
    """
    G, H = A.T @ R @ A, B.T @ C @ B
    (g, g_inverse), (h, h_inverse) = _roots(G), _roots(H)
    U, S, Vt = np.linalg.svd(g @ h)
    root = np.sqrt(S[:rank])
    return A @ (g_inverse @ (U[:, :rank] * root)), B @ (h_inverse @ (Vt[:rank].T * root))


def product_error(A: Array, B: Array, A_new: Array, B_new: Array, R: Array, C: Array) -> tuple[float, float]:
    """Return the squared error and the squared size of A B' against A~ B~' in the metrics R and C."""
    left, right = np.concatenate([A, -A_new], axis=1), np.concatenate([B, B_new], axis=1)
    error = float(np.sum((left.T @ R @ left) * (right.T @ C @ right)))
    return max(error, 0.0), float(np.sum((A.T @ R @ A) * (B.T @ C @ B)))


def lowrank(
    encoder: Encoder, moments: Moments, ratios: Mapping[str, float], progress: Progress | None = None
) -> tuple[Encoder, PassReport]:
    """Take the share `ratios[name]` of the numbers of each of some `COMPONENTS` away, in every layer.

    The report has, per component, parameters and bytes before and after, and two relative errors: of the product of its
    two weights, and of its output on the calibration text.

    Raises:
        ExportError: an unknown component, a ratio outside [0, 1), moments of another encoder or of too few tokens, or
            nothing became smaller.
    """
    for name, share in ratios.items():
        if name not in COMPONENTS:
            raise ExportError(f"lowrank: unknown component {name!r}; known: {', '.join(COMPONENTS)}")
        if not 0 <= share < 1:
            raise ExportError(f"lowrank: the ratio to take away must be within 0 and 1, not {share!r}")
    _check_moments(encoder, moments)
    tensors = dict(encoder.tensors)
    changed: dict[str, Mapping[str, Any]] = {}
    for k in range(encoder.config.layers):
        for name, share in ratios.items():
            component = Component(encoder, moments, k, share)
            new, facts = {"qk": component.qk, "ov": component.ov, "mlp": component.mlp}[name]()
            tensors |= new
            changed |= facts
        if progress is not None:
            progress("lowrank", k + 1, encoder.config.layers)
    before = sum(facts["parameters_before"] for facts in changed.values())
    after = sum(facts["parameters_after"] for facts in changed.values())
    if any(ratios.values()) and after >= before:
        raise ExportError(f"lowrank: removing {max(ratios.values()):g} changes no size; remove more")
    return replace(encoder, tensors=tensors), PassReport(
        name="lowrank", bytes_before=_BYTES * before, bytes_after=_BYTES * after, changed=changed
    )


def _check_moments(encoder: Encoder, moments: Moments) -> None:
    """Refuse moments of another encoder, or of too few tokens."""
    last, widest = f"layer{encoder.config.layers - 1}.down", encoder.inner_sizes(encoder.config.layers - 1)[2]
    if last not in moments.mean or len(moments.mean[last]) != widest:
        raise ExportError(f"lowrank: there are no activations of {last!r}; accumulate them with this encoder")
    needed = _TOKENS * max(encoder.config.hidden, *(encoder.inner_sizes(k)[2] for k in range(encoder.config.layers)))
    if moments.tokens < needed:
        raise ExportError(
            f"lowrank: {moments.tokens} tokens of calibration text are too few, give {needed} or more: "
            "more texts, and a recipe that takes as many (calibration.texts)"
        )


class Component:
    """The three components of one layer under A3, with the share `ratio` of their inner size taken away."""

    def __init__(self, encoder: Encoder, moments: Moments, k: int, ratio: float) -> None:
        self.layer, self.heads, self.ratio, self.moments = f"layer{k}", encoder.config.heads, ratio, moments
        self.old = {
            f"{name}.{kind}": encoder.tensors[f"{self.layer}.{name}.{kind}"].astype(np.float64)
            for name in MAPS
            for kind in ("weight", "bias")
        }

    def qk(self) -> Changed:
        """Return query and key map with fewer features per head."""
        name = f"{self.layer}.query"
        R = self.moments.augmented(name)
        key = self.rows("key")[:, :-1]
        pairs, errors = self.per_head(self.rows("query"), key, lambda _: R, self.moments.within[name])
        queries, keys = (np.concatenate(side, axis=1) for side in zip(*pairs, strict=True))
        return self.made_qk(queries, np.vstack([keys, np.zeros(keys.shape[1])]), errors)

    def ov(self) -> Changed:
        """Return value and output map with fewer features per head."""
        name = f"{self.layer}.context"
        W_o, value = self.old["attention.weight"], self.rows("value")[:, :-1]
        out = np.stack([part.T for part in np.split(W_o, self.heads)])
        C, mean = self.moments.covariance(name), self.moments.mean[name]
        pairs, errors = self.per_head(value, out, lambda h: C[h], np.eye(W_o.shape[1]))
        bias = self.old["attention.bias"] + self.old["value.bias"] @ W_o
        for h, (A, B) in enumerate(pairs):
            bias = bias + (mean[h] @ value[h]) @ out[h].T - (mean[h] @ A) @ B.T
        values, outs = (np.concatenate(side, axis=1) for side in zip(*pairs, strict=True))
        return self.made_ov(np.vstack([values, np.zeros(values.shape[1])]), outs, bias, errors)

    def mlp(self) -> Changed:
        """Return up and down map with fewer hidden units, the down map fitted again."""
        return self.selected(refit=True)

    def selected(self, *, refit: bool) -> Changed:
        """Return the MLP with the hidden units that are worth most."""
        name = f"{self.layer}.down"
        W, bias = self.old["down.weight"], self.old["down.bias"]
        R, C, mean = self.moments.second[name], self.moments.covariance(name), self.moments.mean[name]
        scores = np.diagonal(R) * np.square(W).sum(1)
        kept = np.sort(np.argsort(-scores, kind="stable")[: inner_size(len(W), self.ratio)])
        lost = np.setdiff1d(np.arange(len(W)), kept)
        down = W[kept]
        if refit and len(lost):
            # a correction of the kept rows, so that damping pulls towards what they were
            gram = C[np.ix_(kept, kept)]
            gram = gram + _DAMPING * np.trace(gram) / len(kept) * np.eye(len(kept))
            down = down + np.linalg.solve(gram, C[np.ix_(kept, lost)] @ W[lost])
            bias = bias + mean[lost] @ W[lost] - mean[kept] @ (down - W[kept])
        step = W.copy()
        step[kept] -= down
        step[lost] = W[lost]
        shift = mean @ step + self.old["down.bias"] - bias
        error = float(np.sum(step * (C @ step)) + shift @ shift)
        size = float(np.sum(W * (R @ W)))
        squares = (float(np.square(step).sum()), float(np.square(W).sum()))
        new = {
            "up.weight": self.old["up.weight"][:, kept],
            "up.bias": self.old["up.bias"][kept],
            "down.weight": down,
            "down.bias": bias,
        }
        return self._made("mlp", new, (*squares, error, size))

    def made_qk(self, queries: Array, keys: Array, errors: tuple[float, float, float, float]) -> Changed:
        """Return the maps whose last row is their bias, `(hidden + 1, heads * rank)`, as tensors with their report."""
        new = {"query.weight": queries[:-1], "query.bias": queries[-1], "key.weight": keys[:-1], "key.bias": keys[-1]}
        return self._made("qk", new, errors)

    def made_ov(self, values: Array, outs: Array, bias: Array, errors: tuple[float, float, float, float]) -> Changed:
        """Return the value map with its bias as last row, and the output map, as tensors with their report."""
        new = {"value.weight": values[:-1], "value.bias": values[-1]}
        return self._made("ov", new | {"attention.weight": outs.T, "attention.bias": bias}, errors)

    def rows(self, name: str) -> Array:
        """Return a map's weight with its bias as a last row, per head: `(heads, hidden + 1, d)`."""
        rows = np.concatenate([self.old[f"{name}.weight"], self.old[f"{name}.bias"][None]])
        return np.stack(np.split(rows, self.heads, axis=1))

    def per_head(
        self, left: Array, right: Array, R: Callable[[int], Array], C: Array
    ) -> tuple[list[tuple[Array, Array]], tuple[float, float, float, float]]:
        """Return the two new maps of every head; squared error and size, of the product and of the output."""
        rank = inner_size(left.shape[2], self.ratio)
        pairs: list[tuple[Array, Array]] = []
        totals = np.zeros(4)
        flat, flat_c = np.eye(left.shape[1]), np.eye(right.shape[1])
        for h in range(self.heads):
            pair = best_product(left[h], right[h], R(h), C, rank)
            totals[:2] += product_error(left[h], right[h], *pair, flat, flat_c)
            totals[2:] += product_error(left[h], right[h], *pair, R(h), C)
            pairs.append(pair)
        return pairs, (float(totals[0]), float(totals[1]), float(totals[2]), float(totals[3]))

    def _made(self, component: str, new: Mapping[str, Array], errors: tuple[float, float, float, float]) -> Changed:
        tensors = {f"{self.layer}.{name}": np.ascontiguousarray(tensor, np.float32) for name, tensor in new.items()}
        before, after = sum(self.old[name].size for name in new), sum(tensor.size for tensor in tensors.values())
        return tensors, {f"{self.layer}.{component}": _facts(before, after, *errors)}


def _roots(gram: Array) -> tuple[Array, Array]:
    """Return the symmetric root of `gram` and its pseudo-inverse."""
    values, axes = np.linalg.eigh((gram + gram.T) / 2)
    kept = values > _RANK * max(float(values[-1]), 0.0)
    roots = np.sqrt(np.where(kept, values, 0))
    inverse = np.where(kept, 1 / np.where(kept, roots, 1), 0)
    return (axes * roots) @ axes.T, (axes * inverse) @ axes.T


def _facts(before: int, after: int, error: float, size: float, lost: float, output: float) -> dict[str, Any]:
    return {
        "parameters_before": before,
        "parameters_after": after,
        "bytes_before": _BYTES * before,
        "bytes_after": _BYTES * after,
        "weight_error": float(np.sqrt(max(error, 0.0) / size)) if size else 0.0,
        "output_error": float(np.sqrt(max(lost, 0.0) / output)) if output else 0.0,
    }
