"""The bench beside the peers, with fake ones: what is made once, what is compared with what, what the tables show."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

from fieldrun.errors import DatasetError, FieldrunError, MissingDependency
from fieldrun.evaluation.dataset import Dataset, read_tsv
from fieldrun.formats.storage import read_json, write_json
from fieldrun_benchmarks.harness import bench, measurements
from fieldrun_benchmarks.harness.record import write_record
from fieldrun_benchmarks.report.render import read_records, to_markdown
from studies.peers import heads
from studies.peers import measure as peers
from studies.peers import models as peer_models
from studies.peers.heads import LinearHead, Vectors, fit_head, need
from studies.peers.models import PEERS, Peer, answer, headed, prepare
from studies.peers.tables import OURS, TOKENIZER, read_peers, reproduced
from studies.tables import render
from tests.benchmarks.test_bench import HereProcess
from tests.toy import TASKS, WORDS

FAKES = ("wordy", "slow")
COLD = {"runs": 1, "wall_s": 0.1, "peak_rss_mib": 40.0}


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

    monkeypatch.setattr(heads, "need", lambda module: SimpleNamespace(LogisticRegression=Regression))
    head = fit_head(np.array([[1, 0], [-1, 0]] * 5), ["yes", "no"] * 5)
    assert head.labels == ("no", "yes")
    assert head.weight.tolist() == [[0, 20], [0, 0]]  # the penalty that scored best, 10
    assert head(np.array([[1.0, 0], [-1, 0]])) == ["yes", "no"]


def test_what_is_no_encoder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"model\.safetensors and tokenizer\.json"):
        prepare("model2vec", tmp_path, tmp_path / "work", {}, print)


@pytest.fixture
def arguments(tmp_path: Path, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Fake peers, the toy bundle, and workers in this process."""
    fakes = {key: _fake(key) for key in FAKES}
    for module in (peers, peer_models):
        monkeypatch.setattr(module, "PEERS", fakes)
    monkeypatch.setattr(peers, "_REPORT", dict.fromkeys(TASKS, "dev.tsv"))
    monkeypatch.setattr(peers, "_SETTINGS", replace(peers._SETTINGS, slice_calls=20, short_s=0.03, cold_runs=1))
    monkeypatch.setattr(heads, "fit_head", _no_head)
    monkeypatch.setattr(bench, "WorkerProcess", HereProcess)
    monkeypatch.setattr(measurements, "cold_starts", lambda programs, **_: dict.fromkeys(programs, COLD))
    data, encoder = tmp_path / "data", tmp_path / "encoder"
    for task, labels in TASKS.items():
        rows = [(f"a {word} film {i}", label) for i, word in enumerate(WORDS[:6]) for label in labels]
        _tsv(data / task / "train.tsv", rows)
        _tsv(data / task / "dev.tsv", rows)
    encoder.mkdir()
    for name in ("model.safetensors", "tokenizer.json"):
        (encoder / name).write_text("{}", "utf-8")
    found = ["--data", str(data), "--gte", str(encoder), "--minilm", str(encoder), "--work", str(tmp_path / "work")]
    return [*found, "--bundle", str(toy_bundle), "--seconds", "0.05"]


def _call(arguments: Sequence[str], code: int = 0) -> Result:
    result = CliRunner().invoke(peers.main, [*arguments], catch_exceptions=code == 1)
    assert result.exit_code == code, result.output
    return result


def test_peers_are_made_once(arguments: list[str]) -> None:
    assert "--prepare" in _call(arguments, 2).output  # neither -o nor --prepare
    assert "there are wordy, slow" in _call([*arguments, "--prepare", "--without", "bert"], 2).output
    assert _call([*arguments, "--prepare", "--without", "slow"]).output.count("making ") == 1
    assert _call([*arguments, "--prepare"]).output.count("making ") == 1
    assert _call([*arguments, "--prepare"]).output == ""


def test_a_run_gives_a_record_its_tables_and_its_page(arguments: list[str], tmp_path: Path) -> None:
    out = tmp_path / "records" / "peers.json"
    _call([*arguments, "-o", str(out)])
    record = read_peers(out)
    assert str(tmp_path) not in json.dumps(record)
    assert set(record["workloads"]) == {f"{task}/dev" for task in TASKS}
    for workload in record["workloads"].values():
        names = [
            OURS,
            f"{OURS}, one task",
            "fieldrun onnxruntime",
            "fieldrun numpy",
            TOKENIZER,
            "fake wordy",
            "fake slow",
        ]
        assert list(workload["subjects"]) == names
        compared = [(ratio["of"], ratio["to"]) for ratio in workload["ratios"]]
        assert compared == [(name, to) for to in (OURS, TOKENIZER) for name in names if name != to]
        for name, subject in workload["subjects"].items():
            assert subject["install"]["bytes"] > 0
            assert subject["offline"][0]["threads"] == 1
            if name != TOKENIZER:
                (entry,) = subject["accuracy"].values()
                assert entry["n"] == workload["workload"]["texts"]
        assert "the label of" in workload["subjects"][f"{OURS}, one task"]["about"]["answers"]

    (out.parent / "peers-again.json").write_bytes(out.read_bytes())
    blocks = [f"<!-- table: {name} -->\n<!-- end -->\n" for name in ("summary", "peers-whole", "peers-again")]
    summary, whole, again = (render(block, out.parent) for block in blocks)
    rows = [line.split(" | ") for line in summary.splitlines() if line.startswith("| ")]
    assert [row[0] for row in rows[1:]] == ["| **fieldrun**", "| fake wordy", "| fake slow"]
    assert len({len(row) for row in rows}) == 1
    assert whole.count("| fake slow |") == 2 * len(TASKS)
    assert re.search(r"\| fake wordy \| [\d.]+ \([\d.]+ - [\d.]+\) \| [\d.]+ us \|", summary)
    assert "the largest difference is 0.0 %" in again
    assert len(read_records([out])) == len(TASKS)
    assert to_markdown(read_records([out])).count("## fieldrun native") == len(TASKS)


def test_a_peer_that_fails_is_told_after_the_record_is_written(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Failing(HereProcess):
        def ask(self, command: str, **more: Any) -> Any:
            if command == "load" and self._worker._spec.name == "fake slow":
                raise FieldrunError("fake slow: it has no model")
            return super().ask(command, **more)

    monkeypatch.setattr(bench, "WorkerProcess", Failing)
    result = _call([*arguments, "-o", str(tmp_path / "peers.json")], 1)
    assert "leave this one out with --without" in str(result.exception)
    record = read_peers(tmp_path / "peers.json")
    assert len(record["workloads"]) == len(TASKS)
    for workload in record["workloads"].values():
        assert workload["subjects"]["fake slow"]["failed"] == "fake slow: it has no model"
        assert workload["subjects"]["fake wordy"]["single_stream"]["calls"] > 0
    with pytest.raises(FieldrunError, match=r"not whole: fake slow on .*it has no model.*; measure again"):
        render("<!-- table: summary -->\n<!-- end -->\n", tmp_path)
    assert "it has no model" in to_markdown(read_records([tmp_path / "peers.json"]))
    (tmp_path / "again.json").write_bytes((tmp_path / "peers.json").read_bytes())
    both = [str(tmp_path / name) for name in ("peers.json", "again.json")]
    assert "the largest difference is 0.0 %" in _call(["--compare", *both]).output


def _ratios(**medians: float) -> dict[str, Any]:
    """A record of subjects with these ratios, whose CPU time is the square of the ratio."""
    entries = [{"of": name, "to": OURS, "pairs": 9, "median": median} for name, median in medians.items()]
    cpu = {OURS: 1.0} | {name: median**2 for name, median in medians.items()}
    subjects = {name: {"single_stream": {"cpu_us": value}} for name, value in cpu.items()}
    return {"workloads": {"a/dev": {"subjects": subjects, "ratios": entries}}}


def test_two_records_are_compared(tmp_path: Path) -> None:
    first, second = _ratios(one=2.0, two=10.0, three=1.0), _ratios(one=2.2, two=9.5, four=1.0)
    text = reproduced(first, second)
    assert text == (
        "Of 2 ratios measured twice the largest difference is 10.0 % (one to fieldrun native on a/dev), "
        "the median 7.5 %; of the same ratios in CPU time, which other processes disturb less, "
        "21.0 % (one to fieldrun native on a/dev), the median 15.4 %."
    )
    with pytest.raises(FieldrunError, match="no ratio in common"):
        reproduced(first, _ratios(four=1.0))
    paths = [tmp_path / "a.json", tmp_path / "b.json"]
    for path, values in zip(paths, (first, second), strict=True):
        write_json(path, {"schema": 1, "kind": "peers", **values})
    assert _call(["--compare", *map(str, paths)]).output == f"{text}\n"


def test_a_record_of_the_older_loop_is_not_mistaken(tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    write_record(path, "peers", "measured in one process", {"workloads": {"a/dev": {"latency": {}, "accuracy": {}}}})
    with pytest.raises(FieldrunError, match="measure again"):
        read_peers(path)
    with pytest.raises(FieldrunError, match="is incomplete"):
        read_records([path])


def test_the_tables_show_what_is_missing_and_what_was_warned_of(arguments: list[str], tmp_path: Path) -> None:
    path = tmp_path / "peers.json"
    _call([*arguments, "-o", str(path)])
    record = read_json(path)
    first, second, *_ = record["workloads"].values()
    first["subjects"]["fake slow"]["cold_start"] = {"unavailable": "it has no program"}
    text = "the medians of the repeats vary by {} %, more than 2.5 %: measure again, quieter"
    first["warnings"] = [{"about": name, "text": text.format(x)} for name, x in (("a", 11.0), ("b", 7.3), ("c", 9.5))]
    second["warnings"] = [
        {"about": "machine", "text": "the clock went between 800 and 900 MHz"},
        *first["warnings"][:1],
    ]
    for workload in [*record["workloads"].values()][2:]:
        workload["warnings"] = []
    write_json(path, record)
    names = [*record["workloads"]]
    shown = render("<!-- table: peers-whole -->\n<!-- end -->\n", tmp_path)
    rows = [line for line in shown.splitlines() if line.startswith("| fake slow") and "not measured" in line]
    assert len(rows) == 1
    assert (
        f"\n\nWarnings of the bench: a on {names[0]}, b on {names[0]}, c on {names[0]}, a on {names[1]}: "
        f"{text.format('7.3 to 11.0')}; {names[1]}: the clock went between 800 and 900 MHz.\n"
    ) in shown


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
    labels, vectors = tuple("abcdefghijklmnop"), {}
    for key in ("gte-small-fp32", "gte-small-int8"):
        folder = prepare(key, source, tmp_path / "work", {}, lambda line: None)
        head = LinearHead(weight=np.eye(16, dtype=np.float32), bias=np.zeros(16, np.float32), labels=labels)
        head.write(folder / "head-mood.json")
        alone: dict[str, Any] = {}
        program = PEERS[key].program.format(folder=str(folder), task="mood").replace("a gripping film", "rain")
        exec(compile(program, "program", "exec"), alone)
        vectors[key] = alone["x"]
        assert np.allclose(np.linalg.norm(vectors[key], axis=1), 1, atol=1e-5)
        best = labels[int(vectors[key].argmax())]
        assert answer(folder, "mood")(["a good film", "rain"])[1] == best
    assert (vectors["gte-small-fp32"] * vectors["gte-small-int8"]).sum(1).min() > 0.98
    assert not np.array_equal(vectors["gte-small-fp32"], vectors["gte-small-int8"])


def _tsv(path: Path, rows: Sequence[tuple[str, str]]) -> Dataset:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(["text\tlabel", *("\t".join(row) for row in rows)]) + "\n", "utf-8")
    return read_tsv(path)


def _fake(key: str) -> Peer:
    """A peer whose vector is the length of the text."""

    def make(source: Path, folder: Path) -> None:
        (folder / "model.onnx").write_bytes(b"x")

    def start(folder: Path) -> Vectors:
        return lambda texts: np.array([[len(text)] for text in texts], np.float32)

    program = "x = [[1.0]]"
    return headed(f"fake {key}", make, start, source="gte", made_with=("numpy",), needs=("numpy",), program=program)


def _no_head(x: object, labels: Sequence[str]) -> LinearHead:
    names = tuple(sorted(set(labels)))
    return LinearHead(weight=np.zeros((1, len(names)), np.float32), bias=np.zeros(len(names), np.float32), labels=names)
