"""Fine-tune the teacher on the tasks, all at once: cross entropy on its mean-pooled last layer.

A single task has a linear head on the sentence vector, a pair task one on `[a; b; |a - b|; a * b]` of the two vectors,
so that the teacher learns what a student with one field per text can reproduce; a similarity task regresses the cosine.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fieldrun.errors import TrainingError
from fieldrun.formats.storage import write_json
from fieldrun.formats.tensors import Array
from fieldrun.student.windows import pad_ids

from .compressor import make_heads, pair_input
from .pool import TaskData, TextPool
from .recipe import DistillRecipe, FinetuneRecipe
from .state import RunState
from .teacher import load_teacher, load_tokenizer, teacher_shape, tokenize

__all__ = ["finetune_teacher"]

_WARMUP = 0.06
_CHUNK = 2048  # rows that are sorted by length together


def finetune_teacher(
    pool: TextPool,
    folder: Path,
    out: Path,
    recipe: DistillRecipe,
    dtype: str,
    progress: Callable[[int, int], None] | None = None,
) -> Path:
    """Fine-tune the encoder of `folder` on the train splits of `pool` and write it to the folder `out`.

    An interrupted run resumes from `<out>.state`, which is written every `finetune.checkpoint_steps` steps.

    Args:
        pool: the tasks; only their train splits are trained on.
        folder: a Hugging Face encoder folder.
        out: a folder of the same form, with the tuned weights; returned at once if it exists.
        recipe: `finetune` and, per task, `tune` and `tune_rows`.
        dtype: `float32` or `bfloat16`, the arithmetic of the forward pass; weights stay float32.
        progress: called with (steps done, steps in total).

    Raises:
        TrainingError: the teacher cannot be loaded, or the loss is not finite.
    """
    if (out / "model.safetensors").is_file():
        return out
    plan = recipe.finetune
    assert plan is not None  # the caller fine-tunes only when the recipe says so
    torch.manual_seed(recipe.seed)
    run = _Finetuning(pool, folder, plan, recipe, dtype)
    run.train(out.with_name(out.name + ".state"), progress)
    partial = out.with_name(out.name + ".partial")
    run.encoder.cpu().save_pretrained(str(partial))
    for name in ("tokenizer.json", "config.json"):
        (partial / name).write_bytes((folder / name).read_bytes())
    partial.replace(out)
    write_json(out / "curve.json", run.curve)
    return out


class _Finetuning:
    def __init__(self, pool: TextPool, folder: Path, plan: FinetuneRecipe, recipe: DistillRecipe, dtype: str) -> None:
        self.plan, self.seed = plan, recipe.seed
        self.bfloat16 = dtype == "bfloat16"
        self.encoder: Any = load_teacher(folder, torch.float32)
        self.device = next(self.encoder.parameters()).device
        depth, hidden, _ = teacher_shape(folder)
        if plan.frozen_layers >= depth:
            raise TrainingError(f"the teacher in {folder} has {depth} layers; lower finetune.frozen_layers")
        layers: Any = self.encoder.encoder
        for layer in layers.layer[plan.frozen_layers :]:
            layer.requires_grad_(True)
        self.tasks = {task.name: task for task in (*pool.tasks, *pool.similarities)}
        self.heads = make_heads(pool, hidden).to(self.device)
        tokenizer = load_tokenizer(folder)
        tokenizer.enable_truncation(plan.max_tokens)
        labelled = pool.texts[: pool.n_labelled]
        self.sequences = tokenize(tokenizer, labelled)
        self.lengths = np.array([len(ids) for ids in self.sequences])
        wanted = {task.name: (task.tune, task.tune_rows) for task in recipe.tasks}
        self.batches = self._plan_batches(wanted)
        self.curve: list[dict[str, Any]] = []
        digest = hashlib.sha256(json.dumps([asdict(plan), wanted, len(self.batches)]).encode()).hexdigest()
        self.identity = {"plan": digest, "seed": self.seed, "steps": len(self.batches)}

    def _plan_batches(self, wanted: Mapping[str, tuple[int, int | None]]) -> list[tuple[str, Array]]:
        """Return every batch of the run, `(task, numbers of its train rows)`, in a random order."""
        rng = np.random.default_rng(self.seed)
        batches: list[tuple[str, Array]] = []
        for name, task in self.tasks.items():
            times, most = wanted.get(name, (1, None))
            for _ in range(times):
                order = rng.permutation(len(task.train))[:most]
                for start in range(0, len(order), _CHUNK):
                    batches += [(name, pick) for pick in self._split(task, order[start : start + _CHUNK])]
        return [batches[i] for i in rng.permutation(len(batches))]

    def _split(self, task: TaskData, order: Array) -> list[Array]:
        rows = task.train.rows[order].reshape(len(order), -1)
        longest = self.lengths[rows].max(1)
        order, longest = order[np.argsort(longest, kind="stable")], np.sort(longest, kind="stable")
        parts, start = [], 0
        while start < len(order):
            stop = start + 1
            while (
                stop < len(order)
                and stop - start < self.plan.rows
                and longest[stop] * (stop + 1 - start) * rows.shape[1] <= self.plan.tokens
            ):
                stop += 1
            parts.append(order[start:stop])
            start = stop
        return parts

    def _vectors(self, rows: Array) -> torch.Tensor:
        ids = torch.from_numpy(pad_ids([self.sequences[i] for i in rows])).to(self.device)
        mask = (
            torch.arange(ids.shape[1], device=self.device)
            < torch.from_numpy(self.lengths[rows]).to(self.device)[:, None]
        )
        with torch.autocast(self.device.type, torch.bfloat16) if self.bfloat16 else contextlib.nullcontext():
            states = self.encoder(input_ids=ids, attention_mask=mask.long()).last_hidden_state
        weight = mask.float() / mask.sum(1, keepdim=True)
        return torch.bmm(weight.unsqueeze(1), states.float()).squeeze(1)

    def _loss(self, name: str, pick: Array) -> torch.Tensor:
        task = self.tasks[name]
        vectors = self._vectors(task.train.rows[pick].reshape(-1))
        y = torch.from_numpy(task.train.labels[pick]).to(self.device)
        if task.kind == "similarity":
            return 4 * functional.mse_loss(functional.cosine_similarity(vectors[0::2], vectors[1::2]), y)
        if task.kind == "pair":
            vectors = pair_input(vectors[0::2], vectors[1::2])
        return functional.cross_entropy(self.heads[name](functional.dropout(vectors, 0.1)), y)

    def train(self, path: Path, progress: Callable[[int, int], None] | None) -> None:
        plan, total = self.plan, len(self.batches)
        tuned = [p for p in self.encoder.parameters() if p.requires_grad]
        groups = [
            {"params": tuned, "lr": plan.learning_rate, "weight_decay": plan.weight_decay},
            {"params": list(self.heads.parameters()), "lr": plan.head_learning_rate, "weight_decay": 0.0},
        ]
        optimizer = torch.optim.AdamW(groups, fused=True)
        rates = [group["lr"] for group in groups]
        state = RunState(path, self.identity, encoder=self.encoder, heads=self.heads, optimizer=optimizer)
        before = state.restore() or {"step": 0, "curve": []}
        step, self.curve = int(before["step"]), list(before["curve"])
        self.encoder.train()
        losses: dict[str, list[float]] = {}
        while step < total:
            torch.manual_seed(self.seed * 1_000_003 + step)
            scale = min((step + 1) / max(1, _WARMUP * total), (total - step) / ((1 - _WARMUP) * total))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = float(rate) * min(1.0, scale)  # type: ignore[arg-type]
            name, pick = self.batches[step]
            loss = self._loss(name, pick)
            if not torch.isfinite(loss):
                raise TrainingError(f"the teacher's loss is not finite at step {step}; lower finetune.learning_rate")
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(tuned, 1.0)
            optimizer.step()
            step += 1
            losses.setdefault(name, []).append(float(loss.detach()))
            if step % 250 == 0 or step == total:
                means = {task: round(float(np.mean(values)), 4) for task, values in sorted(losses.items())}
                self.curve.append({"step": step, **means})
                losses = {}
            if step % plan.checkpoint_steps == 0 or step == total:
                state.save(step=step, curve=self.curve)
            if progress is not None:
                progress(step, total)
        self.encoder.eval()
