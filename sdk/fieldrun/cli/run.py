"""`fieldrun run`: texts in, labels out, as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from fieldrun.errors import InputTextError

from .inputs import choose_tasks, read_batches
from .options import bundle_option, examples, json_option, on_error_option, runtime_options, task_option, unknown_option
from .output import end_with_errors, flush, note_dropped, one_line, put, put_json, terminal_width

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
@click.option(
    "--top", type=click.IntRange(min=1), help="The number of labels to show, best first.  [default: 1; JSON: all]"
)
@on_error_option
@unknown_option
@runtime_options
@json_option
def run(
    texts: tuple[str, ...],
    bundle: str,
    tasks: tuple[str, ...],
    pairs: tuple[tuple[str, str], ...],
    top: int | None,
    on_error: str | None,
    unknown: str,
    runtime: dict[str, Any],
    as_json: bool,
) -> None:
    """Label texts: the arguments TEXT, or each line of stdin as it arrives.

    Prints label, probability and text. One forward pass serves all the tasks. For a pair task, give --pair A B, or
    lines with a tab between the two texts. A TEXT that begins with '-' goes after '--'.

    With --json, one object per text and task: text, task, label, scores, rejection (larger: less like any of the
    labels), known (the share of tokens that the vocabulary has), tokens, dropped.

    A line that cannot be answered (blank, not UTF-8, without a token) does not end the command: one object with its
    number stands in its place, {"line": 3, "error": {"type": ..., "message": ...}}, and the exit code is 2 at the end.
    """
    import fieldrun

    dropped = cut = total = failures = 0
    policy = on_error or ("fail" if texts or pairs else "report")
    with fieldrun.load(bundle, **runtime, unknown=unknown) as model:
        chosen, paired = choose_tasks(model, tasks, paired=bool(pairs))
        task_width = max(map(len, chosen)) if len(chosen) > 1 else 0
        label_width = max(len(label) for task in chosen for label in model.labels(task))
        shown = top or (None if as_json else 1)
        try:
            for batch in read_batches(texts, pairs, paired=paired, on_error=policy):
                total += len(batch.texts)
                for found in fieldrun.answer(
                    model, batch.texts, chosen, top=shown, on_error=policy, lines=batch.lines, names=batch.names
                ):
                    if "error" in found:
                        failures += 1
                        put_json(found)
                        continue
                    put_json(found) if as_json else put(_line(found, task_width, label_width))
                    if found["task"] == chosen[0]:
                        cut, dropped = cut + (found["dropped"] > 0), dropped + found["dropped"]
                flush()
        finally:
            note_dropped(dropped, cut, total)
    end_with_errors(failures, total, InputTextError.exit_code)


def _line(found: Answer, task_width: int, label_width: int) -> str:
    """Return task (if there are several), labels with probabilities, and the text, cut where the terminal ends."""
    cells = [found["task"].ljust(task_width)] if task_width else []
    scores = found["scores"] if found["label"] is not None else {}
    cells += [f"{one_line(label):<{label_width}}  {score:.3f}" for label, score in scores.items()]
    cells += [] if scores else [f"{'-':<{label_width}}  -    "]
    start = "  ".join(cells) + "  "
    width = terminal_width()
    text = found["text"] if isinstance(found["text"], str) else " | ".join(found["text"])
    return start + one_line(text, None if width is None else max(20, width - len(start)))
