"""`fieldrun fit`: labelled texts in, a bundle with one more task out."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fieldrun.errors import DatasetError, InputTextError, NameTaken, OutputExists, TextTooLong

from .options import bundle_argument, examples, json_option, open_model, runtime_options
from .output import progress, put, put_json

if TYPE_CHECKING:
    from fieldrun.evaluation.dataset import Dataset
    from fieldrun.evaluation.evaluate import Evaluation
    from fieldrun.heads.head import Head

__all__ = ["fit"]


@click.command(
    short_help="Teach a bundle a task of your own.",
    epilog=examples(
        "fieldrun fit reference train.tsv --name my-task -o my-bundle",
        "fieldrun fit my-bundle train.tsv more.tsv --name my-task --dev dev.tsv -o my-bundle --force",
    ),
)
@bundle_argument()
@click.argument("data", nargs=-1, required=True, type=click.Path(path_type=Path), metavar="TRAIN.TSV...")
@click.option("--name", required=True, help="The name of the new task: letters, digits, - and _.")
@click.option("-o", "--output", type=click.Path(path_type=Path), required=True, help="The bundle folder to make.")
@click.option("--dev", type=click.Path(path_type=Path), help="A TSV file to measure the new task on.")
@click.option("--force", is_flag=True, help="Replace the bundle at the output, and a fitted task of the same name.")
@runtime_options
@json_option
def fit(
    bundle: str,
    data: tuple[Path, ...],
    name: str,
    output: Path,
    dev: Path | None,
    force: bool,
    engine: str,
    provider: str | None,
    threads: int,
    overflow: str,
    as_json: bool,
) -> None:
    """Train a head on labelled texts and save BUNDLE with it, in seconds and without torch.

    TRAIN.TSV has the header text<TAB>label, or text_a<TAB>text_b<TAB>label for pairs; several files are one training
    set. To add examples or a new label later, give the old files and the new one, and --force.

    With --json: path, task, n, labels (with rows), strength, cv (held-out n, accuracy, ci95, log_loss, folds,
    repeats; null with one row a label), temperature, dev (n, accuracy, ci95, ece; null without --dev), dropped.
    """
    from fieldrun.evaluation.dataset import read_tsv
    from fieldrun.evaluation.evaluate import evaluate
    from fieldrun.heads.fit import HeadTrainer

    from .answers import note_dropped
    from .inputs import BATCH

    if os.path.lexists(output) and not force:
        raise OutputExists(f"{output} exists; choose another folder or add --force")
    datasets = [read_tsv(path) for path in data]
    _check_kinds(datasets)
    held_out = None if dev is None else read_tsv(dev)
    with open_model(bundle, engine, threads, overflow, provider) as model, progress() as step:
        if name in model.tasks and not (force and name in model.attached):
            how = "add --force to replace it" if name in model.attached else "choose another name"
            raise NameTaken(f"{bundle} answers a task {name!r} already; {how}")
        trainer = HeadTrainer(model, name=name, progress=step)
        for dataset in datasets:
            try:
                trainer.add(dataset.texts, dataset.labels)
            except (InputTextError, TextTooLong) as error:
                raise type(error)(f"{dataset.path}: {error}") from error
        head = trainer.fit()
        model.attach(head, replace=force)
        measured = None if held_out is None else evaluate(model, held_out, name, batch_size=BATCH, progress=step)
        model.save(output, overwrite=force)
    note_dropped(trainer.dropped, trainer.cut, len(trainer))
    if as_json:
        put_json(
            {"path": str(output), "task": name}
            | {key: head.about[key] for key in ("n", "labels", "strength", "cv")}
            | {"temperature": head.temperature, "dev": None if measured is None else _summary(measured)}
            | {"dropped": trainer.dropped}
        )
        return
    put(f"{output}: {name}, {len(head.labels)} labels from {len(trainer)} {_what(head.kind)}")
    put(_held_out_line(head))
    if measured is not None:
        low, high = measured.ci95
        put(f"dev accuracy {measured.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%}, n = {measured.n})")
        put(f"dev calibration error {measured.calibration_error:.2%}")
    put(f"next: fieldrun run {output} --task {name}")


def _summary(found: Evaluation) -> dict[str, Any]:
    ece = found.calibration_error
    return {"n": found.n, "accuracy": found.accuracy, "ci95": [*found.ci95], "ece": ece}


def _held_out_line(head: Head) -> str:
    strength, cv = f"penalty strength {head.about['strength']:.3g}", head.about["cv"]
    if cv is None:
        return f"{strength}, not chosen: with one row a label nothing can be held out"
    low, high = cv["ci95"]
    found = f"held-out accuracy {cv['accuracy']:.2%} (95 % interval {low:.2%} to {high:.2%}, n = {cv['n']})"
    return f"{found}, {strength}"


def _what(kind: str) -> str:
    return "pairs" if kind == "pair" else "texts"


def _check_kinds(datasets: list[Dataset]) -> None:
    for dataset in datasets[1:]:
        if dataset.kind != datasets[0].kind:
            raise DatasetError(
                f"{dataset.path}, line 1: {datasets[0].path} holds {_what(datasets[0].kind)}, "
                f"this file {_what(dataset.kind)}; train them as two tasks"
            )
