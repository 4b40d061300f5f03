"""Align the trained field with graded similarities by an affine map that leaves the heads' answers unchanged.

With f' = A (f - c) a head's logits are H f + b = (H A^-1) f' + (b + H c): the map costs nothing, because it is folded
into the student's last layer and the heads. A and c start as the identity and zero and are trained on the graded pairs
of train text; the number of steps is chosen on their held-out slice. Prefixes of the field count like the whole
(Matryoshka representation learning, Kusupati et al. 2022).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .compressor import TaskHeads, graded_loss, sum_of
from .student import Student

__all__ = ["align_field"]

_STEPS, _EVERY, _BATCH, _RATE = 600, 20, 512, 2e-3
_NEAR = 0.02  # weight of |A - I|^2 per row

Pairs = tuple[torch.Tensor, torch.Tensor]
"""Fields of graded pairs, first and second alternating `(2 n, dim) float32`, and their grades `(n,)` within 0..1."""


def align_field(
    student: Student,
    heads: TaskHeads,
    train: Sequence[Pairs],
    held_out: Sequence[Pairs],
    prefixes: Sequence[int],
    seed: int,
) -> dict[str, Any]:
    """Align `student` and its single-text `heads` in place; return the held-out losses before and after, and the step.

    Heads on pairs of fields must be fitted after this. Nothing changes if no step lowers the held-out loss.

    Args:
        student: the trained network.
        heads: linear heads; those on one field, of the single tasks, are changed.
        train: graded pairs of every similarity task, to learn from.
        held_out: graded pairs to choose the number of steps on.
        prefixes: lengths of shorter fields whose cosines count too.
        seed: of the batches.
    """
    dim = student.config.field_dim
    widths = (dim, *(k for k in prefixes if k < dim))
    fields, grades = (torch.cat([pairs[i] for pairs in train]) for i in (0, 1))
    turn, centre = torch.nn.Parameter(torch.eye(dim)), torch.nn.Parameter(torch.zeros(dim))
    optimizer = torch.optim.Adam([turn, centre], lr=_RATE)
    generator = torch.Generator().manual_seed(seed)

    def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        turned = (x - centre) @ turn.T
        return sum_of(graded_loss(turned[:, :k], y) for k in widths) / len(widths)

    def held_loss() -> float:
        with torch.no_grad():
            return float(sum_of(loss(x, y) for x, y in held_out)) / len(held_out)

    before = held_loss()
    best = (before, 0, torch.eye(dim), torch.zeros(dim))
    for step in range(1, _STEPS + 1):
        pick = torch.randint(len(grades), (_BATCH,), generator=generator)
        rows = torch.stack([2 * pick, 2 * pick + 1], dim=1).reshape(-1)
        near = (turn - torch.eye(dim)).square().sum() / dim
        total = loss(fields[rows], grades[pick]) + _NEAR * near
        optimizer.zero_grad()
        torch.autograd.backward(total)
        optimizer.step()
        if step % _EVERY == 0 and (now := held_loss()) < best[0]:
            best = (now, step, turn.detach().clone(), centre.detach().clone())
    if best[1]:
        _apply(student, heads, best[2], best[3])
    return {"held_out_loss": {"before": round(before, 5), "after": round(best[0], 5)}, "step": best[1]}


def _apply(student: Student, heads: TaskHeads, turn: torch.Tensor, centre: torch.Tensor) -> None:
    with torch.no_grad():
        exact, middle = turn.double(), centre.double()
        inverse = torch.linalg.inv(exact)
        layer = student.field
        weight, bias = layer.weight.double(), layer.bias.double()
        layer.weight.copy_(exact @ weight)
        layer.bias.copy_(exact @ (bias - middle))
        for name in heads:
            head = heads[name]
            if head.in_features == len(turn):
                h = head.weight.double()
                head.bias.copy_(head.bias.double() + h @ middle)
                head.weight.copy_(h @ inverse)
