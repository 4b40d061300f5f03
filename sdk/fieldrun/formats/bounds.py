"""How far fields may be from what they are compared with and still be called equal, by the kind of a recipe.

The one place for that: `export` says by it whether a bundle differs from its reference, and holds the tolerance of its
golden replies to it; `verify` grants no wider one, whatever a manifest says. A recipe's own limits may be tighter.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from .tensors import Array

__all__ = ["LEAST_COSINE", "WIDEST", "least_cosine", "recipe_kind", "widest_tolerance"]

LEAST_COSINE: Mapping[str, float] = {
    "fp32": 0.9999,  # measured: 0.9999998 (ladder.json, and gte-small)
    "fp16": 0.999,  # 0.99999 (ladder.json)
    "int8": 0.95,  # 0.9985 of the student (ladder.json), 0.993 of gte-small in encoder-int8
    "palette": 0.9,  # 0.92 and more (ladder.json); 0.77 in palette4, where half of the nearest neighbours are others
    "lowrank": 0.9,  # 0.78 and 0.63 (ladder.json), where a third and half of the neighbours are others: those differ
    "prune-vocabulary": 0.9,  # the same measure, for a text whose words were pruned
}
"""The least cosine of any text's field with the reference's, by the coarsest thing that a recipe does."""

WIDEST: Mapping[str, float] = {
    "sums": 1e-3,  # float32 in another order: 3e-6 in the student on ARM (arm-emulation.json), 2e-4 in tensorrt-fp32
    "halves": 0.01,  # fp16 products on a GPU: 0.005 in jetson-orin-fp16
    "int8": 0.2,  # int8 inputs that round the other way: 0.11 to 0.16 of gte-small, four times what was measured
}
"""The widest golden tolerance, as a share of the largest number in the golden fields, by what a device may round."""

_OF_TABLES = ("tables", "offset", "ngrams")
_ORDER = tuple(LEAST_COSINE)


def recipe_kind(recipe: Mapping[str, Any]) -> str:
    """Return the coarsest thing that a `recipe`, as a manifest has it, does to a field: a key of `LEAST_COSINE`."""
    values = [str(value) for value in dict(recipe.get("precision", {})).values()]
    found = {name for name in ("lowrank", "prune-vocabulary") if name in recipe.get("passes", ())}
    for value in values:
        packed = value.startswith("palette") or value == "int4"
        found.add("palette" if packed else "int8" if value.startswith("int8") else value)
    return max(found & set(_ORDER), key=_ORDER.index, default="fp32")


def least_cosine(recipe: Mapping[str, Any]) -> float:
    """Return the least cosine of a field with the reference's that a bundle of `recipe` may have."""
    return LEAST_COSINE[recipe_kind(recipe)]


def widest_tolerance(recipe: Mapping[str, Any], fields: Array, *, student: bool, gpu: bool) -> float:
    """Return the widest tolerance for golden `fields (n, dim) float32` of a bundle of `recipe`.

    A `student` is compared on a CPU only with texts that no int8 input rounds another way; on a `gpu` with all.
    """
    rules = dict(recipe.get("precision", {}))
    dense = {str(value) for name, value in rules.items() if not str(name).startswith(_OF_TABLES)}
    rounded = gpu or not student
    kind = "int8" if rounded and "int8" in dense else "halves" if rounded and "fp16" in dense else "sums"
    return WIDEST[kind] * float(np.abs(fields).max(initial=0))
