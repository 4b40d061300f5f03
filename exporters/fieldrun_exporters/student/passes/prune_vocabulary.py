"""Prune the vocabulary: keep the word pieces and the n-grams that the texts of a domain use.

The special tokens are kept, including those that only the post-processor names, and so are pieces of one character and
the pieces in the domain's texts. The tokenizer takes the longest piece that it knows. So texts are tokenized as before
if all their pieces are kept, and others fall back to shorter pieces, down to single characters. (A word becomes unknown
only if a character inside it has no continuation piece.)

An n-gram's bucket is a hash of token ids. The ids change, so the table is filled again: a bucket holds the mean of the
rows of the domain's n-grams that fall into it, weighted by how often they occur, or zeros, which add nothing. A pruned
student is a checkpoint like any other.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fieldrun.errors import ExportError, RecipeError
from fieldrun.formats.tensors import Array
from fieldrun.heads.trained import Checkpoint
from fieldrun.student.config import HASH_MULTIPLIERS, StudentConfig
from fieldrun.student.token_counts import count_usage
from fieldrun.student.windows import buckets_of, pad_ids

from ...recipe import Prune
from . import PassReport

__all__ = ["prune_vocabulary"]

_BATCH = 512
_LEAST_TEXTS = 100


def prune_vocabulary(
    checkpoint: Checkpoint, sequences: Sequence[Sequence[int]], plan: Prune
) -> tuple[Checkpoint, PassReport]:
    """Return `checkpoint` with only the pieces and n-grams of the domain.

    `sequences` are the token ids of `_LEAST_TEXTS` or more texts of the domain, by the checkpoint's tokenizer.

    Raises:
        ExportError: too few texts, another kind of tokenizer, or nothing became smaller.
        RecipeError: more buckets than the student has.
    """
    if len(sequences) < _LEAST_TEXTS:
        raise ExportError(
            f"prune-vocabulary: {len(sequences)} texts are too few for a domain; give at least {_LEAST_TEXTS} with "
            "--calibration"
        )
    config = checkpoint.config
    if plan.ngram_buckets is not None and plan.ngram_buckets > config.ngram_buckets:
        raise RecipeError(
            f"prune.ngram_buckets is {plan.ngram_buckets}, the student has {config.ngram_buckets}; give fewer"
        )
    tokenizer = _read(checkpoint.tokenizer)
    counts = count_usage(config, sequences)["tokens"]
    kept = _kept(tokenizer, counts, plan.min_count, config.vocab_size)
    number = np.full(config.vocab_size, -1, np.int64)
    number[kept] = np.arange(len(kept))
    renamed = [[int(number[i]) for i in ids] if all(number[i] >= 0 for i in ids) else None for ids in sequences]
    same = [(old, new) for old, new in zip(sequences, renamed, strict=True) if new is not None]
    tensors = dict(checkpoint.tensors) | {"embedding": np.ascontiguousarray(checkpoint.tensors["embedding"][kept])}
    pruned = replace(config, vocab_size=len(kept))
    filled = 0
    if config.ngrams:
        buckets = plan.ngram_buckets or min(config.ngram_buckets, _prime(2 * _distinct(config, [o for o, _ in same])))
        pruned = replace(pruned, ngram_buckets=buckets)
        tensors["ngram"], filled = _rehash(checkpoint, pruned, same)
    result = replace(
        checkpoint,
        config=pruned,
        tensors=tensors,
        tokenizer=json.dumps(_renumber(tokenizer, number), ensure_ascii=False).encode("utf-8"),
        usage=count_usage(pruned, [new for _, new in same]),
    )
    result.validate()
    before, after = (sum(t.nbytes for t in each.tensors.values()) for each in (checkpoint, result))
    if after >= before:
        raise ExportError("prune-vocabulary: nothing became smaller; the texts use the whole vocabulary")
    changed: dict[str, dict[str, Any]] = {
        "embedding": {
            "rows_before": config.vocab_size,
            "rows_after": len(kept),
            "texts_cut_as_before": len(same) / len(sequences),
        }
    }
    if config.ngrams:
        changed["ngram"] = {
            "buckets_before": config.ngram_buckets,
            "buckets_after": pruned.ngram_buckets,
            "buckets_filled": filled,
        }
    return result, PassReport(name="prune-vocabulary", bytes_before=before, bytes_after=after, changed=changed)


def _read(tokenizer: bytes) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(tokenizer)
    kind = value.get("model", {}).get("type")
    last = value.get("post_processor") or {}
    if kind != "WordPiece" or last.get("type", "TemplateProcessing") not in ("TemplateProcessing", "BertProcessing"):
        raise ExportError(
            f"prune-vocabulary takes WordPiece tokenizers, not {kind!r} with {last.get('type')!r}; leave the pass out"
        )
    return value


def _kept(tokenizer: dict[str, Any], counts: Array, least: int, vocab_size: int) -> Array:
    """Return the ids that are kept, in order; padding, id 0, stays first."""
    prefix = tokenizer["model"]["continuing_subword_prefix"]
    keep = counts >= least
    keep[0] = True
    for piece, number in tokenizer["model"]["vocab"].items():
        if len(piece.removeprefix(prefix)) == 1:
            keep[number] = True
    special = [*(added["id"] for added in tokenizer.get("added_tokens", ())), *_framing(tokenizer)]
    if max(special, default=0) >= vocab_size:
        raise ExportError(
            f"prune-vocabulary: the tokenizer names the id {max(special)}, the student has {vocab_size} pieces; "
            "restore tokenizer.json"
        )
    keep[special] = True
    keep[tokenizer["model"]["vocab"][tokenizer["model"]["unk_token"]]] = True
    known = np.zeros(vocab_size, bool)
    known[[0, *tokenizer["model"]["vocab"].values(), *special]] = True
    ids: Array = np.flatnonzero(keep & known)
    return ids


def _framing(tokenizer: dict[str, Any]) -> list[int]:
    """Return the ids that the post-processor puts around texts; the domain's texts may not have all of them."""
    last = tokenizer.get("post_processor") or {}
    if last.get("type") == "TemplateProcessing":
        return [int(i) for token in last["special_tokens"].values() for i in token["ids"]]
    return [int(last[name][1]) for name in ("sep", "cls") if name in last]


def _renumber(tokenizer: dict[str, Any], number: Array) -> dict[str, Any]:
    """Return the tokenizer with only the kept pieces, under their new ids."""
    model = dict(tokenizer["model"])
    model["vocab"] = {piece: int(number[i]) for piece, i in model["vocab"].items() if number[i] >= 0}
    added = [token | {"id": int(number[token["id"]])} for token in tokenizer.get("added_tokens", ())]
    last = json.loads(json.dumps(tokenizer.get("post_processor")))
    if last and last["type"] == "TemplateProcessing":
        for token in last["special_tokens"].values():
            token["ids"] = [int(number[i]) for i in token["ids"]]
    elif last:
        for name in ("sep", "cls"):
            last[name][1] = int(number[last[name][1]])
    return tokenizer | {"model": model, "added_tokens": added, "post_processor": last}


def _distinct(config: StudentConfig, sequences: Sequence[Sequence[int]]) -> int:
    """Return how many different n-grams the texts have, all kinds together; at least 1."""
    found: set[tuple[int, ...]] = set()
    for ids in sequences:
        for kind, gram in enumerate(config.ngrams):
            for t in range(len(ids)):
                found.add((kind, *(ids[t + o] if 0 <= t + o < len(ids) else 0 for o in gram)))
    return max(1, len(found))


def _rehash(
    checkpoint: Checkpoint, pruned: StudentConfig, same: Sequence[tuple[Sequence[int], Sequence[int]]]
) -> tuple[Array, int]:
    """Return the table of the pruned student, `(buckets, width) float32`, and how many of its buckets are filled."""
    table = checkpoint.tensors["ngram"]
    sums = np.zeros((pruned.ngram_buckets, table.shape[1]), np.float64)
    counts = np.zeros(pruned.ngram_buckets, np.int64)
    for start in range(0, len(same), _BATCH):
        part = same[start : start + _BATCH]
        old, new = pad_ids([o for o, _ in part]), pad_ids([n for _, n in part])
        text = old != 0
        pairs = np.stack([buckets_of(checkpoint.config, old)[text].ravel(), buckets_of(pruned, new)[text].ravel()])
        each, times = np.unique(pairs, axis=1, return_counts=True)
        np.add.at(sums, each[1], table[each[0]] * times[:, None].astype(np.float64))
        np.add.at(counts, each[1], times)
    return (sums / np.maximum(counts, 1)[:, None]).astype(np.float32), int((counts > 0).sum())


def _prime(least: int) -> int:
    """Return the smallest prime from `least` on that is not a multiplier of the hash: modulo that, a factor is 0."""
    candidate = max(2, least)
    while candidate in HASH_MULTIPLIERS or any(
        candidate % factor == 0 for factor in range(2, math.isqrt(candidate) + 1)
    ):
        candidate += 1
    return candidate
