r"""Compare shapes of the student by short trainings: what the choice of the shipped one rests on.

    python -m studies.trials.measure --data DATA --teacher TEACHER --work WORK \
        --trial 'kernel 2={"mixer_kernel": 2, "mixer_width": 128}' -o benchmarks/records/student-trials.json

WORK is the work folder of a `fieldrun distill` run, whose compressed field the trials learn from. A trial trains on
part of its texts: SST-2, 60,000 lines of reviews, TREC and its altered copies, BANKING77, and STS-B. It is measured on
slices of train alone, never on a dev or test file, and its engine is timed by ONNX Runtime at 12 and 28 tokens, batch
1, one thread. Trials are added to the record. A trial may also set keys of the recipe's [training].
"""

from __future__ import annotations

import dataclasses
import json
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from torch.nn import functional

from fieldrun.distill import training
from fieldrun.distill.compressor import Compressed, make_heads
from fieldrun.distill.heads import score, score_similarity
from fieldrun.distill.pool import build_pool
from fieldrun.distill.recipe import StudentRecipe, load_recipe
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

from ..suite import data_option, output_option, study

__all__ = ["main"]

_KIND = "student-trials"
_EPOCHS = 3
_REVIEWS = 60_000
_LENGTHS = (12, 28)
_TASKS = {"sst2": 1, "trec": 4, "banking77": 2}


@study(__doc__)
@data_option
@click.option("--teacher", type=click.Path(path_type=Path, exists=True), required=True, help="The teacher's folder.")
@click.option(
    "--work",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="That of `fieldrun distill`.",
)
@click.option("--trial", "trials", multiple=True, required=True, metavar="NAME=JSON", help="A trial; repeat it.")
@output_option
def main(data: Path, teacher: Path, work: Path, trials: Sequence[str], output: Path) -> None:
    """Train short trials of the student and add them to the record behind docs/student.md."""
    runner = _Runner(data, teacher, work)
    for trial in trials:
        name, _, text = trial.partition("=")
        click.echo(name, err=True)
        result = runner.run(name, json.loads(text or "{}"))
        click.echo(json.dumps(result))
        before = read_record(output, _KIND)["trials"] if output.exists() else []
        kept = [entry for entry in before if entry["name"] != name]
        write_record(output, _KIND, "python -m studies.trials.measure", {"trials": [*kept, result]})


class _Runner:
    def __init__(self, data: Path, teacher: Path, work: Path) -> None:
        self.recipe = load_recipe("reference")
        self.pool = build_pool(self.recipe, data)
        tokenizer = load_tokenizer(teacher)
        self.sequences = tokenize(tokenizer, self.pool.texts)
        self.embeddings = token_vectors(teacher, tokenizer.get_vocab_size(with_added_tokens=True))
        state = load_state(work / "compressed.pt")
        heads = make_heads(self.pool, state["field"].shape[1])
        heads.load_state_dict(state["heads"])
        self.compressed = Compressed(field=state["field"].numpy(), heads=heads, curve=[])
        tasks = {task.name: task for task in self.pool.tasks}
        start, stop = self.pool.corpus["imdb_unsup"]
        reviews = np.random.default_rng(0).choice(np.arange(start, stop), min(_REVIEWS, stop - start), replace=False)
        parts = [np.tile(tasks[name].train.rows, times) for name, times in _TASKS.items()]
        parts += [task.train.rows.reshape(-1) for task in self.pool.similarities]
        self.rows = np.concatenate([*parts, reviews, np.arange(*self.pool.corpus["trec, altered"])])

    def run(self, name: str, settings: dict[str, Any]) -> dict[str, Any]:
        """Train one student of `settings` and return what it costs and reaches."""
        recipe, pool, sequences = self.recipe, self.pool, self.sequences
        shape = {field.name for field in dataclasses.fields(StudentRecipe)}
        plan = dataclasses.replace(recipe.student, **{k: v for k, v in settings.items() if k in shape})
        changed: dict[str, Any] = {"epochs": _EPOCHS} | {k: v for k, v in settings.items() if k not in shape}
        how = dataclasses.replace(recipe.training, **changed)
        config = plan.config(vocab_size=len(self.embeddings), max_tokens=how.max_tokens)
        torch.manual_seed(recipe.seed)
        student = Student(config, how.dropout)
        student.start_from(self.embeddings)
        heads = make_heads(pool, config.field_dim)
        heads.load_state_dict(self.compressed.heads.state_dict())
        native = {corpus.file: corpus.tasks for corpus in recipe.corpus}
        native |= {f"{task.name}, altered": (task.name,) for task in recipe.tasks}
        given = (student, heads, pool, sequences, self.compressed, how, native, recipe.seed)
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as work:
            curve = training.train_student(*given, Path(work), rows=self.rows)
        result: dict[str, Any] = {
            "name": name,
            "settings": settings,
            "parameters": config.parameters(),
            "seconds": round(time.monotonic() - start),
            "threads": torch.get_num_threads(),
            "loss": curve[-1]["loss"],
        }
        for task in (task for task in pool.tasks if task.name in _TASKS):
            rows, labels = task.held_out.rows, task.held_out.labels
            fields = training.fields_of(student, sequences, rows, how.max_tokens)
            with torch.inference_mode():
                logits = heads[task.name](fields)
                teacher = self.compressed.heads[task.name](torch.from_numpy(self.compressed.field[rows]))
                soft = float(functional.cross_entropy(logits, teacher.softmax(1)))
            result[task.name] = score(heads[task.name], fields, labels) | {
                "soft_cross_entropy": round(soft, 4),
                "teacher": round(float((teacher.argmax(1).numpy() == labels).mean()), 4),
            }
        for similar in pool.similarities:
            rows = np.unique(similar.held_out.rows)
            fields = training.fields_of(student, sequences, rows, how.max_tokens)
            at = {int(row): i for i, row in enumerate(rows)}
            result[similar.name] = score_similarity(fields, at, similar.held_out)
        finished = (
            Head(
                name=task.name,
                kind="single",
                labels=task.labels,
                weight=np.ascontiguousarray(heads[task.name].weight.detach().numpy().T),
                bias=heads[task.name].bias.detach().numpy().copy(),
            )
            for task in pool.tasks
            if task.kind == "single"
        )
        tensors = student.tensors()
        return result | _engine(
            Checkpoint(name="trial", config=config, tensors=tensors, tokenizer=b"", heads=tuple(finished), licence="")
        )


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
