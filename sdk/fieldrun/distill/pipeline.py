"""From raw text to a checkpoint: texts, raw field, compressor, student, heads, training record. Resumable."""

from __future__ import annotations

import json
import platform
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from tokenizers import Tokenizer

from fieldrun.errors import FieldrunError, OutputExists, RecipeError, TrainingError, UsageError
from fieldrun.formats.progress import Progress, silent
from fieldrun.formats.storage import sha256_bytes, write_json
from fieldrun.formats.tensors import Array, check_tensors
from fieldrun.heads.head import Head
from fieldrun.heads.trained import Checkpoint
from fieldrun.student.config import StudentConfig
from fieldrun.student.token_counts import count_usage

from .align import align_field
from .compressor import Compressed, TaskHeads, make_heads, pair_input, train_compressor
from .finetune import finetune_teacher
from .heads import finish_head, score, score_similarity
from .pool import Split, TaskData, TextPool, build_pool
from .recipe import DistillRecipe, load_recipe
from .state import load_json, load_state, reason, save_state
from .student import Student
from .teacher import (
    extract_raw_field,
    load_tokenizer,
    teacher_hashes,
    token_vectors,
    tokenize,
)
from .training import arithmetic, fields_of, train_student

__all__ = ["run"]


def run(
    recipe: Path,
    data: Path,
    teacher: Path,
    out: Path,
    work: Path | None = None,
    threads: int | None = None,
    progress: Progress = silent,
) -> Checkpoint:
    """Do what `fieldrun.distill` says."""
    plan = load_recipe(recipe)
    if out.exists():
        raise OutputExists(f"{out} exists; choose another folder or delete it first")
    if plan.pool is not None:
        raise RecipeError("training on [pool] is not built yet; delete that section of the recipe")
    if not data.is_dir():
        raise TrainingError(f"there is no data folder at {data}; give a folder with <task>/train.tsv")
    if threads is not None and threads < 1:
        raise UsageError(f"threads must be a positive integer, not {threads}")
    hashes = teacher_hashes(teacher)
    work = work or out.with_name(out.name + ".work")
    before = torch.get_num_threads()
    torch.set_num_threads(threads or before)
    try:
        work.mkdir(parents=True, exist_ok=True)
        return _Run(plan, data, teacher, hashes, work, progress).run(out)
    except FieldrunError:
        raise
    except OSError as error:
        why = error.strerror or reason(error)
        raise TrainingError(f"cannot use the work folder {work}: {why}; free space or choose another folder") from error
    finally:
        torch.set_num_threads(before)


class _Run:
    """One training run. Every phase writes its result to `work`, and is skipped if the result exists."""

    def __init__(
        self, recipe: DistillRecipe, data: Path, teacher: Path, hashes: dict[str, str], work: Path, progress: Progress
    ) -> None:
        self.recipe, self.data, self.teacher, self.hashes, self.work = recipe, data, teacher, hashes, work
        self.teacher_name = teacher.resolve().name
        self.progress = progress
        self.seconds: dict[str, float] = load_json(work / "seconds.json", {})

    def run(self, out: Path) -> Checkpoint:
        recipe = self.recipe
        self.progress("read", 0, 1)
        pool = build_pool(recipe, self.data)
        self._check_same_run(pool)
        tokenizer, vocab_size = self._tokenizer()
        config = recipe.student.config(vocab_size=vocab_size, max_tokens=recipe.training.max_tokens)
        self.progress("read", 1, 1)
        if recipe.finetune is not None:
            self.teacher = self._timed("fine-tuning", lambda: self._tune(pool))
        raw = self._timed("raw field", lambda: self._raw(pool))
        compressed = self._timed("compressor", lambda: self._compress(pool, raw, config.field_dim))
        sequences = tokenize(tokenizer, pool.texts)
        student, heads, curve = self._timed("student", lambda: self._train(config, pool, sequences, compressed))
        aligned = self._align(student, heads, pool, sequences)
        check_tensors(student.tensors(), config.shapes(), "the student")
        finished, results = self._finish(student, heads, pool, sequences, compressed)
        checkpoint = Checkpoint(
            name=recipe.name,
            config=config,
            tensors=student.tensors(),
            tokenizer=tokenizer.to_str().encode("utf-8"),
            heads=tuple(finished),
            licence=recipe.licence,
            usage=count_usage(config, [ids[: config.max_tokens] for ids in sequences[: pool.n_transfer]]),
            provenance={
                "teacher": {"name": self.teacher_name, "sha256": self.hashes, "finetuned": recipe.finetune is not None},
                "data": self._data(pool),
                "results": {name: value["student"] for name, value in results.items()},
            },
            record={
                "recipe": recipe.to_dict(),
                "results": results,
                "texts": {"transfer": pool.n_transfer, "all": len(pool.texts), "corpus": dict(pool.corpus)},
                "curves": {"compressor": compressed.curve, "student": curve},
                "alignment": aligned,
                "seconds": self.seconds,
                "machine": _machine(recipe),
            },
        )
        checkpoint.save(out)
        return checkpoint

    def _check_same_run(self, pool: TextPool) -> None:
        identity = {
            "recipe": json.loads(json.dumps(self.recipe.to_dict())),
            "data": dict(pool.hashes),
            "teacher": self.hashes,
        }
        path = self.work / "run.json"
        before = load_json(path, identity)
        if before != identity:
            differ = [key for key in identity if not isinstance(before, dict) or before.get(key) != identity[key]]
            raise TrainingError(
                f"{self.work} belongs to another run (different {', '.join(differ)}); choose another work folder"
            )
        write_json(path, identity)

    def _tokenizer(self) -> tuple[Tokenizer, int]:
        tokenizer = load_tokenizer(self.teacher)
        if tokenizer.token_to_id("[PAD]") != 0 or not tokenizer.encode("").ids:
            raise TrainingError(
                f"the tokenizer in {self.teacher} must have [PAD] as id 0 and add [CLS] and [SEP]; "
                "use an encoder with a WordPiece tokenizer, as BERT has"
            )
        return tokenizer, max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def _tune(self, pool: TextPool) -> Path:
        assert self.recipe.finetune is not None  # asked in run
        return finetune_teacher(
            pool,
            self.teacher,
            self.work / "tuned",
            self.recipe,
            arithmetic(self.recipe.finetune.dtype),
            lambda done, total: self.progress("fine-tuning", done, total),
        )

    def _raw(self, pool: TextPool) -> Array:
        recipe = self.recipe.teacher
        return extract_raw_field(
            pool.texts,
            self.teacher,
            self.work / "raw_field.npy",
            layers=recipe.layers,
            max_tokens=recipe.max_tokens,
            dtype=arithmetic(recipe.dtype),
            progress=lambda done, total: self.progress("raw field", done, total),
        )

    def _compress(self, pool: TextPool, raw: Array, dim: int) -> Compressed:
        path = self.work / "compressed.pt"
        if path.exists():
            state = load_state(path)
            heads = make_heads(pool, dim)
            heads.load_state_dict(state["heads"])
            return Compressed(field=state["field"].numpy(), heads=heads, curve=state["curve"])
        compressed = train_compressor(
            pool,
            raw,
            self.recipe.compressor,
            dim,
            self.recipe.seed,
            lambda done, total: self.progress("compressor", done, total),
        )
        field = torch.from_numpy(compressed.field)
        save_state(path, {"field": field, "heads": compressed.heads.state_dict(), "curve": compressed.curve})
        return compressed

    def _train(
        self, config: StudentConfig, pool: TextPool, sequences: Sequence[Sequence[int]], compressed: Compressed
    ) -> tuple[Student, TaskHeads, list[dict[str, float]]]:
        torch.manual_seed(self.recipe.seed)
        student = Student(config, self.recipe.training.dropout)
        student.start_from(token_vectors(self.teacher, config.vocab_size))
        heads = make_heads(pool, config.field_dim)
        heads.load_state_dict(compressed.heads.state_dict())
        native = {corpus.file: corpus.tasks for corpus in self.recipe.corpus}
        native |= {f"{task.name}, altered": (task.name,) for task in self.recipe.tasks}
        curve = train_student(
            student,
            heads,
            pool,
            sequences,
            compressed,
            self.recipe.training,
            native,
            self.recipe.seed,
            self.work,
            lambda done, total: self.progress("student", done, total),
            {task.name: task.repeat for task in self.recipe.tasks},
        )
        return student, heads, curve

    def _align(
        self, student: Student, heads: TaskHeads, pool: TextPool, sequences: Sequence[Sequence[int]]
    ) -> dict[str, Any] | None:
        """Align the field with the graded pairs; return None without such a task."""
        if not pool.similarities:
            return None

        def pairs(split: Split) -> tuple[torch.Tensor, torch.Tensor]:
            fields, position = self._fields_of(student, sequences, [split])
            rows = [position[int(row)] for row in split.rows.reshape(-1)]
            return fields[rows], torch.from_numpy(split.labels)

        return align_field(
            student,
            heads,
            [pairs(task.train) for task in pool.similarities],
            [pairs(task.held_out) for task in pool.similarities],
            self.recipe.compressor.prefixes,
            self.recipe.seed,
        )

    def _finish(
        self,
        student: Student,
        heads: TaskHeads,
        pool: TextPool,
        sequences: Sequence[Sequence[int]],
        compressed: Compressed,
    ) -> tuple[list[Head], dict[str, Any]]:
        finished, results = [], {}
        for number, task in enumerate(pool.tasks):
            self.progress("heads", number, len(pool.tasks))
            splits = [task.held_out, *([task.report] if task.report else [])]
            splits += [task.train] if task.kind == "pair" else []
            fields, position = self._fields_of(student, sequences, splits)
            head, scores = finish_head(task, heads[task.name], fields, position)
            finished.append(head)
            results[task.name] = {"student": scores, "compressed_field": self._teacher_score(task, compressed)}
        for task in pool.similarities:
            split = task.report or task.held_out
            fields, position = self._fields_of(student, sequences, [split])
            name = "report" if task.report else "held_out"
            every = torch.from_numpy(compressed.field)
            results[task.name] = {
                "student": {name: score_similarity(fields, position, split)},
                "compressed_field": score_similarity(every, {i: i for i in range(len(every))}, split),
            }
        self.progress("heads", len(pool.tasks), len(pool.tasks))
        return finished, results

    def _fields_of(
        self, student: Student, sequences: Sequence[Sequence[int]], splits: Sequence[Split]
    ) -> tuple[torch.Tensor, dict[int, int]]:
        """Return the student's fields of the texts of `splits`, and the row of each text of the pool in them."""
        rows = np.unique(np.concatenate([split.rows.reshape(-1) for split in splits]))
        fields = fields_of(student, sequences, rows, self.recipe.training.max_tokens)
        return fields, {int(row): i for i, row in enumerate(rows)}

    def _teacher_score(self, task: TaskData, compressed: Compressed) -> dict[str, Any]:
        split = task.report or task.held_out
        field = torch.from_numpy(compressed.field)
        x = pair_input(field[split.rows[:, 0]], field[split.rows[:, 1]]) if task.kind == "pair" else field[split.rows]
        return score(compressed.heads[task.name], x, split.labels)

    def _data(self, pool: TextPool) -> dict[str, Any]:
        licences = {task.name: task.licence for task in self.recipe.tasks}
        licences |= {f"corpus/{corpus.file}": corpus.licence for corpus in self.recipe.corpus}
        return {"sha256": dict(pool.hashes), "licences": licences}

    def _timed(self, phase: str, work: Callable[[], Any]) -> Any:
        start = time.monotonic()
        result = work()
        self.seconds[phase] = round(self.seconds.get(phase, 0.0) + time.monotonic() - start, 1)
        write_json(self.work / "seconds.json", self.seconds)
        return result


def _machine(recipe: DistillRecipe) -> dict[str, Any]:
    packages = ("torch", "transformers", "tokenizers", "numpy")
    return {
        "platform": platform.system(),
        "processor": platform.machine(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "arithmetic": {"teacher": arithmetic(recipe.teacher.dtype), "student": arithmetic(recipe.training.dtype)},
        "python": platform.python_version(),
        "libraries": {name: version(name) for name in packages},
        "fieldrun_recipe_sha256": sha256_bytes(json.dumps(recipe.to_dict(), sort_keys=True).encode()),
    }
