"""The open pool: what gets in, what never does, and in which order it comes."""

from __future__ import annotations

import json
import lzma
import math
import re
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldrun.distill.open_pool import Lines, OpenPool, SourceCount, open_pool
from fieldrun.distill.recipe import PoolRecipe, SourceRecipe, load_recipe
from fieldrun.errors import DatasetError, FieldrunError, RecipeError, TrainingError

TOKENS = st.sampled_from(["a", "cat", "Sat", "ON", "the", "mat", "don't", "3.5", "U.S.", "café", "ﬁne", "-", '"so"'])
JOINS = st.sampled_from([" ", "  ", "\u00a0", ". ", "! ", "?", "... ", ", ", " \u200b"])
TEXTS = st.lists(st.tuples(TOKENS, JOINS), min_size=1, max_size=8).map(lambda parts: "".join(a + b for a, b in parts))
SENTENCES = st.lists(st.sampled_from("abcde"), min_size=1, max_size=5).map(lambda words: " ".join(words))
DOCUMENTS = st.lists(st.tuples(SENTENCES, st.sampled_from([".", "! ", " ? ", ".\u00a0"])), min_size=1, max_size=6).map(
    lambda parts: "".join(a + b for a, b in parts)
)


def source(file: str, **changes: Any) -> SourceRecipe:
    return SourceRecipe(**{"file": file, "licence": "CC0 1.0", "attribution": "nobody", **changes})


def build(folder: Path, files: Mapping[str, str], held: Mapping[str, str], seed: int = 0, **weights: float) -> OpenPool:
    """The pool of text files with these contents; `weights` go by the stem of the file."""
    for name, content in {**files, **held}.items():
        path = folder / "data" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(lzma.compress(content.encode()) if name.endswith(".xz") else content.encode())
    sources = tuple(source(name, weight=weights.get(name.partition(".")[0], 1)) for name in files)
    return open_pool(
        PoolRecipe(sources=sources, held_back=tuple(held)), folder / "data", folder / f"pool{seed}", seed=seed
    )


def words_of(text: str) -> list[str]:
    """The words of a text, letter by letter: an independent way to the same end as the pool's."""
    import unicodedata

    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text.replace("\u200b", "")).casefold())
    return "".join(c if c.isalnum() else " " for c in plain).split()


def forbidden(cell: str) -> list[list[str]]:
    """The words of a held-back cell, and those of its sentences of three words or more, cut at every end mark."""
    found, sentence = [words_of(cell)], ""
    for character in cell + ".":
        if character in ".!?":
            found += [words_of(sentence)] if len(words_of(sentence)) >= 3 else []
            sentence = ""
        else:
            sentence += character
    return [words for words in found if words]


def is_inside(words: Sequence[str], others: Sequence[str]) -> bool:
    return any(list(words) == list(others[i : i + len(words)]) for i in range(len(others)))


@given(
    lines=st.lists(st.one_of(TEXTS, SENTENCES, DOCUMENTS), min_size=1, max_size=30),
    held=st.lists(st.one_of(TEXTS, DOCUMENTS), min_size=1, max_size=5),
    seed=st.integers(0, 9),
)
@settings(max_examples=150, deadline=None)
def test_no_held_back_text_gets_in_and_every_other_does_once(lines: list[str], held: list[str], seed: int) -> None:
    # the sentences of held-back documents are tried too, with another end and in capitals
    tried = [*lines, *held, *(s.upper() for text in held for s in re.split(r"(?<=[.!?])", text)), "zebra " * 3]
    with tempfile.TemporaryDirectory() as name:
        files = {"one.txt": "\n".join(tried[::2]), "two.txt": "\r\n".join(tried[1::2])}
        pool = build(Path(name), files, {"held.tsv": "\n".join(f"id7\t{text}" for text in held)}, seed)
        texts = list(pool.texts)
    never = [words for text in held for words in forbidden(text)]
    assert not [text for text in texts if words_of(text) in never]
    shown = [" ".join(line.split()) for line in (*tried[::2], *tried[1::2])]
    assert set(texts) <= set(shown)
    keys = [" ".join(text.replace("\u200b", "").casefold().replace("ﬁ", "fi").split()) for text in texts]
    assert len(set(keys)) == len(keys)
    every = [words_of(text) for text in held]
    kept = {tuple(words_of(text)) for text in texts}
    for text in shown:
        words = words_of(text)
        assert not words or tuple(words) in kept or any(is_inside(words, other) for other in every)
    counts = {count.file: count for count in pool.counts}
    for number, file in enumerate(files):
        count, given_texts = (
            counts[file],
            [line for line in re.split("\r?\n", files[file]) if line.strip("\u200b\u00a0 ")],
        )
        assert count.kept == (pool.sources == number).sum()
        assert count.kept + count.copies + count.held_back == len(given_texts)


def test_each_reason_to_leave_a_text_out_is_counted(tmp_path: Path) -> None:
    files = {
        "one.txt.xz": "A  cat\tsat.\n\n \u200b \na CAT sat.\nThe judged text\nYou win!\nhe said so, twice\n",
        "two.tsv": "label\ttext_a\ttext_b\nx\ta cat sat.\tonly here\ny\tthe U.S. won\tU.S.\n",
    }
    held = {
        "held/docs.tsv": "1\tYou win. He said so -- twice! The U.S. won?\n",
        "held/more.csv": 'text,label\n"the ""judged"" text",x\n',
    }
    pool = build(tmp_path, files, held)
    assert sorted(pool.texts) == ["A cat sat.", "U.S.", "You win!", "only here"]
    assert pool.counts == (
        SourceCount(file="one.txt.xz", kept=2, copies=1, held_back=2),
        SourceCount(file="two.tsv", kept=2, copies=1, held_back=1),
    )


def test_a_text_whose_accents_were_lost_is_held_back(tmp_path: Path) -> None:
    pool = build(tmp_path, {"one.txt": "Carmen Payás explained it\nè vero\n"}, {"h.tsv": "Carmen Pay's explained it\n"})
    assert list(pool.texts) == ["è vero"]


@pytest.mark.parametrize("seed", range(4))
def test_every_prefix_is_a_fair_weighted_sample(tmp_path: Path, seed: int) -> None:
    n, weights = 4000, {"a": 0.5, "b": 1.0, "c": 8.0}
    files = {f"{name}.txt": "".join(f"{name} number {i}\n" for i in range(n)) for name in weights}
    pool = build(tmp_path, files, {"held.txt": "none\n"}, seed, **weights)
    texts = list(pool.texts)
    for prefix in (300, 2000, 6000):
        low, high = 0.0, 60.0  # the time at which so many texts are expected to have come
        for _ in range(80):
            time = (low + high) / 2
            expected = [n * -math.expm1(-time * weight) for weight in weights.values()]
            low, high = (time, high) if sum(expected) < prefix else (low, time)
        for number, count in enumerate(expected):
            rows = np.flatnonzero(pool.sources[:prefix] == number)
            assert abs(len(rows) - count) < 5 * math.sqrt(count) + 1, (prefix, number)
            places = np.array([int(texts[i].split()[-1]) for i in rows])  # in the file: anywhere alike
            assert abs(places.mean() - n / 2) < 5 * n / math.sqrt(12 * len(places))


def test_the_order_of_two_texts_depends_on_the_seed_and_not_on_other_texts(tmp_path: Path) -> None:
    one, two = "".join(f"text {i}\n" for i in range(50)), "".join(f"more {i}\n" for i in range(50))
    held = {"held.txt": "none\n"}
    few = list(build(tmp_path / "few", {"one.txt": one}, held).texts)
    many = list(build(tmp_path / "many", {"two.txt.xz": two, "one.txt": one}, held).texts)
    assert [text for text in many if text.startswith("text")] == few
    assert few != one.splitlines()
    other = list(build(tmp_path / "few", {"one.txt": one}, held, 1).texts)
    assert other != few
    assert sorted(other) == sorted(few)


def test_a_pool_is_built_once_and_another_one_is_refused(tmp_path: Path) -> None:
    files, held = {"one.txt": "a b c\nd e f\n"}, {"held.txt": "none\n"}
    first = build(tmp_path, files, held)
    texts = (tmp_path / "pool0" / "texts.txt").stat()
    assert list(build(tmp_path, files, held).texts) == list(first.texts)
    assert (tmp_path / "pool0" / "texts.txt").stat().st_mtime_ns == texts.st_mtime_ns
    about = json.loads((tmp_path / "pool0" / "pool.json").read_text("utf-8"))
    assert about["sources"][0] | {"sha256": ""} == {
        "file": "one.txt",
        "licence": "CC0 1.0",
        "attribution": "nobody",
        "weight": 1,
        "sha256": "",
    }
    with pytest.raises(TrainingError, match="different held_back"):
        build(tmp_path, files, {"held.txt": "d e f\n"})
    with pytest.raises(TrainingError, match="different sources, held_back"):
        build(tmp_path, {"one.txt": "a b c\n"}, {"held.txt": "d e f\n"})
    with pytest.raises(TrainingError, match="different sources"):
        build(tmp_path, files, held, one=2)
    recipe = PoolRecipe(sources=(source("one.txt"),), held_back=("held.txt",))
    with pytest.raises(TrainingError, match="different seed"):
        open_pool(recipe, tmp_path / "data", tmp_path / "pool0", seed=5)


def test_an_interrupted_build_leaves_nothing(tmp_path: Path) -> None:
    def die(phase: str, done: int, total: int) -> None:
        if done == total:
            raise KeyboardInterrupt

    build(tmp_path, {"one.txt": "a b c\n"}, {"held.txt": "none\n"})
    recipe = PoolRecipe(sources=(source("one.txt"),), held_back=("held.txt",))
    with pytest.raises(KeyboardInterrupt):
        open_pool(recipe, tmp_path / "data", tmp_path / "new", progress=die)
    assert {path.name for path in tmp_path.iterdir()} == {"data", "pool0"}


def test_lines_are_a_sequence(tmp_path: Path) -> None:
    texts = ["é", "b c", "日本", "\x0b", "d"]
    path = tmp_path / "lines.txt"
    path.write_text("".join(text + "\n" for text in texts), "utf-8")
    lines = Lines(path)
    assert (len(lines), list(lines), lines[-1], lines[1:3], lines[::-2]) == (5, texts, "d", texts[1:3], texts[::-2])
    with pytest.raises(IndexError):
        lines[5]


@pytest.mark.parametrize(
    ("sources", "held_back", "error", "message"),
    [
        (("gone.txt",), ("held.txt",), DatasetError, r"gone\.txt does not exist; add it"),
        (("one.txt",), ("held.txt", "gone/*.tsv"), RecipeError, "matches 'gone/"),
        (("one.txt",), ("*.txt",), RecipeError, r"one\.txt is a source"),
        (("bad.txt",), ("held.txt",), DatasetError, r"bad\.txt, line 2: not valid UTF-8"),
        (("one.txt",), ("bad.txt",), DatasetError, r"bad\.txt, line 2: not valid UTF-8"),
        (("bad.txt.xz",), ("held.txt",), DatasetError, r"cannot read .*bad\.txt\.xz"),
        (("cut.txt.xz",), ("held.txt",), DatasetError, r"cannot read .*cut\.txt\.xz"),
        (("bad.tsv",), ("held.txt",), DatasetError, r"bad\.tsv, line 2: 3 tab-separated columns"),
        (("held.txt",), ("held*.tsv",), DatasetError, "that is not held back"),
    ],
)
def test_what_cannot_be_used_is_named(
    tmp_path: Path, sources: tuple[str, ...], held_back: tuple[str, ...], error: type[FieldrunError], message: str
) -> None:
    for name, content in {
        "one.txt": b"a b\n",
        "held.txt": b"c d\n",
        "held2.tsv": b"c d\n",
        "bad.txt": b"a\n\xff\n",
        "bad.txt.xz": b"no xz",
        "cut.txt.xz": lzma.compress(b"abc" * 999)[:-20],
        "bad.tsv": b"text\tlabel\na\tb\tc\n",
    }.items():
        (tmp_path / name).write_bytes(content)
    recipe = PoolRecipe(sources=tuple(map(source, sources)), held_back=held_back)
    with pytest.raises(error, match=message) as caught:
        open_pool(recipe, tmp_path, tmp_path / "pool")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "pool").exists()


def test_the_shipped_pool_holds_back_what_it_does_not_learn_from() -> None:
    recipe = load_recipe("open").pool
    assert recipe is not None
    held = {glob.partition("/")[0] for glob in recipe.held_back}
    assert {"transfer", "retrieval", "sst2", "trec", "ag_news", "tweeteval_offensive", "rte", "mrpc", "stsb"} <= held
    research = held - {"banking77", "clinc150", "open_tasks"} | {"imdb"}
    assert not [source.file for source in recipe.sources if source.file.partition("/")[0] in research]
    assert not [source.file for source in recipe.sources if "imdb" in source.file or "reuters" in source.file]
    assert all(source == replace(source) and "unstated" not in source.licence for source in recipe.sources)
