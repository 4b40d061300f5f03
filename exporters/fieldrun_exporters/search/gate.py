"""The parity limits of a found recipe: what was measured of its student, and half as far again.

When the recipe is exported again, on another machine or from a student that was trained further, it must keep what it
had when it was found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fieldrun.formats.tensors import Array
from fieldrun.heads.head import pair_features

from ..recipe import Parity
from ..student.deployed import Deployed
from ..student.simulate import dense, outputs

__all__ = ["measured_gate"]

_SPARE = 1.5
_LEAST = 0.01  # of a cosine or a share: a limit has to be positive


def measured_gate(
    folded: Deployed, deployed: Deployed, sequences: Sequence[Sequence[int]], lengths: Sequence[int]
) -> Parity:
    """Return limits that allow half as much again as `deployed` differs from `folded`, the student in float32.

    Best labels of `sequences`, the token ids of the proof, are counted in each bucket of `lengths`, as the export's
    parity does, and one more of them may differ, because a label may be close to another.
    """
    dim = deployed.network.field_dim
    found, wanted = outputs(deployed, sequences), outputs(folded, sequences)
    fields, expected = found[:, :dim], wanted[:, :dim]
    cosine = (fields * expected).sum(1) / (np.linalg.norm(fields, axis=1) * np.linalg.norm(expected, axis=1))
    same = _same(deployed, "single", found[:, dim:], wanted[:, dim:])
    fits = np.array([len(ids) for ids in sequences])[:, None] <= np.array(lengths)
    shares = [_share(each) for each in (same[:, inside] for inside in fits.T) if each.size]
    if "pairs" in deployed.dense():
        logits = [
            dense(form.tensors, "pairs", pair_features(each, np.roll(each, -1, axis=0)))
            for form, each in ((deployed, fields), (folded, expected))
        ]
        shares.append(_share(_same(deployed, "pair", *logits)))
    return Parity(
        min_cosine=max(_LEAST, _floor(1 - _SPARE * (1 - float(cosine.min())))),
        max_abs=_ceil(_SPARE * float(np.abs(fields - expected).max())),
        min_top1=max(_LEAST, _floor(min(shares, default=1.0))),
    )


def _same(deployed: Deployed, kind: str, logits: Array, wanted: Array) -> Array:
    """Return whether the best label of every task and text is the one of `wanted`, `(tasks, n) bool`."""
    columns = [slice(t.start, t.start + len(t.labels)) for t in deployed.tasks if t.kind == kind]
    found = [logits[:, own].argmax(1) == wanted[:, own].argmax(1) for own in columns]
    return np.array(found, bool).reshape(len(columns), len(logits))


def _share(same: Array) -> float:
    """Return the share of best labels that has to agree where `same` was measured."""
    return 1 - (_SPARE * float((~same).sum()) + 1) / same.size


def _floor(value: float) -> float:
    return math.floor(value * 1e4) / 1e4


def _ceil(value: float) -> float:
    return math.ceil(value * 1e4 + 1) / 1e4  # never 0
