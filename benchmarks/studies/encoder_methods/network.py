"""The encoder in torch: the same forward pass as `model.forward`, several times as fast, and with gradients."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fieldrun.errors import MissingDependency
from fieldrun.formats.progress import Progress, silent
from fieldrun.formats.tensors import Array
from fieldrun.student.windows import pad_ids
from fieldrun_exporters.encoder.activations import by_length
from fieldrun_exporters.encoder.model import Encoder

__all__ = ["Network", "fields", "need_torch", "pooled_states"]

_BATCH = 64


def need_torch() -> Any:
    """Import torch; `MissingDependency` with the command that brings it."""
    try:
        import torch
    except ImportError as error:
        raise MissingDependency("torch", "distill") from error
    return torch


class Network:
    """An encoder whose weights can be replaced for one forward pass by tensors with gradients."""

    def __init__(self, encoder: Encoder) -> None:
        self.torch, self.config = need_torch(), encoder.config
        self.tensors: dict[str, Any] = {
            name: self.torch.from_numpy(np.array(tensor, np.float32)) for name, tensor in encoder.tensors.items()
        }

    def states(self, ids: Array, replaced: Mapping[str, Any] | None = None) -> Any:
        """Return the pooled states after every layer, `(batch, layers, hidden) float32`, not normalised.

        Args:
            ids: `(batch, length) int`, padded with id 0 at the end.
            replaced: torch tensors that stand in for the encoder's own of the same name.
        """
        torch, config = self.torch, self.config
        functional = torch.nn.functional
        tensors = self.tensors if replaced is None else self.tensors | dict(replaced)
        tokens = torch.from_numpy(np.asarray(ids, np.int64))
        batch, length = tokens.shape
        mask = tokens != 0
        seen = mask[:, None, None, :]
        weights = mask[:, :, None] / mask.sum(1).clamp(min=1)[:, None, None]

        def dense(name: str, x: Any) -> Any:
            return functional.linear(x, tensors[f"{name}.weight"].T, tensors[f"{name}.bias"])

        def norm(name: str, x: Any) -> Any:
            gain, bias = tensors[f"{name}.weight"], tensors[f"{name}.bias"]
            return functional.layer_norm(x, (config.hidden,), gain, bias, config.epsilon)

        def split(x: Any) -> Any:
            return x.reshape(batch, length, config.heads, -1).transpose(1, 2)

        position = tensors["embeddings.position"][:length] + tensors["embeddings.type"]
        x = norm("embeddings.norm", tensors["embeddings.word"][tokens] + position)
        states = []
        for k in range(config.layers):
            layer = f"layer{k}"
            query, key, value = (split(dense(f"{layer}.{name}", x)) for name in ("query", "key", "value"))
            context = functional.scaled_dot_product_attention(query, key, value, seen, scale=config.scale)
            context = context.transpose(1, 2).reshape(batch, length, -1)
            x = norm(f"{layer}.attention_norm", dense(f"{layer}.attention", context) + x)
            inner = functional.gelu(dense(f"{layer}.up", x))
            x = norm(f"{layer}.output_norm", dense(f"{layer}.down", inner) + x)
            states.append(x[:, 0] if config.pooling == "cls" else (x * weights).sum(1))
        return torch.stack(states, 1)


def pooled_states(encoder: Encoder, sequences: Sequence[Sequence[int]], progress: Progress = silent) -> Array:
    """Return the pooled states of every text after every layer, `(n, layers, hidden) float32`.

    Raises:
        MissingDependency: torch is not installed.
    """
    network = Network(encoder)
    out = np.empty((len(sequences), encoder.config.layers, encoder.config.hidden), np.float32)
    with network.torch.inference_mode():
        for number, rows in enumerate(batches := by_length(sequences, _BATCH)):
            out[rows] = network.states(pad_ids([sequences[i] for i in rows])).numpy()
            progress("fields", number + 1, len(batches))
    return out


def fields(encoder: Encoder, sequences: Sequence[Sequence[int]], progress: Progress = silent) -> Array:
    """Return the fields `(n, hidden) float32` of `sequences` of token ids, as `model.forward` gives them.

    Raises:
        MissingDependency: torch is not installed.
    """
    found = np.ascontiguousarray(pooled_states(encoder, sequences, progress)[:, -1])
    if encoder.config.normalize:
        found /= np.maximum(np.linalg.norm(found, axis=1, keepdims=True), np.float32(1e-12))
    return found
