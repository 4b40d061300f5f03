"""Frozen vectors on sets that nobody trained on: every figure beside another library's, and a whole run on toys."""

from __future__ import annotations

import json
import math
import re
import subprocess
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from click.testing import CliRunner
from scipy import stats  # type: ignore[import-untyped]
from sklearn.metrics import ndcg_score
from sklearn.metrics.pairwise import cosine_similarity
from sklearn.neighbors import NearestNeighbors

import fieldrun
from fieldrun.errors import DatasetError, FieldrunError, UsageError
from fieldrun.evaluation.dataset import Dataset
from fieldrun.formats.storage import read_json, write_json
from fieldrun_benchmarks.harness.record import read_record
from studies.columns import markdown
from studies.peers.heads import Floats
from studies.transfer import measure, scores, vectors
from studies.transfer.measure import COLUMNS, GROUPS, TASKS, probe, similarity
from studies.transfer.scores import Collection, by_rank, by_score, correlation, cosines, ndcg, overlap, read_collection
from studies.transfer.tables import BLOCKS
from studies.transfer.vectors import OURS, SUBJECTS, Subject, kept, open_peer
from tests.toy import WORDS


def _random(*shape: int, seed: int = 0) -> Floats:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def _collection(grades: Sequence[dict[str, int]], documents: int) -> Collection:
    ids = tuple(f"d{i}" for i in range(documents))
    words = tuple(f"{WORDS[i % 40]} {WORDS[(7 * i) % 40]} {WORDS[(3 * i) % 11]}" for i in range(documents))
    return Collection(ids=ids, documents=words, queries=words[: len(grades)], grades=tuple(grades), sha256={})


def test_ndcg_is_that_of_scikit_learn_with_exponential_gains() -> None:
    rng = np.random.default_rng(1)
    grades = [
        {f"d{i}": int(rng.integers(1, 5)) for i in rng.choice(40, size, replace=False)} for size in (1, 3, 12, 30)
    ]
    found = rng.standard_normal((4, 40))
    gains = np.array([[2 ** grade.get(f"d{i}", 0) - 1 for i in range(40)] for grade in grades])
    expected = [ndcg_score(gains[i : i + 1], found[i : i + 1], k=10) for i in range(4)]
    assert ndcg(found, _collection(grades, 40)) == pytest.approx(expected)


def test_a_document_that_no_method_can_find_still_counts_in_the_ideal() -> None:
    grades = [{"d0": 1, "gone": 1}]
    best = np.array([[1.0, 0.0]])
    assert ndcg(best, _collection(grades, 2)) == pytest.approx([1 / (1 + 1 / math.log2(3))])


def test_correlation_and_prefixes_are_those_of_scipy() -> None:
    texts = [f"text {i}" for i in range(30)]
    known = dict(zip(texts, _random(30, 200), strict=True))
    pairs = [(texts[i], texts[(i * 7 + 1) % 30]) for i in range(30)]
    grades = [str(round(float(x), 1)) for x in np.random.default_rng(3).uniform(0, 5, 30)]
    found = similarity(lambda asked: np.array([known[text] for text in asked]), Dataset.of(pairs, grades))
    assert set(found["spearman"]) == {"whole", "128", "64"}
    for name, size in (("whole", 200), ("128", 128), ("64", 64)):
        angles = [cosine_similarity([known[a][:size]], [known[b][:size]])[0, 0] for a, b in pairs]
        assert found["spearman"][name]["value"] == pytest.approx(
            stats.spearmanr(angles, [float(grade) for grade in grades]).statistic, abs=1e-5
        )
    assert (found["n"], found["texts"], found["dim"]) == (30, 30, 200)
    assert set(found["overlap"]) == {"128", "64"}


def test_the_interval_of_a_correlation_covers_it_and_narrows_with_rows() -> None:
    widths = []
    for n in (20, 200, 2000):
        a, b = _random(n, 8), _random(n, 8, seed=1)
        grades = ((a * b).sum(1) + 2 * _random(n, seed=2)).tolist()
        entry = correlation(a, b, grades)
        low, high = entry["ci95"]
        assert -1 <= low < entry["value"] < high <= 1
        widths.append(high - low)
    assert widths == sorted(widths, reverse=True)
    same = np.arange(1, 13, dtype=np.float32).reshape(6, 2)
    assert correlation(same, same[::-1].copy(), [0, 1, 2, 2, 1, 0])["value"] >= -1


@pytest.mark.parametrize("size", [3, 16, 24])
def test_the_overlap_is_that_of_exact_neighbours(size: int) -> None:
    x = _random(50, 24)

    def nearest(part: Floats) -> npt.NDArray[np.int64]:
        found: npt.NDArray[np.int64] = (
            NearestNeighbors(n_neighbors=10, metric="cosine", algorithm="brute").fit(part).kneighbors()[1]
        )
        return found

    expected = [len({*a} & {*b}) / 10 for a, b in zip(nearest(x), nearest(x[:, :size].copy()), strict=True)]
    assert overlap(x, size).tolist() == pytest.approx(expected)
    assert size < 24 or set(expected) == {1.0}


def test_lists_are_fused_by_rank_and_by_score() -> None:
    found = np.random.default_rng(4).standard_normal((3, 20))
    ranks = stats.rankdata(-found, axis=1)
    assert by_rank(found) == pytest.approx(1 / (60 + ranks))
    assert by_score(found) == pytest.approx(stats.zscore(found, axis=1))
    assert by_score(np.zeros((1, 4))).tolist() == [[0, 0, 0, 0]]  # a query without a known word changes no order


def test_cosines_of_a_zero_vector_are_zero() -> None:
    assert cosines(np.zeros((1, 4), np.float32), _random(2, 4)).tolist() == [[0, 0]]


def test_bm25_is_the_published_formula() -> None:
    collection = _collection([{"d0": 1}, {"d1": 1}, {"d2": 1}], 12)
    from sklearn.feature_extraction.text import CountVectorizer

    stop = {"a", "an", "and", "are", "as", "at", "be", "but", "by", "for", "if", "in", "into", "is", "it", "no", "not"}
    stop |= {"of", "on", "or", "such", "that", "the", "their", "then", "there", "these", "they", "this", "to", "was"}
    stop |= {"will", "with"}
    count = CountVectorizer(token_pattern=r"(?u)\b\w\w+\b", stop_words=list(stop))
    tf = count.fit_transform(collection.documents).toarray().astype(float)
    length, df = tf.sum(1, keepdims=True), (tf > 0).sum(0)
    idf = np.log(1 + (len(tf) - df + 0.5) / (df + 0.5))
    weights = idf * tf / (tf + 1.5 * (1 - 0.75 + 0.75 * length / length.mean()))
    assert scores.bm25(collection) == pytest.approx(count.transform(collection.queries) @ weights.T, rel=1e-4)


def _write(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.tsv").write_text(text, "utf-8")
    return folder


def test_a_collection_is_read_with_its_blank_documents_and_queries_nobody_judged(tmp_path: Path) -> None:
    folder = _write(
        tmp_path, docs="1\twing\n2\t \n3\theat\n", queries="a\tlift\nb\tnothing\n", qrels="a\t1\t2\na\t2\t3\na\t1\t1\n"
    )
    found = read_collection(folder)
    assert (found.ids, found.documents, found.queries) == (("1", "3"), ("wing", "heat"), ("lift",))
    assert found.grades == ({"1": 2, "2": 3},)


@pytest.mark.parametrize(("name", "text"), [("docs", "1 wing\n"), ("qrels", "a\t1\n"), ("queries", "")])
def test_a_wrong_file_is_named(tmp_path: Path, name: str, text: str) -> None:
    _write(tmp_path, **{"docs": "1\twing\n", "queries": "a\tlift\n", "qrels": "a\t1\t1\n", name: text})
    with pytest.raises(DatasetError, match=rf"{name}\.tsv must have \d columns"):
        read_collection(tmp_path)
    (tmp_path / f"{name}.tsv").unlink()
    with pytest.raises(DatasetError, match="does not exist"):
        read_collection(tmp_path)


def _labelled(rows: int, seed: int) -> Dataset:
    rng = np.random.default_rng(seed)
    texts = [
        f"{'good' if i % 2 else 'bad'} {WORDS[rng.integers(40)]} {WORDS[rng.integers(40)]} {i}" for i in range(rows)
    ]
    return Dataset.of(texts, ["yes" if i % 2 else "no" for i in range(rows)])


def test_the_probe_is_fit_head(toy_bundle: Path) -> None:
    train, report = _labelled(40, 0), _labelled(30, 1)
    rows = list(range(39, -1, -1))
    with fieldrun.load(toy_bundle) as model:
        x, test = model.field([str(train.texts[i]) for i in rows]), model.field(report.texts)  # type: ignore[arg-type]
        found = probe(x, test, train, report.labels, rows)
        model.attach(fieldrun.fit_head(model, train.texts, train.labels, name="theirs"))
        hits = [a == b for a, b in zip(model.predict(report.texts, "theirs"), report.labels, strict=True)]
    assert found["all"][0]["hits"] == "".join("01"[hit] for hit in hits)
    assert found["all"][0]["rows"] == 40
    assert [run["rows"] for run in found["8"]] == [16] * COLUMNS["8"][1]
    assert all(run["n"] == 30 for runs in found.values() for run in runs)


@pytest.fixture
def peer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, list[str], list[int]]:
    """A peer whose vector is a text's length; its process, run here, dies after so many files."""
    folder, seen, lives = tmp_path / "wordllama", list[str](), [9]
    folder.mkdir()
    write_json(folder / "peer.json", {"key": {"settings": "a"}, "python": "python", "made_with": {}})

    def encode(texts: Sequence[str]) -> Floats:
        if not lives[0]:
            raise KeyboardInterrupt
        lives[0] -= 1
        seen.extend(texts)
        return np.array([[len(text), 1] for text in texts], np.float32)

    def run(command: Sequence[str], *, env: dict[str, str], check: bool) -> Any:
        links = sorted(path.name for path in Path(env["PYTHONPATH"]).iterdir())
        assert links == ["fieldrun", "fieldrun_benchmarks", "studies"]
        assert command[:3] == ["python", "-m", "studies.transfer.vectors"]
        try:
            vectors.main(*command[3:])
        except KeyboardInterrupt:
            return SimpleNamespace(returncode=1)
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr(vectors, "open_vectors", lambda _: encode)
    monkeypatch.setattr(vectors, "_CHUNK", 3)
    return folder, seen, lives


def test_vectors_are_kept_and_a_process_that_died_goes_on(
    peer: tuple[Path, list[str], list[int]], tmp_path: Path
) -> None:
    folder, seen, lives = peer
    texts = ["a" * i for i in range(1, 9)]
    lives[0] = 1
    with pytest.raises(FieldrunError, match="the process of wordllama ended with exit code 1"):
        kept(folder, texts, tmp_path / "kept")
    lives[0] = 9
    for _ in range(2):
        assert kept(folder, texts, tmp_path / "kept").tolist() == [[i, 1] for i in range(1, 9)]
    assert Counter(seen) == Counter(texts)
    stored = read_json(folder / "peer.json")
    write_json(folder / "peer.json", stored | {"key": {"settings": "b"}})  # made anew: its vectors are others
    kept(folder, texts, tmp_path / "kept")
    assert Counter(seen) == Counter(texts * 2)


def test_a_peer_without_its_encoder_names_the_option(tmp_path: Path) -> None:
    for name in SUBJECTS[1:]:
        if name != "wordllama":
            with pytest.raises(UsageError, match=r"--(gte|minilm)$"):
                open_peer(name, {}, tmp_path, print)


def _hashed(asked: list[int], size: int) -> Callable[[Sequence[str]], Floats]:
    def encode(texts: Sequence[str]) -> Floats:
        asked.append(len(texts))
        rows = [sum(ord(c) * (i + 1) for i, c in enumerate(text)) for text in texts]
        return np.stack([_random(size, seed=row) for row in rows])

    return encode


@pytest.fixture
def arguments(tmp_path: Path, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[list[str], list[int]]:
    """Toy data for every set, fake peers, and BM25 scores that find the first relevant document."""
    data = tmp_path / "data"
    for task, name in TASKS.items():
        for file, rows, seed in (("train.tsv", 30, 0), (name, 20, 1)):
            toys = _labelled(rows, seed)
            lines = [f"{text}\t{label}" for text, label in zip(toys.texts, toys.labels, strict=True)]
            _write(data / task, **{file.removesuffix(".tsv"): "\n".join(["text\tlabel", *lines]) + "\n"})
    pairs = [f"{WORDS[i]} {WORDS[i + 1]}\t{WORDS[i]} {WORDS[2 * i % 40]}\t{i % 6}" for i in range(20)]
    _write(data / "stsb", dev="\n".join(["text_a\ttext_b\tlabel", *pairs]) + "\n")
    for name in measure._COLLECTIONS:
        documents = "".join(f"{i}\t{WORDS[i]} {WORDS[i + 5]}\n" for i in range(15))
        queries = "".join(f"q{i}\t{WORDS[i]}\n" for i in range(6))
        qrels = "".join(f"q{i}\t{i}\t2\nq{i}\t{i + 1}\t1\n" for i in range(6))
        _write(data / "retrieval" / name, docs=documents, queries=queries, qrels=qrels)
    asked: list[int] = []
    monkeypatch.setattr(measure, "bm25", lambda found: np.eye(len(found.queries), len(found.ids)))
    monkeypatch.setattr(measure, "need", lambda name: SimpleNamespace(__version__="0"))
    monkeypatch.setattr(
        measure, "open_peer", lambda name, *_: Subject(about={"name": name}, vectors=_hashed(asked, 160))
    )
    found = ["--data", str(data), "--cache", str(tmp_path / "cache"), "--bundle", str(toy_bundle)]
    return found, asked


def test_a_run_gives_a_record_and_its_tables(arguments: tuple[list[str], list[int]], tmp_path: Path) -> None:
    command, asked = arguments
    chosen = [word for name in (OURS, "wordllama", "gte-small") for word in ("--subject", name)]
    output = tmp_path / "records" / "transfer.json"
    for _ in range(2):
        result = CliRunner().invoke(measure.main, [*command, *chosen, "-o", str(output)], catch_exceptions=False)
        assert result.exit_code == 0, result.output
    assert len(asked) == 2 * (2 * 2 + 1 + 2 * len(TASKS))  # the second run takes all from the cache
    record = read_record(output, "transfer")
    assert str(tmp_path) not in json.dumps(record)
    assert list(record["subjects"]) == [OURS, "wordllama", "gte-small"]
    for column in COLUMNS:
        means = record["accuracy"][column]["means"]
        for group, tasks in GROUPS.items():
            both = [
                np.mean([record["accuracy"][column]["tasks"][name][task]["accuracy"] for task in tasks])
                for name in (OURS, "wordllama")
            ]
            assert [means[name][group]["accuracy"] for name in (OURS, "wordllama")] == pytest.approx(both, abs=1e-4)
            assert record["differences"]["wordllama"][column]["means"][group]["difference"] == pytest.approx(
                both[0] - both[1], abs=1e-4
            )
    gains = np.zeros((6, 15))
    gains[range(6), range(6)], gains[range(6), range(1, 7)] = 3, 1
    ordered = np.eye(6, 15) - 1e-6 * np.arange(15)  # equal scores keep the order of the file
    expected = ndcg_score(gains, ordered, k=10)
    assert record["retrieval"]["cranfield"]["BM25"]["plain"]["value"] == pytest.approx(expected, abs=1e-5)
    pages = {name: markdown(block(output.parent)) for name, block in BLOCKS.items()}
    assert "wordllama" in pages["transfer-means"]
    assert "to wordllama" in pages["transfer-means"]  # gte-small is no static peer
    assert f"The {len(GROUPS['transfer'])} of `transfer` alone" in pages["transfer-means"]
    assert all(f"| {task} | 2 |" in pages["transfer-tasks"] for task in TASKS)
    assert "STS-B dev: 20 pairs" in pages["transfer-similarity"]
    assert re.search(r"\| BM25 \| 0\.\d{3} \([^|]*\) \| \| \| \| \|", pages["transfer-retrieval"])


def test_without_ours_or_a_static_peer_the_tables_have_no_verdict(
    arguments: tuple[list[str], list[int]], tmp_path: Path
) -> None:
    output = tmp_path / "records" / "transfer.json"
    for subject in (OURS, "gte-small"):
        call = [*arguments[0], "--subject", subject, "-o", str(output)]
        assert CliRunner().invoke(measure.main, call, catch_exceptions=False).exit_code == 0
        assert "minus the static peer" not in markdown(BLOCKS["transfer-means"](output.parent))
