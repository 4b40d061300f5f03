"""`fieldrun eval`: a bundle's accuracy on a TSV file, with its interval."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .inputs import read_tsv
from .options import (
    bundle_argument,
    check_output,
    columns_options,
    examples,
    force_option,
    join_labels_option,
    json_option,
    runtime_options,
)
from .output import note, note_dropped, put, put_json, save_table
from .progress import progress

__all__ = ["evaluate"]


@click.command(
    "eval",
    short_help="Measure a task's accuracy on a TSV file.",
    epilog=examples("fieldrun eval --task sst2 --data dev.tsv", "fieldrun eval my-bundle --data dev.tsv --json"),
)
@bundle_argument
@click.option("--task", help="A task of the bundle.  [default: the only one]")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    required=True,
    metavar="FILE",
    help="Labelled rows of the task: a TSV, CSV, JSON lines or Parquet file with the columns text (or text_a and "
    "text_b) and label.",
)
@click.option("--confusion", type=click.Path(path_type=Path), help="Also write the confusion matrix to this TSV file.")
@join_labels_option
@columns_options()
@force_option
@runtime_options
@json_option
def evaluate(
    bundle: str,
    task: str | None,
    data: Path,
    confusion: Path | None,
    join_labels: bool,
    text_column: str | None,
    text_b_column: str | None,
    label_column: str | None,
    force: bool,
    runtime: dict[str, Any],
    as_json: bool,
) -> None:
    """Measure a task's accuracy on labelled texts, with Wilson's 95 % interval and macro F1.

    With --json: task, n, accuracy, ci95, balanced_accuracy (the mean of the labels' recalls), balanced_ci95, macro_f1,
    recall (of each label), calibration_error (fractions of 1), confusion (labels, and counts with a row per true
    label), dropped (tokens), cut (texts), warnings, bundle, engine, data, data_sha256.
    """
    import fieldrun

    if confusion is not None:
        check_output(confusion, force=force)
    rows = read_tsv(data, text_column=text_column, text_b_column=text_b_column, label_column=label_column)
    load = fieldrun.load(bundle, **runtime)
    with load as model, progress() as step:
        found = fieldrun.evaluate(model, rows, task, join_labels=join_labels, progress=step)
        name, about = task or model.tasks[0], {"bundle": model.manifest.name, "engine": model.engine}
    matrix = found.confusion.tolist()
    if confusion is not None:
        counts = zip(found.labels, matrix, strict=True)
        save_table(confusion, [["true\\predicted", *found.labels], *([label, *row] for label, row in counts)])
    for warning in found.warnings:
        note(warning)
    note_dropped(found.dropped or 0, found.cut or 0, found.n)
    if as_json:
        result = {"task": name} | found.to_dict() | about | {"data": str(data), "data_sha256": rows.sha256}
        put_json(result | {"confusion": {"labels": result.pop("labels"), "matrix": matrix}})
        return
    low, high = found.ci95
    put(
        f"{name}  accuracy {found.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%}, n = {found.n})  "
        f"balanced {found.balanced_accuracy:.2%} ({found.balanced_ci95[0]:.2%} to {found.balanced_ci95[1]:.2%})  "
        f"macro F1 {found.macro_f1:.2%}"
    )
