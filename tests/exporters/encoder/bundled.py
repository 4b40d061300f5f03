"""What the stored weights of an encoder's bundle say, by a forward pass that shares no code with the package."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from fieldrun.formats.tensors import Array
from fieldrun_exporters.encoder.model import EncoderConfig

__all__ = ["bundled_field", "matrix"]


def matrix(stored: Mapping[str, Array], name: str) -> Array:
    """Return the matrix `name (rows, columns) float64`, whatever it is stored as: codes are read bit by bit."""
    dense = name.endswith(".weight")
    scale = stored.get(f"{name}_scale" if dense else f"{name}.scale", np.ones(1)).astype(np.float64)
    if name in stored:
        return stored[name] * scale
    book, width = stored[f"{name}.codebook.0"].astype(np.float64), int(stored[f"{name}.width"][0])
    size = max(1, math.ceil(math.log2(len(book))))
    rows = []
    for line in stored[f"{name}.codes.0"]:
        bits = "".join(f"{byte:08b}"[::-1] for byte in line)
        codes = [int(bits[i : i + size][::-1], 2) for i in range(0, len(bits), size)]
        rows.append(np.concatenate([book[code] for code in codes])[:width])
    found = np.array(rows)
    return found.T * scale if dense else found * scale


def bundled_field(stored: Mapping[str, Array], config: EncoderConfig, ids: Sequence[int]) -> Array:
    """Return the field `(hidden,) float64` of one text's `ids`: maps with float inputs, the mean over the tokens."""

    def dense(name: str, x: Array) -> Array:
        bias: Array = stored[f"{name}.bias"]
        return x @ matrix(stored, f"{name}.weight") + bias

    def norm(name: str, x: Array) -> Array:
        rows = [(row - row.mean()) / math.sqrt(row.var() + config.epsilon) for row in x]
        return np.array(rows) * stored[f"{name}.weight"] + stored[f"{name}.bias"]

    x = norm("embeddings.norm", matrix(stored, "table")[list(ids)] + stored["positions"][: len(ids)])
    for k in range(config.layers):
        vo = len(matrix(stored, f"layer{k}.attention.weight")) // config.heads
        states = dense(f"layer{k}.qkv", x)
        qk = (states.shape[1] // config.heads - vo) // 2
        ends = np.cumsum([config.heads * qk, config.heads * qk])
        queries, keys, values = np.split(states, ends, axis=1)
        contexts = []
        for h in range(config.heads):
            mine, own = slice(h * qk, (h + 1) * qk), slice(h * vo, (h + 1) * vo)
            weights = np.exp(queries[:, mine] @ keys[:, mine].T)
            contexts.append(weights / weights.sum(1, keepdims=True) @ values[:, own])
        x = norm(f"layer{k}.attention_norm", dense(f"layer{k}.attention", np.concatenate(contexts, axis=1)) + x)
        inner = dense(f"layer{k}.up", x)
        inner = inner * (1 + np.vectorize(math.erf)(inner / math.sqrt(2))) / 2
        x = norm(f"layer{k}.output_norm", dense(f"layer{k}.down", inner) + x)
    field: Array = x.mean(0)
    return field
