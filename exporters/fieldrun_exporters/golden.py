"""Golden replies: texts with the fields and scores that the export measured, which a device repeats to check itself.

A static int8 layer rounds its input. Where an activation lies on a rounding boundary, the last bit of a sum decides,
and another processor may round the other way. How ONNX Runtime's answers differ with its optimiser on (fused integer
kernels) and off (the graph as written) shows which texts that concerns.

- A student has one or two such layers. Texts whose field changes are left out, and the tolerance is fixed.
- In a deep int8 network every device has other such texts, and each moves nearly as far as int8 itself moves it. No
  text is left out, and the tolerance follows from the change that was measured.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fieldrun.errors import ExportError
from fieldrun.formats.bounds import widest_tolerance
from fieldrun.formats.bundle import TYPICAL_QUANTILE, Bucket, GraphNetwork, Network, TaskSpec
from fieldrun.formats.tensors import Array, shortest
from fieldrun.heads.head import softmax

from .calibrate import open_tokenizer
from .parity import open_session, run_bucket

__all__ = ["Golden", "golden_replies"]

_COUNT = 32
_LEAST = 8
_STABLE = 0.5  # of the fixed tolerance: rounding of sums, not of an int8 input
_SPARE = 4  # times the change measured here: another processor's rounding is another draw of the same kind
_FLOOR = 1e-5  # what a bundle of sums in float32 gets


@dataclass(frozen=True, slots=True, kw_only=True)
class Golden:
    """What `golden.json` holds, the tolerance for repeating it, and what was measured for that."""

    replies: Mapping[str, Any]
    tolerance: float
    proof: Mapping[str, Any] = field(default_factory=dict)


def golden_replies(
    folder: Path,
    network: Network | GraphNetwork,
    buckets: Sequence[Bucket],
    pairs: Mapping[int, str],
    tasks: Sequence[TaskSpec],
    texts: Sequence[str],
    sequences: Sequence[Sequence[int]],
    *,
    tokenizer: bytes,
    tolerance: float | None,
    bucket_gap: float,
    recipe: Mapping[str, Any],
) -> Golden:
    """Return texts with their ids, fields and scores per task, measured in the batch-1 buckets.

    A pair task is asked about every golden text and the next one. The texts are chosen from `texts`, whose token ids
    are `sequences`. With a fixed `tolerance` unstable texts are left out; when it is None it is measured, and is at
    least as large as `bucket_gap`, the difference of a text's fields in two buckets. `tokenizer` is the
    `tokenizer.json`, whose ids of texts of every kind are kept too.

    Raises:
        ExportError: too few texts fit the buckets without being cut and have a stable field, or rounding alone
            changes a field by more than `fieldrun.formats.bounds` allows a `recipe` of this kind.
    """
    singles = sorted((b for b in buckets if b.batch == 1), key=lambda b: b.length)
    whole = [i for i, ids in enumerate(sequences) if len(ids) < singles[-1].length]
    candidates = _spread(whole, _COUNT if tolerance is None else 4 * _COUNT)
    kept = [sequences[i] for i in candidates]
    if len(kept) < _LEAST:
        raise ExportError(f"only {len(kept)} texts fit the buckets without being cut; give more and shorter texts")
    fields, logits = _run(folder, network, singles, kept, "all")
    literal = _run(folder, network, singles, kept, "none")[0]
    change = np.abs(fields - literal).max(1)
    rows = list(range(len(kept)))
    if tolerance is not None:
        stable = [k for k in rows if change[k] <= _STABLE * tolerance]
        if len(stable) < _LEAST:
            raise ExportError(
                f"only {len(stable)} of {len(kept)} texts have a stable field; give more and shorter texts"
            )
        rows = _spread(stable, _COUNT)
    fields, logits = fields[rows], logits[rows]
    replies: dict[str, Any] = {
        "texts": [texts[candidates[k]] for k in rows],
        "ids": [list(kept[k]) for k in rows],
        "fields": [[shortest(x) for x in row] for row in fields],
        "scores": _scores(folder, pairs, tasks, fields, logits),
        "tokenizer": _tokens(tokenizer, singles[-1].length),
    }
    if tolerance is not None:
        return Golden(replies=replies, tolerance=tolerance)
    largest, quartile = max(float(change.max()), bucket_gap), float(np.quantile(change, TYPICAL_QUANTILE))
    tolerance = max(_FLOOR, _SPARE * largest)
    distances = ((literal[:, None] - fields) ** 2).sum(2)
    confused = int((np.diag(distances) > distances.min(1) * (1 + 1e-6)).sum())
    if confused:
        raise ExportError(
            f"rounding alone makes {confused} of {len(fields)} texts more like another text; keep more parts in fp32"
        )
    widest = widest_tolerance(recipe, fields, student=False, gpu=False)
    if not tolerance <= widest:
        raise ExportError(
            f"rounding alone changes fields by {largest:.3g}, so that a device would be granted {tolerance:.3g}, more "
            f"than the {widest:.3g} at which such a bundle counts as equal; keep more parts in fp32"
        )
    replies["typical_tolerance"] = typical = min(max(_FLOOR, _SPARE * quartile), tolerance)
    rounding = {"max_abs": largest, "golden_tolerance": tolerance}
    rounding |= {"quartile_abs": quartile, "typical_tolerance": typical}
    return Golden(replies=replies, tolerance=tolerance, proof={"rounding": rounding})


_EVERY_KIND = (
    "Na\u00efve caf\u00e9, cafe\u0301; \u00c5ngstr\u00f6m",
    "\u4e2d\u6587\u5b57 and \u65e5\u672c\u8a9e \ud55c\uad6d\uc5b4",
    "\u0440\u0443\u0441\u0441\u043a\u0438\u0439 \u0395\u03bb\u03bb\u03ac\u03c2",
    "\u0627\u0644\u0639\u0631\u0628\u064a\u0629 \u0e44\u0e17\u0e22",
    "good \U0001f600\U0001f1e9\U0001f1ea \u2764\ufe0f",
    "[CLS] [SEP] [MASK] [UNK] <s> </s> <mask>",
    "tab\tand\u00a0space\u2028line",
    "don't -- \u201cquote\u201d\u2026 (12,345.67%) a_b/c",
    "THE Same in CAPITALS",
    "x" * 100,
    "y" * 101,
    "0f3a9c77b2" * 20,
)
"""Texts of every kind that a tokenizer treats apart: accents, scripts, emoji, special tokens, marks, long words."""


def _tokens(tokenizer: bytes, longest: int) -> dict[str, Any]:
    """Return texts of every kind, and one that takes several windows, with their ids; nothing is cut."""
    texts = [*_EVERY_KIND, "a long text, " * longest]
    opened = open_tokenizer(tokenizer)
    opened.no_padding()
    opened.no_truncation()
    return {"texts": texts, "ids": [encoding.ids for encoding in opened.encode_batch_fast(texts)]}


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
    optimise: str,
) -> tuple[Array, Array]:
    """Return fields and logits of `sequences`, each from the smallest batch-1 bucket that it fits in."""
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


def _scores(
    folder: Path, pairs: Mapping[int, str], tasks: Sequence[TaskSpec], fields: Array, logits: Array
) -> dict[str, list[list[float]]]:
    """Return the scores of every task: of the single tasks from `logits`, of the pair tasks from the pair graph."""
    by_kind = {"single": logits}
    if pairs:
        session, after = open_session(folder / pairs[1]), np.roll(fields, -1, axis=0)
        rows = [{"a": fields[k : k + 1], "b": after[k : k + 1]} for k in range(len(fields))]
        by_kind["pair"] = np.concatenate([session.run(["logits"], row)[0] for row in rows])
    found = {}
    for task in sorted(tasks, key=lambda task: task.kind, reverse=True):
        part = by_kind[task.kind][:, task.start : task.start + len(task.labels)]
        found[task.name] = [[shortest(x) for x in row] for row in softmax(part, task.temperature)]
    return found
