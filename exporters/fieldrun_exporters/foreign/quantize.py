"""Static, symmetric int8 of a foreign graph: the numbers of the student's pass `int8`, in any graph.

What becomes int8 are the products with a constant matrix, MatMul and Gemm, and the tables that have a row for every
token. ONNX Runtime's own `quantize_static` is not used: it leaves a bias in an Add after its product, of which the
optimiser may make a float Gemm before it looks for Q/DQ pairs, and a table in float or behind a DequantizeLinear, which
is computed for the whole vocabulary with every call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fieldrun.formats.tensors import Array

from ..student.passes.int8 import quantize_columns, quantize_rows

__all__ = ["Layer", "constants", "find_layers", "find_tables", "quantize_graph"]

_LEAST = 16  # inputs and outputs of a product that is worth its two more nodes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """A product with a constant matrix: the node, its input's name, and the weight `(inputs, outputs) float32`."""

    node: str
    input: str
    weight: Array
    bias: Array | None = field(default=None)


def constants(graph: onnx.GraphProto) -> dict[str, onnx.TensorProto]:
    """Return the constant tensors of `graph` by name."""
    return {tensor.name: tensor for tensor in graph.initializer}


def find_layers(graph: onnx.GraphProto) -> list[Layer]:
    """Return the products of `graph` that can be int8, in the order of its nodes, named by their outputs."""
    known, layers = constants(graph), []
    for node in graph.node:
        if node.op_type not in ("MatMul", "Gemm") or node.input[0] in known or node.input[1] not in known:
            continue
        weight = known[node.input[1]]
        if len(weight.dims) != 2 or min(weight.dims) < _LEAST or weight.data_type != TensorProto.FLOAT:
            continue
        values, bias = numpy_helper.to_array(weight), None
        if node.op_type == "Gemm":
            settings = {each.name: helper.get_attribute_value(each) for each in node.attribute}
            if settings.get("transA", 0) or settings.get("alpha", 1.0) != 1 or settings.get("beta", 1.0) != 1:
                continue
            values = values.T if settings.get("transB", 0) else values
            if len(node.input) > 2 and node.input[2]:
                bias = _vector(known.get(node.input[2]), values.shape[1])
                if bias is None:
                    continue
        layers.append(Layer(node=node.output[0], input=node.input[0], weight=np.ascontiguousarray(values), bias=bias))
    return layers


def find_tables(graph: onnx.GraphProto, rows: int) -> list[str]:
    """Return the names of the constant float32 matrices of at least `rows` rows that `graph` looks rows up in."""
    known = constants(graph)
    found: dict[str, None] = {}
    for node in graph.node:
        table = known.get(node.input[0]) if node.op_type == "Gather" else None
        axis = next((helper.get_attribute_value(each) for each in node.attribute if each.name == "axis"), 0)
        if table is None or axis != 0 or node.input[1] in known:
            continue
        if len(table.dims) == 2 and table.dims[0] >= rows and table.data_type == TensorProto.FLOAT:
            found[table.name] = None
    return list(found)


def _vector(tensor: onnx.TensorProto | None, size: int) -> Array | None:
    """Return a constant as `(size,) float32` if that is what it broadcasts to, else None."""
    if tensor is None or tensor.data_type != TensorProto.FLOAT:
        return None
    values = numpy_helper.to_array(tensor)
    if values.size not in (1, size) or values.shape[-1:] not in ((), (1,), (size,)):
        return None
    return np.ascontiguousarray(np.broadcast_to(values.reshape(-1), (size,)), np.float32)


def quantize_graph(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    kinds: Sequence[str],
    ranges: Sequence[float],
    tables: Sequence[str],
) -> onnx.ModelProto:
    """Return `model` with `layers` in int8 and `tables` as int8 rows with a scale each.

    Args:
        model: a graph of fixed shape; it is not changed.
        layers: of this graph.
        kinds: int8 or int8-weights, for each of them.
        ranges: the largest absolute input to represent, for each of them.
        tables: names of constant matrices.
    """
    out = onnx.ModelProto()
    out.CopyFrom(model)
    graph, new = out.graph, _Nodes()
    known = constants(graph)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    chosen = {layer.node: (layer, kind, limit) for layer, kind, limit in zip(layers, kinds, ranges, strict=True)}
    scaled: dict[str, tuple[str, str]] = {}
    subtract: dict[str, Array] = {}
    for node in graph.node:
        output = node.output[0]
        if output in chosen:
            layer, kind, limit = chosen[output]
            bias, name = layer.bias, output
            after = readers.get(output, [])
            added = None
            if kind == "int8" and bias is None and len(after) == 1 and after[0].op_type == "Add":
                other = after[0].input[1] if after[0].input[0] == output else after[0].input[0]
                added = _vector(known.get(other), layer.weight.shape[1])
            if added is not None:
                subtract[after[0].output[0]] = added
                new.product(layer, kind, limit, output, None)
            else:
                new.product(
                    layer, kind, limit, name, np.zeros(layer.weight.shape[1], np.float32) if bias is None else bias
                )
        elif output in subtract:
            source = node.input[0] if node.input[0] in chosen else node.input[1]
            new.subtract(source, subtract[output], output)
        elif node.op_type == "Gather" and node.input[0] in tables:
            if node.input[0] not in scaled:
                rows, scale = quantize_rows(numpy_helper.to_array(known[node.input[0]]))
                names = f"{node.input[0]}.rows", f"{node.input[0]}.scale"
                scaled[node.input[0]] = new.constant(names[0], rows), new.constant(names[1], scale[:, None])
            new.look_up(*scaled[node.input[0]], node.input[1], output)
        else:
            new.nodes.append(node)
    del graph.node[:]
    graph.node.extend(new.nodes)
    used = {name for node in graph.node for name in node.input}
    kept = [tensor for tensor in (*graph.initializer, *new.initializers.values()) if tensor.name in used]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return out


class _Nodes:
    """The nodes of the quantized graph as they are made."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: Mapping[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: Array) -> str:
        self.initializers = {**self.initializers, name: numpy_helper.from_array(value, name)}
        return name

    def op(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def product(self, layer: Layer, kind: str, limit: float, output: str, bias: Array | None) -> None:
        """`x @ weight + bias`; without a bias the product itself is the output."""
        quantized, scale = quantize_columns(layer.weight, 63 if kind == "int8" else 127)
        weight, scales = self.constant(f"{output}.weight", quantized), self.constant(f"{output}.scale", scale)
        if kind == "int8":
            step = self.constant(f"{output}.x_scale", np.array(limit / 127, np.float32))
            zero = self.constant(f"{output}.x_zero", np.array(0, np.int8))
            zeros = self.constant(f"{output}.w_zero", np.zeros(len(scale), np.int8))
            x = self.op("QuantizeLinear", [layer.input, step, zero], f"{output}.q")
            x = self.op("DequantizeLinear", [x, step, zero], f"{output}.dq")
            weight = self.op("DequantizeLinear", [weight, scales, zeros], f"{output}.w", axis=1)
        else:
            # constants that are folded when the graph is opened; see fieldrun_exporters.student.graph
            x = layer.input
            weight = self.op("Cast", [weight], f"{output}.steps", to=TensorProto.FLOAT)
            weight = self.op("Mul", [weight, scales], f"{output}.w")
        if bias is None or (kind != "int8" and not bias.any()):
            self.op("MatMul", [x, weight], output)
            return
        self.subtract(self.op("MatMul", [x, weight], f"{output}.product"), bias, output)

    def subtract(self, product: str, bias: Array, output: str) -> None:
        """A bias as a difference: of an Add ONNX Runtime makes a float Gemm before it looks for Q/DQ pairs."""
        self.op("Sub", [product, self.constant(f"{output}.negative_bias", -bias)], output)

    def look_up(self, rows: str, scale: str, ids: str, output: str) -> None:
        """Rows of an int8 table, times their scales."""
        values = self.op(
            "Cast", [self.op("Gather", [rows, ids], f"{output}.steps")], f"{output}.floats", to=TensorProto.FLOAT
        )
        self.op("Mul", [values, self.op("Gather", [scale, ids], f"{output}.scales")], output)
