"""Checkpoint -> bundle: what is reported is true, and the same inputs give the same bytes."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import fieldrun
from fieldrun.errors import ParityError
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.storage import read_json, sha256_file
from fieldrun.heads.head import head_logits, pair_features
from fieldrun.heads.trained import Checkpoint
from fieldrun.student.oracle import forward
from fieldrun.student.windows import pad_ids
from fieldrun_exporters import recipe
from fieldrun_exporters.builder import op_histogram
from fieldrun_exporters.calibrate import tokenize
from fieldrun_exporters.export import ExportReport
from fieldrun_exporters.parity import open_session
from tests.exporters.conftest import ALL_INT8
from tests.toy import toy_checkpoint as make_toy

INTEGER_LAYERS = ("mixer", "hidden", "output")


@pytest.fixture(scope="module")
def exported(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExportReport]:
    """The toy exported with both shipped recipes, and with every part in int8."""
    root = tmp_path_factory.mktemp("exported")
    shipped = (Path(recipe.__file__).parent / "recipes" / "cpu-int8.toml").read_text("utf-8")
    precision = shipped[shipped.index("[precision]") : shipped.index("[buckets]")]
    (root / "all-int8.toml").write_text(shipped.replace(precision, f"[precision]\n{ALL_INT8}\n\n"), "utf-8")
    recipes: dict[str, str | Path] = {
        "cpu-fp32": "cpu-fp32",
        "cpu-int8": "cpu-int8",
        "all-int8": root / "all-int8.toml",
    }
    return {name: fieldrun.export(toy_checkpoint, root / name, recipe=path) for name, path in recipes.items()}


@pytest.mark.parametrize("name", ["cpu-fp32", "cpu-int8", "all-int8"])
def test_a_recipe_exports_and_verifies(exported: dict[str, ExportReport], name: str) -> None:
    report = exported[name]
    bundle = Bundle.load(report.path)
    assert report.bytes == bundle.total_bytes()
    assert bundle.manifest.recipe["name"] == report.recipe == name
    for engine in ("native", "numpy", "onnxruntime"):
        verified = fieldrun.verify(report.path, engine=engine)
        assert verified.passed, verified
        assert verified.texts >= 8


@pytest.mark.parametrize("name", ["cpu-fp32", "cpu-int8", "all-int8"])
def test_every_bucket_is_measured_within_its_gate(exported: dict[str, ExportReport], name: str) -> None:
    report = exported[name]
    manifest = Bundle.load(report.path).manifest
    assert [(p.batch, p.length) for p in report.parity] == [(b.batch, b.length) for b in manifest.buckets]
    gate = manifest.recipe["parity"]
    for measured in report.parity:
        assert measured.texts > 0
        assert gate["min_cosine"] <= measured.min_cosine <= measured.mean_cosine <= 1 + 1e-6
        assert measured.max_abs <= gate["max_abs"]
        assert measured.bucket_gap <= 1e-5
        assert measured.top1_agreement > 0.95
    if name == "cpu-fp32":
        assert max(measured.max_abs_logits for measured in report.parity) < 1e-4


def test_the_report_is_in_the_bundle(exported: dict[str, ExportReport], toy_checkpoint: Path) -> None:
    report = exported["all-int8"]
    assert set(exported["cpu-int8"].passes[1].changed) == {"table", "hidden", "output", "pairs"}
    stored = read_json(report.path / "report.json")
    as_json = json.loads(json.dumps(report.to_dict()))
    for key in ("passes", "parity", "operators"):
        assert stored[key] == as_json[key]
    fold, int8 = report.passes
    assert (fold.name, int8.name) == ("fold", "int8")
    assert fold.bytes_after == int8.bytes_before > 2 * int8.bytes_after
    assert set(int8.changed) == {"table", "pairs", "mean.gain", *INTEGER_LAYERS}
    source = Checkpoint.load(toy_checkpoint)
    labels = sum(len(head.labels) for head in source.heads if head.kind == "single")
    assert int8.changed["output"]["weights"] == source.config.hidden * (source.config.field_dim + labels)
    assert int8.changed["mixer"]["weights"] == source.tensors["mixer.weight"].size
    assert (report.path / "weights.safetensors").stat().st_size < 8192 + int8.bytes_after
    assert [entry["batch"] for entry in stored["pair_parity"]] == sorted({bucket.batch for bucket in report.parity})
    assert all(entry["top1_agreement"] >= 0.9 for entry in stored["pair_parity"])
    assert {"onnx", "onnxruntime", "numpy", "tokenizers"} == set(stored["libraries"])


def test_the_summary_says_equal_only_within_rounding(exported: dict[str, ExportReport]) -> None:
    assert exported["cpu-fp32"].equal
    largest = max(bucket.max_abs for bucket in exported["cpu-fp32"].parity)
    assert f"equal to the reference's within {largest:.1e}, which float32 rounds" in exported["cpu-fp32"].summary()
    report = exported["all-int8"]
    assert not report.equal
    assert not report.differs
    assert "bound 0.95" in report.summary()
    assert "equal" not in report.summary()
    assert f"{report.proof['field']['mean_cosine']:.4f} (lowest {report.proof['field']['min_cosine']:.4f}, " in (
        report.summary()
    )
    assert f"{100 * report.proof['field']['rank_agreement']:.1f} %" in report.summary()


def test_pairs_are_measured_on_the_fields_that_a_device_has(
    toy_checkpoint: Path, tmp_path: Path, texts: list[str]
) -> None:
    path = tmp_path / "rough.toml"
    path.write_text(
        'schema = 1\npasses = ["fold", "palettize"]\n[precision]\ntables = "palette2"\n'
        "[buckets]\nbatches = [1, 4]\nlengths = [8, 24]\n"
        "[parity]\nmin_cosine = 0.01\nmax_abs = 99\nmin_top1 = 0.01\n"
    )
    report = fieldrun.export(toy_checkpoint, tmp_path / "b", recipe=path, calibration=texts)
    assert report.differs
    assert report.summary().startswith("differs from its reference: cosine")
    source = Checkpoint.load(toy_checkpoint)
    (head,) = [head for head in source.heads if head.kind == "pair"]
    ids = tokenize(source, texts, 24)
    fields = np.concatenate([forward(source.config, source.tensors, pad_ids([row]), float64=True) for row in ids])
    wanted = head_logits(head, pair_features(fields, np.roll(fields, -1, axis=0)))
    with fieldrun.load(report.path, engine="numpy") as model:
        said = model.predict(list(zip(texts, texts[1:] + texts[:1], strict=True)), head.name)
    agreement = np.mean([head.labels[k] == label for k, label in zip(wanted.argmax(1), said, strict=True)])
    assert agreement < 1
    for entry in read_json(report.path / "report.json")["pair_parity"]:
        assert entry["top1_agreement"] == pytest.approx(agreement)
        assert entry["max_abs_logits"] > 0.1
    limit = 1 - (1 - agreement) / 2
    path.write_text(path.read_text().replace("min_top1 = 0.01", f"min_top1 = {limit}"))
    alone = dataclasses.replace(source, heads=(head,))
    alone.save(tmp_path / "pairs")
    with pytest.raises(ParityError, match=r"pair graph of batch 1: min_top1 is 0\.\d+, the recipe's limit is"):
        fieldrun.export(tmp_path / "pairs", tmp_path / "c", recipe=path, calibration=texts)
    assert not (tmp_path / "c").exists()


def test_every_int8_layer_runs_as_int8(exported: dict[str, ExportReport], tmp_path: Path) -> None:
    report = exported["all-int8"]
    assert report.operators["graph"]["QuantizeLinear"] == len(INTEGER_LAYERS)
    for graph in sorted(report.path.glob("*.onnx")):
        open_session(graph, optimised=tmp_path / graph.name)
        found = op_histogram(tmp_path / graph.name)
        expected = 1 if graph.name.startswith("pair") else len(INTEGER_LAYERS)
        assert found.get("MatMulIntegerToFloat") == expected, (graph.name, found)
        assert "DequantizeLinear" not in found
    assert report.operators["optimised"]["MatMulIntegerToFloat"] == len(INTEGER_LAYERS)
    for name in ("cpu-fp32", "cpu-int8"):
        kinds = exported[name].operators["optimised"]
        assert not {"MatMulIntegerToFloat", "QuantizeLinear"} & set(kinds)
        assert (kinds["FusedGemm"], kinds["Relu"]) == (2, 1), "product, bias and ReLU of a layer are one node"


def test_graphs_carry_what_they_are(exported: dict[str, ExportReport], toy_checkpoint: Path) -> None:
    report = exported["cpu-int8"]
    for graph in report.path.glob("*.onnx"):
        properties = {p.key: p.value for p in onnx.load(str(graph), load_external_data=False).metadata_props}
        assert properties["fieldrun.recipe"] == "cpu-int8"
        assert properties["fieldrun.weights_sha256"] == sha256_file(report.path / "weights.safetensors")
        assert properties["fieldrun.licence"] == "Apache-2.0"
        for head in Checkpoint.load(toy_checkpoint).heads:
            assert f'"{head.name}"' in properties["fieldrun.tasks"]


def test_same_inputs_same_bytes(exported: dict[str, ExportReport], toy_checkpoint: Path, tmp_path: Path) -> None:
    for name in ("cpu-fp32", "cpu-int8"):
        report = exported[name]
        again = fieldrun.export(str(toy_checkpoint), str(tmp_path / name), recipe=name)
        first, second = ({p.name: sha256_file(p) for p in r.path.iterdir()} for r in (report, again))
        assert first == second


def test_golden_fields_are_those_of_the_reference(exported: dict[str, ExportReport], toy_checkpoint: Path) -> None:
    source = Checkpoint.load(toy_checkpoint)
    golden = read_json(exported["cpu-fp32"].path / "golden.json")
    expected = forward(source.config, source.tensors, pad_ids(golden["ids"]), float64=True)
    np.testing.assert_allclose(golden["fields"], expected, rtol=0, atol=1e-5)
    assert set(golden["scores"]) == {head.name for head in source.heads}
    for scores in golden["scores"].values():
        assert len(scores) == len(golden["texts"])
        np.testing.assert_allclose(np.sum(scores, axis=1), 1, rtol=0, atol=1e-6)


NO_MIXER = {"mixer_kernel": 0, "mixer_width": 0}
NO_NGRAMS = {"ngrams": (), "ngram_buckets": 0}
STUDENTS: dict[str, dict[str, Any]] = {
    "no mixer": NO_MIXER,
    "three together": {"mixer_kernel": 3, "mixer_width": 7},
    "one by one": {"mixer_kernel": 1, "mixer_width": 30},
    "no n-grams": NO_NGRAMS,
    "no mean": {"mean": False},
    "no hidden layer": {"hidden": 0},
    "as shipped": {"mean": False, "hidden": 0, "offsets": (-2, -1, 0, 1, 2)},
    "no pair tasks": {"pairs": False},
    "other offsets": {"offsets": (4, 0, -5)},
    "only the past": {"offsets": (-2, 0), "ngrams": ((-1, 0),)},
    "only the future": {"offsets": (0, 3), "ngrams": ((0, 1), (0, 2, 4))},
    "only the token": {"offsets": (0,), "mean": False, "hidden": 0, **NO_MIXER, **NO_NGRAMS},
    "only pair tasks": {},
    "no tasks": {},
}


@pytest.mark.parametrize("name", STUDENTS)
def test_other_students_export(tmp_path: Path, texts: list[str], write_recipe: Callable[..., Path], name: str) -> None:
    checkpoint = make_toy(5, **STUDENTS[name])
    kept = {"only pair tasks": ("pair",), "no tasks": ()}.get(name, ("single", "pair"))
    checkpoint = dataclasses.replace(checkpoint, heads=tuple(h for h in checkpoint.heads if h.kind in kept))
    checkpoint.save(tmp_path / "c")
    for int8 in (False, True):
        out = tmp_path / f"b{int8}"
        recipe = write_recipe(int8=int8, lengths=(9, 24) if name == "three together" else (8, 24))
        fieldrun.export(tmp_path / "c", out, recipe=recipe, calibration=texts)
        for engine in ("numpy", "onnxruntime"):
            assert fieldrun.verify(out, engine=engine).passed
        with fieldrun.load(out, engine="numpy") as model:
            assert model.tasks == tuple(head.name for head in checkpoint.heads)
            labels = sum(len(head.labels) for head in checkpoint.heads if head.kind == "single")
            assert model.forward(texts[:3]).logits.shape == (3, labels)
