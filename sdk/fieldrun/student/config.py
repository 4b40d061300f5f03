"""What a student and a head are: their shapes, their tensors, and the rules that both must keep.

The student is a *windowed look-up network*. With `ids (batch, length)`, pad id 0 beyond the text and outside the array:

    y_t = sum_o E[id_{t+o}] W_o + sum_g N[hash_g(t)] + b     h_t = relu(y_t), 0 where id_t is padding      width c
    g_t = relu([h_t; ...; h_{t+r-1}] M)                      r tokens together; g = h without a mixer         width m
    a_t = g_t . w, w >= 0                                    p = [sum a_t g_t / (sum a_t + 1e-9) ; max_t g_t]
    field = relu(p D1 + d1) D2 + d2                          256-d; p D2 + d2 when hidden is 0

No attention between tokens and no recurrence: the first line is look-ups only once `E W_o` is folded into tables. An
n-gram g is a list of token positions; its hash is linear, hash_g(t) = sum_i id_{t+g_i} * HASH_MULTIPLIERS[(i + its
number) mod 4] mod buckets, and fits 32-bit integers. The mixer has no bias, so padding stays zero without a mask, and
with `mean = false` the pooled vector is the maximum alone.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from ..errors import CheckpointError

__all__ = ["HASH_MULTIPLIERS", "SCORE_FLOOR", "StudentConfig"]

HASH_MULTIPLIERS = (20011, 15013, 10007, 5003)
"""The multipliers of an n-gram's positions; sums of products with ids stay under 2**31."""

SCORE_FLOOR = 1e-9
"""Added to the sum of the pooling scores, so that a text whose every feature is zero has a mean of zero."""

_REACH = 8  # the farthest token that a window offset or an n-gram may look at


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentConfig:
    """The shape of a student. Sizes are in elements; `offsets` are token positions relative to the current one."""

    vocab_size: int
    embedding_dim: int
    width: int
    offsets: tuple[int, ...]
    ngrams: tuple[tuple[int, ...], ...]
    ngram_buckets: int
    mixer_kernel: int
    mixer_width: int
    mean: bool
    hidden: int
    field_dim: int = 256
    max_tokens: int = 512

    def __post_init__(self) -> None:
        if not _are_positions(self.offsets) or 0 not in self.offsets:
            raise CheckpointError(
                f"student.offsets must be distinct integers within -{_REACH}..{_REACH} with 0, not {self.offsets!r}"
            )
        object.__setattr__(self, "offsets", tuple(self.offsets))
        if not isinstance(self.ngrams, list | tuple) or not all(
            _are_positions(gram) and 2 <= len(gram) <= len(HASH_MULTIPLIERS) for gram in self.ngrams
        ):
            raise CheckpointError(
                f"student.ngrams must be lists of 2 to {len(HASH_MULTIPLIERS)} distinct integers within "
                f"-{_REACH}..{_REACH}, not {self.ngrams!r}"
            )
        object.__setattr__(self, "ngrams", tuple(tuple(gram) for gram in self.ngrams))
        for name in ("vocab_size", "embedding_dim", "width", "field_dim", "max_tokens"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 1:
                raise CheckpointError(f"student.{name} must be a positive integer, not {value!r}")
        for name in ("ngram_buckets", "mixer_kernel", "mixer_width", "hidden"):
            value = getattr(self, name)
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise CheckpointError(f"student.{name} must be a whole number, 0 for none, not {value!r}")
        if not isinstance(self.mean, bool):
            raise CheckpointError(f"student.mean must be true or false, not {self.mean!r}")
        if bool(self.ngrams) != bool(self.ngram_buckets):
            raise CheckpointError("student.ngrams and student.ngram_buckets must both be set or both be empty")
        if bool(self.mixer_kernel) != bool(self.mixer_width):
            raise CheckpointError("student.mixer_kernel and student.mixer_width must both be set or both be 0")
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
        if self.ngrams:
            shapes["ngram"] = (self.ngram_buckets, c)
        if self.mixer_kernel:
            shapes["mixer.weight"] = (self.mixer_kernel * c, self.mixer_width)
        if self.mean:
            shapes["pool.weight"] = (self.pooled // 2, 1)
        if self.hidden:
            shapes |= {"hidden.weight": (self.pooled, self.hidden), "hidden.bias": (self.hidden,)}
        return shapes | {
            "field.weight": (self.hidden or self.pooled, self.field_dim),
            "field.bias": (self.field_dim,),
        }

    @property
    def pooled(self) -> int:
        """The size of the pooled vector: the maximum, after the mean where there is one."""
        return (self.mixer_width or self.width) * (2 if self.mean else 1)

    def parameters(self) -> int:
        """Return the number of trained parameters, heads not counted."""
        return sum(int(np.prod(shape)) for shape in self.shapes().values())

    def to_dict(self) -> dict[str, Any]:
        """Return a JSON object that `from_mapping` reads back."""
        return asdict(self) | {"offsets": list(self.offsets), "ngrams": [list(gram) for gram in self.ngrams]}


def _are_positions(value: object) -> bool:
    return (
        isinstance(value, list | tuple)
        and all(isinstance(n, int) and not isinstance(n, bool) and abs(n) <= _REACH for n in value)
        and len(set(value)) == len(value)
    )
