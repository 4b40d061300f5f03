"""`fieldrun fit`: labelled texts in, a bundle with one more task out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import (
    bundle_option,
    columns_options,
    examples,
    force_option,
    join_labels_option,
    json_option,
    output_option,
    runtime_options,
)
from .output import note, note_dropped, put, put_json
from .progress import progress

if TYPE_CHECKING:
    from fieldrun_runtimes.fit import FitReport

__all__ = ["fit"]


@click.command(
    short_help="Teach a bundle a task of your own.",
    epilog=examples(
        "fieldrun fit train.tsv --name my-task -o my-bundle",
        "fieldrun fit train.tsv more.tsv --name my-task --dev dev.tsv -b my-bundle -o my-bundle --force",
    ),
)
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="TRAIN...")
@bundle_option
@click.option("--name", required=True, help="The name of the new task: letters, digits, - and _.")
@output_option("bundle folder")
@click.option("--dev", type=click.Path(path_type=Path), metavar="FILE", help="A file to evaluate the new task on.")
@click.option("--weigh-copies", is_flag=True, help="Let a row that is there k times weigh k times.  [default: once]")
@join_labels_option
@columns_options()
@force_option
@runtime_options
@json_option
def fit(
    files: tuple[Path, ...],
    bundle: str,
    name: str,
    output: Path,
    dev: Path | None,
    weigh_copies: bool,
    join_labels: bool,
    text_column: str | None,
    text_b_column: str | None,
    label_column: str | None,
    force: bool,
    runtime: dict[str, Any],
    as_json: bool,
) -> None:
    """Train a head on labelled texts and write the bundle with it, in seconds and without torch.

    TRAIN is a TSV, CSV, JSON lines or Parquet file with the columns text and label, or text_a, text_b and label for
    pairs, among others; several files are one training set. To add examples or a label
    later, give the old files and the new one. --force also replaces a fitted task of the same name.

    Rows that are equal but for case, whitespace and Unicode form are copies: they weigh once, never stand on both sides
    of a split, and are left out of --dev. What the figures do not cover is said in notes.

    With --json: path, task, n, labels (with rows), copies, conflicting and in_dev (rows), strength, cv (held-out n,
    accuracy, ci95, balanced_accuracy, balanced_ci95, never_held_out, log_loss, folds, repeats; null with one row per
    label), warnings, temperature, dev (as 'fieldrun eval --json'; null without --dev), dropped.
    """
    import fieldrun

    with progress() as step:
        report = fieldrun.fit(
            files,
            output,
            name=name,
            bundle=bundle,
            dev=dev,
            weigh_copies=weigh_copies,
            join_labels=join_labels,
            text_column=text_column,
            text_b_column=text_b_column,
            label_column=label_column,
            force=force,
            **runtime,
            progress=step,
        )
    for warning in dict.fromkeys((*report.head.about["warnings"], *(report.dev.warnings if report.dev else ()))):
        note(warning)
    note_dropped(report.dropped, report.cut, report.n)
    if as_json:
        put_json(report.to_dict())
    else:
        _put(report)


def _put(report: FitReport) -> None:
    head = report.head
    put(f"{report.path}: {head.name}, {len(head.labels)} labels from {report.n} {_WHAT[head.kind]}")
    strength, cv = f"penalty strength {head.about['strength']:.3g}", head.about["cv"]
    if cv is None:
        put(f"{strength}, a default: with one row per label none can be held out to choose it")
    else:
        balanced = _balanced(cv["balanced_accuracy"], cv["balanced_ci95"])
        put(f"held-out {_accuracy(cv['accuracy'], cv['ci95'], cv['n'])}, {balanced}, {strength}")
    if report.dev is not None:
        balanced = _balanced(report.dev.balanced_accuracy, report.dev.balanced_ci95)
        put(f"dev {_accuracy(report.dev.accuracy, report.dev.ci95, report.dev.n)}, {balanced}")
        put(f"dev calibration error {report.dev.calibration_error:.2%}")
    put(f"next: fieldrun run -b {report.path} --task {head.name}")


_WHAT = {"single": "texts", "pair": "pairs"}


def _balanced(accuracy: float, ci95: tuple[float, float]) -> str:
    return f"balanced {accuracy:.2%} ({ci95[0]:.2%} to {ci95[1]:.2%})"


def _accuracy(accuracy: float, ci95: tuple[float, float], n: int) -> str:
    low, high = ci95
    return f"accuracy {accuracy:.2%} (95 % interval {low:.2%} to {high:.2%}, n = {n})"
