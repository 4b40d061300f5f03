"""The deployed form of a student: what passes change, graphs are built from, and the NumPy engine runs.

| Tensor | Shape, type |
|---|---|
| `table` | `(rows, width)` float32, float16 or int8: one block of rows per window offset and one of hashed n-grams |
| `table.scale` | `(rows,) float32`: every row is multiplied by its scale; ones for a float table |
| `rows.coef`, `rows.modulus`, `rows.base` | `(shifts, J)`, `(J,)`, `(J,)` int32; see below |
| `<layer>.weight` | `(inputs, outputs)` float32, float16 or int8 |
| `<layer>.bias` | `(outputs,) float32`; the mixer has none |
| `<layer>.weight_scale` | `(outputs,) float32`, only with an int8 weight |
| `<layer>.input_scale` | `(1,) float32`, only where the layer's input is int8 too |
| `mean.gain` | `(1,) float32`: the mean over the tokens is multiplied by it, its rows of the next layer are divided |
| `score.weight` | `(width or mixer width, 1) float32`, not negative: the pooling score; only with a mean |

Row j of a position is mod(window . coef[:, j], modulus_j) + base_j. The row for the padding id at offset 0 is so
negative that the sum at a padding position is negative too, and becomes zero without a mask. Layers: `mixer` and
`hidden` (both optional), `output` (the field and the logits of all single tasks), `pairs` (all pair tasks).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from fieldrun.formats.bundle import Network, TaskSpec
from fieldrun.formats.tensors import Array

from ..builder import Stored

__all__ = ["Deployed"]

_LAYERS = ("mixer", "hidden", "output", "pairs")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Deployed(Stored):
    """A student and its heads in deployed form."""

    network: Network
    tasks: tuple[TaskSpec, ...] = ()
    """Where the logits of every head are: in the output after the field, or in that of the pair graph."""
    blocks: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Every block of the table: its first row, and the one after its last."""
    usage: Array | None = None
    """How often the training text used each of the table's rows, `(rows,) int64`; None if that was not counted."""

    def dense(self) -> tuple[str, ...]:
        """Return the names of the student's layers `x @ weight + bias`."""
        return tuple(name for name in _LAYERS if f"{name}.weight" in self.tensors)
