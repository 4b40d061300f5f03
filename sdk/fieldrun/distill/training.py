"""Train the student to regenerate the field: regression, geometry, the teacher heads' soft labels, and labels."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from fieldrun.errors import TrainingError
from fieldrun.formats.tensors import Array
from fieldrun.student.windows import pad_ids

from .compressor import Compressed, TaskHeads, graded_loss, pair_input, similarity_loss, sum_of
from .pool import TaskData, TextPool
from .recipe import TrainingRecipe
from .state import RunState
from .student import Student

__all__ = ["arithmetic", "fields_of", "train_student"]

_WARMUP_STEPS = 200
_SORTED_BATCHES = 32


def arithmetic(dtype: str) -> str:
    """Resolve `"auto"`: bfloat16 on a GPU or a CPU with bfloat16 arithmetic, float32 elsewhere."""
    if dtype != "auto":
        return dtype
    if torch.cuda.is_available():
        return "bfloat16"
    try:
        flags = Path("/proc/cpuinfo").read_text("utf-8")
    except OSError:
        return "float32"
    return "bfloat16" if "amx_bf16" in flags or "avx512_bf16" in flags else "float32"


def _epoch_rows(pool: TextPool, repeats: Mapping[str, int]) -> Array:
    """Return the texts of an epoch: every transfer text once, train texts of single tasks as often as they repeat."""
    singles = [task for task in pool.tasks if task.kind == "single"]
    again = [np.tile(task.train.rows, repeats.get(task.name, 1) - 1) for task in singles]
    return np.concatenate([np.arange(pool.n_transfer), *again]).astype(np.int64)


def _batches(rng: np.random.Generator, lengths: Array, rows: Array, batch: int) -> list[Array]:
    """Return one epoch of `rows` in batches of similar length, in random order."""
    order = rows[rng.permutation(len(rows))]
    batches: list[Array] = []
    for start in range(0, len(order), batch * _SORTED_BATCHES):
        chunk = order[start : start + batch * _SORTED_BATCHES]
        chunk = chunk[np.argsort(lengths[chunk], kind="stable")]
        batches += [chunk[i : i + batch] for i in range(0, len(chunk), batch)]
    return [batches[i] for i in rng.permutation(len(batches))]


class _Targets:
    """The targets of each text: the field, the soft labels of every single task, and the labels that are known."""

    def __init__(
        self,
        pool: TextPool,
        compressed: Compressed,
        recipe: TrainingRecipe,
        native: Mapping[str, Sequence[str]],
        repeats: Mapping[str, int],
    ) -> None:
        self.field, self.heads, self.recipe = torch.from_numpy(compressed.field), compressed.heads, recipe
        self.tasks = [task for task in pool.tasks if task.kind == "single"]
        self.pairs = [task for task in (*pool.tasks, *pool.similarities) if task.kind != "single"]
        often = [len(task.train) * repeats.get(task.name, 1) for task in self.pairs]
        self.shares = [max(1, round(recipe.pair_rows * n / sum(often))) if recipe.pair_rows else 0 for n in often]
        self.labels = {task.name: np.full(pool.n_transfer, -1, np.int64) for task in self.tasks}
        self.weights = {task.name: np.full(pool.n_transfer, recipe.other_tasks, np.float32) for task in self.tasks}
        for task in self.tasks:
            self.labels[task.name][task.train.rows] = task.train.labels
            self.weights[task.name][task.train.rows] = 1
            for corpus, (start, stop) in pool.corpus.items():
                if task.name in native.get(corpus, ()):
                    self.weights[task.name][start:stop] = 1

    def loss(self, field: torch.Tensor, heads: TaskHeads, rows: Array) -> torch.Tensor:
        """Return the loss of the fields `(batch, dim) float32` of the texts numbered `rows (batch,) int64`."""
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
                nll = functional.nll_loss(logits[known], labels[known], reduction="sum")
                loss = loss + recipe.labels * nll / len(rows)
        return loss

    def draw_pairs(self, rng: np.random.Generator) -> list[tuple[TaskData, Array]]:
        """Return the train rows of every pair and similarity task that are added to a batch."""
        drawn = zip(self.pairs, self.shares, strict=True)
        return [(task, rng.integers(0, len(task.train), share)) for task, share in drawn if share]

    def pair_loss(self, field: torch.Tensor, heads: TaskHeads, task: TaskData, pick: Array) -> torch.Tensor:
        """Return the loss of `pick` rows of a pair or similarity task, whose texts' fields alternate in `field`."""
        target = self.field[task.train.rows[pick].reshape(-1)].to(field.device)
        labels = torch.from_numpy(task.train.labels[pick]).to(field.device)
        if task.kind == "similarity":
            teacher = functional.cosine_similarity(target[0::2], target[1::2])
            return 4 * graded_loss(field, (labels + teacher) / 2)
        head, own = self.heads[task.name], heads[task.name]
        with torch.no_grad():
            soft = functional.softmax(head(pair_input(target[0::2], target[1::2])), dim=-1)
        logits = functional.log_softmax(own(pair_input(field[0::2], field[1::2])), dim=-1)
        known = functional.one_hot(labels, soft.shape[1]).float()
        return -((soft + known) / 2 * logits).sum(-1).mean()


def train_student(
    student: Student,
    heads: TaskHeads,
    pool: TextPool,
    sequences: Sequence[Sequence[int]],
    compressed: Compressed,
    recipe: TrainingRecipe,
    native: Mapping[str, Sequence[str]],
    seed: int,
    work: Path,
    progress: Callable[[int, int], None] | None = None,
    repeats: Mapping[str, int] | None = None,
    rows: Array | None = None,
) -> list[dict[str, float]]:
    """Train `student` and `heads` in place on the transfer texts and return the loss curve.

    A state file in `work` is written every `recipe.checkpoint_steps` steps and after the last one. A later call with
    the same arguments resumes from it and ends with the same weights and curve as an uninterrupted one.

    Args:
        student: the network with its initial weights.
        heads: one linear head per task, with the weights of the compressor's heads.
        pool: the texts; those below `pool.n_transfer` are trained on.
        sequences: token ids of all texts, special tokens included.
        compressed: the field of all texts and the teacher's heads.
        recipe: epochs, batch and loss weights.
        native: corpus name -> tasks whose soft labels count fully on it.
        seed: of the batches and of dropout.
        work: the folder of the state file.
        progress: called with (steps done, steps in total).
        repeats: task -> how often its train texts occur in an epoch, once by default. Of a pair or similarity task: how
            much more often one of its pairs is drawn than one of another.
        rows: the texts of an epoch, for short trials; all of them by default.

    Raises:
        TrainingError: the loss is not finite, or the state file belongs to another run.
    """
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    bfloat16 = arithmetic(recipe.dtype) == "bfloat16"
    student.to(device).train()
    heads.to(device)
    compressed.heads.to(device)
    targets = _Targets(pool, compressed, recipe, native, repeats or {})
    tables = [p for n, p in student.named_parameters() if n in ("embedding.weight", "ngram.weight")]
    rest = [p for n, p in student.named_parameters() if n not in ("embedding.weight", "ngram.weight")]
    head_parameters = list(heads.parameters())
    rest += head_parameters
    groups = [{"params": tables, "weight_decay": 0.0}, {"params": rest, "weight_decay": recipe.weight_decay}]
    optimizer = torch.optim.AdamW(groups, lr=recipe.learning_rate, fused=True)
    clipped = [*student.parameters(), *head_parameters]

    n = pool.n_transfer
    lengths = np.array([min(len(s), recipe.max_tokens) for s in sequences[:n]])
    epoch_rows = _epoch_rows(pool, repeats or {}) if rows is None else rows
    per_epoch = sum(
        math.ceil(min(recipe.batch * _SORTED_BATCHES, len(epoch_rows) - i) / recipe.batch)
        for i in range(0, len(epoch_rows), recipe.batch * _SORTED_BATCHES)
    )
    epochs = max(recipe.epochs, math.ceil(recipe.min_steps / per_epoch))
    total = per_epoch * epochs
    warmup = min(_WARMUP_STEPS, max(1, total // 10))

    def fields(rows: Array) -> torch.Tensor:
        ids = torch.from_numpy(pad_ids([sequences[i][: recipe.max_tokens] for i in rows])).to(device)
        with torch.autocast(device.type, torch.bfloat16) if bfloat16 else contextlib.nullcontext():
            field: torch.Tensor = student(ids)
        return field.float()

    run = {"total": total, "n": n, "seed": seed}
    state = RunState(work / "student.state", run, student=student, heads=heads, optimizer=optimizer)
    before = state.restore() or {"step": 0, "curve": [], "running": []}
    step, curve, running = int(before["step"]), list(before["curve"]), list(before["running"])
    for epoch in range(step // per_epoch, epochs):
        batches = _batches(np.random.default_rng([seed, epoch]), lengths, epoch_rows, recipe.batch)
        for rows in batches[step - epoch * per_epoch :]:
            torch.manual_seed(seed * 1_000_003 + step)  # dropout of a step is the same after a resume
            rate = min(1.0, (step + 1) / warmup) * 0.5 * (1 + math.cos(math.pi * step / total))
            for group in optimizer.param_groups:
                group["lr"] = recipe.learning_rate * max(rate, 1e-3)
            pairs = targets.draw_pairs(np.random.default_rng([seed, epoch, step]))
            texts = np.concatenate([task.train.rows[pick].reshape(-1) for task, pick in pairs] or [rows[:0]])
            loss = targets.loss(fields(rows), heads, rows)
            if len(texts):
                parts = torch.split(fields(texts), [2 * len(pick) for _, pick in pairs])
                # A mean over all pairs, not over tasks: a few thousand pairs that weigh as much as a hundred thousand
                # texts are memorised, and a head that was fitted on them does not generalise.
                losses = (len(p[1]) * targets.pair_loss(f, heads, *p) for f, p in zip(parts, pairs, strict=True))
                loss = loss + recipe.pairs * sum_of(losses) / (len(texts) // 2)
            if not torch.isfinite(loss):
                raise TrainingError(f"the loss is not finite at step {step}; lower training.learning_rate")
            optimizer.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(clipped, 5.0)
            optimizer.step()
            step += 1
            running.append(float(loss.detach()))
            if step % 100 == 0 or step == total:
                curve.append({"step": step, "loss": round(sum(running) / len(running), 5)})
                running = []
            if step % recipe.checkpoint_steps == 0 or step == total:
                state.save(step=step, curve=curve, running=running)
            if progress is not None:
                progress(step, total)
    student.cpu().eval()
    heads.cpu()
    compressed.heads.cpu()
    return curve


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
