"""The graph builder: nodes, constants, and weights that stand in one safetensors file beside the graphs.

Only standard operators of opset 17. int8 matrices are explicit QuantizeLinear / DequantizeLinear pairs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fieldrun.formats.packing import code_bits
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


class Stored(Protocol):
    """What a graph is built from: tensors, how they are stored, and what each layer is computed in."""

    @property
    def tensors(self) -> Mapping[str, Array]:
        """The tensors by name."""
        ...

    def precision(self, part: str) -> str:
        """Return what `part`, a layer or `"table"`, is computed in: fp32, fp16, int8 or int8-weights."""
        ...

    def stored(self) -> dict[str, Array]:
        """Return the tensors as a bundle holds them."""
        ...


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


def op_histogram(path: Path) -> dict[str, int]:
    """Return how often each operator occurs in the ONNX file at `path`, its external data left alone."""
    model = onnx.load(str(path), load_external_data=False)
    counts: dict[str, int] = {}
    for node in model.graph.node:
        counts[node.op_type] = counts.get(node.op_type, 0) + 1
    return dict(sorted(counts.items()))
