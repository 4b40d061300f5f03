"""The gate of a found recipe: what was measured of its student, and half as far again.

A recipe that is exported again, on another machine or of a student that was trained on, is held to what it gave when it
was found.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from fieldrun.formats.bundle import TaskSpec
from fieldrun.formats.tensors import Array
from fieldrun.heads.head import head_logits, pair_features
from fieldrun.heads.trained import Checkpoint
from fieldrun.student.oracle import forward
from fieldrun.student.windows import pad_ids

from ..recipe import Parity
from ..student.deployed import Deployed
from ..student.simulate import dense, outputs

__all__ = ["measured_gate"]

_SPARE = 1.5
_LEAST = 0.01  # of a cosine or a share: a gate has to be positive


def measured_gate(
    source: Checkpoint,
    deployed: Deployed,
    tasks: Sequence[TaskSpec],
    sequences: Sequence[Sequence[int]],
    lengths: Sequence[int],
) -> Parity:
    """Return the gate that lets through what is half as far from the reference again as `deployed` is.

    Args:
        source: the reference.
        deployed: the chosen candidate, in NumPy.
        tasks: where each task's logits are.
        sequences: token ids of the texts that an export is proven on.
        lengths: of the buckets: best labels are counted in each of them, as the export's parity does, and one more of
            them may differ, a label that hangs in the balance.
    """
    dim = deployed.network.field_dim
    found = outputs(deployed, sequences)
    fields = found[:, :dim]
    expected = np.concatenate([forward(source.config, source.tensors, pad_ids([ids])) for ids in sequences])
    cosine = (fields * expected).sum(1) / (np.linalg.norm(fields, axis=1) * np.linalg.norm(expected, axis=1))
    heads = {head.name: head for head in source.heads}
    singles, pairs = ([task for task in tasks if task.kind == kind] for kind in ("single", "pair"))
    same = [_same(found[:, dim:], head_logits(heads[task.name], expected), task) for task in singles]
    fits = np.array([len(ids) for ids in sequences])[:, None] <= np.array(lengths)
    shares = [_share(each) for each in fits.T for each in [np.array(same)[:, each]] if each.size]
    if pairs:
        ours, theirs = (pair_features(each, np.roll(each, -1, axis=0)) for each in (fields, expected))
        logits = dense(deployed.tensors, "pairs", ours)
        shares.append(_share(np.array([_same(logits, head_logits(heads[task.name], theirs), task) for task in pairs])))
    return Parity(
        min_cosine=max(_LEAST, _floor(1 - _SPARE * (1 - float(cosine.min())))),
        max_abs=_ceil(_SPARE * float(np.abs(fields - expected).max())),
        min_top1=max(_LEAST, _floor(min(shares, default=1.0))),
    )


def _same(logits: Array, wanted: Array, task: TaskSpec) -> Array:
    """Return whether every text's best label is the reference's, `(n,) bool`."""
    own = logits[:, task.start : task.start + len(task.labels)]
    same: Array = own.argmax(1) == wanted.argmax(1)
    return same


def _share(same: Array) -> float:
    """Return the share of best labels that has to agree where `same` was measured."""
    return 1 - (_SPARE * float((~same).sum()) + 1) / same.size


def _floor(value: float) -> float:
    return math.floor(value * 1e4) / 1e4


def _ceil(value: float) -> float:
    return math.ceil(value * 1e4 + 1) / 1e4  # never 0
