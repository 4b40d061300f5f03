"""`fieldrun eval`: a bundle's accuracy on a TSV file, with its interval."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from fieldrun.errors import DatasetError
from fieldrun.formats.storage import write_bytes

from .inputs import BATCH, Record
from .options import bundle_argument, check_output, examples, force_option, json_option, open_model, runtime_options
from .output import progress, put, put_json

if TYPE_CHECKING:
    from fieldrun.evaluation.dataset import Dataset

__all__ = ["check_dataset", "evaluate"]


@click.command(
    "eval",
    short_help="Measure a task's accuracy on a TSV file.",
    epilog=examples("fieldrun eval reference --task sst2 --data dev.tsv --json"),
)
@bundle_argument()
@click.option("--task", required=True, help="A task of the bundle.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    help="A TSV file with the header text<TAB>label, or text_a<TAB>text_b<TAB>label.",
)
@click.option("--confusion", type=click.Path(path_type=Path), help="Also write the confusion matrix to this TSV file.")
@force_option
@runtime_options
@json_option
def evaluate(
    bundle: str,
    task: str,
    data: Path,
    confusion: Path | None,
    force: bool,
    engine: str,
    provider: str | None,
    threads: int,
    overflow: str,
    as_json: bool,
) -> None:
    """Measure a task's accuracy on labelled texts, with Wilson's 95 % interval and macro F1.

    With --json: task, n, accuracy, ci95, macro_f1 (fractions of 1), confusion (labels, and counts with a row per true
    label), bundle, engine, data, data_sha256, dropped.
    """
    from fieldrun.evaluation.dataset import read_tsv
    from fieldrun.evaluation.metrics import accuracy, confusion_matrix, macro_f1, wilson_interval

    from .answers import answer, note_dropped

    if confusion is not None:
        check_output(confusion, force=force)
    dataset = read_tsv(data)
    predicted: list[str] = []
    dropped = cut = 0
    with open_model(bundle, engine, threads, overflow, provider) as model, progress() as step:
        labels, name, used = model.labels(task), model.manifest.name, model.engine
        check_dataset(dataset, task, model.kind(task), labels)
        texts: Sequence[str | tuple[str, str]] = dataset.texts
        records = [Record(dataset.where(i), value) for i, value in enumerate(texts)]
        for start in range(0, len(records), BATCH):
            for answers in answer(model, records[start : start + BATCH], [task]):
                predicted += [labels[j] for j in answers.scores[task].argmax(axis=1)]
                cut += int((answers.dropped > 0).sum())
                dropped += int(answers.dropped.sum())
            step(f"eval {task}", len(predicted), len(records))
    n, share = len(dataset), accuracy(dataset.labels, predicted)
    low, high = wilson_interval(round(share * n), n)
    f1 = macro_f1(dataset.labels, predicted)
    matrix = confusion_matrix(dataset.labels, predicted, labels).tolist()
    if confusion is not None:
        rows = [
            ["true\\predicted", *labels],
            *([label, *map(str, row)] for label, row in zip(labels, matrix, strict=True)),
        ]
        write_bytes(confusion, "".join("\t".join(row) + "\n" for row in rows).encode("utf-8"))
    note_dropped(dropped, cut, n)
    if as_json:
        result = {"task": task, "n": n, "accuracy": share, "ci95": [low, high], "macro_f1": f1}
        result |= {"confusion": {"labels": list(labels), "matrix": matrix}, "bundle": name, "engine": used}
        result |= {"data": str(data), "data_sha256": dataset.sha256, "dropped": dropped}
        put_json(result)
    else:
        put(f"{task}  accuracy {share:.2%} (95 % interval {low:.2%} to {high:.2%}, n = {n})  macro F1 {f1:.2%}")


def check_dataset(dataset: Dataset, task: str, kind: str, labels: tuple[str, ...]) -> None:
    """Refuse a data set of the other kind than `task`, or with a label that it does not have, as `DatasetError`."""
    if dataset.kind != kind:
        wanted = "text<TAB>label" if kind == "single" else "text_a<TAB>text_b<TAB>label"
        what = "single texts" if kind == "single" else "pairs"
        raise DatasetError(f"{dataset.path}, line 1: the task {task!r} takes {what}; the header must be {wanted!r}")
    known = set(labels)
    for i, label in enumerate(dataset.labels):
        if label not in known:
            listed = ", ".join(labels)
            raise DatasetError(f"{dataset.where(i)}: the task {task!r} has no label {label!r}; known: {listed}")
