"""Labelled files in, a bundle with one more task out: `fieldrun fit`."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fieldrun.errors import DatasetError, InputTextError, NameTaken, OutputExists, TextTooLong
from fieldrun.evaluation.dataset import Dataset, read_tsv
from fieldrun.evaluation.evaluate import Evaluation, evaluate
from fieldrun.formats.progress import Progress, silent
from fieldrun.heads.fit import HeadTrainer
from fieldrun.heads.head import Head

from .check import text_warnings
from .model import load

__all__ = ["FitReport", "fit"]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitReport:
    """What `fit` did: the new bundle, its new head (`head.about` has the cross-validation), and how good it is.

    `n` rows were read, copies included, of which `cut` texts were too long and lost `dropped` tokens. `dev` is the new
    task's evaluation on those rows of the dev file whose text is not in the training files, None without such a file.
    """

    path: Path
    head: Head
    n: int
    cut: int
    dropped: int
    dev: Evaluation | None

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON; the weights of the head are in the bundle."""
        about = dict(self.head.about)
        dev = None if self.dev is None else self.dev.to_dict()
        return {"path": str(self.path), "task": self.head.name, **about, "temperature": self.head.temperature} | {
            "dev": dev,
            "dropped": self.dropped,
        }


def fit(
    files: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    name: str,
    bundle: str | Path = "reference",
    dev: str | Path | None = None,
    weigh_copies: bool = False,
    join_labels: bool = False,
    text_column: str | None = None,
    label_column: str | None = None,
    text_b_column: str | None = None,
    force: bool = False,
    engine: str = "auto",
    provider: str | None = None,
    threads: int = 1,
    overflow: str = "truncate",
    progress: Progress = silent,
) -> FitReport:
    """Train a head on labelled files and write `bundle` with it to the folder `out`, in seconds and without torch.

    `fieldrun.fit_head` does the same with texts and labels in memory, for a loaded model.

    Args:
        files: TSV, CSV, JSON lines or Parquet files with the columns `text` and `label`, or `text_a`, `text_b` and
            `label` for pairs; together they are one training set.
        out: the bundle folder to write.
        name: of the new task: letters, digits, `-` and `_`.
        bundle: a bundle folder, or `"reference"`.
        dev: a file to evaluate the new task on. Rows whose text is in a training file too are left out;
            `head.about["in_dev"]` counts them.
        weigh_copies, join_labels: as for `fieldrun.fit_head`.
        text_column, label_column, text_b_column: other names of the columns.
        force: replace the bundle at `out`, and a fitted task of the same name.
        engine, provider, threads, overflow: as for `fieldrun.load`.
        progress: called with (phase, done, total).

    Raises:
        OutputExists, NameTaken: `out` or the task exists.
        DatasetError: a file cannot be read, not all have texts or all pairs, or every row of `dev` is a training row.
        LabelError, InputTextError, TextTooLong: as of `fieldrun.fit_head`; the message names the file.
    """
    out = Path(out)
    if os.path.lexists(out) and not force:
        raise OutputExists(f"{out} exists; choose another folder or add --force")
    columns = {"text_column": text_column, "label_column": label_column, "text_b_column": text_b_column}
    datasets = [read_tsv(path, **columns) for path in ([files] if isinstance(files, str | os.PathLike) else files)]
    _check_kinds(datasets)
    held_out = None if dev is None else read_tsv(dev, **columns)
    with load(bundle, engine=engine, provider=provider, threads=threads, overflow=overflow) as model:
        if name in model.tasks and not (force and name in model.attached):
            how = "add --force to replace it" if name in model.attached else "choose another name"
            raise NameTaken(f"{bundle} has a task {name!r} already; {how}")
        trainer = HeadTrainer(model, name=name, weigh_copies=weigh_copies, join_labels=join_labels, progress=progress)
        for dataset in datasets:
            try:
                trainer.add(dataset.texts, dataset.labels)
            except (InputTextError, TextTooLong) as error:
                raise type(error)(f"{dataset.path}: {error}") from error
        shared = 0
        if held_out is not None:
            whole = len(held_out)
            held_out = held_out.without(trainer.keys)
            shared = whole - len(held_out)
            if not len(held_out):
                raise DatasetError(f"{dev}: every row has a text that is in the training files; give other rows")
        head = trainer.fit()
        if held_out is not None:
            head = replace(head, about=_with_dev(head.about, shared))
        said = text_warnings([text for dataset in datasets for text in dataset.texts], model.tokenizer, progress)
        head = replace(head, about={**head.about, "warnings": [*head.about["warnings"], *said]})
        model.attach(head, replace=force)
        found = (
            None if held_out is None else evaluate(model, held_out, name, join_labels=join_labels, progress=progress)
        )
        model.save(out, overwrite=force)
    return FitReport(path=out, head=head, n=len(trainer), cut=trainer.cut, dropped=trainer.dropped, dev=found)


def _with_dev(about: Mapping[str, Any], shared: int) -> dict[str, Any]:
    said = [f"{shared} rows of the dev file have a text that is in the training files; they were left out"]
    return {**about, "in_dev": shared, "warnings": [*about["warnings"], *(said if shared else [])]}


def _check_kinds(datasets: Sequence[Dataset]) -> None:
    kinds = {"single": "single texts", "pair": "pairs"}
    for dataset in datasets[1:]:
        if dataset.kind != datasets[0].kind:
            here, there = kinds[dataset.kind], kinds[datasets[0].kind]
            message = f"this file has {here}, {datasets[0].path} has {there}; train them as two tasks"
            raise DatasetError(f"{dataset.path}, line 1: {message}")
