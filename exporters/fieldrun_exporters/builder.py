"""The graph builder: nodes, constants, and weights that are stored once, in a safetensors file beside the graphs.

Only standard operators of opset 17. int8 products are explicit QuantizeLinear / DequantizeLinear pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fieldrun.formats.packing import code_bits, packed_names
from fieldrun.formats.tensors import Array

__all__ = ["OPSET", "WEIGHTS_FILE", "GraphBuilder", "Stored", "op_histogram"]

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


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Stored:
    """What a graph is built from: tensors by name, the type that each layer is computed in, and how they are stored."""

    tensors: Mapping[str, Array]
    packed: Mapping[str, Array] = field(default_factory=dict)
    """What is stored instead of the int8 matrices that are palettes (`fieldrun.formats.packing`)."""

    def precision(self, part: str) -> str:
        """Return the type that `part`, a layer or `"table"`, is computed in: fp32, fp16, int8 or int8-weights."""
        dtype = self.tensors[part if part == "table" else f"{part}.weight"].dtype
        if dtype != np.int8:
            return "fp16" if dtype == np.float16 else "fp32"
        return "int8" if part == "table" or f"{part}.input_scale" in self.tensors else "int8-weights"

    def stored(self) -> dict[str, Array]:
        """Return the tensors as a bundle holds them: palettes packed, with float16 scales."""
        names = packed_names(self.packed)
        scales = {"table.scale" if name == "table" else f"{name}_scale" for name in names}
        kept = {
            name: tensor.astype(np.float16) if name in scales else tensor
            for name, tensor in self.tensors.items()
            if name not in names
        }
        return kept | dict(self.packed)

    def nbytes(self) -> int:
        """Return the bytes of all tensors as they are stored."""
        return sum(tensor.nbytes for tensor in self.stored().values())


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
        """Add a constant to the graph's own file, or refer to the weights file where that has a tensor of this name."""
        if name in self.stored:
            return self.weight(name)
        self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def shape(self, x: str, name: str, *sizes: int) -> str:
        """Return `x` in the shape `sizes`."""
        shape = f"shape.{'x'.join(map(str, sizes))}"
        return self.op("Reshape", [x, self.constant(shape, np.array(sizes, np.int64))], name)

    def weight(self, name: str) -> str:
        """Refer to a tensor of the weights file."""
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
        """The int8 matrix `name (inputs, outputs)` from its codes: constants, which an engine computes once."""
        rows = self.decoded(name, self.weight(f"{name}.codes.0"), len(self.stored[f"{name}.codes.0"]))
        return self.op("Transpose", [rows], name, perm=[1, 0])

    def decoded(self, name: str, codes: str, rows: int) -> str:
        """The int8 rows `(rows, width)` of the palette `name` for `codes (rows, bytes) uint8`.

        Few and small steps: ONNX Runtime keeps the result of every one in memory while it opens a graph.
        """
        bits, width = code_bits(len(self.stored[f"{name}.codebook.0"])), int(self.stored[f"{name}.width"][0])
        whole = 8 % bits == 0  # codes in a byte; else 8 codes in as many bytes as a code has bits
        value = self.op("Cast", [codes], f"{name}.bytes", to=TensorProto.INT32)
        value = self.shape(value, f"{name}.groups", rows, -1, 1 if whole else bits)
        starts = bits * np.arange(8 // bits if whole else 8, dtype=np.int32)
        if not whole:
            first, after = (np.minimum(starts // 8 + k, bits - 1) for k in (0, 1))
            low = self.op("Gather", [value, self.constant(f"first.{bits}", first)], f"{name}.low", axis=2)
            high = self.op("Gather", [value, self.constant(f"after.{bits}", after)], f"{name}.after", axis=2)
            high = self.op("Mul", [high, self.constant("byte", np.array(256, np.int32))], f"{name}.high")
            value = self.op("Add", [low, high], f"{name}.both")
        if bits < 8:
            places = self.constant(f"places.{bits}", 2 ** (starts % 8))
            value = self.op("Div", [value, places], f"{name}.shifted")
            size = self.constant(f"size.{bits}", np.array(2**bits, np.int32))
            value = self.op("Mod", [value, size], f"{name}.codes")
        value = self.op("Gather", [self.weight(f"{name}.codebook.0"), value], f"{name}.values", axis=0)
        value = self.shape(value, f"{name}.rows", rows, -1)
        ends = [self.constant(f"cut.{n}", np.array([n], np.int64)) for n in (0, width, 1)]
        return self.op("Slice", [value, *ends], f"{name}.cut")

    def matrix(self, layer: str) -> str:
        """The weight of `layer` as it is stored, decoded if it is a palette."""
        name = f"{layer}.weight"
        return self.weight(name) if name in self.stored else self.palette(name)

    def quantized(self, layer: str, x: str) -> str:
        """The input `x` of an int8 layer after its Q/DQ pair.

        The scale is a scalar: TensorRT and ONNX Runtime both want per-tensor scales without a shape.
        """
        scale = self.constant(f"{layer}.x_scale", self.deployed.tensors[f"{layer}.input_scale"][0].reshape(()))
        zero = self.constant(f"{layer}.x_zero", np.array(0, np.int8))
        quantized = self.op("QuantizeLinear", [x, scale, zero], f"{layer}.q")
        return self.op("DequantizeLinear", [quantized, scale, zero], f"{layer}.dq")

    def dequantized(self, layer: str, weight: str) -> str:
        """The int8 `weight` of a layer after a DequantizeLinear with a scale for each output."""
        outputs = self.deployed.tensors[f"{layer}.weight"].shape[1]
        zeros = self.constant(f"{layer}.w_zero", np.zeros(outputs, np.int8))
        inputs = [weight, self.weight(f"{layer}.weight_scale"), zeros]
        return self.op("DequantizeLinear", inputs, f"{layer}.w", axis=1)

    def dense(self, layer: str, x: str, *, relu: bool = False) -> str:
        """`x @ weight + bias` of `x (rows, inputs)`, quantized where the layer is int8.

        Nothing may come between a Q and its DQ: ONNX Runtime on x86 would turn the pair into uint8, or the layer into
        float.
        """
        tensors, weight = self.deployed.tensors, self.matrix(layer)
        bias, kind = f"{layer}.bias" in tensors, self.deployed.precision(layer)
        if kind == "int8":
            both = [self.quantized(layer, x), self.dequantized(layer, weight)]
            total = self.op("MatMul", both, f"{layer}.product")
            # product - (-bias): ONNX Runtime turns MatMul + Add into a float Gemm before it looks for Q/DQ pairs.
            # A MatMul that only a ReLU reads stays in float too, so a layer without a bias gets one of zeros.
            outputs = tensors[f"{layer}.weight"].shape[1]
            negative = -tensors[f"{layer}.bias"] if bias else np.zeros(outputs, np.float32)
            total = self.op("Sub", [total, self.constant(f"{layer}.negative_bias", negative)], f"{layer}.sum")
        else:
            if kind == "int8-weights":
                # Constants that ONNX Runtime folds when it opens the graph. From a DequantizeLinear before a product it
                # makes MatMulNBits, which rounds the input to int8 as well.
                weight = self.op("Cast", [weight], f"{layer}.w_steps", to=TensorProto.FLOAT)
                weight = self.op("Mul", [weight, self.floats(f"{layer}.weight_scale")], f"{layer}.w")
            elif kind == "fp16":
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
        """Return the model of everything that was added."""
        graph = helper.make_graph(self.nodes, name, list(inputs), list(outputs), list(self.initializers.values()))
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION)
        model.producer_name = "fieldrun"
        helper.set_model_props(model, dict(metadata))
        return model


def op_histogram(path: Path) -> dict[str, int]:
    """Return how often each operator occurs in the ONNX file at `path`; its external data is not read."""
    model = onnx.load(str(path), load_external_data=False)
    counts: dict[str, int] = {}
    for node in model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items()))
