"""The student in torch, for training: the formulas of `fieldrun.student.config`, with dropout and initial weights."""

from __future__ import annotations

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fieldrun.formats.tensors import Array
from fieldrun.student.config import HASH_MULTIPLIERS, SCORE_FLOOR, StudentConfig

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
        if config.ngrams:
            self.ngram = nn.Embedding(config.ngram_buckets, config.width)
            nn.init.zeros_(self.ngram.weight)
        self.mixer: nn.Linear | None = None
        if config.mixer_kernel:
            self.mixer = nn.Linear(config.mixer_kernel * config.width, config.mixer_width, bias=False)
            with torch.no_grad():  # starts as the sum of its tokens, so that the tables learn from the first step on
                self.mixer.weight += torch.eye(config.mixer_width, config.width).repeat(1, config.mixer_kernel)
        self.pool: nn.Parameter | None = None
        if config.mean:
            self.pool = nn.Parameter(torch.full((config.pooled // 2, 1), 0.1))  # its absolute value is the weight
        self.hidden = nn.Linear(config.pooled, config.hidden) if config.hidden else None
        self.field = nn.Linear(config.hidden or config.pooled, config.field_dim)

    def start_from(self, token_vectors: Array) -> None:
        """Start the embedding from a vector per token, `(vocabulary, hidden)`, in its leading directions if narrower.

        A teacher can have more rows than its tokenizer has tokens (alignment), or fewer (added tokens).
        """
        centred = torch.from_numpy(np.asarray(token_vectors, np.float32))
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
        # a batch of ten thousand tokens has about three thousand distinct ones: only those are projected
        different, place = torch.unique(ids, return_inverse=True)
        blocks = self.window(self.embedding(different)).float()[place].split(config.width, dim=-1)
        y = self.window_bias.expand(*ids.shape, -1)
        for offset, block in zip(config.offsets, blocks, strict=True):
            y = y + _shift(block, offset)
        if self.ngram is not None:
            hashes = []
            for number, gram in enumerate(config.ngrams):
                rows = torch.zeros_like(ids)
                for i, offset in enumerate(gram):
                    rows = rows + _shift(ids, offset) * HASH_MULTIPLIERS[(i + number) % len(HASH_MULTIPLIERS)]
                hashes.append(rows % config.ngram_buckets)
            # one look-up: the backward pass of each fills a gradient as large as the table
            y = y + self.ngram(torch.stack(hashes, dim=-1)).sum(-2)
        g = functional.relu(y) * mask
        if self.mixer is not None:
            together = torch.cat([_shift(g, k) for k in range(config.mixer_kernel)], dim=-1)
            g = functional.relu(self.mixer(together)).float()
        pooled = g.amax(1)
        if self.pool is not None:
            a = g @ self.pool.abs()
            pooled = torch.cat([(a * g).sum(1) / (a.sum(1) + SCORE_FLOOR), pooled], dim=-1)
        pooled = functional.dropout(pooled, self.dropout, self.training)
        if self.hidden is not None:
            pooled = functional.relu(self.hidden(pooled))
        field: torch.Tensor = self.field(pooled).float()
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
            tensors["mixer.weight"] = self.mixer.weight.T
        if self.pool is not None:
            tensors["pool.weight"] = self.pool.abs()
        for name, layer in (("hidden", self.hidden), ("field", self.field)):
            if layer is not None:
                tensors |= {f"{name}.weight": layer.weight.T, f"{name}.bias": layer.bias}
        return {name: np.ascontiguousarray(t.detach().cpu().float().numpy()) for name, t in tensors.items()}
