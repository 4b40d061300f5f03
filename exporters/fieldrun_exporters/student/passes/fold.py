"""Fold: compute at export what does not depend on the text.

- `E W_o` is computed for the whole vocabulary, per window offset; the bias goes into the rows of offset 0, of which
  every position takes exactly one. The blocks are stacked on the n-gram table: a position is one gather of J rows.
- Field and single heads are linear maps in a row, field = x D + d and logits = field H + g. They become one layer,
  [field, logits] = x [D, D H] + [d, d H + g].
- The row of the padding id at offset 0, which only padding positions take, gets a value so negative that ReLU makes
  them zero: no mask.
"""

from __future__ import annotations

import numpy as np

from fieldrun.errors import ExportError
from fieldrun.formats.bundle import Network, TaskSpec
from fieldrun.formats.tensors import Array
from fieldrun.heads.trained import Checkpoint
from fieldrun.student.config import HASH_MULTIPLIERS

from ..deployed import Deployed
from . import PassReport

__all__ = ["fold"]


def fold(checkpoint: Checkpoint) -> tuple[Deployed, PassReport]:
    """Return `checkpoint` in deployed form, all float32.

    Raises:
        ExportError: the folded table has another number of rows than the vocabulary and the n-grams need.
    """
    config, weights = checkpoint.config, checkpoint.tensors
    shifts = sorted({*config.offsets, *(offset for gram in config.ngrams for offset in gram)})
    blocks: list[Array] = []
    coef: list[list[int]] = []
    modulus: list[int] = []
    base: list[int] = []
    rows = 0
    names: dict[str, tuple[int, int]] = {}
    embedding = weights["embedding"].astype(np.float64)
    for offset, matrix in zip(config.offsets, weights["window.weight"].astype(np.float64), strict=True):
        block = embedding @ matrix
        if offset == 0:
            block = block + weights["window.bias"]
        blocks.append(block.astype(np.float32))
        coef.append([int(shift == offset) for shift in shifts])
        modulus.append(config.vocab_size)
        base.append(rows)
        names[f"offset{offset}"] = (rows, rows + config.vocab_size)
        rows += config.vocab_size
    for number, gram in enumerate(config.ngrams):
        factor = {o: HASH_MULTIPLIERS[(i + number) % len(HASH_MULTIPLIERS)] for i, o in enumerate(gram)}
        coef.append([factor.get(shift, 0) for shift in shifts])
        modulus.append(config.ngram_buckets)
        base.append(rows)
    if config.ngrams:
        blocks.append(weights["ngram"].astype(np.float32))
        names["ngrams"] = (rows, rows + config.ngram_buckets)
        rows += config.ngram_buckets
    table = np.concatenate(blocks)
    if len(table) != rows:
        raise ExportError(f"fold: the table has {len(table)} rows instead of {rows}")
    padding = base[config.offsets.index(0)]
    table[padding] = 0
    table[padding] = -2 * len(coef) * np.abs(table).max() - 1
    tensors: dict[str, Array] = {
        "table": table,
        "table.scale": np.ones(rows, np.float32),
        "rows.coef": np.ascontiguousarray(np.array(coef, np.int32).T),
        "rows.modulus": np.array(modulus, np.int32),
        "rows.base": np.array(base, np.int32),
    }
    for layer in ("mixer", "hidden"):
        if f"{layer}.weight" in weights:
            tensors[f"{layer}.weight"] = weights[f"{layer}.weight"].astype(np.float32)
        if f"{layer}.bias" in weights:
            tensors[f"{layer}.bias"] = weights[f"{layer}.bias"].astype(np.float32)
    if config.mean:
        tensors["score.weight"] = weights["pool.weight"].astype(np.float32)
    tensors["mean.gain"] = np.ones(1, np.float32)
    singles = [head for head in checkpoint.heads if head.kind == "single"]
    field_weight, field_bias = (weights[f"field.{part}"].astype(np.float64) for part in ("weight", "bias"))
    columns: list[Array] = [field_weight, *(field_weight @ head.weight for head in singles)]
    biases: list[Array] = [field_bias, *(field_bias @ head.weight + head.bias for head in singles)]
    tensors["output.weight"] = np.concatenate(columns, axis=1).astype(np.float32)
    tensors["output.bias"] = np.concatenate(biases).astype(np.float32)
    pairs = [head for head in checkpoint.heads if head.kind == "pair"]
    if pairs:
        tensors["pairs.weight"] = np.concatenate([head.weight for head in pairs], axis=1).astype(np.float32)
        tensors["pairs.bias"] = np.concatenate([head.bias for head in pairs]).astype(np.float32)
    network = Network(
        vocab_size=config.vocab_size,
        width=config.width,
        shifts=tuple(shifts),
        mixer_kernel=config.mixer_kernel,
        mixer_width=config.mixer_width,
        mean=config.mean,
        hidden=config.hidden,
        field_dim=config.field_dim,
        parameters=checkpoint.parameters(),
    )
    before = sum(t.nbytes for t in weights.values()) + sum(h.weight.nbytes + h.bias.nbytes for h in checkpoint.heads)
    tasks, usage = _tasks(checkpoint), _usage(checkpoint)
    deployed = Deployed(network=network, tensors=tensors, tasks=tasks, blocks=names, usage=usage)
    changed = {
        "table": {"rows": rows, "width": config.width, "blocks": len(blocks)},
        "output": {"columns": tensors["output.weight"].shape[1], "heads": len(singles)},
    }
    return deployed, PassReport(name="fold", bytes_before=before, bytes_after=deployed.nbytes(), changed=changed)


def _tasks(checkpoint: Checkpoint) -> tuple[TaskSpec, ...]:
    """Return where the logits of every head are: heads of one kind stand side by side."""
    start, tasks = {"single": 0, "pair": 0}, []
    for head in checkpoint.heads:
        task = TaskSpec(
            name=head.name,
            kind=head.kind,
            labels=head.labels,
            start=start[head.kind],
            temperature=head.temperature,
        )
        start[head.kind] += len(head.labels)
        tasks.append(task)
    return tuple(tasks)


def _usage(checkpoint: Checkpoint) -> Array | None:
    """Return how often each of the table's rows was used; all blocks of a window see the same tokens."""
    if not checkpoint.usage:
        return None
    blocks = [checkpoint.usage["tokens"]] * len(checkpoint.config.offsets)
    blocks += [checkpoint.usage["ngrams"]] if checkpoint.config.ngrams else []
    counts: Array = np.concatenate(blocks).astype(np.int64)
    return counts
