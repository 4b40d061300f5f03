"""`fieldrun fit`: labelled texts in, a bundle with one more task out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .options import bundle_option, examples, force_option, json_option, output_option, runtime_options
from .output import note_dropped, put, put_json
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
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="TRAIN.TSV...")
@bundle_option
@click.option("--name", required=True, help="The name of the new task: letters, digits, - and _.")
@output_option("bundle folder")
@click.option("--dev", type=click.Path(path_type=Path), metavar="FILE", help="A TSV file to evaluate the new task on.")
@force_option
@runtime_options
@json_option
def fit(
    files: tuple[Path, ...],
    bundle: str,
    name: str,
    output: Path,
    dev: Path | None,
    force: bool,
    runtime: dict[str, Any],
    as_json: bool,
) -> None:
    """Train a head on labelled texts and write the bundle with it, in seconds and without torch.

    TRAIN.TSV has the header text<TAB>label, or text_a<TAB>text_b<TAB>label for pairs; several files are one training
    set. To add examples or a label later, give the old files and the new one. --force also replaces a fitted task of
    the same name.

    With --json: path, task, n, labels (with rows), strength, cv (held-out n, accuracy, ci95, log_loss, folds,
    repeats; null with one row per label), temperature, dev (as 'fieldrun eval --json'; null without --dev), dropped.
    """
    import fieldrun

    with progress() as step:
        report = fieldrun.fit(files, output, name=name, bundle=bundle, dev=dev, force=force, **runtime, progress=step)
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
        put(f"held-out {_accuracy(cv['accuracy'], cv['ci95'], cv['n'])}, {strength}")
    if report.dev is not None:
        put(f"dev {_accuracy(report.dev.accuracy, report.dev.ci95, report.dev.n)}")
        put(f"dev calibration error {report.dev.calibration_error:.2%}")
    put(f"next: fieldrun run -b {report.path} --task {head.name}")


_WHAT = {"single": "texts", "pair": "pairs"}


def _accuracy(accuracy: float, ci95: tuple[float, float], n: int) -> str:
    low, high = ci95
    return f"accuracy {accuracy:.2%} (95 % interval {low:.2%} to {high:.2%}, n = {n})"
