"""Bundles that are nothing but graphs: the whole face and command line on a tiny imported encoder."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result

import fieldrun
from fieldrun.cli import main
from fieldrun.errors import BundleError, EngineError, MissingDependency, TextTooLong
from fieldrun.formats.bundle import Bundle, GraphNetwork, Manifest, seal
from fieldrun.formats.storage import read_json
from fieldrun.student.windows import pad_ids
from fieldrun_exporters.encoder.model import Encoder, forward
from tests.tiny_bert import write_bert
from tests.toy import WORDS

RECIPE = """
schema = 1
passes = ["fold", "int8"]
[precision]
tables = "int8"
dense = "int8"
[buckets]
batches = [1, 4]
lengths = [8, 16]
[parity]
min_cosine = 0.98
max_abs = 0.5
max_bucket_gap = 0.1
"""
TRAIN = [("a good film", "film"), ("the film was great", "film"), ("a card", "money"), ("transfer my cash", "money")]


def call(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == code, (result.stdout, result.stderr)
    return result


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tiny BERT, imported and exported from the command line, int8."""
    root = tmp_path_factory.mktemp("graph")
    write_bert(root / "tiny")
    (root / "recipe.toml").write_text(RECIPE)
    rng = np.random.default_rng(7)
    texts = [" ".join(rng.choice(WORDS, size=1 + i % 20)) + f" {i}" for i in range(60)]
    (root / "texts.txt").write_text("\n".join(texts))
    value = json.loads(call("import-encoder", root / "tiny", "-o", root / "encoder", "--json").stdout)
    assert (value["name"], value["layers"], value["field_dim"], value["licence"]) == ("tiny", 2, 32, "unstated")
    call(
        "export",
        root / "encoder",
        "--recipe",
        root / "recipe.toml",
        "--calibration",
        root / "texts.txt",
        "-o",
        root / "b",
    )
    return root / "b"


def test_importing_says_what_it_read(tmp_path: Path) -> None:
    folder, out = write_bert(tmp_path / "tiny"), tmp_path / "encoder"
    said = call("import-encoder", folder, "--pooling", "cls", "--normalize", "-o", out).stdout.splitlines()
    assert said[0].startswith(
        f"{out}: tiny, 0.02 M parameters, 2 layers, 32-d fields (cls, length 1), texts of up to 40 "
        "tokens, licence unstated"
    )
    assert said[1] == f"next: fieldrun export {out} --recipe encoder-int8 -o bundle"
    assert Encoder.load(out).config.pooling == "cls"
    assert "exists" in call("import-encoder", folder, "-o", out, code=2).stderr
    write_bert(folder, model_type="t5")
    assert "model_type 't5'" in call("import-encoder", folder, "-o", tmp_path / "x", code=5).stderr


def test_auto_takes_onnxruntime_and_the_others_say_why_not(bundle: Path) -> None:
    with fieldrun.load(bundle) as model:
        assert (model.engine, model.engine_reason) == ("onnxruntime", "the bundle is a graph")
        assert model.tasks == ()
        assert model.predict_all(["a film"]) == {}
    for engine in ("numpy", "native"):
        with pytest.raises(EngineError, match="use engine='onnxruntime'"):
            fieldrun.load(bundle, engine=engine)
    assert "onnxruntime" in call("verify", bundle, "--engine", "numpy", code=9).stderr
    with fieldrun.load(bundle, engine="null") as model:
        assert not model.field(["a film"]).any()


def test_without_onnxruntime_the_extra_is_named(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match=r"fieldrun\[ort\]"):
        fieldrun.load(bundle)


def test_long_texts_are_cut_windowed_or_refused(bundle: Path) -> None:
    text = " ".join(WORDS[:40])
    with fieldrun.load(bundle, overflow="truncate") as model:
        cut = model.forward([text])
        assert cut.dropped[0] == 40 + 2 - 16
        assert np.array_equal(cut.field, model.field([" ".join(WORDS[:14])]))
    with fieldrun.load(bundle, overflow="window") as model:
        windows = [" ".join(WORDS[i : min(40, i + 14)]) for i in (0, 14, 28)]
        weights = np.array([[16], [16], [14]], np.float32)
        want = (model.field(windows) * weights).sum(0) / weights.sum()
        assert np.abs(model.field([text])[0] - want).max() < 1e-5
    with fieldrun.load(bundle, overflow="error") as model, pytest.raises(TextTooLong):
        model.field([text])


def test_a_field_does_not_depend_on_company(bundle: Path) -> None:
    texts = ["a film", "the film was great", "no", "what is my card for", "rain", "it was a very good film to remember"]
    with fieldrun.load(bundle) as model:
        together = model.field(texts)
        alone = np.concatenate([model.field([text]) for text in texts])
    assert np.abs(together - alone).max() < 1e-4


def test_a_head_is_fitted_attached_saved_and_verified(bundle: Path, tmp_path: Path) -> None:
    texts, labels = (list(column) for column in zip(*TRAIN, strict=True))
    with fieldrun.load(bundle) as model:
        model.attach(fieldrun.fit_head(model, texts, labels, name="topic"))
        scores = model.predict_proba(texts, "topic")
        assert model.predict(texts, "topic") == [model.labels("topic")[i] for i in scores.argmax(1)]
        assert model.similarity(texts[:1], texts[:1]).item() == pytest.approx(1)
        model.save(tmp_path / "saved")
    report = fieldrun.verify(tmp_path / "saved")
    assert report.passed
    assert report.max_abs_scores <= report.engines[0].tolerance
    with fieldrun.load(tmp_path / "saved") as model:
        assert np.array_equal(model.predict_proba(texts, "topic"), scores)


def test_every_command_takes_it(bundle: Path, tmp_path: Path) -> None:
    train = tmp_path / "train.tsv"
    train.write_text("\n".join(["text\tlabel", *("\t".join(row) for row in TRAIN)]) + "\n")
    call("fit", "-b", bundle, train, "--name", "topic", "-o", tmp_path / "fitted")
    said = call("run", "-b", tmp_path / "fitted", "--task", "topic", "--json", "a good film").stdout
    assert json.loads(said)["label"]
    assert "accuracy" in call("eval", tmp_path / "fitted", "--task", "topic", "--data", train).stdout
    call("field", "-b", bundle, "a film", "rain", "-o", tmp_path / "f.npy")
    assert np.load(tmp_path / "f.npy").shape == (2, 32)
    about = json.loads(call("info", bundle, "--json").stdout)
    assert about["parameters"] == Encoder.load(bundle.parent / "encoder").parameters()
    assert (about["tasks"], about["provenance"]["source"]["name"]) == ({}, "tiny")
    assert "tiny" in call("info", bundle).stdout
    assert call("tasks", bundle).stdout == ""
    assert json.loads(call("verify", bundle, "--json").stdout)["passed"]
    assert json.loads(call("doctor", bundle, "--json").stdout)["bundle"]["engine"] == "onnxruntime"


def test_fields_stay_near_those_of_the_imported_encoder(bundle: Path) -> None:
    encoder, texts = Encoder.load(bundle.parent / "encoder"), ["a good film", "where is my card"]
    with fieldrun.load(bundle) as model:
        want = np.concatenate([forward(encoder, pad_ids([row])) for row in model.token_ids(texts)])
        found = model.field(texts)
    cosine = (found * want).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(want, axis=1)
    assert cosine.min() > 0.99


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("form", "tree", "network.form must be 'graph'"),
        ("field_dim", 0, "network.field_dim"),
        ("pad_id", 10**9, "network.pad_id"),
        ("width", 7, "unknown keys: width"),
    ],
)
def test_a_network_that_makes_no_sense_is_refused(
    bundle: Path, tmp_path: Path, key: str, value: object, message: str
) -> None:
    folder = shutil.copytree(bundle, tmp_path / "copy")
    manifest = read_json(folder / "manifest.json")
    manifest["network"][key] = value
    (folder / "manifest.json").write_text(json.dumps(seal(manifest)))
    with pytest.raises(BundleError, match=message):
        Bundle.load(folder)


def test_a_graphs_manifest_is_read_back_and_a_students_names_no_form(bundle: Path, toy_bundle: Path) -> None:
    manifest = Manifest.read(bundle / "manifest.json")
    assert isinstance(manifest.network, GraphNetwork)
    assert asdict(manifest.network) == read_json(bundle / "manifest.json")["network"]
    assert manifest.network.margins == (0, 0)
    assert "form" not in read_json(toy_bundle / "manifest.json")["network"]
