"""TensorRT's spelling against the NumPy reference, and what it must not hold; bundles without it stay as they were."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import fieldrun
from fieldrun.errors import BundleError, ParityError, RecipeError
from fieldrun.formats.bundle import MANIFEST, Bundle, Manifest, seal
from fieldrun.formats.storage import read_json
from fieldrun.formats.tensors import Array
from fieldrun.heads.head import head_logits, pair_features
from fieldrun.student.oracle import forward
from fieldrun.student.windows import pad_ids
from fieldrun_exporters.builder import op_histogram
from fieldrun_exporters.parity import open_session, run_bucket
from fieldrun_exporters.student.passes.fold import fold
from fieldrun_exporters.student.simulate import dense, outputs
from tests import toy

RECIPE = """
schema = 1
passes = {passes}
[precision]
{precision}
[buckets]
batches = [1, 3]
lengths = [8, 24]
[parity]
min_cosine = 0.98
max_abs = 0.5
[tensorrt]
golden_tolerance = {tolerance}
"""
PRECISIONS = {
    "fp32": ([], ""),
    "fp16": (["fp16"], 'default = "fp16"'),
    "int8": (["int8"], 'tables = "int8"\ndense = "int8"'),
    "int8-weights": (["int8"], 'tables = "int8"\ndense = "int8-weights"'),
    "mixed": (["fp16", "int8"], 'tables = "int8"\ndense = "fp16"\noutput = "fp32"'),
}
STUDENTS: dict[str, dict[str, Any]] = {
    "toy": {},
    "no mean, no hidden layer": {"mean": False, "hidden": 0},
    "no mixer": {"mixer_kernel": 0, "mixer_width": 0},
    "four together": {"mixer_kernel": 4, "mixer_width": 9},
    "only the future": {"offsets": (0, 3), "ngrams": ((0, 1),)},
}


def export(checkpoint: Path, folder: Path, kind: str, texts: list[str], tolerance: float = 0.1) -> Bundle:
    passes, precision = PRECISIONS[kind]
    named = "[" + ", ".join(f'"{name}"' for name in ("fold", *passes)) + "]"
    (folder / "r.toml").write_text(RECIPE.format(passes=named, precision=precision, tolerance=tolerance), "utf-8")
    return Bundle.load(fieldrun.export(checkpoint, folder / "b", recipe=folder / "r.toml", calibration=texts).path)


@pytest.fixture(scope="module")
def floats(toy_checkpoint: Path, texts: list[str], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return export(toy_checkpoint, tmp_path_factory.mktemp("floats"), "fp32", texts)


@pytest.mark.parametrize("student", STUDENTS)
def test_every_graph_is_the_reference(tmp_path: Path, texts: list[str], student: str) -> None:
    source = toy.toy_checkpoint(4, **STUDENTS[student])
    source.save(tmp_path / "c", dtype="float32")
    bundle = export(tmp_path / "c", tmp_path, "fp32", texts)
    graphs = bundle.manifest.tensorrt
    assert graphs is not None
    rng = np.random.default_rng(2)
    lengths = [1, 2, 3, 7, 8, 9, 24]
    sequences = [rng.integers(1, source.config.vocab_size, size=n).tolist() for n in lengths]
    expected = forward(source.config, source.tensors, pad_ids(sequences), float64=True)
    logits = np.concatenate([head_logits(h, expected) for h in source.heads if h.kind == "single"], axis=1)
    for bucket in graphs.buckets:
        rows = [k for k, n in enumerate(lengths) if n <= bucket.length]
        session = open_session(bundle.path / bucket.graph, literal=True)
        field, found = run_bucket(session, bundle.manifest.network, bucket, [sequences[k] for k in rows])
        np.testing.assert_allclose(field, expected[rows], rtol=0, atol=2e-5)
        np.testing.assert_allclose(found, logits[rows], rtol=0, atol=2e-4)
    a, b = expected[:3].astype(np.float32), expected[3:6].astype(np.float32)
    (pair,) = [head for head in source.heads if head.kind == "pair"]
    session = open_session(bundle.path / graphs.pair_graphs[3], literal=True)
    np.testing.assert_allclose(
        session.run(["logits"], {"a": a, "b": b})[0], head_logits(pair, pair_features(a, b)), rtol=0, atol=2e-4
    )


@pytest.mark.parametrize("kind", PRECISIONS)
def test_a_graph_holds_nothing_that_the_parser_refuses(
    toy_checkpoint: Path, tmp_path: Path, texts: list[str], kind: str
) -> None:
    bundle = export(toy_checkpoint, tmp_path, kind, texts)
    graphs = bundle.manifest.tensorrt
    assert graphs is not None
    for name in graphs.names():
        model = onnx.load(bundle.path / name, load_external_data=False)
        types = {t.name: t.data_type for t in model.graph.initializer}
        made = {output: node for node in model.graph.node for output in node.output}
        shown = onnx.shape_inference.infer_shapes(model).graph
        kinds = {v.name: v.type.tensor_type.elem_type for v in (*shown.value_info, *shown.input, *shown.output)} | types
        for node in model.graph.node:
            if node.op_type == "MatMul":
                assert {kinds[name] for name in node.input} <= {onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16}
            if node.op_type == "ReduceSum":
                assert kinds[node.input[0]] in (onnx.TensorProto.FLOAT, onnx.TensorProto.INT32), "no sum of halves"
            for number, name in enumerate(node.input):
                if types.get(name) == onnx.TensorProto.INT8 and number == 0:
                    assert node.op_type == "DequantizeLinear", f"{node.op_type} of an int8 constant"
            if node.op_type == "QuantizeLinear":
                (reader,) = [other for other in model.graph.node if node.output[0] in other.input]
                assert reader.op_type == "DequantizeLinear"
                assert made[reader.output[0]] is reader
        external = {e.value for t in model.graph.initializer for e in t.external_data if e.key == "location"}
        assert external == {"weights.safetensors"}, "one copy of the weights for both spellings"
    for name in graphs.names():
        assert (bundle.path / name).stat().st_size < 64 << 10, "no weight inside a graph"
    assert op_histogram(bundle.path / graphs.buckets[0].graph).get("QuantizeLinear", 0) == (3 if kind == "int8" else 0)
    report = read_json(bundle.path / "report.json")["tensorrt"]
    assert len(report["parity"]) == len(graphs.buckets)
    assert report["golden_gap"] <= 0.05


def test_a_gap_beyond_the_tolerance_writes_nothing(toy_checkpoint: Path, tmp_path: Path, texts: list[str]) -> None:
    with pytest.raises(ParityError, match=r"from the golden fields .* tensorrt\.golden_tolerance"):
        export(toy_checkpoint, tmp_path, "fp16", texts, tolerance=1e-6)
    assert not (tmp_path / "b").exists()


def test_halves_are_rounded_as_a_gpu_does() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((5, 7)).astype(np.float32)
    tensors: dict[str, Array] = {
        "hidden.weight": rng.standard_normal((7, 3)).astype(np.float16),
        "hidden.bias": np.ones(3, np.float32),
    }
    exact = x.astype(np.float16).astype(np.float64) @ tensors["hidden.weight"].astype(np.float64)
    np.testing.assert_allclose(dense(tensors, "hidden", x, True), exact.astype(np.float16) + 1.0, rtol=0, atol=4e-3)
    assert (dense(tensors, "hidden", x, True) != dense(tensors, "hidden", x)).any()
    deployed, _ = fold(toy.toy_checkpoint())
    np.testing.assert_array_equal(outputs(deployed, [[5, 6]], halves=True), outputs(deployed, [[5, 6]]))


def test_a_palette_has_no_spelling(toy_checkpoint: Path, tmp_path: Path) -> None:
    text = RECIPE.format(passes='["fold", "palettize"]', precision='tables = "palette16"', tolerance=0.1)
    (tmp_path / "r.toml").write_text(text, "utf-8")
    with pytest.raises(RecipeError, match=r"\[tensorrt\] and palettes conflict"):
        fieldrun.export(toy_checkpoint, tmp_path / "b", recipe=tmp_path / "r.toml")


def test_other_bundles_say_nothing_of_it(toy_bundle: Path) -> None:
    value = read_json(toy_bundle / MANIFEST)
    assert "tensorrt" not in value
    assert "tensorrt" not in value["recipe"]
    assert Manifest.read(toy_bundle / MANIFEST).to_dict()["sha256"] == value["sha256"]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda t: t.update(golden_tolerance=0), "golden_tolerance must be within"),
        (lambda t: t["buckets"].pop(), "do not have the buckets"),
        (lambda t: t["pair_graphs"].pop("1"), "do not have the buckets"),
        (lambda t: t.update(colour=1), "unknown keys: colour"),
        (lambda t: t.pop("buckets"), "wrong type"),
        (lambda t: t["buckets"][0].update(graph="../x.onnx"), "list of files does not match"),
    ],
)
def test_a_manifest_that_makes_no_sense_is_refused(floats: Bundle, tmp_path: Path, change: Any, says: str) -> None:
    value = read_json(floats.path / MANIFEST)
    change(value["tensorrt"])
    (tmp_path / MANIFEST).write_text(json.dumps(seal(value)))
    with pytest.raises(BundleError, match=says):
        Manifest.read(tmp_path / MANIFEST)


def test_an_attached_head_keeps_the_graphs(floats: Bundle, tmp_path: Path, texts: list[str]) -> None:
    bundle = floats
    with fieldrun.load(bundle.path, engine="numpy") as model:
        model.attach(fieldrun.fit_head(model, texts[:20], ["x", "y"] * 10, name="mine"))
        model.save(tmp_path / "saved")
    saved = Bundle.load(tmp_path / "saved").manifest
    assert saved.tensorrt == bundle.manifest.tensorrt


def test_a_gpu_is_granted_no_more_than_the_recipe_can_need(
    toy_checkpoint: Path, tmp_path: Path, texts: list[str]
) -> None:
    bundle = export(toy_checkpoint, tmp_path, "fp32", texts, tolerance=0.78)
    largest = float(np.abs(read_json(bundle.path / "golden.json")["fields"]).max())
    assert bundle.manifest.tensorrt is not None
    assert bundle.manifest.tensorrt.golden_tolerance == pytest.approx(1e-3 * largest)
