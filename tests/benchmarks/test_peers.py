"""The run against the peers, with fake ones: who is called with what, what a ratio is, what is kept in the work folder.

A fake clock stands still but for what a subject takes, so that every figure is known.
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from fieldrun.bundle import Bundle
from fieldrun.dataset import Dataset, read_tsv
from fieldrun.errors import DatasetError, MissingDependency
from fieldrun_benchmarks import peer_models, peers
from fieldrun_benchmarks.latency import time_in_turns
from fieldrun_benchmarks.ort_profile import bucket_of_median, summarize
from fieldrun_benchmarks.peer_models import LinearHead, PeerSpec, fit_head, need, open_peer
from fieldrun_benchmarks.peers import BASELINE, Subject, accuracy, latency, throughput
from fieldrun_benchmarks.record import read_record
from fieldrun_benchmarks.tables import render
from tests.toy import TASKS, WORDS


class Clock:
    """A clock that only `spend` moves."""

    def __init__(self) -> None:
        self.now = 0
        self.calls: list[tuple[str, object]] = []

    def spend(self, name: str, micros: Callable[[Any], float]) -> Callable[[Any], object]:
        def subject(item: object) -> None:
            self.calls.append((name, item))
            self.now += round(1000 * micros(item))

        return subject


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(time, "perf_counter_ns", lambda: found.now)
    return found


def test_ratios_are_of_medians_over_the_texts_that_both_were_timed_on(clock: Clock) -> None:
    texts = [str(i) for i in range(10)]
    subjects = [
        Subject(name=BASELINE, one=clock.spend(BASELINE, lambda text: 10)),
        Subject(name="fieldrun", one=clock.spend("fieldrun", lambda text: 20 if int(text) % 5 == 0 else 5), ours=True),
        Subject(name="slow", one=clock.spend("slow", lambda text: 400), every=5),
    ]
    result = latency(subjects, texts, rounds=3)
    assert result["slow"]["calls"] == 6
    assert result["slow"]["texts"] == 2
    assert result["fieldrun"]["calls"] == 30
    assert result["fieldrun"]["p50_us"] == 5
    assert result["fieldrun"]["to_tokenizer"] == {"median": 0.5, "min": 0.5, "max": 0.5}
    assert result["slow"]["to_fieldrun"]["fieldrun"]["median"] == 20.0  # on texts 0 and 5, not on all
    assert result[BASELINE]["to_fieldrun"]["fieldrun"]["median"] == 2.0
    assert {item for name, item in clock.calls if name == "slow"} == {"0", "5"}


def test_a_ratio_has_the_spread_of_its_rounds(clock: Clock) -> None:
    costs = iter([10.0] * 4 + [10.0] * 4 + [40.0] * 4)  # warm-up, then two rounds of four texts
    subjects = [
        Subject(name=BASELINE, one=clock.spend(BASELINE, lambda text: 10)),
        Subject(name="fieldrun", one=clock.spend("fieldrun", lambda text: next(costs)), ours=True),
    ]
    result = latency(subjects, ["a", "b", "c", "d"], rounds=2)
    assert result["fieldrun"]["to_tokenizer"] == {"median": 2.5, "min": 1.0, "max": 4.0}


def test_throughput_counts_whole_batches(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(peers, "_BATCH", 8)
    subjects = [
        Subject(name=BASELINE, one=str, batch=clock.spend(BASELINE, lambda texts: len(texts) * 100)),
        Subject(name="fieldrun", one=str, batch=clock.spend("f", lambda texts: len(texts) * 200), ours=True),
        Subject(name="not in batches", one=str),
    ]
    result = throughput(subjects, ["a", "b", "c"], rounds=7)
    assert set(result) == {BASELINE, "fieldrun"}
    assert result[BASELINE]["texts_per_s"] == 10_000
    assert result["fieldrun"]["texts_per_s"] == 5_000
    assert result[BASELINE]["to_fieldrun"]["fieldrun"] == {"median": 0.5, "min": 0.5, "max": 0.5}
    assert all(isinstance(batch, list) and len(batch) == 8 for _, batch in clock.calls)


def test_apart_gives_every_subject_another_text_in_a_turn() -> None:
    calls: list[tuple[str, str]] = []
    subjects = {name: lambda text, name=name: calls.append((name, text)) for name in "abc"}
    timed = time_in_turns(subjects, ["x", "y", "z"], rounds=2, warm_up=0, apart=True)
    assert all(len({text for _, text in calls[i : i + 3]}) == 3 for i in range(0, len(calls), 3))
    assert sorted(calls) == sorted((name, text) for name in "abc" for text in "xyz" for _ in range(2))
    assert {name: micros.shape for name, micros in timed.items()} == dict.fromkeys("abc", (2, 3))


def test_slow_subjects_come_last_in_a_turn() -> None:
    calls: list[str] = []
    subjects = {name: lambda text, name=name: calls.append(name) for name in ("slow", "a", "b")}
    timed = time_in_turns(subjects, ["x", "y"], rounds=2, warm_up=0, every={"slow": 2})
    assert [i for i, name in enumerate(calls) if name == "slow"] == [2, 7]
    assert np.isnan(timed["slow"]).tolist() == [[False, True], [False, True]]


def test_accuracy_has_its_interval(tmp_path: Path) -> None:
    data = _tsv(tmp_path / "dev.tsv", [("good", "yes"), ("bad", "no"), ("fine", "yes"), ("poor", "no")])
    subjects = [
        Subject(name=BASELINE, one=str),
        Subject(name="always yes", one=str, predict=lambda texts: ["yes"] * len(texts)),
    ]
    result = accuracy(subjects, data)
    assert set(result) == {"always yes"}
    entry = result["always yes"]
    assert (entry["n"], entry["accuracy"]) == (4, 0.5)
    assert entry["ci95"][0] < 0.5 < entry["ci95"][1]


@pytest.mark.parametrize(
    ("module", "package"),
    [("model2vec", "model2vec"), ("model2vec.distill", "model2vec[distill]"), ("sklearn.linear_model", "scikit-learn")],
)
def test_a_missing_peer_says_which_install_brings_it(
    module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def nothing(name: str) -> object:
        raise ModuleNotFoundError(name)

    monkeypatch.setattr(importlib, "import_module", nothing)
    with pytest.raises(MissingDependency) as caught:
        need(module)
    assert str(caught.value) == f"this needs the package {package!r}: pip install 'fieldrun[peers]'"


def test_a_head_of_two_labels_has_a_column_for_each(monkeypatch: pytest.MonkeyPatch) -> None:
    class Regression:
        def __init__(self, **settings: float) -> None:
            self.strength = settings["C"]
            self.coef_, self.intercept_ = np.array([[2.0, 0.0]]) * self.strength, np.array([0.5])

        def fit(self, x: object, y: object) -> Regression:
            return self

        def score(self, x: object, y: object) -> float:
            return -abs(self.strength - 10)

    monkeypatch.setattr(peer_models, "need", lambda module: SimpleNamespace(LogisticRegression=Regression))
    head = fit_head(np.array([[1, 0], [-1, 0]] * 5), ["yes", "no"] * 5)
    assert head.labels == ("no", "yes")
    assert head.weight.tolist() == [[0, 20], [0, 0]]  # the penalty that scored best, 10
    assert head(np.array([[1.0, 0], [-1, 0]])) == ["yes", "no"]


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"model\.safetensors and tokenizer\.json"):
        open_peer(_fake("fake"), tmp_path, tmp_path / "work", {}, print)


def test_a_run_writes_one_record_and_its_table(
    tmp_path: Path, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peers, "PEERS", {key: _fake(key) for key in ("model2vec", "gte", "minilm")})
    monkeypatch.setattr(peers, "_REPORT", dict.fromkeys(TASKS, "dev.tsv"))
    monkeypatch.setattr(peers, "_PROFILED", next(iter(TASKS)))
    monkeypatch.setattr(peers, "_BATCH", 4)
    monkeypatch.setattr(peer_models, "fit_head", _no_head)
    monkeypatch.setattr("fieldrun_benchmarks.ort_profile._RUNS", 100)
    monkeypatch.setattr("fieldrun_benchmarks.ort_profile._TIMED", 20)
    data, encoder = tmp_path / "data", tmp_path / "encoder"
    for task, labels in TASKS.items():
        rows = [(f"a {word} film {i}", label) for i, word in enumerate(WORDS[:6]) for label in labels]
        _tsv(data / task / "train.tsv", rows)
        _tsv(data / task / "dev.tsv", rows)
    encoder.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (encoder / name).write_text("{}", "utf-8")
    arguments = ["--data", str(data), "--gte", str(encoder), "--minilm", str(encoder), "--work", str(tmp_path / "work")]
    arguments += ["--bundle", str(toy_bundle), "--rounds", "7", "--profile"]
    assert CliRunner().invoke(peers.main, arguments).exit_code == 2  # neither -o nor --prepare
    prepared = CliRunner().invoke(peers.main, [*arguments, "--prepare"], catch_exceptions=False)
    assert prepared.output.count("making ") == 3
    out = tmp_path / "records" / "peers.json"
    done = CliRunner().invoke(peers.main, [*arguments, "-o", str(out)], catch_exceptions=False)
    assert done.exit_code == 0
    assert "making" not in done.output
    assert "fitting" not in done.output

    record = read_record(out, "peers")
    assert set(record["workloads"]) == set(TASKS)
    assert record["peers"]["fake gte"]["sha256"]
    assert str(tmp_path) not in json.dumps(record)
    for workload in record["workloads"].values():
        assert workload["latency"]["fake gte"]["every"] == 10
        assert set(workload["throughput"]) == {
            BASELINE, *(f"fieldrun {engine}, all labels" for engine in ("native", "onnxruntime", "numpy")),
            "fake model2vec",
        }  # fmt: skip
        assert workload["accuracy"]["fieldrun numpy, all labels"]["n"] == workload["texts"]
    profile = record["profile"]
    assert profile["nodes"] == sum(entry["nodes"] for entry in profile["operators"])
    assert profile["p50_us"].keys() == {"tokenizer", "session_run", "session_run_of_one_node", "all_labels"}

    page = render("<!-- table: peers -->\n<!-- end -->", out.parent)
    assert page.count("| fake model2vec |") == len(TASKS)
    assert f"`{profile['bucket']['graph']}`" in page


def test_events_are_summed_per_run_and_operator() -> None:
    events: list[dict[str, Any]] = [{"cat": "Session", "name": "session_initialization", "ts": 0, "dur": 9}]
    for run, extra in enumerate((100, 0, 2, 4, 90)):  # the first is warm-up, in the last another process had the core
        start = 1000 * run + 10
        events += [
            _node(start + 1, "Gather", 3 + extra),
            _node(start + 5, "MatMul", 10),
            _node(start + 20, "Gather", 1),
            {"cat": "Session", "name": "model_run", "ts": start, "dur": 30 + extra},
        ]
    found = summarize(events, warm_up=1)
    assert (found["runs"], found["runs_kept"], found["nodes"]) == (4, 2, 3)
    assert (found["model_run_us"], found["nodes_us"]) == (33, 17)
    assert found["operators"] == [
        {"op": "MatMul", "nodes": 1, "median_us": 10.0, "mean_us": 10.0, "share": 0.588},
        {"op": "Gather", "nodes": 2, "median_us": 7.0, "mean_us": 7.0, "share": 0.412},
    ]


def test_the_bucket_is_that_of_the_median_length(toy_bundle: Path) -> None:
    bundle = Bundle.load(toy_bundle)
    lengths = sorted({bucket.length for bucket in bundle.manifest.buckets})
    bucket, tokens = bucket_of_median(bundle, [lengths[0], lengths[0] + 1, lengths[1], 1000, 2])
    assert (bucket.batch, bucket.length) == (1, lengths[1])
    assert tokens == range(lengths[0] + 1, lengths[1] + 1)
    assert bucket_of_median(bundle, [1])[1] == range(1, lengths[0] + 1)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # the exporter's, the quantizer's and their packages' own deprecations
def test_an_encoder_is_exported_and_quantized(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("torch").manual_seed(0)
    from tests.toy import toy_tokenizer

    source = tmp_path / "encoder"
    config = transformers.BertConfig(
        vocab_size=3000, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32
    )
    transformers.BertModel(config).save_pretrained(source)
    (source / "tokenizer.json").write_text(toy_tokenizer().to_str(), "utf-8")
    vectors = {}
    for key in ("gte", "minilm"):
        peer = open_peer(peer_models.PEERS[key], source, tmp_path / "work", {}, lambda line: None)
        vectors[key] = peer.vectors(["a good film", "rain"])
        assert np.allclose(np.linalg.norm(vectors[key], axis=1), 1, atol=1e-5)
    assert (vectors["gte"] * vectors["minilm"]).sum(1).min() > 0.98
    assert not np.array_equal(vectors["gte"], vectors["minilm"])
    alone = peer_models.PEERS["gte"].start(tmp_path / "work" / "gte-small-fp32")(["rain"])
    assert np.array_equal(alone, vectors["gte"][1:])


def _node(ts: int, op: str, dur: int) -> dict[str, Any]:
    return {"cat": "Node", "name": f"{op}_{ts}_kernel_time", "ts": ts, "dur": dur, "args": {"op_name": op}}


def _tsv(path: Path, rows: Sequence[tuple[str, str]]) -> Dataset:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["text\tlabel", *("\t".join(row) for row in rows)]) + "\n", "utf-8")
    return read_tsv(path)


def _fake(key: str) -> PeerSpec:
    """A peer whose vector is the length of the text."""

    def build(source: Path, folder: Path) -> None:
        (folder / "model.onnx").write_bytes(b"x")

    return PeerSpec(
        name=f"fake {key}",
        slug=key,
        build=build,
        start=lambda folder: lambda texts: np.array([[len(text)] for text in texts], np.float32),
        settings="none",
        packages=("numpy",),
    )


def _no_head(x: object, labels: Sequence[str]) -> LinearHead:
    names = tuple(sorted(set(labels)))
    return LinearHead(weight=np.zeros((1, len(names)), np.float32), bias=np.zeros(len(names), np.float32), labels=names)
