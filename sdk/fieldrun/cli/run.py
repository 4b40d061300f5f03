"""`fieldrun run`: texts in, labels out, as they come."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from .inputs import read_batches
from .options import bundle_argument, examples, json_option, open_model, runtime_options
from .output import flush, one_line, put, put_json, terminal_width

if TYPE_CHECKING:
    from .answers import Answers

__all__ = ["run"]


@click.command(
    short_help="Label texts, or lines of stdin as they come.",
    epilog=examples(
        'fieldrun run reference --task sst2 "a film to remember"',
        "fieldrun run reference --task all --json < sentences.txt",
        'fieldrun run reference --task rte --pair "It rains." "It is wet."',
    ),
)
@bundle_argument()
@click.argument("texts", nargs=-1, metavar="[TEXT]...")
@click.option("--task", "wanted", multiple=True, required=True, help="A task of the bundle, or 'all'; may be repeated.")
@click.option(
    "--pair", "pairs", nargs=2, multiple=True, metavar="A B", help="One pair, for a pair task; may be repeated."
)
@click.option("--top", type=click.IntRange(min=1), help="How many labels to show, best first.  [default: 1; JSON: all]")
@runtime_options
@json_option
def run(
    bundle: str,
    texts: tuple[str, ...],
    wanted: tuple[str, ...],
    pairs: tuple[tuple[str, str], ...],
    top: int | None,
    engine: str,
    provider: str | None,
    threads: int,
    overflow: str,
    as_json: bool,
) -> None:
    """Label texts: the arguments TEXT, or each line of stdin as it comes.

    Prints label, probability and text; one forward pass serves all the tasks. For a pair task, give --pair A B, or
    lines 'a<TAB>b'. 'all' means every task that takes single texts, or with --pair every pair task. With --json, one
    object per text and task: text, task, label, scores, rejection (larger: less like any of the labels), tokens,
    dropped. A TEXT that begins with '-' goes after '--'.
    """
    from .answers import answer, choose_tasks, note_dropped

    dropped = cut = total = 0
    with open_model(bundle, engine, threads, overflow, provider) as model:
        tasks = choose_tasks(model, wanted, paired=bool(pairs))
        labels = {task: model.labels(task) for task in tasks}
        paired = model.kind(tasks[0]) == "pair"
        try:
            for batch in read_batches(texts, pairs, paired=paired):
                for answers in answer(model, batch, tasks):
                    if as_json:
                        _put_json(answers, labels, top)
                    else:
                        _put_lines(answers, labels, top or 1)
                    flush()
                    total += len(answers.records)
                    cut += int((answers.dropped > 0).sum())
                    dropped += int(answers.dropped.sum())
        finally:
            note_dropped(dropped, cut, total)


def _put_json(answers: Answers, labels: dict[str, tuple[str, ...]], top: int | None) -> None:
    for i, record in enumerate(answers.records):
        for task, names in labels.items():
            best = _best(names, answers.scores[task][i])
            line: dict[str, Any] = {
                "text": record.value,
                "task": task,
                "label": best[0][0],
                "scores": dict(best[:top]),
                "rejection": float(str(answers.rejection[task][i])),
                "tokens": int(answers.tokens[i]),
                "dropped": int(answers.dropped[i]),
            }
            put_json(line)


def _put_lines(answers: Answers, labels: dict[str, tuple[str, ...]], top: int) -> None:
    task_width = max(map(len, labels)) if len(labels) > 1 else 0
    label_width = max(len(name) for names in labels.values() for name in names)
    for i, record in enumerate(answers.records):
        text = record.value if isinstance(record.value, str) else " | ".join(record.value)
        for task, names in labels.items():
            best = _best(names, answers.scores[task][i])[:top]
            cells = [task.ljust(task_width)] if task_width else []
            cells += [f"{one_line(label):<{label_width}}  {score:.3f}" for label, score in best]
            put(_row(cells, text))


def _row(cells: list[str], text: str) -> str:
    """Join `cells` and the text, which is cut where the terminal ends."""
    start = "  ".join(cells) + "  "
    width = terminal_width()
    return start + one_line(text, None if width is None else max(20, width - len(start)))


def _best(names: tuple[str, ...], scores: Any) -> list[tuple[str, float]]:
    """Return (label, probability), best first; the float has as many digits as the float32 it came from."""
    order = (-scores).argsort(kind="stable")
    return [(names[j], float(str(scores[j]))) for j in order]
