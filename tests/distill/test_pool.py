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

from fieldrun.distill import pool as module
from fieldrun.distill.pool import Split, TextPool, build_pool, discover_tasks
from fieldrun.distill.recipe import CorpusRecipe, DistillRecipe, TaskRecipe, load_recipe
from fieldrun.errors import DatasetError, FieldrunError, RecipeError
from fieldrun.evaluation.copies import text_key
from fieldrun.evaluation.dataset import read_tsv

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
        except DatasetError:  # all train texts are held out or reported on too
            assume(False)
    assert len(set(pool.texts)) == len(pool.texts)
    one, two = pool.tasks
    assert one.report is not None
    assert two.report is None
    reserved = {i for split in (one.held_out, one.report, two.held_out) for i in split.rows.reshape(-1).tolist()}
    assert reserved == set(range(pool.n_transfer, len(pool.texts)))
    for task, rows in ((one, list(dict.fromkeys(single))), (two, list(dict.fromkeys(pairs)))):
        assert task.kind == ("single" if task is one else "pair")
        assert (task.train.rows < pool.n_transfer).all()
        held = rows_of(pool, task.held_out, task.labels)
        assert len(held) == max(2, round(held_out * len(rows)))
        assert set(held) <= set(rows)
        reserved_texts = {pool.texts[i] for i in reserved}
        kept = [row for row in rows if not reserved_texts & set(row[:-1])]
        assert rows_of(pool, task.train, task.labels) == kept
    assert rows_of(pool, one.report, one.labels) == report
    labelled = {text for text, _ in single} | {part for *pair, _ in pairs for part in pair}
    assert {*pool.texts[: pool.n_labelled]} == labelled - {pool.texts[i] for i in reserved}
    assert pool.similarities == ()
    start, stop = pool.corpus["talk"]
    assert stop == pool.n_transfer
    assert stop - start <= 8
    assert {*pool.texts[start:stop]} <= {*lines} - {text for text, _ in single} - {p for *ab, _ in pairs for p in ab}


def test_copies_of_held_out_and_reported_texts_are_never_trained_on(tmp_path: Path) -> None:
    rows = [(f"text number {i}", "xy"[i % 2]) for i in range(60)]
    copies = [(form(text), label) for form in (str.upper, str.title) for text, label in rows]
    write_tsv(tmp_path / "one" / "train.tsv", [*rows, *rows, *copies])
    write_tsv(tmp_path / "one" / "test.tsv", [("Text  Number 7", "y"), ("another", "x")])
    (tmp_path / "corpus").mkdir()
    (tmp_path / "corpus" / "talk.txt").write_text("\n".join([text.upper() for text, _ in rows]), "utf-8")
    pool = build_pool(quick(corpus=(CorpusRecipe(file="talk", rows=99),)), tmp_path)
    (task,) = pool.tasks
    trained = {text_key(text) for text in pool.texts[: pool.n_transfer]}
    held = [text_key(pool.texts[i]) for i in task.held_out.rows.tolist()]
    assert len(held) == len(set(held)) == round(0.05 * 60), "copies do not make the slice longer"
    assert not trained & {*held, "text number 7"}
    assert len(task.train) == 60 - len({*held, "text number 7"})


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


PHRASES = st.lists(st.lists(st.sampled_from("abcde"), min_size=1, max_size=9), min_size=4, max_size=8)


def is_phrase(part: list[str], whole: list[str]) -> bool:
    return any(whole[i : i + len(part)] == part for i in range(len(whole) - len(part) + 1))


@given(sentences=PHRASES, cuts=st.lists(st.tuples(*[st.integers(0, 8)] * 3), min_size=16, max_size=50), data=st.data())
@settings(max_examples=60)
def test_a_held_sentence_takes_its_phrases_out_of_training(
    sentences: list[list[str]], cuts: list[tuple[int, int, int]], data: st.DataObject
) -> None:
    rows = [tuple(sentence) for sentence in sentences]
    rows += [tuple(sentences[k % len(sentences)][i : i + n + 1]) for k, i, n in cuts]
    texts = [" ".join(row) for row in rows if row]
    assume(len(texts) >= 20)
    labels = data.draw(st.lists(st.sampled_from("xy"), min_size=len(texts), max_size=len(texts)))
    assume(len(set(labels)) == 2)
    recipe = quick(tasks=(TaskRecipe(name="a", phrases=True),), seed=data.draw(st.integers(0, 9)))
    recipe = replace(recipe, training=replace(recipe.training, held_out=0.2))
    with tempfile.TemporaryDirectory() as name:
        write_tsv(Path(name) / "a" / "train.tsv", list(zip(texts, labels, strict=True)))
        try:
            pool = build_pool(recipe, Path(name))
        except DatasetError:  # the held sentences take every row with them
            assume(False)
    (task,) = pool.tasks
    words = [text.split() for text, _ in dict.fromkeys(zip(texts, labels, strict=True))]
    held = [pool.texts[i].split() for i in task.held_out.rows]
    whole = [row for row in words if not any(row != other and is_phrase(row, other) for other in words)]
    assert len(held) == min(len(whole), max(2, round(0.2 * len(words))))
    assert all(row in whole for row in held), "a held row is no phrase of another"
    train = [pool.texts[i].split() for i in task.train.rows]
    assert not any(len(row) >= 4 and is_phrase(row, other) for row in train for other in held)
    apart = [row for row in words if row not in held and not (len(row) >= 4 and any(is_phrase(row, h) for h in held))]
    assert train == apart, "nothing else is left out"
    assert pool.n_labelled == len({tuple(row) for row in train})


def test_few_sentences_are_held_out_of_a_large_file_of_phrases(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SENTENCES", 3)
    write_tsv(tmp_path / "a" / "train.tsv", [(f"one two three four {i}", "xy"[i % 2]) for i in range(100)])
    (task,) = build_pool(quick(tasks=(TaskRecipe(name="a", phrases=True),)), tmp_path).tasks
    assert len(task.held_out) == 3
    assert len(task.train) == 97, "they share phrases, but none is one of another"


def test_graded_pairs_are_read(tmp_path: Path) -> None:
    grades = ["0", "5", "2.5", "1.25", "4", "5.0"]
    write_tsv(tmp_path / "alike" / "train.tsv", [(f"left {i}", f"right {i}", g) for i, g in enumerate(grades)])
    write_tsv(tmp_path / "alike" / "dev.tsv", [("a", "b", "3"), ("left 2", "c", "0.5")])
    write_tsv(tmp_path / "other" / "train.tsv", TWENTY)
    tasks = (TaskRecipe(name="alike", similarity=5, report="dev.tsv"), TaskRecipe(name="other"))
    pool = build_pool(quick(tasks=tasks), tmp_path)
    assert [task.name for task in pool.tasks] == ["other"], "no head is made for it"
    (alike,) = pool.similarities
    assert (alike.kind, alike.labels) == ("similarity", ())
    assert alike.report is not None
    found = {}
    for split in (alike.train, alike.held_out, alike.report):
        assert split.labels.dtype == np.float32
        for (a, b), grade in zip(split.rows, split.labels.tolist(), strict=True):
            found[pool.texts[a], pool.texts[b]] = grade
    assert len(alike.held_out) == 2
    wanted = {(f"left {i}", f"right {i}"): float(g) / 5 for i, g in enumerate(grades)}
    if ("left 2", "right 2") not in found:
        del wanted["left 2", "right 2"]  # its text is reported on
    assert found == pytest.approx(wanted | {("a", "b"): 0.6, ("left 2", "c"): 0.1})


@pytest.mark.parametrize("grade", ["high", "-0.5", "5.5", "nan", "inf", "2,5"])
@pytest.mark.parametrize("file", ["train.tsv", "dev.tsv"])
def test_a_grade_that_is_none_is_named(tmp_path: Path, grade: str, file: str) -> None:
    rows = {"train.tsv": [("a", f"b {i}", "1") for i in range(30)], "dev.tsv": [("c", f"d {i}", "1") for i in range(9)]}
    rows[file][5] = ("e", "f", grade)
    for name, lines in rows.items():
        write_tsv(tmp_path / "alike" / name, lines)
    with pytest.raises(DatasetError) as caught:
        build_pool(quick(tasks=(TaskRecipe(name="alike", similarity=5, report="dev.tsv"),)), tmp_path)
    assert str(caught.value).startswith(f"{tmp_path / 'alike' / file}, line 7: {grade!r} is not a grade within 0..5;")
    assert "\n" not in str(caught.value)


def test_altered_copies_are_transfer_text_without_labels(data: Path, recipe: Path) -> None:
    plain = build_pool(load_recipe(recipe), data)
    tasks = (TaskRecipe(name="mood", report="test.tsv", augment=2), TaskRecipe(name="intent", report="test.tsv"))
    settings = replace(load_recipe(recipe), tasks=tasks)
    pool = build_pool(settings, data)
    assert build_pool(settings, data).texts == pool.texts
    start, stop = pool.corpus["mood, altered"]
    assert (start, stop) == (pool.corpus["talk"][1], pool.n_transfer)
    mood = pool.tasks[0]
    texts = {pool.texts[i] for i in mood.train.rows}
    assert len(texts) < stop - start <= 2 * len(texts)
    words = {word for text in texts for word in text.split()}
    for text in pool.texts[start:stop]:
        assert {*text.split()} <= words
        assert text not in texts
    splits = [s for task in pool.tasks for s in (task.train, task.held_out, task.report) if s is not None]
    assert not {*range(start, stop)} & {i for split in splits for i in split.rows.tolist()}
    assert "mood, altered" not in plain.corpus


def test_every_second_line_of_a_treebank_corpus_has_its_negations_apart(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    (folder / "corpus" / "talk.txt").write_text("".join(f"it isn't number {i}\n" for i in range(30)), "utf-8")
    corpus = CorpusRecipe(file="talk", rows=30, treebank=True)
    pool = build_pool(quick(corpus=(corpus,)), folder)
    start, stop = pool.corpus["talk"]
    want = {f"it is n't number {i}" if i % 2 else f"it isn't number {i}" for i in range(30)}
    assert set(pool.texts[start:stop]) == want


def test_long_corpus_lines_are_left_out(data: Path) -> None:
    pool = build_pool(quick(corpus=(CorpusRecipe(file="talk", rows=60, max_chars=20),)), data)
    start, stop = pool.corpus["talk"]
    lines = (data / "corpus" / "talk.txt").read_text("utf-8").splitlines()
    assert {*pool.texts[start:stop]} == {line for line in lines if len(line) <= 20} - {*pool.texts[:start]}


TWENTY = [(f"text {i}", "xy"[i % 2]) for i in range(20)]


@pytest.mark.parametrize(
    ("files", "changes", "message"),
    [
        ({}, {}, "has no task; add"),
        ({"a": TWENTY[:19]}, {}, "19 rows and 2 labels; it needs 20 rows and 2 labels"),
        ({"a": [(text, "x") for text, _ in TWENTY]}, {}, "20 rows and 1 labels; it needs"),
        ({"my task": TWENTY}, {}, "my task cannot name a task; rename it"),
        ({"a": TWENTY, "a:test": [("t", "z")]}, {}, "report file has the label 'z', the train files do not"),
        ({"a": TWENTY, "a:test": [("t", "u", "x")]}, {}, "has files of single texts and of pairs"),
        ({"a": TWENTY, "a:test": TWENTY}, {}, "all train texts are held out or reported on too"),
        ({"a": TWENTY}, {"tasks": (TaskRecipe(name="a", similarity=5),)}, "a/train.tsv must be pairs of texts"),
        ({"a": TWENTY}, {"tasks": (TaskRecipe(name="b"),)}, "b/train.tsv does not exist"),
        ({"a": TWENTY}, {"corpus": (CorpusRecipe(file="talk", rows=3),)}, "talk.txt does not exist; add it"),
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
    with pytest.raises(RecipeError, match="names the task 'moods', which the data does not have"):
        build_pool(quick(corpus=(CorpusRecipe(file="talk", rows=3, tasks=("moods",)),)), data)
