"""Fold everything that acts on one token before tokens mix into look-up tables (design.md rule 4).

`E W_o` is computed once for the whole vocabulary, per window offset; the bias goes into the rows of offset 0, of which
every position takes exactly one. The blocks are stacked with the n-gram table, so that a position is one gather of J
rows from one table.
"""

from __future__ import annotations

import numpy as np

from fieldrun.bundle import Network
from fieldrun.checkpoint import Checkpoint
from fieldrun.errors import ExportError
from fieldrun.student import HASH_MULTIPLIERS
from fieldrun.tensors import Array

from ..deployed import Deployed, PassReport

__all__ = ["fold"]


def fold(checkpoint: Checkpoint) -> tuple[Deployed, PassReport]:
    """Return `checkpoint` in deployed form, all float32.

    Raises:
        ExportError: the folded table has another number of rows than the vocabulary and the n-grams need.
    """
    config, weights = checkpoint.config, checkpoint.tensors
    shifts = sorted({*config.offsets, *(-k for order in config.ngram_orders for k in range(order))})
    blocks: list[Array] = []
    coef: list[list[int]] = []
    modulus: list[int] = []
    base: list[int] = []
    rows = 0
    embedding = weights["embedding"].astype(np.float64)
    for offset, matrix in zip(config.offsets, weights["window.weight"].astype(np.float64), strict=True):
        block = embedding @ matrix
        if offset == 0:
            block = block + weights["window.bias"]
        blocks.append(block.astype(np.float32))
        coef.append([int(shift == offset) for shift in shifts])
        modulus.append(config.vocab_size)
        base.append(rows)
        rows += config.vocab_size
    for order in config.ngram_orders:
        coef.append([HASH_MULTIPLIERS[-s] if -order < s <= 0 else 0 for s in shifts])
        modulus.append(config.ngram_buckets)
        base.append(rows)
    if config.ngram_orders:
        blocks.append(weights["ngram"].astype(np.float32))
        rows += config.ngram_buckets
    tensors: dict[str, Array] = {
        "table": np.concatenate(blocks),
        "rows.coef": np.array(coef, np.int64),
        "rows.modulus": np.array(modulus, np.int64),
        "rows.base": np.array(base, np.int64),
    }
    if len(tensors["table"]) != rows:
        raise ExportError(f"fold: the table has {len(tensors['table'])} rows instead of {rows}")
    layers = ("mixer", "pool", "hidden", "field") if config.mixer_kernel else ("pool", "hidden", "field")
    for layer in layers:
        weight = weights[f"{layer}.weight"].astype(np.float32)
        tensors[f"{layer}.weight"] = weight.reshape(-1, weight.shape[-1])
        tensors[f"{layer}.bias"] = weights[f"{layer}.bias"].astype(np.float32)
    for layer, kind in (("heads", "single"), ("pairs", "pair")):
        heads = [head for head in checkpoint.heads if head.kind == kind]
        if heads:
            tensors[f"{layer}.weight"] = np.concatenate([h.weight for h in heads], axis=1).astype(np.float32)
            tensors[f"{layer}.bias"] = np.concatenate([h.bias for h in heads]).astype(np.float32)
    network = Network(
        vocab_size=config.vocab_size,
        width=config.width,
        shifts=tuple(shifts),
        mixer_kernel=config.mixer_kernel,
        hidden=config.hidden,
        field_dim=config.field_dim,
        parameters=checkpoint.parameters(),
    )
    before = sum(t.nbytes for t in weights.values()) + sum(h.weight.nbytes + h.bias.nbytes for h in checkpoint.heads)
    deployed = Deployed(network=network, tensors=tensors)
    changed = {"table": {"rows": rows, "width": config.width, "blocks": len(blocks), "matrix_products_removed": 1}}
    return deployed, PassReport(name="fold", bytes_before=before, bytes_after=deployed.nbytes(), changed=changed)
