"""`fieldrun eval`: a bundle's accuracy on a TSV file, with its interval."""

from __future__ import annotations

from pathlib import Path

import click

from fieldrun.formats.storage import write_bytes

from .inputs import BATCH
from .options import bundle_argument, check_output, examples, force_option, json_option, open_model, runtime_options
from .output import progress, put, put_json

__all__ = ["evaluate"]


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

    With --json: task, n, accuracy, ci95, macro_f1, recall (of each label), calibration_error (fractions of 1),
    confusion (labels, and counts with a row per true label), dropped (tokens), cut (texts), bundle, engine, data,
    data_sha256.
    """
    from fieldrun.evaluation.dataset import read_tsv
    from fieldrun.evaluation.evaluate import evaluate as measure

    from .answers import note_dropped

    if confusion is not None:
        check_output(confusion, force=force)
    dataset = read_tsv(data)
    with open_model(bundle, engine, threads, overflow, provider) as model, progress() as step:
        found = measure(model, dataset, task, batch_size=BATCH, progress=step)
        name, used = model.manifest.name, model.engine
    matrix = found.confusion.tolist()
    if confusion is not None:
        rows = [["true\\predicted", *found.labels]]
        rows += [[label, *map(str, row)] for label, row in zip(found.labels, matrix, strict=True)]
        write_bytes(confusion, "".join("\t".join(row) + "\n" for row in rows).encode("utf-8"))
    note_dropped(found.dropped or 0, found.cut or 0, found.n)
    if as_json:
        result = {"task": task} | found.to_dict() | {"bundle": name, "engine": used}
        result |= {"confusion": {"labels": result.pop("labels"), "matrix": matrix}}
        put_json(result | {"data": str(data), "data_sha256": dataset.sha256})
    else:
        low, high = found.ci95
        put(
            f"{task}  accuracy {found.accuracy:.2%} (95 % interval {low:.2%} to {high:.2%}, n = {found.n})  "
            f"macro F1 {found.macro_f1:.2%}"
        )
