"""The graphs of a student in TensorRT's spelling: the same numbers as in `graph`, from the same weights file.

What the parsers of TensorRT and TensorRT-RTX ask for, and ONNX Runtime on a CPU would refuse or run slowly:

- An int8 constant may only go into a DequantizeLinear: the table is dequantized, one scale a row, and then looked up.
- A MatMul of integers is refused: row numbers are a product and a sum of int32.
- Sums over rows and over tokens are float32 reductions of products: no fp16 sum, no Q/DQ pair between them.
- A dense layer is one MatMul of matrices with two dimensions. int8: explicit, symmetric Q/DQ on both sides. fp16: a
  product of halves, then bias and everything after it in float32. (TensorRT-RTX turns halves that are widened before
  the product into float32 weights and a float32 product.)
- int8 weights with a float input are a DequantizeLinear before the MatMul.

Precision is in the graph, so that no builder flag is needed (TensorRT 11 has none).
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx
from onnx import TensorProto

from fieldrun.student.config import SCORE_FLOOR

from ..builder import GraphBuilder
from .deployed import Deployed
from .graph import after_pool

__all__ = ["TensorrtBuilder", "tensorrt_field_graph"]


class TensorrtBuilder(GraphBuilder):
    """Builds graphs in TensorRT's spelling."""

    def dense(self, layer: str, x: str, *, relu: bool = False) -> str:
        """`x @ weight + bias` of `x (rows, inputs)`, as the layer's precision says."""
        kind, weight = self.deployed.precision(layer), self.weight(f"{layer}.weight")
        if kind in ("int8", "int8-weights"):
            weight = self.dequantized(layer, weight)
        if kind == "int8":
            x = self.quantized(layer, x)
        if kind == "fp16":
            x = self.op("Cast", [x], f"{layer}.half", to=TensorProto.FLOAT16)
        total = self.op("MatMul", [x, weight], f"{layer}.product")
        if kind == "fp16":
            total = self.op("Cast", [total], f"{layer}.wide", to=TensorProto.FLOAT)
        if f"{layer}.bias" in self.deployed.tensors:
            total = self.op("Add", [total, self.weight(f"{layer}.bias")], f"{layer}.sum")
        return self.op("Relu", [total], f"{layer}.relu") if relu else total

    def total(self, x: str, axis: int, name: str) -> str:
        """Sum `x` over `axis`, which is dropped."""
        axes = self.constant(f"axis.{axis}", np.array([axis], np.int64))
        return self.op("ReduceSum", [x, axes], name, keepdims=0)

    def shaped(self, x: str, name: str, *shape: int) -> str:
        """Return `x` in `shape`."""
        return self.op("Reshape", [x, self.constant(f"{name}.shape", np.array(shape, np.int64))], name)


def tensorrt_field_graph(
    deployed: Deployed, offsets: Mapping[str, tuple[int, int]], batch: int, length: int, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """Return the graph ids `(batch, left + length + right) int32` -> output `(batch, dim + labels) float32`.

    Input, output and arguments are those of `fieldrun_exporters.student.graph.field_graph`.

    The deployed form has no palettes: a recipe with both is refused.
    """
    b, net = TensorrtBuilder(deployed, offsets), deployed.network
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
    return after_pool(b, pooled, [batch, left + length + right], f"trt-b{batch}-l{length}", metadata)


def _rows(b: TensorrtBuilder, deployed: Deployed, steps: int) -> str:
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


def _slice(b: TensorrtBuilder, x: str, start: int, length: int) -> str:
    """Return the positions `start` to `start + length` of `x (batch, steps, width)`."""
    ends = [
        b.constant(f"from.{start}", np.array([start], np.int64)),
        b.constant(f"to.{start}", np.array([start + length], np.int64)),
        b.constant("axis.1", np.array([1], np.int64)),
    ]
    return b.op("Slice", [x, *ends], f"step.{start}")


def _mean(b: TensorrtBuilder, g: str, batch: int, length: int) -> str:
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
