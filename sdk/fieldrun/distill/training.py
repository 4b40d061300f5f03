"""Train the student to regenerate the field: regression, geometry, the teacher heads' soft labels, and labels."""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fieldrun.errors import TrainingError
from fieldrun.reference import pad_ids
from fieldrun.tensors import Array

from .compressor import Compressed, similarity_loss
from .pool import TextPool
from .recipe import TrainingRecipe
from .student import Student

__all__ = ["arithmetic", "fields_of", "train_student"]

_WARMUP_STEPS = 200
_SORTED_BATCHES = 32


def arithmetic(dtype: str) -> str:
    """Resolve `"auto"`: bfloat16 on a GPU or a CPU with AMX, float32 elsewhere."""
    if dtype != "auto":
        return dtype
    if torch.cuda.is_available():
        return "bfloat16"
    try:
        fast = "amx_bf16" in Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        fast = False
    return "bfloat16" if fast else "float32"


def _batches(rng: np.random.Generator, lengths: Array, n: int, batch: int) -> list[Array]:
    """Return one epoch of `n` rows in batches of similar length, in random order."""
    order = rng.permutation(n)
    batches: list[Array] = []
    for start in range(0, n, batch * _SORTED_BATCHES):
        chunk = order[start : start + batch * _SORTED_BATCHES]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        batches += [chunk[i : i + batch] for i in range(0, len(chunk), batch)]
    return [batches[i] for i in rng.permutation(len(batches))]


class _Targets:
    """What the student learns per text: the field, the soft labels of every single task, and labels where known."""

    def __init__(self, pool: TextPool, compressed: Compressed, recipe: TrainingRecipe, native: Mapping[str, Sequence[str]]):
        self.field, self.heads, self.recipe = torch.from_numpy(compressed.field), compressed.heads, recipe
        self.tasks = [task for task in pool.tasks if task.kind == "single"]
        self.labels = {task.name: np.full(pool.n_transfer, -1, np.int64) for task in self.tasks}
        self.weights = {task.name: np.full(pool.n_transfer, recipe.other_tasks, np.float32) for task in self.tasks}
        for task in self.tasks:
            self.labels[task.name][task.train.rows] = task.train.labels
            self.weights[task.name][task.train.rows] = 1
            for corpus, (start, stop) in pool.corpus.items():
                if task.name in native.get(corpus, ()):
                    self.weights[task.name][start:stop] = 1

    def loss(self, field: torch.Tensor, heads: nn.ModuleDict, rows: Array) -> torch.Tensor:
        recipe, device = self.recipe, field.device
        target = self.field[rows].to(device)
        loss = functional.mse_loss(field, target) + (1 - functional.cosine_similarity(field, target)).mean()
        loss = recipe.regression * loss + recipe.geometry * similarity_loss(field, target)
        for task in self.tasks:
            logits = functional.log_softmax(heads[task.name](field), dim=-1)
            with torch.no_grad():
                soft = functional.softmax(self.heads[task.name](target), dim=-1)
            weight = torch.from_numpy(self.weights[task.name][rows]).to(device)
            loss = loss - recipe.distill * ((soft * logits).sum(-1) * weight).mean()
            labels = torch.from_numpy(self.labels[task.name][rows]).to(device)
            known = labels >= 0
            if bool(known.any()):
                loss = loss + recipe.labels * functional.nll_loss(logits[known], labels[known], reduction="sum") / len(rows)
        return loss


def train_student(
    student: Student,
    heads: nn.ModuleDict,
    pool: TextPool,
    sequences: Sequence[Sequence[int]],
    compressed: Compressed,
    recipe: TrainingRecipe,
    native: Mapping[str, Sequence[str]],
    seed: int,
    work: Path,
    progress: Callable[[int, int], None] | None = None,
) -> list[dict[str, float]]:
    """Train `student` and `heads` in place on the transfer texts; return the loss curve.

    A state file in `work` is written every `recipe.checkpoint_steps` steps and at every epoch's end; a later call with
    the same arguments goes on from it and ends with the same weights as an uninterrupted one.

    Args:
        student: with its first weights.
        heads: one linear head per task, first weights the compressor's; pair heads are left alone.
        pool: texts below `pool.n_transfer` are trained on.
        sequences: token ids of all texts, special tokens included.
        compressed: the field of all texts and the teacher's heads.
        recipe: epochs, batch and loss weights.
        native: corpus name -> tasks whose soft labels count fully on it.
        seed: of the batches and of dropout.
        work: folder of the state file.
        progress: called with (steps done, steps in all).

    Raises:
        TrainingError: the loss is not finite, or the state file belongs to another run.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bfloat16 = arithmetic(recipe.dtype) == "bfloat16"
    student.to(device).train()
    heads.to(device)
    compressed.heads.to(device)
    targets = _Targets(pool, compressed, recipe, native)
    tables = [p for n, p in student.named_parameters() if n in ("embedding.weight", "ngram.weight")]
    rest = [p for n, p in student.named_parameters() if n not in ("embedding.weight", "ngram.weight")]
    rest += [p for task in targets.tasks for p in heads[task.name].parameters()]
    groups = [{"params": tables, "weight_decay": 0.0}, {"params": rest, "weight_decay": recipe.weight_decay}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    clipped = [*student.parameters(), *rest[-2 * len(targets.tasks) :]]

    n = pool.n_transfer
    lengths = np.array([min(len(s), recipe.max_tokens) for s in sequences[:n]])
    per_epoch = sum(
        math.ceil(min(recipe.batch * _SORTED_BATCHES, n - i) / recipe.batch)
        for i in range(0, n, recipe.batch * _SORTED_BATCHES)
    )
    total = per_epoch * recipe.epochs
    state = _State(work / "student.state", student, heads, optimizer, {"total": total, "n": n, "seed": seed})
    step, curve = state.restore()
    running: list[float] = []
    for epoch in range(step // per_epoch, recipe.epochs):
        batches = _batches(np.random.default_rng([seed, epoch]), lengths, n, recipe.batch)
        for rows in batches[step - epoch * per_epoch :]:
            torch.manual_seed(seed * 1_000_003 + step)  # dropout of a step is the same after a resume
            rate = min(1.0, (step + 1) / _WARMUP_STEPS) * 0.5 * (1 + math.cos(math.pi * step / total))
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * max(rate, 1e-3)
            ids = torch.from_numpy(pad_ids([sequences[i][: recipe.max_tokens] for i in rows])).to(device)
            with torch.autocast(device.type, torch.bfloat16) if bfloat16 else contextlib.nullcontext():
                field = student(ids)
            loss = targets.loss(field.float(), heads, rows)
            if not torch.isfinite(loss):
                raise TrainingError(f"the loss is not finite at step {step}; lower training.learning_rate")
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(clipped, 5.0)
            optimizer.step()
            step += 1
            running.append(float(loss.detach()))
            if step % 100 == 0 or step == total:
                curve.append({"step": step, "loss": round(sum(running) / len(running), 5)})
                running = []
            if step % recipe.checkpoint_steps == 0 or step == total:
                state.save(step, curve)
            if progress is not None:
                progress(step, total)
    student.cpu().eval()
    heads.cpu()
    return curve


class _State:
    """The state file of a training run: weights, optimizer, step and curve, renamed into place."""

    def __init__(
        self, path: Path, student: Student, heads: nn.ModuleDict, optimizer: torch.optim.Optimizer, run: dict[str, int]
    ) -> None:
        self.path, self.student, self.heads, self.optimizer, self.run = path, student, heads, optimizer, run

    def save(self, step: int, curve: list[dict[str, float]]) -> None:
        state: dict[str, Any] = {
            "run": self.run,
            "step": step,
            "curve": curve,
            "student": self.student.state_dict(),
            "heads": self.heads.state_dict(),
            "optimizer": self.optimizer.state_dict(),
        }
        partial = self.path.with_suffix(".partial")
        with partial.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(self.path)

    def restore(self) -> tuple[int, list[dict[str, float]]]:
        if not self.path.exists():
            return 0, []
        state = torch.load(self.path, weights_only=True)
        if state["run"] != self.run:
            raise TrainingError(f"{self.path} belongs to another run; use a new --work folder")
        self.student.load_state_dict(state["student"])
        self.heads.load_state_dict(state["heads"])
        self.optimizer.load_state_dict(state["optimizer"])
        return int(state["step"]), list(state["curve"])


def fields_of(student: Student, sequences: Sequence[Sequence[int]], rows: Array, max_tokens: int) -> torch.Tensor:
    """Return the student's fields of the texts numbered `rows`, `(len(rows), dim) float32`, on the CPU, in float32."""

    def parts() -> Iterator[tuple[Array, torch.Tensor]]:
        order = np.argsort([len(sequences[i]) for i in rows], kind="stable")
        for start in range(0, len(order), 256):
            pick = order[start : start + 256]
            yield pick, student(torch.from_numpy(pad_ids([sequences[i][:max_tokens] for i in rows[pick]])))

    student.eval()
    out = torch.zeros((len(rows), student.config.field_dim))
    with torch.inference_mode():
        for pick, field in parts():
            out[torch.from_numpy(pick)] = field
    return out
