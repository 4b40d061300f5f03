"""The training text: every different text once, and each task as row numbers and label numbers into it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from fieldrun.dataset import Dataset, read_tsv
from fieldrun.errors import DatasetError, RecipeError
from fieldrun.storage import sha256_file

from .recipe import CorpusRecipe, DistillRecipe, TaskRecipe, is_task_name

__all__ = ["Split", "TaskData", "TextPool", "build_pool", "discover_tasks"]

Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Labelled rows: `rows` is `(n,)` for single tasks, `(n, 2)` for pairs, into the pool's texts; `labels` `(n,)`."""

    rows: Integers
    labels: Integers

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskData:
    """One task's splits. `train` is learnt from, `held_out` (a slice of train) chooses, `report` is only reported."""

    name: str
    kind: str
    labels: tuple[str, ...]
    train: Split
    held_out: Split
    report: Split | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPool:
    """All texts. Texts before `n_transfer` may be trained on; the others are held out or for the report."""

    texts: tuple[str, ...]
    n_transfer: int
    corpus: Mapping[str, tuple[int, int]]
    tasks: tuple[TaskData, ...]
    hashes: Mapping[str, str]


def discover_tasks(data: Path) -> tuple[TaskRecipe, ...]:
    """Return a task for every folder of `data` with a `train.tsv`; reports on its `dev.tsv` or else `test.tsv`."""
    tasks = []
    for folder in sorted(p.parent for p in data.glob("*/train.tsv")):
        if not is_task_name(folder.name):
            raise DatasetError(f"the folder {folder} cannot name a task; rename it to letters, digits, '-' and '_'")
        report = next((name for name in ("dev.tsv", "test.tsv") if (folder / name).is_file()), None)
        tasks.append(TaskRecipe(name=folder.name, report=report))
    if not tasks:
        raise DatasetError(f"{data} has no task: put your rows into {data}/<task>/train.tsv, header text<TAB>label")
    return tuple(tasks)


def build_pool(recipe: DistillRecipe, data: Path) -> TextPool:
    """Read the data folder: tasks, a held-out slice of each train file, and the drawn corpus lines.

    A text that is held out or reported on is never among the texts to train on, whichever file it also stands in.

    Raises:
        DatasetError: a file is missing or broken, or a task has fewer than two labels or too few rows.
        RecipeError: a corpus counts for a task that there is not.
    """
    rng = np.random.default_rng(recipe.seed)
    hashes: dict[str, str] = {}
    raw: list[tuple[TaskRecipe, tuple[str, ...], list[Dataset], Dataset | None, Integers]] = []
    for task in recipe.tasks or discover_tasks(data):
        files = [data / task.name / name for name in task.train]
        sets = [read_tsv(path) for path in files]
        report = read_tsv(data / task.name / task.report) if task.report else None
        for path in (*files, *([data / task.name / task.report] if task.report else [])):
            hashes[str(path.relative_to(data).as_posix())] = sha256_file(path)
        if len({s.kind for s in (*sets, *([report] if report else []))}) != 1:
            raise DatasetError(f"task {task.name!r} mixes files of single texts and of pairs")
        labels = tuple(sorted({label for s in sets for label in s.labels}))
        n = sum(len(s) for s in sets)
        if len(labels) < 2 or n < 20:
            raise DatasetError(
                f"task {task.name!r} has {n} rows and {len(labels)} labels; it needs 20 rows and 2 labels"
            )
        raw.append((task, labels, sets, report, rng.permutation(n)))

    for corpus in recipe.corpus:
        unknown = sorted(set(corpus.tasks) - {task.name for task, *_ in raw})
        if unknown:
            raise RecipeError(
                f"corpus {corpus.file!r} counts for the task {unknown[0]!r}, which the data does not have"
            )

    reserved: dict[str, None] = {}
    seen: dict[str, None] = {}
    plans = []
    for task, labels, sets, report, order in raw:
        rows = [text for s in sets for text in s.texts]
        names = [label for s in sets for label in s.labels]
        held = {int(i) for i in order[: min(2000, max(2, round(recipe.training.held_out * len(rows))))]}
        for text in (rows[i] for i in sorted(held)):
            reserved.update(dict.fromkeys(_parts(text)))
        if report is not None:
            for text in report.texts:
                reserved.update(dict.fromkeys(_parts(text)))
        plans.append((task, labels, rows, names, held, report))
    for _, _, rows, _, _, _ in plans:
        for text in rows:
            seen.update(dict.fromkeys(part for part in _parts(text) if part not in reserved))
    spans: dict[str, tuple[int, int]] = {}
    for corpus in recipe.corpus:
        lines, hashes[f"corpus/{corpus.file}.txt"] = _corpus_lines(data, corpus)
        lines = [line for line in lines if line not in reserved]
        start = len(seen)
        for i in rng.permutation(len(lines)):
            if len(seen) - start == corpus.rows:
                break
            seen.setdefault(lines[i])
        spans[corpus.file] = (start, len(seen))
    n_transfer = len(seen)
    for text in reserved:
        seen.setdefault(text)
    index = {text: i for i, text in enumerate(seen)}
    tasks = []
    for task, labels, rows, names, held, report in plans:
        kept = [i for i in range(len(rows)) if i not in held and not any(p in reserved for p in _parts(rows[i]))]
        if not kept:
            raise DatasetError(f"task {task.name!r}: every train text is also held out or reported on; add other rows")
        train = _split([rows[i] for i in kept], [names[i] for i in kept], labels, index, task.name)
        slice_ = _split([rows[i] for i in sorted(held)], [names[i] for i in sorted(held)], labels, index, task.name)
        reported = None if report is None else _split(report.texts, report.labels, labels, index, task.name)
        kind = "pair" if train.rows.ndim == 2 else "single"
        tasks.append(TaskData(name=task.name, kind=kind, labels=labels, train=train, held_out=slice_, report=reported))
    return TextPool(texts=tuple(seen), n_transfer=n_transfer, corpus=spans, tasks=tuple(tasks), hashes=hashes)


def _corpus_lines(data: Path, corpus: CorpusRecipe) -> tuple[list[str], str]:
    """Return the lines of a corpus that are not blank, and the sha256 of its file."""
    path = data / "corpus" / f"{corpus.file}.txt"
    if not path.is_file():
        raise DatasetError(f"the recipe's corpus {path} does not exist; give --data a folder that has it")
    try:
        return [line for line in path.read_text("utf-8").split("\n") if line.strip()], sha256_file(path)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not valid UTF-8 at byte {error.start}; convert the file to UTF-8") from error
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from error


def _parts(text: str | tuple[str, str]) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text


def _split(
    texts: Sequence[str | tuple[str, str]],
    names: Sequence[str],
    labels: Sequence[str],
    index: Mapping[str, int],
    task: str,
) -> Split:
    number = {label: i for i, label in enumerate(labels)}
    unknown = next((name for name in names if name not in number), None)
    if unknown is not None:
        raise DatasetError(f"task {task!r}: the report file has the label {unknown!r}, which no train row has")
    rows = np.array([[index[p] for p in _parts(text)] for text in texts], np.int64)
    return Split(
        rows=rows[:, 0] if rows.shape[1] == 1 else rows, labels=np.array([number[name] for name in names], np.int64)
    )
