"""Build ONNX graphs of the deployed form: one per bucket, all weights external in one safetensors file.

Only standard operators of opset 17. A table is spelled for CPU engines: gather the int8 rows, gather their scales,
cast, multiply; int8 matrices are explicit QuantizeLinear / DequantizeLinear pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fieldrun.tensors import Array

from .deployed import Deployed

__all__ = ["OPSET", "WEIGHTS_FILE", "field_graph", "op_histogram", "pair_graph"]

OPSET = 17
_IR_VERSION = 8
WEIGHTS_FILE = "weights.safetensors"
_TYPES = {np.dtype("f4"): TensorProto.FLOAT, np.dtype("i1"): TensorProto.INT8, np.dtype("i8"): TensorProto.INT64}


class _Builder:
    """Collects nodes, inline constants and references to external weights."""

    def __init__(self, deployed: Deployed, offsets: Mapping[str, tuple[int, int]]) -> None:
        self.deployed, self.offsets = deployed, offsets
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}

    def op(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: Array) -> str:
        self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def weight(self, name: str) -> str:
        tensor, (offset, length) = self.deployed.tensors[name], self.offsets[name]
        proto = TensorProto(name=name, data_type=_TYPES[tensor.dtype], dims=tensor.shape)
        proto.data_location = TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS_FILE), ("offset", str(offset)), ("length", str(length))):
            proto.external_data.add(key=key, value=value)
        self.initializers[name] = proto
        return name

    def dense(self, layer: str, x: str, *, relu: bool = False) -> str:
        """`x @ weight + bias`, quantized where the layer is int8.

        Nothing may stand between a Q and its DQ: ONNX Runtime on x86 turns the pair into uint8, or else the layer
        into float.
        """
        weight = self.weight(f"{layer}.weight")
        if self.deployed.is_int8(layer):
            tensors = self.deployed.tensors
            # a scalar: TensorRT and ONNX Runtime both want per-tensor scales without a shape
            scale = self.constant(f"{layer}.x_scale", tensors[f"{layer}.input_scale"][0].reshape(()))
            zero = self.constant(f"{layer}.x_zero", np.array(0, np.int8))
            zeros = self.constant(f"{layer}.w_zero", np.zeros(tensors[f"{layer}.weight"].shape[1], np.int8))
            quantized = self.op("QuantizeLinear", [x, scale, zero], f"{layer}.q")
            x = self.op("DequantizeLinear", [quantized, scale, zero], f"{layer}.dq")
            scales = self.weight(f"{layer}.weight_scale")
            weight = self.op("DequantizeLinear", [weight, scales, zeros], f"{layer}.w", axis=1)
            product = self.op("MatMul", [x, weight], f"{layer}.product")
            # product - (-bias): ONNX Runtime turns MatMul + Add into a float Gemm before it looks for Q/DQ pairs
            negative = self.constant(f"{layer}.negative_bias", -tensors[f"{layer}.bias"])
            total = self.op("Sub", [product, negative], f"{layer}.sum")
        else:
            product = self.op("MatMul", [x, weight], f"{layer}.product")
            total = self.op("Add", [product, self.weight(f"{layer}.bias")], f"{layer}.sum")
        return self.op("Relu", [total], f"{layer}.relu") if relu else total

    def model(
        self,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        name: str,
        metadata: Mapping[str, str],
    ) -> onnx.ModelProto:
        graph = helper.make_graph(self.nodes, name, list(inputs), list(outputs), list(self.initializers.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION)
        model.producer_name = "fieldrun"
        helper.set_model_props(model, dict(metadata))
        return model


def field_graph(
    deployed: Deployed, offsets: Mapping[str, tuple[int, int]], batch: int, length: int, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """Return the graph ids `(batch, length) int64` -> field `(batch, dim)`, logits `(batch, labels)`, float32.

    `offsets` gives every tensor's byte offset and length in `WEIGHTS_FILE`. Without single tasks there are no logits.
    """
    b, net = _Builder(deployed, offsets), deployed.network
    axis1 = b.constant("axis1", np.array([1], np.int64))
    axis2 = b.constant("axis2", np.array([2], np.int64))

    mask = b.op("Gather", [b.weight("is_token"), "ids"], "mask", axis=0)

    left, right = max(0, -min(net.shifts)), max(0, max(net.shifts))
    around = b.constant("around", np.array([0, left, 0, right], np.int64))
    padded = b.op("Pad", ["ids", around], "padded")
    positions = np.arange(length)[:, None] + left + np.array(net.shifts)
    window = b.op("Gather", [padded, b.constant("positions", positions.astype(np.int64))], "window", axis=1)
    hashes = b.op("MatMul", [window, b.weight("rows.coef")], "hashes")
    rows = b.op("Mod", [hashes, b.weight("rows.modulus")], "buckets")
    rows = b.op("Add", [rows, b.weight("rows.base")], "rows")

    values = b.op("Gather", [b.weight("table"), rows], "values", axis=0)
    if deployed.is_int8("table"):
        scales = b.op("Gather", [b.weight("table.scale"), rows], "scales", axis=0)
        values = b.op("Mul", [b.op("Cast", [values], "cast", to=TensorProto.FLOAT), scales], "scaled")
    y = b.op("ReduceSum", [values, axis2], "y", keepdims=0)
    h = b.op("Mul", [b.op("Relu", [y], "y.relu"), mask], "h")

    if net.mixer_kernel:
        reach = net.mixer_kernel // 2
        beside = b.constant("beside", np.array([0, reach, 0, 0, reach, 0], np.int64))
        places = np.arange(length)[:, None] + np.arange(net.mixer_kernel)
        neighbours = b.constant("neighbours", places.astype(np.int64))
        wide = b.op("Gather", [b.op("Pad", [h, beside], "h.padded"), neighbours], "h.wide", axis=1)
        shape = b.constant("h.shape", np.array([batch, length, net.mixer_kernel * net.width], np.int64))
        mixed = b.dense("mixer", b.op("Reshape", [wide, shape], "h.window"), relu=True)
        h = b.op("Mul", [b.op("Add", [h, mixed], "h.mixed"), mask], "h2")

    bounds = deployed.tensors["score.bounds"]
    low, high = (b.constant(name, value.reshape(())) for name, value in zip(("low", "high"), bounds, strict=True))
    score = b.op("Clip", [b.op("MatMul", [h, b.weight("score.weight")], "score"), low, high], "score.clipped")
    a = b.op("Mul", [b.op("Exp", [score], "score.exp"), mask], "a")
    total = b.op("ReduceSum", [b.op("Mul", [h, a], "a.h"), axis1], "a.h.sum", keepdims=0)
    share = b.op("ReduceSum", [a, axis1], "a.sum", keepdims=0)
    gain = deployed.tensors["mean.gain"]
    if gain[0] != 1:
        share = b.op("Mul", [share, b.constant("mean.share", 1 / gain)], "a.share")
    mean = b.op("Div", [total, share], "attended")
    pooled = b.op("Concat", [mean, b.op("ReduceMax", [h], "largest", axes=[1], keepdims=0)], "pooled", axis=1)
    output = b.dense("output", b.dense("hidden", pooled, relu=True))
    outputs = [helper.make_tensor_value_info("field", TensorProto.FLOAT, [batch, net.field_dim])]
    labels = deployed.tensors["output.bias"].size - net.field_dim
    if labels:
        sizes = b.constant("sizes", np.array([net.field_dim, labels], np.int64))
        b.nodes.append(helper.make_node("Split", [output, sizes], ["field", "logits"], name="split", axis=1))
        outputs.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, [batch, labels]))
    else:
        b.nodes[-1].output[0] = "field"
    ids = helper.make_tensor_value_info("ids", TensorProto.INT64, [batch, length])
    return b.model([ids], outputs, f"field-b{batch}-l{length}", metadata)


def pair_graph(
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
    return b.model(inputs, outputs, f"pair-b{batch}", metadata)


def op_histogram(path: Path) -> dict[str, int]:
    """Return how often each operator occurs in the ONNX file at `path`, its external data left alone."""
    model = onnx.load(str(path), load_external_data=False)
    counts: dict[str, int] = {}
    for node in model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items()))
