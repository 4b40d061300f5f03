"""What a student and a head are: their shapes, their tensors, and the rules that both must keep.

The student is a *windowed look-up network*. With `ids (batch, length)`, pad id 0 beyond the text and outside the array:

    y_t = sum_o E[id_{t+o}] W_o + sum_n N[hash_n(t)] + b            h_t = relu(y_t)            width c
    r_t = relu(sum_k h_{t+k} M_k + m)                               h_t = h_t + r_t            when it has a mixer
    a_t = exp(clip(h_t . s + s0))                                   p   = [sum a_t h_t / sum a_t ; max_t h_t]
    field = relu(p D1 + d1) D2 + d2                                 256-d

No attention between tokens and no recurrence: the first line is look-ups only once `E W_o` is folded into tables. The
n-gram hash is linear, hash_n(t) = sum_k id_{t-k} * HASH_MULTIPLIERS[k] mod buckets, and fits 32-bit integers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

import numpy as np

from .errors import CheckpointError
from .tensors import Array

__all__ = ["HASH_MULTIPLIERS", "SCORE_CLIP", "Head", "StudentConfig", "check_tensors", "from_mapping"]

HASH_MULTIPLIERS = (20011, 15013, 10007, 5003)
"""One multiplier per position back from the last token of an n-gram; sums of products with ids stay under 2**31."""

SCORE_CLIP = 10.0
"""Pooling scores are clipped to +-this before `exp`, so that no maximum has to be subtracted."""


def from_mapping(cls: Any, value: Any, what: str, error: type[Exception] = CheckpointError) -> Any:
    """Build the dataclass `cls` from a JSON object; unknown and missing keys are errors that name them."""
    if not isinstance(value, Mapping):
        raise error(f"{what} must be an object, not {type(value).__name__}")
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(value) - known)
    if unknown:
        raise error(f"{what} has unknown keys: {', '.join(unknown)}")
    try:
        return cls(**value)
    except TypeError as cause:
        raise error(f"{what} is incomplete or has a value of the wrong type: {cause}") from cause


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentConfig:
    """The shape of a student. Sizes are in elements; `offsets` are token positions relative to the current one."""

    vocab_size: int
    embedding_dim: int
    width: int
    offsets: tuple[int, ...]
    ngram_orders: tuple[int, ...]
    ngram_buckets: int
    mixer_kernel: int
    hidden: int
    field_dim: int = 256
    max_tokens: int = 512

    def __post_init__(self) -> None:
        for name in ("offsets", "ngram_orders"):
            value = getattr(self, name)
            if not isinstance(value, list | tuple) or not all(isinstance(n, int) for n in value):
                raise CheckpointError(f"student.{name} must be a list of integers, not {value!r}")
            object.__setattr__(self, name, tuple(value))
        for name in ("vocab_size", "embedding_dim", "width", "hidden", "field_dim", "max_tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise CheckpointError(f"student.{name} must be a positive integer, not {value!r}")
        for name in ("ngram_buckets", "mixer_kernel"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise CheckpointError(f"student.{name} must be a whole number, 0 for none, not {value!r}")
        if 0 not in self.offsets or len(set(self.offsets)) != len(self.offsets):
            raise CheckpointError(f"student.offsets must be distinct and contain 0, not {list(self.offsets)}")
        if any(not 2 <= n <= len(HASH_MULTIPLIERS) for n in self.ngram_orders):
            raise CheckpointError(f"student.ngram_orders must be within 2..{len(HASH_MULTIPLIERS)}")
        if bool(self.ngram_orders) != bool(self.ngram_buckets):
            raise CheckpointError("student.ngram_orders and student.ngram_buckets must both be set or both be empty")
        if self.mixer_kernel and self.mixer_kernel % 2 == 0:
            raise CheckpointError(f"student.mixer_kernel must be odd, or 0 for none, not {self.mixer_kernel}")
        if (self.vocab_size - 1) * sum(HASH_MULTIPLIERS) >= 2**31:
            raise CheckpointError(f"a vocabulary of {self.vocab_size} overflows the 32-bit n-gram hash")

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor of the trained form, all float."""
        c = self.width
        shapes: dict[str, tuple[int, ...]] = {
            "embedding": (self.vocab_size, self.embedding_dim),
            "window.weight": (len(self.offsets), self.embedding_dim, c),
            "window.bias": (c,),
        }
        if self.ngram_orders:
            shapes["ngram"] = (self.ngram_buckets, c)
        if self.mixer_kernel:
            shapes |= {"mixer.weight": (self.mixer_kernel, c, c), "mixer.bias": (c,)}
        return shapes | {
            "pool.weight": (c, 1),
            "pool.bias": (1,),
            "hidden.weight": (2 * c, self.hidden),
            "hidden.bias": (self.hidden,),
            "field.weight": (self.hidden, self.field_dim),
            "field.bias": (self.field_dim,),
        }

    def parameters(self) -> int:
        """Return the number of trained parameters, heads not counted."""
        return sum(int(np.prod(shape)) for shape in self.shapes().values())

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object that `from_mapping` reads back."""
        return asdict(self) | {"offsets": list(self.offsets), "ngram_orders": list(self.ngram_orders)}


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


def check_tensors(tensors: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Check that `tensors` has exactly the names and shapes of `shapes` and only finite floats.

    Raises:
        CheckpointError: the first tensor that is missing, unknown, of a wrong shape or type, or not finite.
    """
    missing, unknown = sorted(set(shapes) - set(tensors)), sorted(set(tensors) - set(shapes))
    if missing:
        raise CheckpointError(f"{what} lacks the tensor {missing[0]!r}")
    if unknown:
        raise CheckpointError(f"{what} has an unknown tensor {unknown[0]!r}")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise CheckpointError(f"{what}: tensor {name!r} has shape {tensor.shape}, expected {shape}")
        if tensor.dtype.kind != "f":
            raise CheckpointError(f"{what}: tensor {name!r} has dtype {tensor.dtype}, expected a float")
        if not np.isfinite(tensor).all():
            raise CheckpointError(f"{what}: tensor {name!r} holds NaN or infinity; train again or restore the file")
