"""A transformer encoder of a few kB: random weights, biases that matter, the toy's tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from fieldrun.formats.tensors import Array
from fieldrun_exporters.encoder.model import Encoder, EncoderConfig
from tests.toy import toy_tokenizer

__all__ = ["toy_encoder", "toy_sequences"]


def toy_encoder(
    *, seed: int = 0, hidden: int = 16, heads: int = 2, layers: int = 3, d_ff: int = 32, normalize: bool = True
) -> Encoder:
    """An encoder whose maps are random, with a decaying spectrum as trained ones have."""
    rng = np.random.default_rng(seed)
    tokenizer = toy_tokenizer()
    vocabulary = tokenizer.get_vocab_size()

    def matrix(rows: int, columns: int, gain: float = 1.0) -> Array:
        left, _, right = np.linalg.svd(rng.standard_normal((rows, columns)), full_matrices=False)
        decay = np.exp(-np.arange(min(rows, columns)) / (0.3 * min(rows, columns)))
        return np.asarray(gain * (left * decay) @ right * np.sqrt(columns), np.float32)

    def vector(n: int, mean: float = 0.0) -> Array:
        return np.asarray(mean + 0.3 * rng.standard_normal(n), np.float32)

    tensors = {
        "embeddings.word": np.asarray(rng.standard_normal((vocabulary, hidden)), np.float32),
        "embeddings.position": np.asarray(0.3 * rng.standard_normal((64, hidden)), np.float32),
        "embeddings.type": vector(hidden),
        "embeddings.norm.weight": vector(hidden, 1.0),
        "embeddings.norm.bias": vector(hidden),
    }
    for k in range(layers):
        shapes = {"query": (hidden, hidden), "key": (hidden, hidden), "value": (hidden, hidden)}
        shapes |= {"attention": (hidden, hidden), "up": (hidden, d_ff), "down": (d_ff, hidden)}
        for name, shape in shapes.items():
            tensors[f"layer{k}.{name}.weight"] = matrix(*shape, 0.5)
            tensors[f"layer{k}.{name}.bias"] = vector(shape[1])
        for name in ("attention_norm", "output_norm"):
            tensors[f"layer{k}.{name}.weight"] = vector(hidden, 1.0)
            tensors[f"layer{k}.{name}.bias"] = vector(hidden)
    return Encoder(
        config=EncoderConfig(
            name="toy",
            vocab_size=vocabulary,
            hidden=hidden,
            layers=layers,
            heads=heads,
            max_positions=64,
            normalize=normalize,
            scale=float((hidden // heads) ** -0.5),
        ),
        tensors=tensors,
        tokenizer=tokenizer.to_str().encode("utf-8"),
    )


def toy_sequences(encoder: Encoder, count: int, seed: int = 0, longest: int = 12) -> Sequence[Sequence[int]]:
    """Random token ids of 2 to `longest` tokens, none the padding."""
    rng = np.random.default_rng(seed)
    return [rng.integers(1, encoder.config.vocab_size, int(n)).tolist() for n in rng.integers(2, longest + 1, count)]
