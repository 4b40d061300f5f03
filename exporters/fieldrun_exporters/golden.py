"""Golden replies: texts with the field and scores that the export measured, for the device to replay.

A static int8 layer rounds its input. Where an activation lies on a rounding boundary, the last bit of a sum decides,
and another processor may round the other way; such a text says nothing about the bundle. So golden texts are drawn from
those whose field is the same with ONNX Runtime's optimiser on (fused integer kernels) and off (the graph as written).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fieldrun.errors import ExportError
from fieldrun.formats.bundle import Bucket, GraphNetwork, Network, TaskSpec
from fieldrun.formats.tensors import Array, shortest
from fieldrun.heads.head import softmax

from .parity import open_session, run_bucket

__all__ = ["golden_fields", "golden_replies"]

_COUNT = 32
_STABLE = 5e-6  # half of the tolerance that a device gets: rounding of sums, not of an int8 input


def golden_replies(
    folder: Path,
    network: Network,
    buckets: Sequence[Bucket],
    pairs: Mapping[int, str],
    tasks: Sequence[TaskSpec],
    texts: Sequence[str],
    sequences: Sequence[Sequence[int]],
) -> dict[str, Any]:
    """Return the JSON of `golden.json`: texts, their ids, fields, and scores per task.

    A pair task is asked about every golden text and the next one. Fields are measured in the batch-1 buckets.

    Raises:
        ExportError: too few texts fit the buckets whole and have a stable field.
    """
    singles = sorted((b for b in buckets if b.batch == 1), key=lambda b: b.length)
    whole = [i for i, ids in enumerate(sequences) if len(ids) < singles[-1].length]
    candidates = _spread(whole, 4 * _COUNT)
    kept = [sequences[i] for i in candidates]
    fields, logits = _run(folder, network, singles, kept, optimise=True)
    plain, _ = _run(folder, network, singles, kept, optimise=False)
    stable = [k for k in range(len(kept)) if np.abs(fields[k] - plain[k]).max() <= _STABLE]
    if len(stable) < 8:
        raise ExportError(f"only {len(stable)} of {len(kept)} texts have a stable field; give more and shorter texts")
    rows = _spread(stable, _COUNT)
    chosen, fields, logits = [candidates[k] for k in rows], fields[rows], logits[rows]
    scores = {t.name: _scores(logits, t) for t in tasks if t.kind == "single"}
    if pairs:
        session = open_session(folder / pairs[1])
        after = np.roll(fields, -1, axis=0)
        pair_logits = np.concatenate(
            [session.run(["logits"], {"a": fields[k : k + 1], "b": after[k : k + 1]})[0] for k in range(len(chosen))]
        )
        scores |= {t.name: _scores(pair_logits, t) for t in tasks if t.kind == "pair"}
    return {
        "texts": [texts[i] for i in chosen],
        "ids": [list(sequences[i]) for i in chosen],
        "fields": [[shortest(x) for x in row] for row in fields],
        "scores": scores,
    }


def golden_fields(
    folder: Path,
    network: GraphNetwork,
    buckets: Sequence[Bucket],
    texts: Sequence[str],
    sequences: Sequence[Sequence[int]],
) -> tuple[dict[str, Any], Array]:
    """Return the JSON of `golden.json` of a bundle without tasks, and what rounding alone changes in each of its texts.

    In a deep int8 network some texts lie on a rounding boundary, others on another device, and a text that is rounded
    the other way moves nearly as far as int8 itself moves it; the rest agree to the last bits of a sum. So no text is
    left out, and what another device may differ by is measured: for each text `(n,) float32` the largest difference of
    its field with ONNX Runtime's optimiser on and off.

    Raises:
        ExportError: fewer than 8 texts fit the buckets whole.
    """
    singles = sorted((b for b in buckets if b.batch == 1), key=lambda b: b.length)
    whole = [i for i, ids in enumerate(sequences) if len(ids) < singles[-1].length]
    if len(whole) < 8:
        raise ExportError(f"only {len(whole)} texts fit the buckets whole; give more and shorter texts")
    chosen = _spread(whole, _COUNT)
    kept = [sequences[i] for i in chosen]
    fields, _ = _run(folder, network, singles, kept, optimise=True)
    plain, _ = _run(folder, network, singles, kept, optimise=False)
    return {
        "texts": [texts[i] for i in chosen],
        "ids": [list(ids) for ids in kept],
        "fields": [[shortest(x) for x in row] for row in fields],
        "scores": {},
    }, np.abs(fields - plain).max(1)


def _spread(items: Sequence[int], count: int) -> list[int]:
    """Return at most `count` of `items`, evenly spread."""
    if len(items) <= count:
        return list(items)
    return [items[int(i)] for i in np.linspace(0, len(items) - 1, count)]


def _run(
    folder: Path,
    network: Network | GraphNetwork,
    singles: Sequence[Bucket],
    sequences: Sequence[Sequence[int]],
    *,
    optimise: bool,
) -> tuple[Array, Array]:
    """Return field and logits of `sequences`, each from the smallest batch-1 bucket that it fits in."""
    fields: dict[int, Array] = {}
    logits: dict[int, Array] = {}
    shorter = 0
    for bucket in singles:
        rows = [k for k, ids in enumerate(sequences) if shorter < len(ids) <= bucket.length]
        shorter = bucket.length
        if rows:
            session = open_session(folder / bucket.graph, optimise=optimise)
            field, logit = run_bucket(session, network, bucket, [sequences[k] for k in rows])
            fields |= dict(zip(rows, field, strict=True))
            logits |= dict(zip(rows, logit, strict=True))
    order = range(len(sequences))
    return np.stack([fields[k] for k in order]), np.stack([logits[k] for k in order])


def _scores(logits: Array, task: TaskSpec) -> list[list[float]]:
    part = logits[:, task.start : task.start + len(task.labels)]
    return [[shortest(x) for x in row] for row in softmax(part, task.temperature)]
