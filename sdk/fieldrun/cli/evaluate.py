"""`fieldrun eval`: a bundle's accuracy on a TSV file, with its interval."""

from __future__ import annotations

from pathlib import Path

import click

from .options import bundle_argument, check_output, examples, force_option, json_option, runtime_options
from .output import note_dropped, put, put_json, save_table
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
    help="Labelled rows of the task, a TSV file with the header text<TAB>label, or text_a<TAB>text_b<TAB>label.",
)
@click.option("--confusion", type=click.Path(path_type=Path), help="Also write the confusion matrix to this TSV file.")
@force_option
@runtime_options
@json_option
def evaluate(
    bundle: str,
    task: str | None,
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

    With --json: task, bundle, engine, data, and the evaluation: n, labels, accuracy, ci95, macro_f1, recall,
    calibration_error (fractions of 1), confusion (counts, a row per true label), dropped and cut.
    """
    import fieldrun

    if confusion is not None:
        check_output(confusion, force=force)
    with (
        fieldrun.load(bundle, engine=engine, provider=provider, threads=threads, overflow=overflow) as model,
        progress() as step,
    ):
        found = fieldrun.evaluate(model, data, task, progress=step)
        about = {"task": task or model.tasks[0], "bundle": model.manifest.name, "engine": model.engine}
    if confusion is not None:
        rows = zip(found.labels, found.confusion.tolist(), strict=True)
        save_table(confusion, [["true\\predicted", *found.labels], *([label, *counts] for label, counts in rows)])
    note_dropped(found.dropped or 0, found.cut or 0, found.n)
    if as_json:
        put_json({**about, "data": str(data), **found.to_dict()})
        return
    low, high = found.ci95
    put(
        f"{about['task']}  accuracy {found.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%}, n = {found.n})  "
        f"macro F1 {found.macro_f1:.2%}"
    )
