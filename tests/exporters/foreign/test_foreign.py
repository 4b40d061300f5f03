"""Foreign ONNX graphs: what becomes a bundle, against a NumPy formula, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import NodeProto, TensorProto, helper, numpy_helper

import fieldrun
from fieldrun.errors import CheckpointError, ExportError, FieldrunError, RecipeError
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.storage import read_json, sha256_file
from fieldrun.formats.tensors import Array, read_tensors
from fieldrun_exporters.foreign import read, reference
from fieldrun_exporters.foreign import source as module
from fieldrun_exporters.foreign.quantize import Product, find_layers, quantize_graph
from fieldrun_exporters.parity import open_session
from tests.toy import toy_tokenizer

Write = Callable[..., Path]
VOCAB = toy_tokenizer().get_vocab_size()


def weights(seed: int = 0) -> dict[str, Array]:
    rng = np.random.default_rng(seed)
    sizes = {"E": (VOCAB, 32), "W1": (32, 48), "b1": (48,), "W2": (24, 48), "b2": (24,)}
    return {name: (rng.standard_normal(size) / np.sqrt(size[0])).astype(np.float32) for name, size in sizes.items()}


def node(kind: str, inputs: str, output: str, **attributes: Any) -> NodeProto:
    return helper.make_node(kind, inputs.split(), [output], **attributes)


def states() -> list[NodeProto]:
    """Token states (batch, length, 24): a table, a product with a bias, ReLU, a product with a transposed weight."""
    return [
        node("Gather", "E input_ids", "e"),
        node("MatMul", "e W1", "h0"),
        node("Add", "h0 b1", "h1"),
        node("Relu", "h1", "h2"),
        node("Transpose", "W2", "W2.T", perm=[1, 0]),
        node("MatMul", "h2 W2.T", "h3"),
        node("Add", "b2 h3", "last_hidden_state"),
    ]


def masked_mean() -> list[NodeProto]:
    """The field (batch, 24), by the graph's own mean over the mask."""
    return [
        *states(),
        node("Cast", "attention_mask", "m", to=TensorProto.FLOAT),
        node("Unsqueeze", "m two", "m3"),
        node("ReduceSum", "masked one", "sum", keepdims=0),
        node("ReduceSum", "m one", "count", keepdims=1),
        node("Div", "sum count", "sentence_embedding"),
    ]


def save(
    folder: Path,
    nodes: Sequence[NodeProto] | None = None,
    *,
    inputs: Sequence[str] = ("input_ids",),
    output: str = "last_hidden_state",
    shape: Sequence[Any] = ("batch", "length"),
    dtype: int = TensorProto.INT64,
    opset: int = 17,
    extra: Sequence[onnx.TensorProto] = (),
    values: dict[str, Array] | None = None,
    tokenizer: str | None = None,
) -> Path:
    """Write a foreign folder; all the graph's integer inputs are (batch, length)."""
    folder.mkdir(exist_ok=True)
    nodes = list(states() if nodes is None else nodes)
    initializers = [numpy_helper.from_array(value, name) for name, value in (values or weights()).items()]
    initializers += [numpy_helper.from_array(np.array([n]), name) for name, n in (("one", 1), ("two", 2))]
    graph = helper.make_graph(
        nodes,
        "foreign",
        [helper.make_tensor_value_info(name, dtype, list(shape)) for name in inputs],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        [*initializers, *extra],
    )
    domains = {each.domain for each in nodes}
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(name, 1) for name in domains if name)]
    onnx.save(helper.make_model(graph, opset_imports=imports, ir_version=8), folder / "model.onnx")
    (folder / "tokenizer.json").write_text(tokenizer or toy_tokenizer().to_str())
    return folder


def expected(ids: Sequence[Sequence[int]], values: dict[str, Array] | None = None) -> Array:
    """The field in NumPy: the mean of the token states."""
    w = values or weights()
    rows = [np.maximum(w["E"][list(row)] @ w["W1"] + w["b1"], 0) @ w["W2"].T + w["b2"] for row in ids]
    return np.stack([row.mean(0) for row in rows])


def with_mask() -> list[NodeProto]:
    nodes = masked_mean()
    nodes.insert(-3, node("Mul", "last_hidden_state m3", "masked"))
    return nodes


KINDS: dict[str, dict[str, Any]] = {
    "token states": {},
    "a field": {"nodes": with_mask(), "inputs": ("input_ids", "attention_mask"), "output": "sentence_embedding"},
    "int32 and types": {
        "nodes": [*with_mask(), node("Sub", "token_type_ids token_type_ids", "unused")],
        "inputs": ("token_type_ids", "input_ids", "attention_mask"),
        "output": "sentence_embedding",
        "dtype": TensorProto.INT32,
    },
    "opset 13": {"opset": 13},
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_float_bundle_gives_the_graphs_fields(
    tmp_path: Path, texts: list[str], encoder_recipe: Write, kind: str
) -> None:
    folder = save(tmp_path / "f", **KINDS[kind])
    report = fieldrun.export(folder, tmp_path / "b", recipe=encoder_recipe("fp32"), calibration=texts)
    assert fieldrun.verify(tmp_path / "b").passed
    with fieldrun.load(tmp_path / "b") as model:
        assert np.abs(model.field(texts) - expected(model.token_ids(texts))).max() < 1e-5
        assert np.abs(model.field(texts[3:4]) - expected(model.token_ids(texts[3:4]))).max() < 1e-5
    assert report.proof["field"]["rank_agreement"] == 1
    said = read_json(tmp_path / "b" / "report.json")["import"]["field"]
    assert said == ("mean of the token states" if "output" not in KINDS[kind] else "as the graph gives it")


@pytest.mark.parametrize("kind", ["token states", "a field"])
def test_int8_products_and_table(tmp_path: Path, texts: list[str], encoder_recipe: Write, kind: str) -> None:
    folder = save(tmp_path / "f", **KINDS[kind])
    report = fieldrun.export(folder, tmp_path / "b", recipe=encoder_recipe("int8"), calibration=texts)
    assert report.operators["optimised"]["MatMulIntegerToFloat"] == 2
    assert "DequantizeLinear" not in report.operators["optimised"]
    assert fieldrun.verify(tmp_path / "b").passed
    stored = read_tensors(tmp_path / "b" / "weights.safetensors")
    assert {tensor.shape for tensor in stored.values() if tensor.dtype == np.int8} == {(VOCAB, 32), (32, 48), (48, 24)}
    assert set(report.passes[1].changed) >= {
        name for name, layer in report.passes[1].changed.items() if "input_range" in layer
    }
    with fieldrun.load(tmp_path / "b") as model:
        want = expected(model.token_ids(texts))
        found = model.field(texts)
    cosine = (found * want).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(want, axis=1)
    assert cosine.min() > 0.995
    graphs = sum(path.stat().st_size for path in (tmp_path / "b").glob("*.onnx"))
    assert graphs < 40_000, "weights stand in their file once, not in every graph"
    again = fieldrun.export(folder, tmp_path / "again", recipe=encoder_recipe("int8"), calibration=texts)
    first, second = ({p.name: sha256_file(p) for p in r.path.iterdir()} for r in (report, again))
    assert first == second


def test_float_inputs_of_int8_weights(tmp_path: Path, texts: list[str], encoder_recipe: Write) -> None:
    recipe = encoder_recipe("int8", precision='dense = "int8-weights"')
    report = fieldrun.export(save(tmp_path / "f"), tmp_path / "b", recipe=recipe, calibration=texts)
    assert "MatMulIntegerToFloat" not in report.operators["optimised"]
    assert report.parity[0].min_cosine > 0.9999
    stored = read_tensors(tmp_path / "b" / "weights.safetensors")
    assert stored["model.E"].dtype == np.float32
    assert sum(tensor.dtype == np.int8 for tensor in stored.values()) == 2


def test_pooling_and_padding_are_what_the_folder_says(tmp_path: Path, texts: list[str], encoder_recipe: Write) -> None:
    folder = save(tmp_path / "f")
    tokenizer = toy_tokenizer()
    tokenizer.enable_padding(pad_id=1, pad_token="[UNK]")
    (folder / "tokenizer.json").write_text(tokenizer.to_str())
    modules = [
        {"type": f"sentence_transformers.models.{kind}", "path": kind.removeprefix("Transformer")}
        for kind in ("Transformer", "Pooling", "Normalize")
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    (folder / "Pooling").mkdir()
    (folder / "Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    fieldrun.export(folder, tmp_path / "b", recipe=encoder_recipe("fp32"), calibration=texts)
    assert Bundle.load(tmp_path / "b").manifest.network.pad_id == 1
    with fieldrun.load(tmp_path / "b") as model:
        first = expected([row[:1] for row in model.token_ids(texts[:6])])
        want = first / np.linalg.norm(first, axis=1, keepdims=True)
        assert np.abs(model.field(texts[:6]) - want).max() < 1e-5


def test_fixed_shapes_need_their_bucket(tmp_path: Path, texts: list[str], encoder_recipe: Write) -> None:
    folder = save(tmp_path / "f", shape=(1, 32), **KINDS["a field"])
    with pytest.raises(RecipeError, match=r"set buckets\.batches = \[1\]"):
        fieldrun.export(folder, tmp_path / "b", recipe=encoder_recipe("fp32"), calibration=texts)
    with pytest.raises(RecipeError, match=r"set buckets\.lengths = \[32\]"):
        fieldrun.export(folder, tmp_path / "b", recipe=encoder_recipe("fp32", batches=[1]), calibration=texts)
    recipe = encoder_recipe("int8", batches=[1], lengths=[32])
    fieldrun.export(folder, tmp_path / "b", recipe=recipe, calibration=texts)
    assert fieldrun.verify(tmp_path / "b").passed


@pytest.fixture
def refused(tmp_path: Path, texts: list[str], encoder_recipe: Write) -> Callable[..., str]:
    """Export a folder, expect an error of one line, and see that nothing was written."""

    def call(kind: type[FieldrunError], folder: Path, **changes: Any) -> str:
        place = tmp_path / "place"
        place.mkdir(exist_ok=True)
        arguments: dict[str, Any] = {"calibration": texts, "recipe": encoder_recipe("int8")} | changes
        with pytest.raises(kind) as caught:
            fieldrun.export(folder, place / "out", **arguments)
        assert list(place.iterdir()) == []
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return call


OF_COMPANY = [
    *states()[:-1],
    node("ReduceMean", "h3", "mates", axes=[0], keepdims=1),
    node("Sub", "h3 mates", "last_hidden_state"),
]
OF_PADDING = [
    *states()[:-1],
    node("Add", "b2 h3", "all"),
    node("ReduceMean", "all", "last_hidden_state", axes=[1], keepdims=0),
]
BRANCH = helper.make_graph(
    [node("Identity", "h3", "out")], "b", [], [helper.make_tensor_value_info("out", TensorProto.FLOAT, None)]
)
REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "float ids": ({"dtype": TensorProto.FLOAT}, "'input_ids' is neither"),
    "an unknown input": ({"inputs": ("input_ids", "position_ids")}, "'position_ids' is neither"),
    "no ids": (
        {"inputs": ("attention_mask",), "nodes": [node("Gather", "E attention_mask", "last_hidden_state")]},
        "no integer input for token ids",
    ),
    "ids of rank 3": ({"shape": ("a", "b", 4)}, "of rank 3"),
    "control flow": (
        {
            "nodes": [
                *states()[:-1],
                node("Cast", "one", "c", to=TensorProto.BOOL),
                node("If", "c", "last_hidden_state", then_branch=BRANCH, else_branch=BRANCH),
            ]
        },
        "operator If",
    ),
    "another domain": (
        {"nodes": [*states()[:-1], node("Gelu", "h3", "last_hidden_state", domain="com.microsoft")]},
        "com.microsoft.Gelu",
    ),
    "dynamic quantization": (
        {"nodes": [*states(), helper.make_node("DynamicQuantizeLinear", ["h3"], ["q", "s", "z"])]},
        "the other texts of its batch",
    ),
    "company": ({"nodes": OF_COMPANY}, "another field in a batch with other texts"),
    "padding": ({"nodes": OF_PADDING}, "does not ignore padding"),
    "a field of rank 1": (
        {"nodes": [*states()[:-1], node("ReduceMean", "h3", "last_hidden_state", axes=[1, 2], keepdims=0)]},
        "must be a field",
    ),
    "an old opset": ({"opset": 12}, "opset 12"),
    "not a number": ({"nodes": [*states()[:-1], node("Log", "h3", "last_hidden_state")]}, "NaN or infinity"),
    "nothing to quantize": (
        {
            "nodes": [
                node("Gather", "W2 zeros", "x"),
                node("Gather", "E input_ids", "e"),
                node("Relu", "e", "last_hidden_state"),
            ],
            "extra": [numpy_helper.from_array(np.zeros(1, np.int64), "zeros")],
        },
        "nothing was quantized",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_a_graph_that_cannot_be_treated_is_refused(
    tmp_path: Path, refused: Callable[..., str], encoder_recipe: Write, what: str
) -> None:
    changes, message = REFUSED[what]
    recipe = (
        encoder_recipe("int8", precision='dense = "int8"') if what == "nothing to quantize" else encoder_recipe("int8")
    )
    assert message in refused(ExportError, save(tmp_path / "f", **changes), recipe=recipe)


def test_wrong_folders_are_refused(tmp_path: Path, refused: Callable[..., str], encoder_recipe: Write) -> None:
    folder = save(tmp_path / "f")
    small = weights() | {"E": weights()["E"][:50]}
    assert f"token id {VOCAB - 1}, the graph's table only 50 rows" in refused(
        CheckpointError, save(tmp_path / "small", values=small)
    )
    assert "no such part" in refused(
        RecipeError, folder, recipe=encoder_recipe("int8", precision='dense = "int8"\nup = "fp32"')
    )
    assert "a foreign graph has no pass 'palettize'; it has fold, int8" in refused(
        RecipeError, folder, recipe="cpu-small"
    )
    unpadded = toy_tokenizer().to_str().replace('"[PAD]"', '"!!"')
    assert "token 0 is '!!'" in refused(CheckpointError, save(tmp_path / "unpadded", tokenizer=unpadded))
    (folder / "tokenizer.json").write_text("[]")
    assert "tokenizer.json" in refused(CheckpointError, folder)
    (folder / "tokenizer.json").unlink()
    assert "no tokenizer.json" in refused(CheckpointError, folder)
    (folder / "model.onnx").write_bytes(b"not a protocol buffer")
    assert "cannot be read as ONNX" in refused(CheckpointError, folder)


@pytest.mark.parametrize("when", ["read", "opened again"])
@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_a_folder_that_changes_while_it_is_read_is_refused(
    name: str, when: str, tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "f")
    place, step = (read, "_check_nodes") if when == "read" else (reference, "open_session")
    real = getattr(place, step)

    def changed(*arguments: Any) -> Any:
        (folder / name).write_bytes((folder / name).read_bytes() + b" ")
        return real(*arguments) if when == "read" else None

    monkeypatch.setattr(place, step, changed)
    assert "was changed while it was read" in refused(CheckpointError, folder)


def test_data_outside_the_folder_is_not_read(tmp_path: Path, refused: Callable[..., str]) -> None:
    folder = save(tmp_path / "f")
    model = onnx.load(folder / "model.onnx")
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=1024)
    moved = onnx.load(folder / "model.onnx", load_external_data=False)
    for tensor in moved.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "../weights.bin"
    (folder / "weights.bin").rename(tmp_path / "weights.bin")
    onnx.save(moved, folder / "model.onnx")
    assert "outside the folder" in refused(ExportError, folder)
    for tensor in moved.graph.initializer:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = "weights.bin"
    onnx.save(moved, folder / "model.onnx")
    assert "lacks weights.bin" in refused(CheckpointError, folder)


def test_data_beside_the_graph_is_read(tmp_path: Path, texts: list[str], encoder_recipe: Write) -> None:
    folder = save(tmp_path / "f")
    model = onnx.load(folder / "model.onnx")
    onnx.save(model, folder / "model.onnx", save_as_external_data=True, location="weights.bin", size_threshold=1024)
    fieldrun.export(folder, tmp_path / "b", recipe=encoder_recipe("fp32"), calibration=texts)
    hashes = Bundle.load(tmp_path / "b").manifest.provenance["source"]["sha256"]
    assert hashes["weights.bin"] == sha256_file(folder / "weights.bin")
    assert fieldrun.verify(tmp_path / "b").passed


def test_a_pass_that_does_nothing_is_seen(
    tmp_path: Path, refused: Callable[..., str], encoder_recipe: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save(tmp_path / "f")
    monkeypatch.setattr(module, "quantize_graph", lambda fixed, *_: fixed)
    assert "is still a float" in refused(ExportError, folder)
    assert "nothing was quantized" in refused(
        ExportError, folder, recipe=encoder_recipe("int8", precision='dense = "int8"')
    )


def test_a_product_that_falls_out_of_int8_is_seen(
    tmp_path: Path, refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def half(fixed: onnx.ModelProto, layers: Any, products: Any, tables: Any) -> onnx.ModelProto:
        return quantize_graph(fixed, layers[:1], products[:1], tables)

    monkeypatch.setattr(module, "quantize_graph", half)
    assert "2 products must be int8, but ONNX Runtime runs 1" in refused(ExportError, save(tmp_path / "f"))


def test_gemm_is_found_in_all_its_forms() -> None:
    rng = np.random.default_rng(0)
    matrix, bias = rng.standard_normal((20, 30)).astype(np.float32), rng.standard_normal(20).astype(np.float32)
    names = {"W": matrix, "b": bias, "V": matrix.T.copy(), "c": np.array([[2.0]], np.float32)}
    nodes = [
        node("Gemm", "x W b", "y1", transB=1),
        node("Gemm", "x V", "y2"),
        node("Gemm", "x W c", "y3", transB=1),
        node("Gemm", "x W b", "y4", transB=1, alpha=0.5),
        node("Sum", "y1 y2 y3 y4", "y"),
    ]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [3, 30])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [3, 20])],
        [numpy_helper.from_array(value, name) for name, value in names.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    layers = find_layers(model.graph)
    assert [layer.node for layer in layers] == ["y1", "y2", "y3"]
    assert all(np.array_equal(layer.weight, matrix.T) for layer in layers)
    x = rng.standard_normal((3, 30)).astype(np.float32)
    found = quantize_graph(model, layers, [Product.of(layer, None) for layer in layers], {})
    session = open_session(found.SerializeToString())
    want = 3.5 * (x @ matrix.T) + 2 * bias + 2
    assert np.abs(session.run(None, {"x": x})[0] - want).max() < 0.02 * np.abs(want).max()
