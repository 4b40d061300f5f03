"""Field regression of an encoder: some of its numbers are trained until its fields match those of the original.

It needs no labels: the targets are the original's pooled states of the same texts after every layer. The loss is their
squared error over their variance, averaged over the layers, plus one minus the cosine of the last. Where blocks are
missing, only the last states are compared.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from fieldrun.errors import ExportError
from fieldrun.evaluation.copies import first_rows
from fieldrun.formats.progress import Progress, silent
from fieldrun.formats.tensors import Array
from fieldrun.student.windows import pad_ids
from fieldrun_exporters.encoder.model import Encoder
from fieldrun_exporters.parity import field_errors

from .network import Network, pooled_states

__all__ = ["HeldOut", "Regression", "regress"]

_LEAST_TEXTS = 64
_HELD_OUT = 256  # texts at most that measure the gain and are not trained on
_AHEAD = 8  # batches drawn together, from which one with texts of similar length is taken


@dataclass(frozen=True, slots=True, kw_only=True)
class Regression:
    """How long and how fast to train: `rate` is Adam's, in units of the standard deviation of the parameter."""

    steps: int = 120
    batch: int = 32
    rate: float = 0.002
    seed: int = 0

    def __post_init__(self) -> None:
        if type(self.steps) is not int or type(self.batch) is not int or self.steps < 1 or self.batch < 2:
            raise ExportError(f"regression needs 1 step and 2 texts or more, not {self.steps!r} and {self.batch!r}")
        if not 0 < self.rate < 1:
            raise ExportError(f"regression.rate must be within 0 and 1, not {self.rate!r}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class HeldOut:
    """Texts that are not trained on, with the original's pooled states `(n, layers, hidden)` of them."""

    sequences: Sequence[Sequence[int]]
    target: Array

    def errors(self, encoder: Encoder) -> dict[str, float]:
        """Return how far the last pooled states of `encoder` are from the target (`simulate.field_errors`)."""
        return field_errors(self.target[:, -1], pooled_states(encoder, self.sequences)[:, -1])

    def gained(self, start: Encoder, moved: Encoder) -> dict[str, Any]:
        """Return the errors `before` and `after`, and the share of 1 - cosine that was `recovered`.

        Raises:
            ExportError: the fields are no nearer than before.
        """
        before, after = self.errors(start), self.errors(moved)
        if not after["mean_cosine"] > before["mean_cosine"]:
            raise ExportError(
                f"regression: the fields are no nearer (cosine {before['mean_cosine']:.4f} before, "
                f"{after['mean_cosine']:.4f} after); give more texts or another rate"
            )
        share = (after["mean_cosine"] - before["mean_cosine"]) / (1 - before["mean_cosine"])
        return {"before": before, "after": after, "recovered": share, "held_out": len(self.sequences)}


def regress(
    start: Encoder,
    replaced: Callable[[], Mapping[str, Any]],
    parameters: Sequence[Any],
    sequences: Sequence[Sequence[int]],
    target: Array,
    plan: Regression,
    progress: Progress = silent,
) -> HeldOut:
    """Train the torch tensors `parameters` in place, and return the held-out texts.

    Args:
        start: the encoder to correct.
        replaced: makes, from the parameters, the tensors that stand in for those of `start`, with gradients.
        parameters: leaves that require gradients.
        sequences: token ids of real texts; some, drawn, are held out.
        target: the original's `pooled_states` of them, `(n, layers, hidden)`.
        plan: steps, texts a step, rate, seed.
        progress: called with ("regression", steps done, steps in all).

    Raises:
        ExportError: too few texts, or another number of texts than of targets.
        MissingDependency: torch is not installed.
    """
    if len(sequences) < _LEAST_TEXTS:
        raise ExportError(f"regression: {len(sequences)} texts are too few; give {_LEAST_TEXTS}, better thousands")
    if len(target) != len(sequences):
        raise ExportError(f"regression: {len(sequences)} texts but {len(target)} targets; give one each")
    network = Network(start)
    torch = network.torch
    rng = np.random.default_rng(plan.seed)
    order = rng.permutation(first_rows(map(tuple, sequences)))  # a copy of a held-out text must not be learnt from
    held, train = np.split(order, [min(_HELD_OUT, len(order) // 4)])
    lengths = np.array([len(ids) for ids in sequences])
    compared = range(target.shape[1]) if start.config.layers == target.shape[1] else (-1,)
    spread = target[train].reshape(-1, *target.shape[1:]).var(0).mean(1)
    rates = [plan.rate * max(float(p.detach().std()), 1e-6) for p in parameters]
    optimizer = torch.optim.Adam([{"params": [p], "lr": rate} for p, rate in zip(parameters, rates, strict=True)])
    for step in range(plan.steps):
        drawn = train[rng.integers(0, len(train), _AHEAD * plan.batch)]
        drawn = drawn[np.argsort(lengths[drawn], kind="stable")]
        begin = int(rng.integers(0, len(drawn) - plan.batch + 1))
        rows = drawn[begin : begin + plan.batch]
        wanted = torch.from_numpy(target[rows])
        states = network.states(pad_ids([sequences[i] for i in rows]), replaced())
        squares = [torch.square(states[:, k] - wanted[:, k]).mean() / float(spread[k]) for k in compared]
        cosine = torch.nn.functional.cosine_similarity(states[:, -1], wanted[:, -1])
        loss = sum(squares) / len(squares) + (1 - cosine).mean()
        share = max(0.5 * (1 + np.cos(np.pi * step / plan.steps)), 1e-2)
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate * share
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        progress("regression", step + 1, plan.steps)
    return HeldOut(sequences=[sequences[i] for i in held], target=target[held])
