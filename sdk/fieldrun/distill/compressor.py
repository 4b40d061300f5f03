"""The AN1 compressor: raw field -> 256-d meaning field, trained on reconstruction + task + geometry.

Source: the paper on AN1 by Anima Core, whose loss weights are not published; ours are in the
recipe. With the standardised raw field f, the field is z = LayerNorm(E f) without learned gain, and

    loss = reconstruction |D z - f|^2 / dim + task sum CE(head(z), y) + geometry |cos(z, z') - cos(f, f')|^2
           + similarity |cos(z, z') - grade|^2

the last two as means over the whole field and its prefixes, the last one over pairs whose similarity was graded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fieldrun.errors import TrainingError
from fieldrun.formats.tensors import Array

from .pool import TextPool
from .recipe import CompressorRecipe

__all__ = [
    "Compressed",
    "TaskHeads",
    "graded_loss",
    "make_heads",
    "pair_input",
    "similarity_loss",
    "sum_of",
    "train_compressor",
]


class TaskHeads(nn.ModuleDict):
    """One linear head per task. Unlike a plain `ModuleDict`, it takes any name: "type", "half", "values"."""

    def add_module(self, name: str, module: nn.Module | None) -> None:
        """Keep `module` under `name`, even if `nn.Module` has an attribute of that name."""
        assert module is not None  # ModuleDict passes only modules
        self._modules[name] = module

    def train(self, mode: bool = True) -> TaskHeads:
        """Do nothing: a linear layer has no training mode, and the flag would replace a task named "training"."""
        del mode
        return self

    def __getitem__(self, name: str) -> nn.Linear:
        head = self._modules[name]
        assert isinstance(head, nn.Linear)  # make_heads puts nothing else in
        return head


@dataclass(frozen=True, slots=True, kw_only=True)
class Compressed:
    """The field of every text `(texts, dim) float32`, the heads trained on it, and the loss curve."""

    field: Array
    heads: TaskHeads
    curve: list[dict[str, float]]


def make_heads(pool: TextPool, dim: int) -> TaskHeads:
    """Return one linear head per task: `dim` inputs for a single task, `4 * dim` for a pair task."""
    return TaskHeads({t.name: nn.Linear(dim * (4 if t.kind == "pair" else 1), len(t.labels)) for t in pool.tasks})


def pair_input(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return `[a; b; |a - b|; a * b]` of two fields `(batch, dim)`."""
    return torch.cat([a, b, (a - b).abs(), a * b], dim=1)


def similarity_loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference between the in-batch cosine matrices of `x` and `y`, `(batch, *)` each."""
    a, b = functional.normalize(x), functional.normalize(y)
    return (a @ a.T - b @ b.T).square().mean()


def graded_loss(x: torch.Tensor, grade: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference between the cosines of rows 0 and 1, 2 and 3, ... of `x` and their grades."""
    return functional.mse_loss(functional.cosine_similarity(x[0::2], x[1::2]), grade)


def sum_of(losses: Iterable[torch.Tensor]) -> torch.Tensor:
    """Return the sum of at least one loss."""
    return torch.stack(list(losses)).sum()


def _standardisation(raw: Array, rows: Array) -> tuple[torch.Tensor, torch.Tensor]:
    sample = np.asarray(raw[np.sort(rows)], np.float32)
    return torch.from_numpy(sample.mean(0)), torch.from_numpy(sample.std(0) + 1e-4)


def train_compressor(
    pool: TextPool,
    raw: Array,
    recipe: CompressorRecipe,
    dim: int,
    seed: int,
    progress: Callable[[int, int], None] | None = None,
) -> Compressed:
    """Train encoder, decoder and heads on the transfer texts' raw field; return the field of all texts.

    Args:
        pool: the texts and tasks; only `train` splits and texts below `n_transfer` are trained on.
        raw: `(texts, layers * hidden) float16`, memory-mapped.
        recipe: steps, batch sizes and loss weights.
        dim: the field's width.
        seed: of weights and batches.
        progress: called with (steps done, steps in total).

    Raises:
        TrainingError: a loss is not finite.
    """
    torch.manual_seed(seed)
    rng = np.random.default_rng(seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    width = raw.shape[1]
    mean, std = _standardisation(raw, rng.choice(pool.n_transfer, min(50_000, pool.n_transfer), replace=False))
    mean, std = mean.to(device), std.to(device)
    encoder, decoder = nn.Linear(width, dim).to(device), nn.Linear(dim, width).to(device)
    heads = make_heads(pool, dim).to(device)
    parameters = [*encoder.parameters(), *decoder.parameters(), *heads.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=recipe.learning_rate, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, recipe.learning_rate, recipe.steps, pct_start=0.1)

    def standardised(rows: Array) -> torch.Tensor:
        return (torch.from_numpy(np.asarray(raw[rows], np.float32)).to(device) - mean) / std

    def encode(f: torch.Tensor) -> torch.Tensor:
        return functional.layer_norm(encoder(f), (dim,))

    curve: list[dict[str, float]] = []
    tasks = [task for task in pool.tasks if len(task.train)]
    prefixes = (dim, *(k for k in recipe.prefixes if k < dim))
    for step in range(recipe.steps):
        chosen = [rng.integers(0, len(task.train), recipe.rows_per_task) for task in tasks]
        parts = [task.train.rows[pick].reshape(-1) for task, pick in zip(tasks, chosen, strict=True)]
        parts.append(rng.integers(0, pool.n_transfer, recipe.batch))
        f = standardised(np.concatenate(parts))
        z = encode(functional.dropout(f, recipe.dropout))
        reconstruction = functional.mse_loss(decoder(z), f)
        last = slice(len(f) - recipe.batch, None)
        geometry = sum_of(similarity_loss(z[last, :k], f[last]) for k in prefixes) / len(prefixes)
        task_loss = torch.zeros((), device=device)
        start = 0
        for task, pick, part in zip(tasks, chosen, parts[:-1], strict=True):
            x = z[start : start + len(part)]
            start += len(part)
            if task.kind == "pair":
                x = pair_input(x[0::2], x[1::2])
            y = torch.from_numpy(task.train.labels[pick]).to(device)
            logits = heads[task.name](functional.dropout(x, recipe.dropout))
            task_loss = task_loss + functional.cross_entropy(logits, y, label_smoothing=0.05)
        similarity = torch.zeros((), device=device)
        for task in pool.similarities:
            pick = rng.integers(0, len(task.train), recipe.rows_per_task)
            graded = encode(standardised(task.train.rows[pick].reshape(-1)))
            grade = torch.from_numpy(task.train.labels[pick]).to(device)
            similarity = similarity + sum_of(graded_loss(graded[:, :k], grade) for k in prefixes) / len(prefixes)
        loss = recipe.reconstruction * reconstruction + recipe.task * task_loss + recipe.geometry * geometry
        loss = loss + recipe.similarity * similarity
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        schedule.step()
        if (step + 1) % 100 == 0 or step + 1 == recipe.steps:
            terms = {"loss": loss, "reconstruction": reconstruction, "task": task_loss, "geometry": geometry}
            terms |= {"similarity": similarity}
            values = {name: round(float(value.detach()), 5) for name, value in terms.items()}
            if not math.isfinite(values["loss"]):
                raise TrainingError(f"the compressor's loss is not finite at step {step}; lower its learning_rate")
            curve.append({"step": step + 1, **values})
        if progress is not None:
            progress(step + 1, recipe.steps)
    with torch.inference_mode():
        field = [encode(standardised(np.arange(i, min(i + 8192, len(raw))))).cpu() for i in range(0, len(raw), 8192)]
    return Compressed(field=torch.cat(field).numpy(), heads=heads.cpu(), curve=curve)
