"""Build ONNX graphs of the deployed form: one per bucket, all weights external in one safetensors file.

Only standard operators of opset 17, and as few nodes as can be: at batch 1 a node costs more than its arithmetic. A
position's int8 rows are scaled and summed by one small matrix product; matrices have two dimensions, so that ONNX
Runtime makes one fused node of product, bias and ReLU; field and logits are one output. int8 matrices are explicit
QuantizeLinear / DequantizeLinear pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fieldrun.packing import code_bits
from fieldrun.student import SCORE_FLOOR
from fieldrun.tensors import Array

from .deployed import Deployed, Stored

__all__ = ["OPSET", "WEIGHTS_FILE", "GraphBuilder", "field_graph", "op_histogram", "pair_graph"]

OPSET = 17
_IR_VERSION = 8
WEIGHTS_FILE = "weights.safetensors"
_TYPES = {
    np.dtype("f4"): TensorProto.FLOAT,
    np.dtype("f2"): TensorProto.FLOAT16,
    np.dtype("i1"): TensorProto.INT8,
    np.dtype("u1"): TensorProto.UINT8,
    np.dtype("i4"): TensorProto.INT32,
}


class GraphBuilder:
    """Collects nodes, inline constants and references to external weights."""

    def __init__(self, deployed: Stored, offsets: Mapping[str, tuple[int, int]]) -> None:
        self.deployed, self.offsets, self.stored = deployed, offsets, deployed.stored()
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: dict[str, TensorProto] = {}

    def op(self, kind: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node with one output, `name`, and return it."""
        self.nodes.append(helper.make_node(kind, list(inputs), [name], name=name, **attributes))
        return name

    def constant(self, name: str, value: Array) -> str:
        """Add a constant that stands in the graph's own file."""
        self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def weight(self, name: str) -> str:
        """Refer to a tensor of the weights file, as it is stored."""
        tensor, (offset, length) = self.stored[name], self.offsets[name]
        proto = TensorProto(name=name, data_type=_TYPES[tensor.dtype], dims=tensor.shape)
        proto.data_location = TensorProto.EXTERNAL
        for key, value in (("location", WEIGHTS_FILE), ("offset", str(offset)), ("length", str(length))):
            proto.external_data.add(key=key, value=value)
        self.initializers[name] = proto
        return name

    def floats(self, name: str) -> str:
        """A float weight, in float32 whatever it is stored as."""
        if self.stored[name].dtype != np.float16:
            return self.weight(name)
        return self.op("Cast", [self.weight(name)], f"{name}.floats", to=TensorProto.FLOAT)

    def palette(self, name: str) -> str:
        """The int8 matrix `name (inputs, outputs)` from its codes: constants, so that an engine makes it once.

        The bytes of a row are cut into bits, these put together to codes, and each code looked up.
        """
        codes, codebook = self.stored[f"{name}.codes.0"], self.stored[f"{name}.codebook.0"]
        rows, bits, width = len(codes), code_bits(len(codebook)), int(self.stored[f"{name}.width"][0])
        wide = self.op("Cast", [self.weight(f"{name}.codes.0")], f"{name}.bytes", to=TensorProto.INT32)
        shape = self.constant(f"{name}.bytes.shape", np.array([rows, codes.shape[1], 1], np.int64))
        each = self.op("Reshape", [wide, shape], f"{name}.each")
        each = self.op(
            "Div", [each, self.constant(f"{name}.powers", 2 ** np.arange(8, dtype=np.int32))], f"{name}.shifted"
        )
        each = self.op("Mod", [each, self.constant(f"{name}.two", np.array(2, np.int32))], f"{name}.bits")
        shape = self.constant(f"{name}.bits.shape", np.array([rows, codes.shape[1] * 8 // bits, bits], np.int64))
        each = self.op(
            "Mul",
            [
                self.op("Reshape", [each, shape], f"{name}.digits"),
                self.constant(f"{name}.weights", 2 ** np.arange(bits, dtype=np.int32)),
            ],
            f"{name}.terms",
        )
        index = self.op(
            "ReduceSum", [each, self.constant(f"{name}.axis", np.array([2], np.int64))], f"{name}.codes", keepdims=0
        )
        values = self.op("Gather", [self.weight(f"{name}.codebook.0"), index], f"{name}.values", axis=0)
        shape = self.constant(f"{name}.values.shape", np.array([rows, -1], np.int64))
        values = self.op("Reshape", [values, shape], f"{name}.rows")
        ends = [
            self.constant(f"{name}.{end}", np.array([n], np.int64))
            for end, n in (("from", 0), ("to", width), ("along", 1))
        ]
        return self.op("Transpose", [self.op("Slice", [values, *ends], f"{name}.cut")], name, perm=[1, 0])

    def mixture(self, name: str) -> str:
        """The float matrix `name (inputs, outputs)` from its operators: constants, as those of `palette`.

        The Kronecker product with identities is a product of broadcast tensors.
        """
        count = sum(key.startswith(f"{name}.mixt.") for key in self.stored)
        outputs, inputs = self.deployed.tensors[name].shape[::-1]
        branches = []
        for k in range(count):
            stored, outer, inner = f"{name}.mixt.{k}", 2**k, 2 ** (count - 1 - k)
            rows, columns = self.stored[stored].shape
            ones = np.eye(outer)[:, None, None, :, None, None] * np.eye(inner)[None, None, :, None, None, :]
            shape = self.constant(f"{stored}.modes", np.array([1, rows, 1, 1, columns, 1], np.int64))
            operator = self.op("Reshape", [self.floats(stored), shape], f"{stored}.operator")
            spread = self.op(
                "Mul",
                [operator, self.constant(f"{stored}.ones", (ones / count).astype(np.float32))],
                f"{stored}.spread",
            )
            shape = self.constant(f"{stored}.shape", np.array([outputs, inputs], np.int64))
            branches.append(self.op("Reshape", [spread, shape], f"{stored}.dense"))
        return self.op("Transpose", [self.op("Sum", branches, f"{name}.sum")], name, perm=[1, 0])

    def dense(self, layer: str, x: str, *, relu: bool = False) -> str:
        """`x @ weight + bias` of `x (rows, inputs)`, quantized where the layer is int8.

        Nothing may stand between a Q and its DQ: ONNX Runtime on x86 turns the pair into uint8, or else the layer
        into float.
        """
        tensors, name = self.deployed.tensors, f"{layer}.weight"
        if name in self.stored:
            weight = self.weight(name)
        else:
            weight = self.mixture(name) if f"{name}.mixt.0" in self.stored else self.palette(name)
        bias = f"{layer}.bias" in tensors
        if self.deployed.precision(layer) == "int8":
            # a scalar: TensorRT and ONNX Runtime both want per-tensor scales without a shape
            scale = self.constant(f"{layer}.x_scale", tensors[f"{layer}.input_scale"][0].reshape(()))
            zero = self.constant(f"{layer}.x_zero", np.array(0, np.int8))
            zeros = self.constant(f"{layer}.w_zero", np.zeros(tensors[f"{layer}.weight"].shape[1], np.int8))
            quantized = self.op("QuantizeLinear", [x, scale, zero], f"{layer}.q")
            x = self.op("DequantizeLinear", [quantized, scale, zero], f"{layer}.dq")
            scales = self.weight(f"{layer}.weight_scale")
            weight = self.op("DequantizeLinear", [weight, scales, zeros], f"{layer}.w", axis=1)
            total = self.op("MatMul", [x, weight], f"{layer}.product")
            # product - (-bias): ONNX Runtime turns MatMul + Add into a float Gemm before it looks for Q/DQ pairs.
            # A MatMul that only a ReLU reads stays in float too, so a layer without a bias gets one of zeros.
            outputs = tensors[f"{layer}.weight"].shape[1]
            negative = -tensors[f"{layer}.bias"] if bias else np.zeros(outputs, np.float32)
            total = self.op("Sub", [total, self.constant(f"{layer}.negative_bias", negative)], f"{layer}.sum")
        else:
            if self.deployed.precision(layer) == "int8-weights":
                # Constants that ONNX Runtime folds when it opens the graph. Of a DequantizeLinear before a product it
                # makes MatMulNBits, which rounds the input to int8 as well.
                weight = self.op("Cast", [weight], f"{layer}.w_steps", to=TensorProto.FLOAT)
                weight = self.op("Mul", [weight, self.floats(f"{layer}.weight_scale")], f"{layer}.w")
            elif self.deployed.precision(layer) == "fp16":
                weight = self.op("Cast", [weight], f"{layer}.w", to=TensorProto.FLOAT)
            inputs = [x, weight, *([self.weight(f"{layer}.bias")] if bias else [])]
            total = self.op("Gemm", inputs, f"{layer}.sum")
        return self.op("Relu", [total], f"{layer}.relu") if relu else total

    def model(
        self,
        inputs: Sequence[onnx.ValueInfoProto],
        outputs: Sequence[onnx.ValueInfoProto],
        name: str,
        metadata: Mapping[str, str],
    ) -> onnx.ModelProto:
        """Return the model of all that was added."""
        graph = helper.make_graph(self.nodes, name, list(inputs), list(outputs), list(self.initializers.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION)
        model.producer_name = "fieldrun"
        helper.set_model_props(model, dict(metadata))
        return model


def field_graph(
    deployed: Deployed, offsets: Mapping[str, tuple[int, int]], batch: int, length: int, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """Return the graph ids `(batch, left + length + right) int32` -> output `(batch, dim + labels) float32`.

    The ids are framed as `Network.frame` says; the output is the field and, after it, the logits of all single tasks.
    `offsets` gives every tensor's byte offset and length in `WEIGHTS_FILE`. A packed table is a second input, `table
    (rows, width) int8`: who opens the bundle expands it (`fieldrun.packing`).
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
    if net.hidden:
        pooled = b.dense("hidden", pooled, relu=True)
    b.dense("output", pooled)
    b.nodes[-1].output[0] = "output"
    ids = helper.make_tensor_value_info("ids", TensorProto.INT32, [batch, left + length + right])
    columns = deployed.tensors["output.bias"].size
    output = helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, columns])
    inputs = [ids]
    if packed:
        inputs.append(helper.make_tensor_value_info("table", TensorProto.INT8, deployed.tensors["table"].shape))
    return b.model(inputs, [output], f"field-b{batch}-l{length}", metadata)


def _mean(b: GraphBuilder, g: str, texts: str, batch: int, steps: int) -> str:
    """Return the mean of every text's rows, weighted by their scores; `g` are all rows, `texts` those per text."""
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


def pair_graph(
    deployed: Deployed, offsets: Mapping[str, tuple[int, int]], batch: int, metadata: Mapping[str, str]
) -> onnx.ModelProto:
    """Return the graph of the pair heads: a, b `(batch, dim) float32` -> logits `(batch, labels) float32`."""
    b, dim = GraphBuilder(deployed, offsets), deployed.network.field_dim
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
