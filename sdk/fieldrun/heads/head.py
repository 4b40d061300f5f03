"""A head: one task's linear classifier on the field, and the numbers that it gives."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from ..errors import CheckpointError
from ..formats.bundle import TaskSpec
from ..formats.tensors import Array, check_tensors
from .blas import one_thread

__all__ = ["RESERVED", "Head", "attached_task", "head_logits", "pair_features", "softmax"]

RESERVED = ("all",)
"""Names that a new task cannot have: `--task all` means every task."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Head:
    """One task's classifier on the field: `softmax((x @ weight + bias) / temperature)`.

    `x` is the field for a single task, `[a; b; |a - b|; a * b]` of the two fields for a pair task. `weight` is
    `(inputs, labels) float32`, `bias` `(labels,) float32`; `temperature` calibrates the probabilities.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    weight: Array
    bias: Array
    temperature: float = 1.0
    about: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", () if isinstance(self.labels, str) else tuple(self.labels))
        if not all(isinstance(label, str) and label for label in self.labels):
            raise CheckpointError(f"head {self.name!r}: labels must be a list of strings, not {self.labels!r}")
        if not self.name or not all(c.isalnum() or c in "-_" for c in self.name):
            raise CheckpointError(f"head name {self.name!r} must be letters, digits, '-' and '_'")
        if self.kind not in ("single", "pair"):
            raise CheckpointError(f"head {self.name!r}: kind must be 'single' or 'pair', not {self.kind!r}")
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise CheckpointError(f"head {self.name!r} needs at least two distinct labels")
        if not isinstance(self.temperature, int | float) or not 0 < self.temperature < 1e3:
            raise CheckpointError(f"head {self.name!r}: temperature must be within 0..1000, not {self.temperature!r}")

    def validate(self, field_dim: int) -> None:
        """Check the tensors against the labels and a field of `field_dim`; raises `CheckpointError`."""
        inputs = field_dim * (4 if self.kind == "pair" else 1)
        shapes: dict[str, tuple[int, ...]] = {"weight": (inputs, len(self.labels)), "bias": (len(self.labels),)}
        check_tensors({"weight": self.weight, "bias": self.bias}, shapes, f"head {self.name!r}")


def attached_task(head: Head) -> TaskSpec:
    """Return the task that `head` answers once it is attached to a model."""
    return TaskSpec(
        name=head.name, kind=head.kind, labels=head.labels, start=0, temperature=float(head.temperature), attached=True
    )


def pair_features(a: Array, b: Array) -> Array:
    """Return `[a; b; |a - b|; a * b]` of two fields `(batch, dim)`, as `(batch, 4 * dim)`."""
    return np.concatenate([a, b, np.abs(a - b), a * b], axis=-1)


def head_logits(head: Head, x: Array) -> Array:
    """Return `head`'s logits `(batch, labels)` for its input `x`: fields, or `pair_features` for a pair task.

    A row at a time: a BLAS may add a row of a batch in another order than the row alone, and the last bits differ.
    """
    with one_thread():
        return np.asarray((x[:, None, :] @ head.weight)[:, 0] + head.bias)


def softmax(logits: Array, temperature: float = 1.0) -> Array:
    """Return `softmax(logits / temperature)` over the last axis; rows sum to 1."""
    scaled = logits / np.asarray(temperature, logits.dtype)
    e = np.exp(scaled - scaled.max(-1, keepdims=True))
    return np.asarray(e / e.sum(-1, keepdims=True))
