"""The student in torch, for training: the formulas of `fieldrun.student`, with dropout and initial weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fieldrun.student import HASH_MULTIPLIERS, SCORE_CLIP, StudentConfig
from fieldrun.tensors import Array

__all__ = ["Student"]


def _shift(x: torch.Tensor, offset: int) -> torch.Tensor:
    """Return `x (batch, length, ...)` with position `t` holding `x[:, t + offset]`, zero outside."""
    if offset == 0:
        return x
    length = x.shape[1]
    tail = torch.zeros_like(x[:, : min(abs(offset), length)])
    if offset > 0:
        return torch.cat([x[:, offset:], tail], dim=1)
    return torch.cat([tail, x[:, : max(0, length + offset)]], dim=1)


class Student(nn.Module):
    """The windowed look-up network; `forward` maps ids `(batch, length) int64` to fields `(batch, dim) float32`."""

    def __init__(self, config: StudentConfig, dropout: float = 0.0) -> None:
        super().__init__()
        self.config, self.dropout = config, dropout
        # id 0 keeps a zero row: a position outside the array adds what a padding position adds
        self.embedding = nn.Embedding(config.vocab_size, config.embedding_dim, padding_idx=0)
        self.window = nn.Linear(config.embedding_dim, config.width * len(config.offsets), bias=False)
        self.window_bias = nn.Parameter(torch.zeros(config.width))
        self.ngram: nn.Embedding | None = None
        if config.ngram_orders:
            self.ngram = nn.Embedding(config.ngram_buckets, config.width)
            nn.init.zeros_(self.ngram.weight)
        self.mixer = nn.Linear(config.mixer_kernel * config.width, config.width) if config.mixer_kernel else None
        self.pool = nn.Linear(config.width, 1)
        self.hidden = nn.Linear(2 * config.width, config.hidden)
        self.field = nn.Linear(config.hidden, config.field_dim)

    def start_from(self, word_embeddings: Array) -> None:
        """Start the embedding from a teacher's, `(vocabulary, hidden)`, rotated to its leading directions if narrower.

        A teacher may have more rows than its tokenizer has tokens, for alignment, or fewer, for added tokens.
        """
        centred = torch.from_numpy(np.asarray(word_embeddings, np.float32))
        centred = centred - centred.mean(0)
        width = min(self.config.embedding_dim, centred.shape[1])
        if width < centred.shape[1]:
            _, directions = torch.linalg.eigh(centred.T @ centred)
            centred = centred @ directions[:, -width:]
        with torch.no_grad():
            nn.init.normal_(self.embedding.weight, std=0.1)
            rows = min(len(centred), self.config.vocab_size)
            self.embedding.weight[:rows, :width] = centred[:rows] * (0.5 / centred.std())
            self.embedding.weight[0] = 0

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the field of `ids`, padded at the end with id 0."""
        config = self.config
        mask = (ids != 0).unsqueeze(-1).float()
        blocks = self.window(self.embedding(ids)).float().split(config.width, dim=-1)
        y = self.window_bias.expand(*ids.shape, -1)
        for offset, block in zip(config.offsets, blocks, strict=True):
            y = y + _shift(block, offset)
        if self.ngram is not None:
            for order in config.ngram_orders:
                rows = torch.zeros_like(ids)
                for k in range(order):
                    rows = rows + _shift(ids, -k) * HASH_MULTIPLIERS[k]
                y = y + self.ngram(rows % config.ngram_buckets)
        h = functional.relu(y) * mask
        if self.mixer is not None:
            reach = config.mixer_kernel // 2
            window = torch.cat([_shift(h, k) for k in range(-reach, reach + 1)], dim=-1)
            h = (h + functional.relu(self.mixer(window)).float()) * mask
        a = self.pool(h).float().clamp(-SCORE_CLIP, SCORE_CLIP).exp() * mask
        pooled = torch.cat([(a * h).sum(1) / a.sum(1), h.amax(1)], dim=-1)
        pooled = functional.dropout(pooled, self.dropout, self.training)
        field: torch.Tensor = self.field(functional.relu(self.hidden(pooled))).float()
        return field

    def tensors(self) -> dict[str, Array]:
        """Return the trained form, named and shaped as `StudentConfig.shapes` says, float32."""
        config = self.config
        window = self.window.weight.reshape(len(config.offsets), config.width, config.embedding_dim).transpose(1, 2)
        tensors: dict[str, torch.Tensor] = {
            "embedding": self.embedding.weight,
            "window.weight": window,
            "window.bias": self.window_bias,
        }
        if self.ngram is not None:
            tensors["ngram"] = self.ngram.weight
        if self.mixer is not None:
            tensors["mixer.weight"] = self.mixer.weight.T.reshape(config.mixer_kernel, config.width, config.width)
            tensors["mixer.bias"] = self.mixer.bias
        for name, layer in (("pool", self.pool), ("hidden", self.hidden), ("field", self.field)):
            tensors |= {f"{name}.weight": layer.weight.T, f"{name}.bias": layer.bias}
        return {name: np.ascontiguousarray(t.detach().cpu().float().numpy()) for name, t in tensors.items()}
