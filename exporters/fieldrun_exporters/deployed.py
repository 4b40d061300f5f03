"""The deployed form: what passes transform, graphs are built from, and the NumPy engine runs.

| Tensor | Shape, type |
|---|---|
| `table` | `(rows, width)` float32 or int8: one block of rows per window offset and one of hashed n-grams |
| `table.scale` | `(rows, 1) float32`, only with an int8 table |
| `rows.coef`, `rows.modulus`, `rows.base` | `(shifts, J)`, `(J,)`, `(J,)` int64; see below |
| `is_token` | `(vocabulary, 1) float32`: 0 for the padding id, 1 for the others |
| `<layer>.weight`, `<layer>.bias` | `(inputs, outputs)` float32 or int8, `(outputs,) float32` |
| `<layer>.weight_scale`, `<layer>.input_scale` | `(outputs,)`, `(1,) float32`, only with an int8 weight |
| `mean.gain` | `(1,) float32`: the mean over the tokens is multiplied by it, its rows of `hidden` divided |
| `score.weight`, `score.bounds` | `(width, 1)`, `(2,) float32`: the pooling score and the bounds it is clipped to |

Row j of a position is mod(window . coef[:, j], modulus_j) + base_j. Layers: `mixer` (optional), `hidden`, `output` (the
field and the logits of all single tasks), `pairs` (all pair tasks).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fieldrun.bundle import Network
from fieldrun.tensors import Array

__all__ = ["Deployed", "PassReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployed:
    """A student and its heads in deployed form."""

    network: Network
    tensors: Mapping[str, Array]

    def dense(self) -> tuple[str, ...]:
        """Return the names of the layers `x @ weight + bias`."""
        return tuple(n.removesuffix(".bias") for n in self.tensors if n.endswith(".bias"))

    def is_int8(self, layer: str) -> bool:
        """Whether `layer` (or `"table"`) is stored as int8."""
        name = layer if layer == "table" else f"{layer}.weight"
        return self.tensors[name].dtype == np.int8

    def nbytes(self) -> int:
        """Return the bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class PassReport:
    """What a pass changed: bytes before and after, and facts per tensor."""

    name: str
    bytes_before: int
    bytes_after: int
    changed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {
            "name": self.name,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "changed": {name: dict(facts) for name, facts in self.changed.items()},
        }
