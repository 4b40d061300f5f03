"""Static, symmetric int8 in a foreign graph, with the numbers of the student's pass `int8`.

Products with a constant matrix, MatMul and Gemm, and tables with a row for every token become int8. ONNX Runtime's own
`quantize_static` is not used. It leaves a bias in an Add after its product, which the optimiser may turn into a float
Gemm before it looks for Q/DQ pairs; and it leaves a table in float, or behind a DequantizeLinear that is computed for
the whole vocabulary with every call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fieldrun.formats.tensors import Array

from ..student.passes.int8 import quantize_columns

__all__ = ["Layer", "Product", "constants", "find_layers", "find_tables", "quantize_graph"]

_LEAST = 16  # inputs and outputs of a product that is worth two more nodes


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Layer:
    """A product with a constant matrix: the node, its input's name, and the weight `(inputs, outputs) float32`."""

    node: str
    input: str
    weight: Array
    bias: Array | None = None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Product:
    """A quantized layer: `weight (inputs, outputs) int8`, `scale (outputs,) float32`, and the range of its input.

    `limit` is the largest absolute input to represent; the input stays float if it is None.
    """

    weight: Array
    scale: Array
    limit: float | None

    @classmethod
    def of(cls, layer: Layer, limit: float | None) -> Product:
        """Return `layer` quantized, its weights with 7 bits if its input is int8 too, else with 8."""
        weight, scale = quantize_columns(layer.weight, 127 if limit is None else 63)
        return cls(weight=weight, scale=scale, limit=limit)


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
    """Return the names of the constant float32 matrices with at least `rows` rows that `graph` looks up rows in."""
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
    """Return a constant as `(size,) float32` if it broadcasts to that, else None."""
    if tensor is None or tensor.data_type != TensorProto.FLOAT:
        return None
    values = numpy_helper.to_array(tensor)
    if values.size not in (1, size) or values.shape[-1:] not in ((), (1,), (size,)):
        return None
    return np.ascontiguousarray(np.broadcast_to(values.reshape(-1), (size,)), np.float32)


def quantize_graph(
    model: onnx.ModelProto,
    layers: Sequence[Layer],
    products: Sequence[Product],
    tables: Mapping[str, tuple[Array, Array]],
) -> onnx.ModelProto:
    """Return `model`, a graph of fixed shape, with its `layers` as `products` and `tables` as int8 rows.

    `tables` has, by the name of a constant matrix, its `(rows, width) int8` and its scales `(rows,) float32`.
    """
    out = onnx.ModelProto()
    out.CopyFrom(model)
    graph, new = out.graph, _Nodes()
    known = constants(graph)
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    chosen = {layer.node: (layer, product) for layer, product in zip(layers, products, strict=True)}
    scaled: dict[str, tuple[str, str]] = {}
    subtract: dict[str, Array] = {}
    for node in graph.node:
        output = node.output[0]
        if output in chosen:
            layer, product = chosen[output]
            bias, after, added = layer.bias, readers.get(output, []), None
            if product.limit is not None and bias is None and len(after) == 1 and after[0].op_type == "Add":
                other = after[0].input[1] if after[0].input[0] == output else after[0].input[0]
                added = _vector(known.get(other), layer.weight.shape[1])
            if added is not None:
                subtract[after[0].output[0]] = added
            elif bias is None:
                bias = np.zeros(layer.weight.shape[1], np.float32)
            new.product(layer.input, product, output, bias)
        elif output in subtract:
            source = node.input[0] if node.input[0] in chosen else node.input[1]
            new.subtract(source, subtract[output], output)
        elif node.op_type == "Gather" and node.input[0] in tables:
            name = node.input[0]
            if name not in scaled:
                rows, scale = tables[name]
                scaled[name] = new.constant(f"{name}.rows", rows), new.constant(f"{name}.scale", scale[:, None])
            new.look_up(*scaled[name], node.input[1], output)
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
        self.initializers: dict[str, onnx.TensorProto] = {}

    def constant(self, name: str, value: Array) -> str:
        self.initializers[name] = numpy_helper.from_array(value, name)
        return name

    def op(self, kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    def product(self, x: str, product: Product, output: str, bias: Array | None) -> None:
        """`x @ weight + bias`; without a bias the product itself is the output."""
        weight = self.constant(f"{output}.weight", product.weight)
        scales = self.constant(f"{output}.scale", product.scale)
        if product.limit is not None:
            step = self.constant(f"{output}.x_scale", np.array(product.limit / 127, np.float32))
            zero = self.constant(f"{output}.x_zero", np.array(0, np.int8))
            zeros = self.constant(f"{output}.w_zero", np.zeros(len(product.scale), np.int8))
            x = self.op("QuantizeLinear", [x, step, zero], f"{output}.q")
            x = self.op("DequantizeLinear", [x, step, zero], f"{output}.dq")
            weight = self.op("DequantizeLinear", [weight, scales, zeros], f"{output}.w", axis=1)
        else:
            # constants that are folded when the graph is opened, as in fieldrun_exporters.builder
            weight = self.op("Cast", [weight], f"{output}.steps", to=TensorProto.FLOAT)
            weight = self.op("Mul", [weight, scales], f"{output}.w")
        if bias is None or (product.limit is None and not bias.any()):
            self.op("MatMul", [x, weight], output)
        else:
            self.subtract(self.op("MatMul", [x, weight], f"{output}.product"), bias, output)

    def subtract(self, product: str, bias: Array, output: str) -> None:
        """A bias as a difference: ONNX Runtime turns an Add into a float Gemm before it looks for Q/DQ pairs."""
        self.op("Sub", [product, self.constant(f"{output}.negative_bias", -bias)], output)

    def look_up(self, rows: str, scale: str, ids: str, output: str) -> None:
        """Rows of an int8 table, times their scales."""
        steps = self.op("Gather", [rows, ids], f"{output}.steps")
        values = self.op("Cast", [steps], f"{output}.floats", to=TensorProto.FLOAT)
        self.op("Mul", [values, self.op("Gather", [scale, ids], f"{output}.scales")], output)
