"""`fieldrun run`: texts in, labels out, as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .inputs import choose_tasks, read_batches
from .options import bundle_option, examples, json_option, runtime_options, task_option
from .output import flush, note_dropped, one_line, put, put_json, terminal_width

if TYPE_CHECKING:
    from fieldrun_runtimes.answers import Answer

__all__ = ["run"]


@click.command(
    short_help="Label texts, or lines of stdin as they come.",
    epilog=examples(
        'fieldrun run --task sst2 "a film to remember"',
        "fieldrun run -b my-bundle --json < sentences.txt",
        'fieldrun run --task rte --pair "It rains." "It is wet."',
    ),
)
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@bundle_option
@task_option
@click.option("--pair", "pairs", nargs=2, multiple=True, metavar="A B", help="A pair of texts, for a pair task.")
@click.option("--top", type=click.IntRange(min=1), help="The number of labels to show.  [default: 1; JSON: all]")
@runtime_options
@json_option
def run(
    texts: tuple[str, ...],
    bundle: str,
    tasks: tuple[str, ...],
    pairs: tuple[tuple[str, str], ...],
    top: int | None,
    runtime: dict[str, Any],
    as_json: bool,
) -> None:
    """Label texts: the arguments TEXT, or each line of stdin as it arrives.

    Prints label, probability and text. One forward pass serves all the tasks. For a pair task, give --pair A B, or
    lines with a tab between the two texts. A TEXT that begins with '-' goes after '--'.

    With --json, one object per text and task: text, task, label, scores, rejection (larger: less like any of the
    labels), tokens, dropped.
    """
    import fieldrun

    dropped = cut = total = 0
    with fieldrun.load(bundle, **runtime) as model:
        chosen, paired = choose_tasks(model, tasks, paired=bool(pairs))
        task_width = max(map(len, chosen)) if len(chosen) > 1 else 0
        label_width = max(len(label) for task in chosen for label in model.labels(task))
        shown = top or (None if as_json else 1)
        try:
            for batch in read_batches(texts, pairs, paired=paired):
                for i, found in enumerate(fieldrun.answer(model, batch.texts, chosen, top=shown, names=batch.names)):
                    if as_json:
                        put_json(found)
                    else:
                        put(_line(found, task_width, label_width))
                    if i % len(chosen) == 0:
                        total, cut = total + 1, cut + (found["dropped"] > 0)
                        dropped += found["dropped"]
                flush()
        finally:
            note_dropped(dropped, cut, total)


def _line(found: Answer, task_width: int, label_width: int) -> str:
    """Return task (if there are several), labels with probabilities, and the text, cut where the terminal ends."""
    cells = [found["task"].ljust(task_width)] if task_width else []
    cells += [f"{one_line(label):<{label_width}}  {score:.3f}" for label, score in found["scores"].items()]
    start = "  ".join(cells) + "  "
    width = terminal_width()
    text = found["text"] if isinstance(found["text"], str) else " | ".join(found["text"])
    return start + one_line(text, None if width is None else max(20, width - len(start)))
