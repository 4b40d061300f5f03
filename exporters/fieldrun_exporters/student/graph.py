"""Build ONNX graphs of the deployed form: one per bucket, all weights external in one safetensors file.

Only standard operators of opset 17, and as few nodes as possible: at batch 1 a node costs more than its arithmetic. A
position's int8 rows are scaled and summed by one small matrix product; matrices have two dimensions, so that ONNX
Runtime makes one fused node of product, bias and ReLU; field and logits are one output.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from fieldrun.student.config import SCORE_FLOOR

from ..builder import GraphBuilder
from .deployed import Deployed

__all__ = ["after_pool", "field_graph", "pair_graph"]


def field_graph(
    deployed: Deployed, offsets: Mapping[str, tuple[int, int]], batch: int, length: int, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """Return the graph ids `(batch, left + length + right) int32` -> output `(batch, dim + labels) float32`.

    The ids are framed as `Network.frame` says; the output is the field and, after it, the logits of all single tasks.
    `offsets` gives every tensor's byte offset and length in the weights file. A packed table is a second input, `table
    (rows, width) int8`, which the engine unpacks when it loads the bundle (`fieldrun.formats.packing`).
    """
    b, net = GraphBuilder(deployed, offsets), deployed.network
    left, right = net.margins
    extra = max(1, net.mixer_kernel) - 1  # positions after the text: padding, and so zeros after the ReLU
    positions = np.arange(length + extra)[:, None] + left + np.array(net.shifts)
    window = b.op("Gather", ["ids", b.constant("positions", positions.astype(np.int64))], "window", axis=1)
    hashes = b.op("MatMul", [window, b.weight("rows.coef")], "hashes")
    rows = b.op("Mod", [hashes, b.weight("rows.modulus")], "buckets")
    rows = b.op("Add", [rows, b.weight("rows.base")], "rows")

    packed = "table.width" in deployed.packed
    values = b.op("Gather", ["table" if packed else b.weight("table"), rows], "values", axis=0)
    if deployed.precision("table") != "fp32":
        values = b.op("Cast", [values], "cast", to=TensorProto.FLOAT)
    scales = b.op("Gather", [b.weight("table.scale"), rows], "scales", axis=0)
    if packed:
        scales = b.op("Cast", [scales], "scales.floats", to=TensorProto.FLOAT)
    shape = np.array([batch, length + extra, 1, len(deployed.tensors["rows.base"])], np.int64)
    y = b.op("MatMul", [b.op("Reshape", [scales, b.constant("scales.shape", shape)], "scales.row"), values], "y")
    width = net.width
    together = b.constant("y.shape", np.array([batch * (length + extra), width], np.int64))
    g = b.op("Relu", [b.op("Reshape", [y, together], "y.rows")], "h")
    if net.mixer_kernel:
        first = np.arange(batch)[:, None] * (length + extra) + np.arange(length)
        windows = first.reshape(-1, 1) + np.arange(net.mixer_kernel)
        g = b.op("Gather", [g, b.constant("windows", windows.astype(np.int64))], "together", axis=0)
        flat = b.constant("together.shape", np.array([batch * length, net.mixer_kernel * width], np.int64))
        g, width = b.dense("mixer", b.op("Reshape", [g, flat], "together.rows"), relu=True), net.mixer_width

    texts, rows_of = g, np.array([batch, length, width], np.int64)
    if batch > 1:
        texts = b.op("Reshape", [g, b.constant("g.shape", rows_of)], "g.texts")
    pooled = b.op("ReduceMax", [texts], "largest", axes=[int(batch > 1)], keepdims=int(batch == 1))
    if net.mean:
        pooled = b.op("Concat", [_mean(b, g, texts, batch, length), pooled], "pooled", axis=1)
    return after_pool(b, pooled, [batch, left + length + right], f"field-b{batch}-l{length}", metadata)


def after_pool(
    b: GraphBuilder, pooled: str, shape: list[int], name: str, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """Return the model whose last layers take `pooled`; `shape` is that of its ids."""
    tensors = b.deployed.tensors
    if "hidden.weight" in tensors:
        pooled = b.dense("hidden", pooled, relu=True)
    b.dense("output", pooled)
    b.nodes[-1].output[0] = "output"
    inputs = [helper.make_tensor_value_info("ids", TensorProto.INT32, shape)]
    if "table.width" in b.deployed.packed:
        inputs.append(helper.make_tensor_value_info("table", TensorProto.INT8, tensors["table"].shape))
    columns = tensors["output.bias"].size
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [shape[0], columns])
    return b.model(inputs, [output], name, metadata)


def _mean(b: GraphBuilder, g: str, texts: str, batch: int, steps: int) -> str:
    """Return the mean of every text's rows, weighted by their scores; `g` are all rows, `texts` the same per text."""
    floor = b.constant("score.floor", np.array([SCORE_FLOOR], np.float32))
    gain = b.deployed.tensors["mean.gain"]
    if batch == 1:
        # one fused node puts the floor on every row; its part of the mean is below float32's precision
        a = b.op("Gemm", [g, b.weight("score.weight"), floor], "a")
        total = b.op("Gemm", [a, g], "a.g", transA=1)
        share = b.op("ReduceSum", [a], "a.sum", keepdims=1)
    else:
        a = b.op("MatMul", [g, b.weight("score.weight")], "a")
        a = b.op("Reshape", [a, b.constant("a.shape", np.array([batch, 1, steps], np.int64))], "a.texts")
        flat = b.constant("a.g.shape", np.array([batch, -1], np.int64))
        total = b.op("Reshape", [b.op("MatMul", [a, texts], "a.g.texts"), flat], "a.g")
        last = b.constant("last", np.array([2], np.int64))
        share = b.op("Add", [b.op("ReduceSum", [a, last], "a.sum.texts", keepdims=0), floor], "a.sum")
    if gain[0] != 1:
        share = b.op("Mul", [share, b.constant("mean.share", 1 / gain)], "a.share")
    return b.op("Div", [total, share], "mean")


def pair_graph(b: GraphBuilder, dim: int, batch: int, name: str, metadata: Mapping[str, str]) -> onnx.ModelProto:
    """Return the graph of the pair heads: a, b `(batch, dim) float32` -> logits `(batch, labels) float32`."""
    apart = b.op("Abs", [b.op("Sub", ["a", "b"], "a-b")], "apart")
    features = b.op("Concat", ["a", "b", apart, b.op("Mul", ["a", "b"], "product")], "features", axis=1)
    b.dense("pairs", features)
    b.nodes[-1].output[0] = "logits"
    labels = b.deployed.tensors["pairs.weight"].shape[1]
    inputs = [helper.make_tensor_value_info(side, TensorProto.FLOAT, [batch, dim]) for side in ("a", "b")]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, labels])]
    return b.model(inputs, outputs, name, metadata)
