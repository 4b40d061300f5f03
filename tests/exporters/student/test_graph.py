"""The graphs against two other readers: the `onnx` package's reference evaluator, and the graph run unoptimised."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

import fieldrun
from fieldrun.errors import MissingDependency
from fieldrun.formats.bundle import Bundle, Network
from fieldrun.formats.tensors import Array, data_offsets, read_tensors
from fieldrun.heads.head import head_logits, pair_features
from fieldrun.heads.trained import Checkpoint
from fieldrun.student.oracle import forward
from fieldrun.student.windows import pad_ids
from fieldrun_exporters.builder import OPSET, WEIGHTS_FILE
from fieldrun_exporters.parity import open_session, run_bucket
from tests.exporters.conftest import ALL_INT8, RECIPE
from tests.toy import toy_checkpoint as make_toy

LAYERS = ("mixer", "hidden", "output", "pairs")
IDS = [[2, 9, 10, 3], [2, 31, 3], [2, 8, 7, 6, 5, 11, 3]]


@pytest.fixture(scope="module")
def bundles(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> dict[str, Bundle]:
    """The toy with small buckets, in every precision."""
    root, found = tmp_path_factory.mktemp("graphs"), {}
    for name, passes, precision in (
        ("fp32", '["fold"]', ""),
        ("int8", '["fold", "int8"]', ALL_INT8),
        ("int8-weights", '["fold", "int8"]', ALL_INT8.replace('"int8"', '"int8-weights"').replace("-weights", "", 1)),
    ):
        recipe = root / f"{name}.toml"
        gate = {"min_cosine": 0.98, "max_abs": 0.5, "lengths": [8, 24]}
        recipe.write_text(RECIPE.format(passes=passes, precision=precision, **gate))
        fieldrun.export(toy_checkpoint, root / name, recipe=recipe, calibration=texts)
        found[name] = Bundle.load(root / name)
    return found


class QuantizeLinear(OpRun):
    """Operator of opset 13 per tensor, to int8; the `onnx` package runs only newer ones."""

    op_domain = ""

    def _run(self, x: Array, scale: Array, zero: Array, axis: int = 1, **_: Any) -> tuple[Array]:
        assert scale.shape == ()
        assert zero.dtype == np.int8
        return (np.clip(np.rint(x / scale) + zero, -128, 127).astype(np.int8),)


class DequantizeLinear(OpRun):
    """Operator of opset 13, per tensor or along the last axis of a matrix."""

    op_domain = ""

    def _run(self, x: Array, scale: Array, zero: Array, axis: int = 1, **_: Any) -> tuple[Array]:
        assert scale.ndim == 0 or (x.ndim, axis) == (2, 1)
        return ((x.astype(np.float32) - zero) * scale,)


def evaluate(path: Path, feeds: dict[str, Array]) -> list[Array]:
    """The outputs by the `onnx` package, node by node as the standard defines them."""
    model = onnx.load(str(path))  # with its external data
    evaluator = ReferenceEvaluator(model, new_ops=[QuantizeLinear, DequantizeLinear])
    return [np.asarray(output) for output in evaluator.run(None, feeds)]


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8-weights"])
def test_graphs_mean_the_same_to_the_onnx_reference(bundles: dict[str, Bundle], precision: str) -> None:
    bundle = bundles[precision]
    for bucket in bundle.manifest.buckets:
        ids = bundle.manifest.network.frame([IDS[k % 3] for k in range(bucket.batch)], bucket.batch, bucket.length)
        expected = evaluate(bundle.path / bucket.graph, {"ids": ids})
        for optimise in ("none", "all"):
            found = open_session(bundle.path / bucket.graph, optimise=optimise).run(None, {"ids": ids})
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_float_graphs_are_the_numpy_reference(bundles: dict[str, Bundle], toy_checkpoint: Path) -> None:
    bundle, source = bundles["fp32"], Checkpoint.load(toy_checkpoint)
    field = forward(source.config, source.tensors, pad_ids(IDS), float64=True)
    logits = np.concatenate([head_logits(h, field) for h in source.heads if h.kind == "single"], axis=1)
    for bucket in bundle.manifest.buckets:
        found = run_bucket(open_session(bundle.path / bucket.graph), bundle.manifest.network, bucket, IDS)
        np.testing.assert_allclose(found[0], field, rtol=0, atol=1e-5)
        np.testing.assert_allclose(found[1], logits, rtol=0, atol=1e-5)
    (pair,) = (head for head in source.heads if head.kind == "pair")
    expected = head_logits(pair, pair_features(field, field[::-1]))
    feeds = {"a": field.astype("f4"), "b": field[::-1].astype("f4")}
    for k in range(len(IDS)):
        one = {name: np.ascontiguousarray(value[k : k + 1]) for name, value in feeds.items()}
        graph = bundle.path / bundle.manifest.pair_graphs[1]
        np.testing.assert_allclose(evaluate(graph, one)[0][0], expected[k], rtol=0, atol=2e-5)
        np.testing.assert_allclose(open_session(graph).run(None, one)[0][0], expected[k], rtol=0, atol=2e-5)


@pytest.mark.parametrize("precision", ["fp32", "int8", "int8-weights"])
def test_external_data_points_at_the_right_bytes(bundles: dict[str, Bundle], precision: str) -> None:
    folder = bundles[precision].path
    tensors, offsets = read_tensors(folder / WEIGHTS_FILE), data_offsets(folder / WEIGHTS_FILE)
    used = set()
    for graph in folder.glob("*.onnx"):
        references = onnx.load(str(graph), load_external_data=False).graph.initializer
        for proto, reference in zip(onnx.load(str(graph)).graph.initializer, references, strict=True):
            if proto.name in tensors:
                used.add(proto.name)
                facts = {entry.key: entry.value for entry in reference.external_data}
                assert facts["location"] == WEIGHTS_FILE
                assert (int(facts["offset"]), int(facts["length"])) == offsets[proto.name]
                array = onnx.numpy_helper.to_array(proto)
                assert array.dtype == tensors[proto.name].dtype
                np.testing.assert_array_equal(array, tensors[proto.name])
            else:
                assert reference.data_location != onnx.TensorProto.EXTERNAL
    assert used == set(tensors) - {"mean.gain", *(f"{layer}.input_scale" for layer in LAYERS)} - (
        {f"{layer}.bias" for layer in LAYERS} if precision == "int8" else set()
    )


def test_graphs_have_fixed_shapes_and_standard_operators(bundles: dict[str, Bundle]) -> None:
    bundle = bundles["int8"]
    for bucket in bundle.manifest.buckets:
        model = onnx.load(str(bundle.path / bucket.graph), load_external_data=False)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
        assert {node.domain for node in model.graph.node} == {""}

        def shape(value: Any) -> list[int]:
            return [dim.dim_value for dim in value.type.tensor_type.shape.dim]

        assert [(value.name, shape(value)) for value in model.graph.input] == [
            ("ids", [bucket.batch, 2 + bucket.length + 2 + 1])
        ]
        assert [(value.name, shape(value)) for value in model.graph.output] == [("output", [bucket.batch, 32 + 6])]
        assert (bundle.path / bucket.graph).stat().st_size < 16_000, "weights belong into the shared file"


def features(path: Path, ids: Array) -> Array:
    """The features of every position, before any mixing between positions."""
    model = onnx.load(str(path))
    del model.graph.output[:]
    model.graph.output.append(onnx.helper.make_tensor_value_info("h", onnx.TensorProto.FLOAT, None))
    outputs: Any = ReferenceEvaluator(model, new_ops=[QuantizeLinear, DequantizeLinear]).run(None, {"ids": ids})
    return np.asarray(outputs[0])


@pytest.mark.parametrize("int8", [False, True])
def test_padding_is_zero_without_a_mask(
    tmp_path: Path, texts: list[str], write_recipe: Callable[..., Path], int8: bool
) -> None:
    toy = make_toy(3)  # one whose padding would be loud
    loud = dict(toy.tensors) | {"window.bias": np.full(16, 3, np.float32)}
    loud["embedding"] = toy.tensors["embedding"].copy()
    loud["embedding"][0] = 4
    dataclasses.replace(toy, tensors=loud).save(tmp_path / "c")
    recipe = write_recipe(int8=int8, min_cosine=0.9, max_abs=5)
    fieldrun.export(tmp_path / "c", tmp_path / "b", recipe=recipe, calibration=texts)
    manifest = Bundle.load(tmp_path / "b").manifest
    assert isinstance(manifest.network, Network)
    first: dict[int, Array] = {}
    for bucket in manifest.buckets:
        # one position more than tokens: the last window of two reaches over the end
        shape = (bucket.batch, bucket.length + 1, manifest.network.width)
        chosen = [(start + row) % len(IDS) for start in range(len(IDS)) for row in range(bucket.batch)]
        for start in range(0, len(chosen), bucket.batch):
            part = chosen[start : start + bucket.batch]
            ids = manifest.network.frame([IDS[i] for i in part], bucket.batch, bucket.length)
            h = features(tmp_path / "b" / bucket.graph, ids).reshape(shape)
            for i, row in zip(part, h, strict=True):
                assert not row[len(IDS[i]) :].any(), bucket
                assert row[: len(IDS[i])].any(-1).all(), bucket
                np.testing.assert_allclose(row[: len(IDS[i])], first.setdefault(i, row[: len(IDS[i])]), atol=1e-5)


def test_a_session_names_the_extra_that_is_missing(bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency) as caught:
        open_session(bundles["int8"].path / "b1-l8.onnx")
    assert (caught.value.extra, caught.value.exit_code) == ("ort", 3)
