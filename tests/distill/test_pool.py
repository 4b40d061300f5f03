"""The pool: what may be trained on, what may not, and which data folders are refused."""

from __future__ import annotations

import shutil
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from fieldrun.dataset import read_tsv
from fieldrun.distill.pool import Split, TextPool, build_pool, discover_tasks
from fieldrun.distill.recipe import CorpusRecipe, DistillRecipe, TaskRecipe, load_recipe
from fieldrun.errors import DatasetError, FieldrunError, RecipeError

from .conftest import write_tsv

WORDS = st.sampled_from([f"text {i}" for i in range(60)])
ROWS = st.lists(st.tuples(WORDS, st.sampled_from("xyz")), min_size=20, max_size=60)
REPORT = st.lists(st.tuples(WORDS, st.sampled_from("xy")), min_size=1, max_size=6)
PAIRS = st.lists(st.tuples(WORDS, WORDS, st.sampled_from("xy")), min_size=20, max_size=40)
LINES = st.lists(WORDS, max_size=30)


def quick(**changes: object) -> DistillRecipe:
    return replace(load_recipe("quick"), **changes)  # type: ignore[arg-type]


def rows_of(pool: TextPool, split: Split, labels: tuple[str, ...]) -> list[tuple[str, ...]]:
    """Translate a split back into the file's rows."""
    rows = split.rows if split.rows.ndim == 2 else split.rows[:, None]
    return [
        (*(pool.texts[i] for i in row), labels[label]) for row, label in zip(rows, split.labels.tolist(), strict=True)
    ]


@given(single=ROWS, report=REPORT, pairs=PAIRS, lines=LINES, seed=st.integers(0, 9), held_out=st.floats(0.02, 0.4))
@settings(max_examples=60)
def test_what_is_held_out_or_reported_is_never_trained_on(
    single: list[tuple[str, str]],
    report: list[tuple[str, str]],
    pairs: list[tuple[str, str, str]],
    lines: list[str],
    seed: int,
    held_out: float,
) -> None:
    assume(len({label for _, label in single}) > 1 and {label for _, label in report} <= {s[1] for s in single})
    assume(len({label for *_, label in pairs}) > 1)
    recipe = quick(seed=seed, corpus=(CorpusRecipe(file="talk", rows=8),))
    recipe = replace(recipe, training=replace(recipe.training, held_out=held_out))
    with tempfile.TemporaryDirectory() as name:
        data = Path(name)
        write_tsv(data / "one" / "train.tsv", single)
        write_tsv(data / "one" / "test.tsv", report)
        write_tsv(data / "two" / "train.tsv", pairs)
        (data / "corpus").mkdir()
        (data / "corpus" / "talk.txt").write_text("\n".join(["  ", *lines]), "utf-8")
        try:
            pool = build_pool(recipe, data)
        except DatasetError:  # every train text is also held out or reported on
            assume(False)
    assert len(set(pool.texts)) == len(pool.texts)
    one, two = pool.tasks
    assert one.report is not None
    assert two.report is None
    reserved = {i for split in (one.held_out, one.report, two.held_out) for i in split.rows.reshape(-1).tolist()}
    assert reserved == set(range(pool.n_transfer, len(pool.texts)))
    for task, rows in ((one, single), (two, pairs)):
        assert task.kind == ("single" if task is one else "pair")
        assert (task.train.rows < pool.n_transfer).all()
        held = rows_of(pool, task.held_out, task.labels)
        assert len(held) == max(2, round(held_out * len(rows)))
        assert set(held) <= set(rows)
        reserved_texts = {pool.texts[i] for i in reserved}
        kept = [row for row in rows if not reserved_texts & set(row[:-1])]
        assert rows_of(pool, task.train, task.labels) == kept
    assert rows_of(pool, one.report, one.labels) == report
    start, stop = pool.corpus["talk"]
    assert stop == pool.n_transfer
    assert stop - start <= 8
    assert {*pool.texts[start:stop]} <= {*lines} - {text for text, _ in single} - {p for *ab, _ in pairs for p in ab}


def test_the_pool_of_a_folder(data: Path, recipe: Path) -> None:
    pool = build_pool(load_recipe(recipe), data)
    assert [(task.name, task.kind) for task in pool.tasks] == [
        ("intent", "single"),
        ("mood", "single"),
        ("same", "pair"),
    ]
    same = pool.tasks[2]
    assert same.report is not None
    assert same.report.rows.shape == (len(read_tsv(data / "same" / "dev.tsv")), 2)
    assert sorted(pool.hashes) == [
        "corpus/talk.txt", "intent/test.tsv", "intent/train.tsv", "mood/test.tsv", "mood/train.tsv", "same/dev.tsv",
        "same/train.tsv",
    ]  # fmt: skip
    assert pool.corpus["talk"][1] - pool.corpus["talk"][0] == 40
    again = build_pool(load_recipe(recipe), data)
    assert again.texts == pool.texts
    np.testing.assert_array_equal(again.tasks[0].held_out.rows, pool.tasks[0].held_out.rows)


def test_the_report_is_dev_or_else_test(tmp_path: Path) -> None:
    for name, files in {"a": ["train"], "b": ["train", "test"], "c": ["train", "test", "dev"], "d": ["dev"]}.items():
        for file in files:
            write_tsv(tmp_path / name / f"{file}.tsv", [("x", "y")])
    assert [(task.name, task.report) for task in discover_tasks(tmp_path)] == [
        ("a", None),
        ("b", "test.tsv"),
        ("c", "dev.tsv"),
    ]


def test_several_train_files_are_one_task(tmp_path: Path) -> None:
    write_tsv(tmp_path / "a" / "train.tsv", [(f"one {i}", "x") for i in range(15)])
    write_tsv(tmp_path / "a" / "more.tsv", [(f"two {i}", "y") for i in range(15)])
    pool = build_pool(quick(tasks=(TaskRecipe(name="a", train=("train.tsv", "more.tsv")),)), tmp_path)
    assert pool.tasks[0].labels == ("x", "y")
    assert len(pool.tasks[0].train) + len(pool.tasks[0].held_out) == 30


TWENTY = [(f"text {i}", "xy"[i % 2]) for i in range(20)]


@pytest.mark.parametrize(
    ("files", "changes", "message"),
    [
        ({}, {}, "has no task: put your rows into"),
        ({"a": TWENTY[:19]}, {}, "19 rows and 2 labels; it needs 20 rows and 2 labels"),
        ({"a": [(text, "x") for text, _ in TWENTY]}, {}, "20 rows and 1 labels; it needs"),
        ({"my task": TWENTY}, {}, "my task cannot name a task; rename it"),
        ({"a": TWENTY, "a:test": [("t", "z")]}, {}, "report file has the label 'z', which no train row has"),
        ({"a": TWENTY, "a:test": [("t", "u", "x")]}, {}, "mixes files of single texts and of pairs"),
        ({"a": TWENTY, "a:test": TWENTY}, {}, "every train text is also held out or reported on"),
        ({"a": TWENTY}, {"tasks": (TaskRecipe(name="b"),)}, "b/train.tsv does not exist"),
        ({"a": TWENTY}, {"corpus": (CorpusRecipe(file="talk", rows=3),)}, "talk.txt does not exist; give --data"),
    ],
)
def test_data_that_cannot_be_trained_on(
    tmp_path: Path, files: dict[str, list[tuple[str, ...]]], changes: dict[str, object], message: str
) -> None:
    for name, rows in files.items():
        task, _, file = name.partition(":")
        write_tsv(tmp_path / task / f"{file or 'train'}.tsv", rows)
    with pytest.raises(DatasetError, match=message) as caught:
        build_pool(quick(**changes), tmp_path)
    assert "\n" not in str(caught.value)


def test_a_corpus_that_cannot_be_used(data: Path, tmp_path: Path) -> None:
    shutil.copytree(data, tmp_path / "data")
    path = tmp_path / "data" / "corpus" / "talk.txt"
    path.write_bytes(b"good\n\xff\n")
    wrong: dict[str, type[FieldrunError]] = {"not valid UTF-8 at byte 5": DatasetError}
    for message, error in wrong.items():
        with pytest.raises(error, match=message):
            build_pool(quick(corpus=(CorpusRecipe(file="talk", rows=3),)), tmp_path / "data")
    with pytest.raises(RecipeError, match="counts for the task 'moods', which the data does not have"):
        build_pool(quick(corpus=(CorpusRecipe(file="talk", rows=3, tasks=("moods",)),)), data)
