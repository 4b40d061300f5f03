"""Short trainings that compare shapes of the student: what the choice of the shipped one rests on.

    python -m studies.trials.measure --data DATA --teacher TEACHER --work WORK \
        --trial 'kernel 2={"mixer_kernel": 2, "mixer_width": 128}' -o benchmarks/records/student-trials.json

WORK is the work folder of a `fieldrun distill` run, whose compressed field the trials learn from. A trial trains on
part of its texts: SST-2, 60,000 lines of reviews, TREC and its altered copies, BANKING77, and STS-B. It is measured on
slices of train alone, never on a dev or test file, and its engine is timed by ONNX Runtime at 12 and 28 tokens, batch
1, one thread. Trials are appended to the record. A trial may also set keys of the recipe's [training].
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional

from fieldrun.distill import training
from fieldrun.distill.compressor import Compressed, make_heads
from fieldrun.distill.heads import score, score_similarity
from fieldrun.distill.pool import TextPool, build_pool
from fieldrun.distill.recipe import DistillRecipe, StudentRecipe, TrainingRecipe, load_recipe
from fieldrun.distill.state import load_state
from fieldrun.distill.student import Student
from fieldrun.distill.teacher import load_tokenizer, token_vectors, tokenize
from fieldrun.formats.tensors import data_offsets, write_tensors
from fieldrun.heads.head import Head
from fieldrun.heads.trained import Checkpoint
from fieldrun_benchmarks.harness.record import read_record, write_record
from fieldrun_exporters.builder import WEIGHTS_FILE
from fieldrun_exporters.parity import open_session
from fieldrun_exporters.precision import Precision
from fieldrun_exporters.student.graph import field_graph
from fieldrun_exporters.student.passes.fold import fold
from fieldrun_exporters.student.passes.int8 import int8

__all__ = ["main"]

_KIND = "student-trials"
_EPOCHS = 3
_REVIEWS = 60_000
_LENGTHS = (12, 28)
_TASKS = {"sst2": 1, "trec": 4, "banking77": 2}


def main() -> None:
    """Run the trials of the command line and append them to the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--data", "--teacher", "--work"):
        parser.add_argument(name, type=Path, required=True)
    parser.add_argument("--trial", action="append", required=True, metavar="NAME=JSON")
    parser.add_argument("-o", "--out", type=Path, required=True)
    args = parser.parse_args()
    recipe = load_recipe("reference")
    bench = _Bench(recipe, build_pool(recipe, args.data), args.teacher, args.work)
    for trial in args.trial:
        name, _, text = trial.partition("=")
        print(name, file=sys.stderr, flush=True)
        result = bench.run(name, json.loads(text or "{}"))
        print(json.dumps(result), flush=True)
        before = read_record(args.out, _KIND)["trials"] if args.out.exists() else []
        trials = [t for t in before if t["name"] != name] + [result]
        write_record(args.out, _KIND, "python -m studies.trials.measure", {"trials": trials})


class _Bench:
    def __init__(self, recipe: DistillRecipe, pool: TextPool, teacher: Path, work: Path) -> None:
        self.recipe, self.pool = recipe, pool
        self.sequences = tokenize(load_tokenizer(teacher), pool.texts)
        tokenizer = load_tokenizer(teacher)
        self.embeddings = token_vectors(teacher, tokenizer.get_vocab_size(with_added_tokens=True))
        state = load_state(work / "compressed.pt")
        heads = make_heads(pool, state["field"].shape[1])
        heads.load_state_dict(state["heads"])
        self.compressed = Compressed(field=state["field"].numpy(), heads=heads, curve=[])
        tasks = {task.name: task for task in pool.tasks}
        start, stop = pool.corpus["imdb_unsup"]
        reviews = np.random.default_rng(0).choice(np.arange(start, stop), min(_REVIEWS, stop - start), replace=False)
        parts = [np.tile(tasks[name].train.rows, times) for name, times in _TASKS.items()]
        parts += [task.train.rows.reshape(-1) for task in pool.similarities]
        self.rows = np.concatenate([*parts, reviews, np.arange(*pool.corpus["trec, altered"])])

    def run(self, name: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Train one student of `settings` and return what it costs and reaches."""
        shape = {f.name for f in dataclasses.fields(StudentRecipe)}
        plan: StudentRecipe = dataclasses.replace(
            self.recipe.student, **{k: v for k, v in settings.items() if k in shape}
        )
        changed: dict[str, Any] = {"epochs": _EPOCHS} | {k: v for k, v in settings.items() if k not in shape}
        how: TrainingRecipe = dataclasses.replace(self.recipe.training, **changed)
        config = plan.config(vocab_size=len(self.embeddings), max_tokens=how.max_tokens)
        torch.manual_seed(self.recipe.seed)
        student = Student(config, how.dropout)
        student.start_from(self.embeddings)
        heads = make_heads(self.pool, config.field_dim)
        heads.load_state_dict(self.compressed.heads.state_dict())
        native = {corpus.file: corpus.tasks for corpus in self.recipe.corpus}
        native |= {f"{task.name}, altered": (task.name,) for task in self.recipe.tasks}
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as work:
            curve = training.train_student(
                student,
                heads,
                self.pool,
                self.sequences,
                self.compressed,
                how,
                native,
                self.recipe.seed,
                Path(work),
                rows=self.rows,
            )
        result: dict[str, Any] = {
            "name": name,
            "settings": settings,
            "parameters": config.parameters(),
            "seconds": round(time.monotonic() - start),
            "threads": torch.get_num_threads(),
            "loss": curve[-1]["loss"],
        }
        for task in (task for task in self.pool.tasks if task.name in _TASKS):
            rows, labels = task.held_out.rows, task.held_out.labels
            fields = training.fields_of(student, self.sequences, rows, how.max_tokens)
            with torch.inference_mode():
                logits = heads[task.name](fields)
                teacher = self.compressed.heads[task.name](torch.from_numpy(self.compressed.field[rows]))
                soft = float(functional.cross_entropy(logits, teacher.softmax(1)))
            result[task.name] = score(heads[task.name], fields, labels) | {
                "soft_cross_entropy": round(soft, 4),
                "teacher": round(float((teacher.argmax(1).numpy() == labels).mean()), 4),
            }
        for task in self.pool.similarities:
            rows = np.unique(task.held_out.rows)
            fields = training.fields_of(student, self.sequences, rows, how.max_tokens)
            result[task.name] = score_similarity(fields, {int(r): i for i, r in enumerate(rows)}, task.held_out)
        finished = [
            Head(
                name=task.name,
                kind="single",
                labels=task.labels,
                weight=np.ascontiguousarray(heads[task.name].weight.detach().numpy().T),
                bias=heads[task.name].bias.detach().numpy().copy(),
            )
            for task in self.pool.tasks
            if task.kind == "single"
        ]
        checkpoint = Checkpoint(
            name="trial", config=config, tensors=student.tensors(), tokenizer=b"", heads=tuple(finished), licence=""
        )
        return result | _engine(checkpoint)


def _engine(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the bytes of the int8 weights, and the median microseconds of a run per length."""
    deployed, _ = int8(fold(checkpoint)[0], Precision({"tables": "int8"}), {})
    weights = write_tensors(deployed.tensors)
    medians = {}
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        (folder / WEIGHTS_FILE).write_bytes(weights)
        for length in _LENGTHS:
            graph = field_graph(deployed, data_offsets(folder / WEIGHTS_FILE), 1, length, {})
            (folder / "g.onnx").write_bytes(graph.SerializeToString())
            session = open_session(folder / "g.onnx")
            ids = deployed.network.frame([range(1000, 1000 + length)], 1, length)
            times = []
            for _ in range(2000):
                start = time.perf_counter_ns()
                session.run(["output"], {"ids": ids})
                times.append(time.perf_counter_ns() - start)
            medians[str(length)] = round(float(np.median(times)) / 1e3, 1)
    return {"weights_bytes": len(weights), "engine_p50_us": medians}


if __name__ == "__main__":
    main()
