"""The suite's report files, and what a model reaches on them: the one place where a study labels rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click
import numpy as np
import numpy.typing as npt

import fieldrun
from fieldrun.errors import DatasetError
from fieldrun.evaluation.dataset import Dataset, read_tsv
from fieldrun.evaluation.evaluate import evaluate
from fieldrun.formats.bundle import Bundle

__all__ = ["artifact", "data_option", "evaluated", "hits", "output_option", "report_sets", "study", "work_option"]

_FOLDER = click.Path(path_type=Path, exists=True, file_okay=False)
_NEW = click.Path(path_type=Path)
data_option = click.option("--data", type=_FOLDER, required=True, help="The folder of the suite, one folder a task.")
work_option = click.option("--work", type=_NEW, required=True, help="The folder that keeps finished steps.")
output_option = click.option("-o", "--output", type=_NEW, required=True, help="The record, or a folder for several.")


def study(doc: str | None) -> Callable[[Callable[..., None]], click.Command]:
    """Return the decorator of a study's command, whose help is `doc`, the docstring of its module."""
    paragraphs = (doc or "").split("\n\n")
    return click.command(help="\n\n".join(f"\b\n{p}" if p.startswith(" ") else p for p in paragraphs))


def report_sets(bundle: Path, data: Path) -> dict[str, Dataset]:
    """Return the report file of every task of `bundle`; `DatasetError` where `data` lacks one."""
    sets = {}
    for task in Bundle.load(bundle).manifest.tasks:
        found = [data / task.name / name for name in ("dev.tsv", "test.tsv") if (data / task.name / name).is_file()]
        if not found:
            raise DatasetError(f"{data / task.name} has neither dev.tsv nor test.tsv")
        sets[task.name] = read_tsv(found[0])
    return sets


def evaluated(model: fieldrun.FieldModel, rows: Dataset, task: str) -> dict[str, Any]:
    """Return n, accuracy with its 95 % interval, macro F1 and calibration error of `task` on labelled rows."""
    found = evaluate(model, rows, task).to_dict()
    return {key: found[key] for key in ("n", "accuracy", "ci95", "macro_f1", "calibration_error")}


def hits(bundle: Path, sets: Mapping[str, Dataset], engine: str = "native") -> dict[str, npt.NDArray[np.bool_]]:
    """Return, by task, whether each row is labelled right, `(n,)`: what differences row by row are taken from."""
    with fieldrun.load(bundle, engine=engine) as model:
        return {task: np.array(model.predict(rows.texts, task)) == np.array(rows.labels) for task, rows in sets.items()}


def artifact(bundle: Bundle) -> dict[str, Any]:
    """Return what a record says of a bundle."""
    return {
        "name": bundle.manifest.name,
        "recipe": bundle.manifest.recipe["name"],
        "bytes": bundle.total_bytes(),
        "parameters": bundle.manifest.network.parameters,
        "weights_sha256": bundle.manifest.files["weights.safetensors"].sha256,
    }
