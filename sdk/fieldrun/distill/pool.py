"""The training text: every distinct text once, and each task as row numbers and label numbers into it."""

from __future__ import annotations

import io
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fieldrun.errors import DatasetError, RecipeError
from fieldrun.evaluation.copies import Key, first_rows, text_key
from fieldrun.evaluation.dataset import Dataset, read_tsv
from fieldrun.formats.storage import sha256_bytes
from fieldrun.formats.tensors import Array

from .recipe import CorpusRecipe, DistillRecipe, TaskRecipe, is_task_name

__all__ = ["Split", "TaskData", "TextPool", "build_pool", "discover_tasks"]

_SENTENCES = 600  # to hold out of a file of phrases; each removes about five others from the train rows
_ENDS = (".tsv", ".csv", ".jsonl", ".parquet")
_REPLACED, _LEFT_OUT = 0.15, 0.1  # of the words of an altered copy
Integers = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Labelled rows: `rows`, into the pool's texts, is `(n,)` for single tasks and `(n, 2)` for pairs; `labels` `(n,)`.

    The labels of a similarity task are float32 grades within 0..1, those of other tasks label numbers.
    """

    rows: Integers
    labels: Array

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskData:
    """The splits of a task: `train` to learn from, `held_out` (a slice of train) to choose on, `report` to report on.

    `kind` is `single`, `pair` or `similarity`; a similarity task has a grade for each pair instead of labels.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    train: Split
    held_out: Split
    report: Split | None


@dataclass(frozen=True, slots=True, kw_only=True)
class TextPool:
    """All texts. Those before `n_transfer` may be trained on; the others are held out or reported on.

    The first `n_labelled` texts come from train files. `tasks` are the classifiers, `similarities` the graded pairs.
    """

    texts: tuple[str, ...]
    n_transfer: int
    n_labelled: int
    corpus: Mapping[str, tuple[int, int]]
    tasks: tuple[TaskData, ...]
    similarities: tuple[TaskData, ...]
    hashes: Mapping[str, str]


def discover_tasks(data: Path) -> tuple[TaskRecipe, ...]:
    """Return a task for every folder of `data` with a train file, to report on its dev file or else its test file.

    A file is a table of any kind: `train.tsv`, `train.csv`, `train.jsonl` or `train.parquet`.
    """
    tasks = []
    for train in sorted({p.parent: p for end in reversed(_ENDS) for p in data.glob(f"*/train{end}")}.values()):
        folder = train.parent
        if not is_task_name(folder.name):
            raise DatasetError(f"the folder {folder} cannot name a task; rename it to letters, digits, '-' and '_'")
        names = (f"{stem}{end}" for stem in ("dev", "test") for end in _ENDS)
        report = next((name for name in names if (folder / name).is_file()), None)
        tasks.append(TaskRecipe(name=folder.name, train=(train.name,), report=report))
    if not tasks:
        raise DatasetError(f"{data} has no task; add {data}/<task>/train.tsv with the header text<TAB>label")
    return tuple(tasks)


def build_pool(recipe: DistillRecipe, data: Path) -> TextPool:
    """Read the data folder: tasks, a held-out slice of each train file, and the drawn corpus lines.

    A text that is held out or reported on is never trained on, even if a train file or corpus has it too. Texts are
    the same when they are equal but for case, whitespace and Unicode form, and a row that is there twice counts once.

    Raises:
        DatasetError: a file is missing or not valid, or a task has fewer than two labels or too few rows.
        RecipeError: a corpus names a task that the data does not have.
    """
    rng = np.random.default_rng(recipe.seed)
    hashes: dict[str, str] = {}
    tasks = [
        _read_task(task, data, recipe.training.held_out, rng, hashes) for task in recipe.tasks or discover_tasks(data)
    ]
    reserved = dict.fromkeys(part for task in tasks for part in task.reserved())
    hidden = {text_key(text) for text in reserved}
    seen = dict.fromkeys(part for task in tasks for part in _parts_of(task.rows) if text_key(part) not in hidden)
    n_labelled = len(seen)
    spans: dict[str, tuple[int, int]] = {}
    for corpus in recipe.corpus:
        unknown = sorted(set(corpus.tasks) - {task.recipe.name for task in tasks})
        if unknown:
            what = f"corpus {corpus.file!r} names the task {unknown[0]!r}"
            raise RecipeError(f"{what}, which the data does not have; correct its tasks")
        lines, hashes[f"corpus/{corpus.file}.txt"] = _corpus_lines(data, corpus)
        if corpus.treebank:
            lines = [line.replace("n't", " n't") if number % 2 else line for number, line in enumerate(lines)]
        lines = [line for line in lines if len(line) <= corpus.max_chars and text_key(line) not in hidden]
        start = len(seen)
        for i in rng.permutation(len(lines)):
            if len(seen) - start == corpus.rows:
                break
            seen.setdefault(lines[i])
        spans[corpus.file] = (start, len(seen))
    for task in tasks:
        start = len(seen)
        own = dict.fromkeys(_parts_of(text for i, text in enumerate(task.rows) if i not in task.held))
        altered = _altered([text for text in own if text in seen], task.recipe.augment, rng)
        seen |= dict.fromkeys(text for text in altered if text_key(text) not in hidden)
        if task.recipe.augment:
            spans[f"{task.recipe.name}, altered"] = (start, len(seen))
    n_transfer = len(seen)
    seen |= reserved
    index = {text: i for i, text in enumerate(seen)}
    found = [task.split(index, hidden) for task in tasks]
    return TextPool(
        texts=tuple(seen),
        n_transfer=n_transfer,
        n_labelled=n_labelled,
        corpus=spans,
        tasks=tuple(task for task in found if task.kind != "similarity"),
        similarities=tuple(task for task in found if task.kind == "similarity"),
        hashes=hashes,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Task:
    """The files of a task: the rows of its train files with their `names` of labels, and which rows are `held` out."""

    recipe: TaskRecipe
    labels: tuple[str, ...]
    rows: Sequence[str | tuple[str, str]]
    names: Sequence[str]
    held: frozenset[int]
    report: Dataset | None

    def reserved(self) -> Iterator[str]:
        """Yield the texts that must not be trained on."""
        yield from _parts_of(self.rows[i] for i in sorted(self.held))
        yield from _parts_of(self.report.texts if self.report else ())

    def split(self, index: Mapping[str, int], hidden: Set[Key]) -> TaskData:
        """Return the splits as numbers; `index` has the number of each text, `hidden` the keys of reserved ones."""
        free = (i for i in range(len(self.rows)) if i not in self.held)
        kept = [i for i in free if hidden.isdisjoint(map(text_key, _parts(self.rows[i])))]
        if not kept:
            what = f"task {self.recipe.name!r}: all train texts are held out or reported on too"
            raise DatasetError(f"{what}; add other rows")
        train, held = (
            _split([self.rows[i] for i in rows], [self.names[i] for i in rows], self.labels, index, self.recipe)
            for rows in (kept, sorted(self.held))
        )
        report = None
        if self.report is not None:
            report = _split(self.report.texts, self.report.labels, self.labels, index, self.recipe)
        kind = "similarity" if self.recipe.similarity else "pair" if train.rows.ndim == 2 else "single"
        return TaskData(name=self.recipe.name, kind=kind, labels=self.labels, train=train, held_out=held, report=report)


def _read_task(task: TaskRecipe, data: Path, share: float, rng: np.random.Generator, hashes: dict[str, str]) -> _Task:
    """Read the files of a task and choose the rows to hold out; add the sha256 of the files to `hashes`."""
    sets = [read_tsv(data / task.name / name) for name in task.train]
    report = read_tsv(data / task.name / task.report) if task.report else None
    every = [*sets, *([report] if report else [])]
    hashes |= {found.path.relative_to(data).as_posix(): str(found.sha256) for found in every}
    if len({found.kind for found in every}) != 1:
        raise DatasetError(f"task {task.name!r} has files of single texts and of pairs; split it into two tasks")
    given: list[tuple[Any, str]] = [
        (text, label) for found in sets for text, label in zip(found.texts, found.labels, strict=True)
    ]
    different = [given[i] for i in first_rows((text_key(text), label) for text, label in given)]
    rows, names = [text for text, _ in different], [label for _, label in different]
    labels = tuple(sorted(set(names)))
    if task.similarity:
        labels = _check_grades(task, every)
    elif len(labels) < 2 or len(rows) < 20:
        many = f"{len(rows)} rows and {len(labels)} labels"
        raise DatasetError(f"task {task.name!r} has {many}; it needs 20 rows and 2 labels")
    order = rng.permutation(len(rows))
    wanted = min(2000, max(2, round(share * len(rows))))
    held = {int(i) for i in order[:wanted]}
    if task.phrases:
        held, dropped = _hold_out_sentences([str(text) for text in rows], order, min(wanted, _SENTENCES))
        kept = [i for i in range(len(rows)) if i not in dropped]
        renumber = {i: k for k, i in enumerate(kept)}
        rows, names, held = [rows[i] for i in kept], [names[i] for i in kept], {renumber[i] for i in held}
    return _Task(recipe=task, labels=labels, rows=rows, names=names, held=frozenset(held), report=report)


def _check_grades(task: TaskRecipe, sets: Sequence[Dataset]) -> tuple[str, ...]:
    """Check that a similarity task has pairs with grades, and return its labels, none; `DatasetError` if not."""
    for data in sets:
        if data.kind != "pair":
            raise DatasetError(f"task {task.name!r} has graded pairs; the rows of {data.path} must be pairs of texts")
        for record, label in enumerate(data.labels):
            try:
                valid = 0 <= float(label) <= task.similarity
            except ValueError:
                valid = False
            if not valid:
                raise DatasetError(
                    f"{data.where(record)}: {label!r} is not a grade within 0..{task.similarity:g}; "
                    "correct it, or set `similarity` in the recipe to the highest grade"
                )
    return ()


def _hold_out_sentences(rows: Sequence[str], order: Integers, wanted: int) -> tuple[set[int], set[int]]:
    """Hold out whole sentences of a file whose rows are phrases of one another, as those of SST-2 are.

    Returns:
        The numbers of the first `wanted` rows in `order` that are not a phrase of another row, and those of their
        phrases of four or more words, which must be neither trained on nor held out.
    """
    words = [text.split() for text in rows]
    inner: set[tuple[str, ...]] = set()
    for row in words:
        inner.update(tuple(row[i:j]) for i in range(len(row)) for j in range(i + 1, len(row) + 1) if j - i < len(row))
    whole = [int(i) for i in order if tuple(words[i]) not in inner]
    held = set(whole[:wanted])
    theirs = {tuple(words[k][i:j]) for k in held for i in range(len(words[k])) for j in range(i + 4, len(words[k]) + 1)}
    dropped = {i for i, row in enumerate(words) if i not in held and tuple(row) in theirs}
    return held, dropped


def _altered(texts: Sequence[str], times: int, rng: np.random.Generator) -> Iterator[str]:
    """Yield `times` altered copies of every text: some words are left out, or replaced by other words of the texts.

    The copies have no label: the teacher labels them (after Tang et al. 2019).
    """
    if not times:
        return
    words = np.array([word for text in texts for word in text.split()], object)
    for text in texts:
        old = text.split()
        for _ in range(times):
            chance, other = rng.random(len(old)), rng.integers(0, len(words), len(old))
            new = [words[o] if c < _REPLACED else w for w, c, o in zip(old, chance, other, strict=True)]
            new = [w for w, c in zip(new, chance, strict=True) if c < 1 - _LEFT_OUT]
            if new and new != old:
                yield " ".join(new)


def _corpus_lines(data: Path, corpus: CorpusRecipe) -> tuple[list[str], str]:
    """Return the lines of a corpus that are not blank, and the sha256 of its file."""
    path = data / "corpus" / f"{corpus.file}.txt"
    if not path.is_file():
        raise DatasetError(f"the recipe's corpus {path} does not exist; add it to the data folder")
    try:
        raw = path.read_bytes()
        lines = io.TextIOWrapper(io.BytesIO(raw), "utf-8-sig").read().split("\n")
        return [line for line in lines if line.strip()], sha256_bytes(raw)
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path} is not valid UTF-8 at byte {error.start}; convert the file to UTF-8") from error
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}") from error


def _parts(text: str | tuple[str, str]) -> tuple[str, ...]:
    return (text,) if isinstance(text, str) else text


def _parts_of(texts: Iterable[str | tuple[str, str]]) -> Iterator[str]:
    return (part for text in texts for part in _parts(text))


def _split(
    texts: Sequence[str | tuple[str, str]],
    names: Sequence[str],
    labels: Sequence[str],
    index: Mapping[str, int],
    task: TaskRecipe,
) -> Split:
    rows = np.array([[index[p] for p in _parts(text)] for text in texts], np.int64)
    rows = rows[:, 0] if rows.shape[1] == 1 else rows
    if task.similarity:
        return Split(rows=rows, labels=np.array([float(name) / task.similarity for name in names], np.float32))
    number = {label: i for i, label in enumerate(labels)}
    unknown = next((name for name in names if name not in number), None)
    if unknown is not None:
        raise DatasetError(f"task {task.name!r}: the report file has the label {unknown!r}, the train files do not")
    return Split(rows=rows, labels=np.array([number[name] for name in names], np.int64))
