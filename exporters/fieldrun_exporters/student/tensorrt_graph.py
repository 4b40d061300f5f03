"""The TensorRT spelling of a deployed form: the same numbers as in `graph`, from the same weights file.

What the parser of TensorRT and TensorRT-RTX asks for, and ONNX Runtime on a CPU would be slow at or refuse:

- An int8 constant may only go into a DequantizeLinear: the table is dequantized, one scale a row, and then looked up.
- A MatMul of integers is refused: row numbers are a product and a sum of int32.
- Sums over rows and over tokens are float32 reductions of products: no fp16 sum, no Q/DQ pair between them.
- A dense layer is one MatMul of matrices with two dimensions. int8: explicit, symmetric Q/DQ on both sides. fp16: a
  product of halves, then bias and everything after it in float32. (Halves that are widened before the product, the
  other spelling of a float32 sum, TensorRT-RTX turns into float32 weights and a float32 product.)
- int8 weights with a float input are a DequantizeLinear before the MatMul.

Precision is in the graph, so that no builder flag is needed (TensorRT 11 has none).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto, helper

from fieldrun.errors import RecipeError
from fieldrun.student.config import SCORE_FLOOR

from ..builder import GraphBuilder
from .deployed import Deployed

__all__ = ["tensorrt_field_graph", "tensorrt_pair_graph"]


class _Builder(GraphBuilder):
    def dense(self, layer: str, x: str, *, relu: bool = False) -> str:
        """`x @ weight + bias` of `x (rows, inputs)`, as the layer's precision says."""
        tensors, kind = self.deployed.tensors, self.deployed.precision(layer)
        weight = self.weight(f"{layer}.weight")
        if kind in ("int8", "int8-weights"):
            zeros = self.constant(f"{layer}.w_zero", np.zeros(tensors[f"{layer}.weight"].shape[1], np.int8))
            inputs = [weight, self.weight(f"{layer}.weight_scale"), zeros]
            weight = self.op("DequantizeLinear", inputs, f"{layer}.w", axis=1)
        if kind == "int8":
            scale = self.constant(f"{layer}.x_scale", tensors[f"{layer}.input_scale"][0].reshape(()))
            zero = self.constant(f"{layer}.x_zero", np.array(0, np.int8))
            quantized = self.op("QuantizeLinear", [x, scale, zero], f"{layer}.q")
            x = self.op("DequantizeLinear", [quantized, scale, zero], f"{layer}.dq")
        if kind == "fp16":
            x = self.op("Cast", [x], f"{layer}.half", to=TensorProto.FLOAT16)
        total = self.op("MatMul", [x, weight], f"{layer}.product")
        if kind == "fp16":
            total = self.op("Cast", [total], f"{layer}.wide", to=TensorProto.FLOAT)
        if f"{layer}.bias" in tensors:
            total = self.op("Add", [total, self.weight(f"{layer}.bias")], f"{layer}.sum")
        return self.op("Relu", [total], f"{layer}.relu") if relu else total

    def total(self, x: str, axis: int, name: str) -> str:
        """Sum `x` over `axis`, which goes away."""
        axes = self.constant(f"axis.{axis}", np.array([axis], np.int64))
        return self.op("ReduceSum", [x, axes], name, keepdims=0)

    def shaped(self, x: str, name: str, *shape: int) -> str:
        return self.op("Reshape", [x, self.constant(f"{name}.shape", np.array(shape, np.int64))], name)


def tensorrt_field_graph(
    deployed: Deployed, offsets: Mapping[str, tuple[int, int]], batch: int, length: int, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """Return the graph ids `(batch, left + length + right) int32` -> output `(batch, dim + labels) float32`.

    Input, output and arguments are those of `fieldrun_exporters.student.graph.field_graph`.

    Raises:
        RecipeError: the deployed form has palettes, which no TensorRT layer opens.
    """
    if deployed.packed:
        raise RecipeError(
            "a palette or a mixture has no TensorRT spelling; use fp32, fp16, int8 or int8-weights for every part"
        )
    b, net = _Builder(deployed, offsets), deployed.network
    left, right = net.margins
    steps = length + max(1, net.mixer_kernel) - 1  # those after the text are padding, and so zeros after the ReLU
    g = b.op("Relu", [_rows(b, deployed, steps)], "h")
    width = net.width
    if net.mixer_kernel:
        parts = [_slice(b, g, k, length) for k in range(net.mixer_kernel)]
        together = b.op("Concat", parts, "together", axis=2)
        flat = b.shaped(together, "together.rows", batch * length, net.mixer_kernel * width)
        width = net.mixer_width
        g = b.shaped(b.dense("mixer", flat, relu=True), "g", batch, length, width)
    pooled = b.op("ReduceMax", [g], "largest", axes=[1], keepdims=0)
    if net.mean:
        pooled = b.op("Concat", [_mean(b, g, batch, length), pooled], "pooled", axis=1)
    if net.hidden:
        pooled = b.dense("hidden", pooled, relu=True)
    b.dense("output", pooled)
    b.nodes[-1].output[0] = "output"
    ids = helper.make_tensor_value_info("ids", TensorProto.INT32, [batch, left + length + right])
    columns = deployed.tensors["output.bias"].size
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, columns])
    return b.model([ids], [output], f"trt-b{batch}-l{length}", metadata)


def _rows(b: _Builder, deployed: Deployed, steps: int) -> str:
    """Return the sum of every position's rows of the table, `(batch, steps, width) float32`."""
    net = deployed.network
    positions = np.arange(steps)[:, None] + net.margins[0] + np.array(net.shifts)
    # a last axis of 1, for the product with coef (shifts, blocks)
    window = b.constant("positions", positions.astype(np.int64)[:, :, None])
    window = b.op("Gather", ["ids", window], "window", axis=1)
    hashes = b.total(b.op("Mul", [window, b.weight("rows.coef")], "terms"), 2, "hashes")
    rows = b.op("Mod", [hashes, b.weight("rows.modulus")], "buckets")
    rows = b.op("Add", [rows, b.weight("rows.base")], "rows")
    table, kind = b.weight("table"), deployed.precision("table")
    if kind == "int8":
        zeros = b.constant("table.zero", np.zeros(len(deployed.tensors["table"]), np.int8))
        table = b.op("DequantizeLinear", [table, b.weight("table.scale"), zeros], "table.floats", axis=0)
    values = b.op("Gather", [table, rows], "values", axis=0)  # (batch, steps, blocks, width)
    if kind == "fp16":
        values = b.op("Cast", [values], "values.floats", to=TensorProto.FLOAT)
    return b.total(values, 2, "y")


def _slice(b: _Builder, x: str, start: int, length: int) -> str:
    """Return the positions `start` to `start + length` of `x (batch, steps, width)`."""
    ends = [
        b.constant(f"from.{start}", np.array([start], np.int64)),
        b.constant(f"to.{start}", np.array([start + length], np.int64)),
        b.constant("axis.1", np.array([1], np.int64)),
    ]
    return b.op("Slice", [x, *ends], f"step.{start}")


def _mean(b: _Builder, g: str, batch: int, length: int) -> str:
    """Return the mean of every text's rows `g (batch, length, width)`, weighted by their scores, `(batch, width)`."""
    score = b.shaped(b.weight("score.weight"), "score", 1, 1, -1)
    a = b.total(b.op("Mul", [g, score], "a.terms"), 2, "a.rows")
    a = b.shaped(a, "a", batch, length, 1)
    total = b.total(b.op("Mul", [a, g], "a.g.terms"), 1, "a.g")
    floor = b.constant("score.floor", np.array([SCORE_FLOOR], np.float32))
    share = b.op("Add", [b.total(a, 1, "a.sum"), floor], "a.floor")
    gain = b.deployed.tensors["mean.gain"]
    if gain[0] != 1:
        share = b.op("Mul", [share, b.constant("mean.share", 1 / gain)], "a.share")
    return b.op("Div", [total, share], "mean")


def tensorrt_pair_graph(
    deployed: Deployed, offsets: Mapping[str, tuple[int, int]], batch: int, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """Return the graph of the pair heads: a, b `(batch, dim) float32` -> logits `(batch, labels) float32`."""
    b, dim = _Builder(deployed, offsets), deployed.network.field_dim
    apart = b.op("Abs", [b.op("Sub", ["a", "b"], "a-b")], "apart")
    features = b.op("Concat", ["a", "b", apart, b.op("Mul", ["a", "b"], "product")], "features", axis=1)
    b.dense("pairs", features)
    b.nodes[-1].output[0] = "logits"
    labels = deployed.tensors["pairs.weight"].shape[1]
    inputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [batch, dim]) for name in ("a", "b")]
    outputs = [helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, labels])]
    return b.model(inputs, outputs, f"trt-pair-b{batch}", metadata)
