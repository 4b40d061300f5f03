"""`fieldrun run`: texts in, labels out, as they come."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from fieldrun.errors import UsageError

from .inputs import read_batches
from .options import bundle_argument, examples, json_option, open_model, runtime_options
from .output import flush, note, one_line, progress, put, put_json, terminal_width

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
@click.option(
    "--from", "sources", type=click.Path(path_type=Path), multiple=True, help="Label a file's lines; repeatable."
)
@click.option("-o", "--output", type=click.Path(path_type=Path), help="With --from: the file of JSON lines to write.")
@click.option("--workers", type=click.IntRange(min=1), help="With --from: so many processes.  [default: 1]")
@click.option("--restart", is_flag=True, help="With --from: begin anew instead of going on where a run was ended.")
@runtime_options
@json_option
def run(
    bundle: str,
    texts: tuple[str, ...],
    wanted: tuple[str, ...],
    pairs: tuple[tuple[str, str], ...],
    top: int | None,
    sources: tuple[Path, ...],
    output: Path | None,
    workers: int | None,
    restart: bool,
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

    With --from the lines of files are labelled by --workers processes into the file -o, in their order, as those JSON
    objects; --json then prints a summary. Ended half-way, the same command goes on where it stopped.
    """
    if sources or output or workers or restart:
        if not sources or output is None or texts or pairs:
            raise UsageError("files are labelled with --from FILE -o OUT, without TEXT or --pair")
        _run_files(bundle, wanted, sources, output, workers or 1, restart, top, (engine, threads, overflow), as_json)
        return
    from .answers import answer, choose_tasks, json_objects, note_dropped

    dropped = cut = total = 0
    with open_model(bundle, engine, threads, overflow, provider) as model:
        tasks = choose_tasks(model, wanted, paired=bool(pairs))
        labels = {task: model.labels(task) for task in tasks}
        paired = model.kind(tasks[0]) == "pair"
        try:
            for batch in read_batches(texts, pairs, paired=paired):
                for answers in answer(model, batch, tasks):
                    if as_json:
                        for line in json_objects(answers, labels, top):
                            put_json(line)
                    else:
                        _put_lines(answers, labels, top or 1)
                    flush()
                    total += len(answers.records)
                    cut += int((answers.dropped > 0).sum())
                    dropped += int(answers.dropped.sum())
        finally:
            note_dropped(dropped, cut, total)


def _run_files(
    bundle: str,
    wanted: tuple[str, ...],
    sources: tuple[Path, ...],
    output: Path,
    workers: int,
    restart: bool,
    top: int | None,
    runtime: tuple[str, int, str],
    as_json: bool,
) -> None:
    from .answers import note_dropped
    from .bulk import label_files

    with progress() as step:
        done = label_files(
            bundle, wanted, sources, output, workers=workers, restart=restart, top=top, runtime=runtime, progress=step
        )
    note_dropped(done.dropped, done.cut, done.lines)
    if done.resumed_at:
        note(f"went on at line {done.resumed_at + 1} of an earlier run")
    if as_json:
        put_json(
            {"path": str(output), "lines": done.lines, "resumed_at": done.resumed_at, "seconds": round(done.seconds, 3)}
        )
    else:
        rate = (done.lines - done.resumed_at) / done.seconds
        put(f"{output}: {done.lines:,} lines, {rate:,.0f} lines/s with {workers} worker{'' if workers == 1 else 's'}")


def _put_lines(answers: Answers, labels: dict[str, tuple[str, ...]], top: int) -> None:
    from .answers import best_first

    task_width = max(map(len, labels)) if len(labels) > 1 else 0
    label_width = max(len(name) for names in labels.values() for name in names)
    for i, record in enumerate(answers.records):
        text = record.value if isinstance(record.value, str) else " | ".join(record.value)
        for task, names in labels.items():
            best = best_first(names, answers.scores[task][i])[:top]
            cells = [task.ljust(task_width)] if task_width else []
            cells += [f"{one_line(label):<{label_width}}  {score:.3f}" for label, score in best]
            put(_row(cells, text))


def _row(cells: list[str], text: str) -> str:
    """Join `cells` and the text, which is cut where the terminal ends."""
    start = "  ".join(cells) + "  "
    width = terminal_width()
    return start + one_line(text, None if width is None else max(20, width - len(start)))
