"""A tiny BERT as a Hugging Face folder: random weights under transformers' names, and the toy's tokenizer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from fieldrun.formats.tensors import Array
from tests.toy import toy_tokenizer

CONFIG: Mapping[str, Any] = {
    "model_type": "bert",
    "vocab_size": toy_tokenizer().get_vocab_size(),
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 40,
    "type_vocab_size": 2,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-12,
    "pad_token_id": 0,
}


def bert_weights(config: Mapping[str, Any] = CONFIG, seed: int = 0) -> dict[str, Array]:
    """Random weights of transformers' names and shapes, of the sizes that training gives, float32."""
    rng = np.random.default_rng(seed)
    h, f = config["hidden_size"], config["intermediate_size"]
    weights: dict[str, Array] = {}

    def norm(name: str) -> None:
        weights[f"{name}.weight"] = (1 + 0.2 * rng.standard_normal(h)).astype(np.float32)
        weights[f"{name}.bias"] = (0.2 * rng.standard_normal(h)).astype(np.float32)

    def linear(name: str, inputs: int, outputs: int) -> None:
        weights[f"{name}.weight"] = (rng.standard_normal((outputs, inputs)) / np.sqrt(inputs)).astype(np.float32)
        weights[f"{name}.bias"] = (0.2 * rng.standard_normal(outputs)).astype(np.float32)

    for name, rows in (
        ("word", "vocab_size"),
        ("position", "max_position_embeddings"),
        ("token_type", "type_vocab_size"),
    ):
        weights[f"embeddings.{name}_embeddings.weight"] = rng.standard_normal((config[rows], h)).astype(np.float32)
    norm("embeddings.LayerNorm")
    for k in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{k}"
        for name in ("query", "key", "value"):
            linear(f"{layer}.attention.self.{name}", h, h)
        linear(f"{layer}.attention.output.dense", h, h)
        norm(f"{layer}.attention.output.LayerNorm")
        linear(f"{layer}.intermediate.dense", h, f)
        linear(f"{layer}.output.dense", f, h)
        norm(f"{layer}.output.LayerNorm")
    return weights


def write_bert(folder: Path, weights: Mapping[str, Array] | None = None, **changes: Any) -> Path:
    """Write the tiny BERT to `folder`; `changes` replace settings of `config.json`, None takes one away."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {name: value for name, value in ({**CONFIG, **changes}).items() if value is not None}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(dict(weights if weights is not None else bert_weights()), folder / "model.safetensors")
    (folder / "tokenizer.json").write_text(toy_tokenizer().to_str())
    return folder
