"""The graphs against two other readers: the `onnx` package's reference evaluator, and the graph run unoptimised."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator
from onnx.reference.op_run import OpRun

import fieldrun
from fieldrun.bundle import Bundle
from fieldrun.checkpoint import Checkpoint
from fieldrun.errors import MissingDependency
from fieldrun.reference import forward, head_logits, pad_ids, pair_features
from fieldrun.tensors import Array, data_offsets, read_tensors
from fieldrun_exporters.graph import OPSET, WEIGHTS_FILE
from fieldrun_exporters.parity import open_session, run_bucket

IDS = [[2, 9, 10, 3], [2, 31, 3], [2, 8, 7, 6, 5, 11, 3]]


@pytest.fixture(scope="module")
def bundles(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory, texts: list[str]) -> dict[str, Bundle]:
    """The toy with small buckets, in both precisions."""
    from tests.exporters.conftest import RECIPE

    root, found = tmp_path_factory.mktemp("graphs"), {}
    for name, passes, precision in (
        ("fp32", '["fold"]', ""),
        ("int8", '["fold", "int8"]', 'tables = "int8"\nmixer = "int8"\nhidden = "int8"\noutput = "int8"'),
    ):
        recipe = root / f"{name}.toml"
        recipe.write_text(RECIPE.format(passes=passes, precision=precision, min_cosine=0.98, max_abs=0.5))
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


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_graphs_mean_the_same_to_the_onnx_reference(bundles: dict[str, Bundle], precision: str) -> None:
    bundle = bundles[precision]
    for bucket in bundle.manifest.buckets:
        ids = pad_ids([IDS[k % 3] for k in range(bucket.batch)], bucket.length)
        expected = evaluate(bundle.path / bucket.graph, {"ids": ids})
        for optimise in (False, True):
            found = open_session(bundle.path / bucket.graph, optimise=optimise).run(None, {"ids": ids})
            for a, b in zip(found, expected, strict=True):
                np.testing.assert_allclose(a, b, rtol=0, atol=1e-5)


def test_float_graphs_are_the_numpy_reference(bundles: dict[str, Bundle], toy_checkpoint: Path) -> None:
    bundle, source = bundles["fp32"], Checkpoint.load(toy_checkpoint)
    field = forward(source.config, source.tensors, pad_ids(IDS), float64=True)
    logits = np.concatenate([head_logits(h, field) for h in source.heads if h.kind == "single"], axis=1)
    for bucket in bundle.manifest.buckets:
        found = run_bucket(open_session(bundle.path / bucket.graph), bucket, IDS)
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


@pytest.mark.parametrize("precision", ["fp32", "int8"])
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
    assert {"table", "rows.coef", "is_token", "hidden.weight", "output.weight", "mixer.weight", "pairs.weight"} <= used


def test_graphs_have_fixed_shapes_and_standard_operators(bundles: dict[str, Bundle]) -> None:
    bundle = bundles["int8"]
    for bucket in bundle.manifest.buckets:
        model = onnx.load(str(bundle.path / bucket.graph), load_external_data=False)
        assert [(entry.domain, entry.version) for entry in model.opset_import] == [("", OPSET)]
        assert {node.domain for node in model.graph.node} == {""}

        def shape(value: Any) -> list[int]:
            return [dim.dim_value for dim in value.type.tensor_type.shape.dim]

        assert [shape(value) for value in model.graph.input] == [[bucket.batch, bucket.length]]
        assert [shape(value) for value in model.graph.output] == [[bucket.batch, 32], [bucket.batch, 6]]
        assert (bundle.path / bucket.graph).stat().st_size < 16_000, "weights belong into the shared file"


def test_a_session_names_the_extra_that_is_missing(bundles: dict[str, Bundle], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency) as caught:
        open_session(bundles["int8"].path / "b1-l8.onnx")
    assert (caught.value.extra, caught.value.exit_code) == ("ort", 3)
