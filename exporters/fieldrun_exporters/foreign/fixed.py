"""The graph of a foreign model for one bucket: fixed shapes, only ids in, the pooled field out, constants folded.

ONNX Runtime's basic optimisations, which keep to ONNX's own operators, compute everything that follows from the fixed
shapes and the weights, so that no shape arithmetic is left.
"""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, compose, helper, numpy_helper

from fieldrun.errors import ExportError
from fieldrun.formats.tensors import Array

from ..parity import open_session
from .read import ForeignModel

__all__ = ["fixed_graph"]

_PREFIX = "model."  # of every name in the foreign graph, so that none is one of ours
_MADE = "made."  # of every other


def fixed_graph(model: ForeignModel, rank: int, dim: int, batch: int, length: int) -> onnx.ModelProto:
    """Return the graph ids `(batch, length) int32` -> output `(batch, dim) float32`.

    Raises:
        ExportError: ONNX Runtime cannot open the graph in this shape.
    """
    wrapped = compose.add_prefix(model.model, _PREFIX)
    graph = wrapped.graph
    _ids_only(graph, model, batch, length)
    _field_only(graph, model, rank, dim, batch, length)
    del graph.value_info[:]
    del wrapped.metadata_props[:]
    return _simplified(wrapped, f"{batch} x {length}")


def _ids_only(graph: onnx.GraphProto, model: ForeignModel, batch: int, length: int) -> None:
    before: list[onnx.NodeProto] = []
    pad = numpy_helper.from_array(np.array(model.pad_id, np.int32), "pad")
    before.append(helper.make_node("Equal", ["ids", "pad"], ["padding"]))
    before.append(helper.make_node("Not", ["padding"], ["used"]))
    graph.initializer.append(pad)
    for each in model.inputs:
        name = _PREFIX + each.name
        if each.role == "types":
            zeros = np.zeros((batch, length), helper.tensor_dtype_to_np_dtype(each.dtype))
            graph.initializer.append(numpy_helper.from_array(zeros, name))
        else:
            source = "ids" if each.role == "ids" else "used"
            before.append(helper.make_node("Cast", [source], [name], to=each.dtype))
    kept = [*before, *graph.node]
    del graph.node[:], graph.input[:]
    graph.node.extend(kept)
    graph.input.append(helper.make_tensor_value_info("ids", TensorProto.INT32, [batch, length]))


def _field_only(graph: onnx.GraphProto, model: ForeignModel, rank: int, dim: int, batch: int, length: int) -> None:
    numbers: dict[str, Array] = {
        "axis.1": np.array([1], np.int64),
        "shares.shape": np.array([batch, 1, length], np.int64),
        "field.shape": np.array([batch, dim], np.int64),
        "floor": np.array(1e-12, np.float32),
        "first": np.array(0, np.int64),
    }
    graph.initializer.extend(numpy_helper.from_array(value, name) for name, value in numbers.items())

    def op(kind: str, inputs: list[str], name: str, **attributes: Any) -> str:
        graph.node.append(helper.make_node(kind, inputs, [name], **attributes))
        return name

    x = op("Cast", [_PREFIX + model.output], "floats", to=TensorProto.FLOAT)
    if rank == 3 and model.pooling == "cls":
        x = op("Gather", [x, "first"], "pooled", axis=1)
    elif rank == 3:
        ones = op("Cast", ["used"], "ones", to=TensorProto.FLOAT)
        shares = op("Div", [ones, op("ReduceSum", [ones, "axis.1"], "count", keepdims=1)], "shares")
        x = op("MatMul", [op("Reshape", [shares, "shares.shape"], "shares.row"), x], "pooled.row")
        x = op("Reshape", [x, "field.shape"], "pooled")
    if rank == 3 and model.normalize:
        norm = op("Sqrt", [op("ReduceSum", [op("Mul", [x, x], "squares"), "axis.1"], "square", keepdims=1)], "norm")
        x = op("Div", [x, op("Max", [norm, "floor"], "norm.floor")], "unit")
    op("Identity", [x], "output")
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("output", TensorProto.FLOAT, [batch, dim]))


def _simplified(model: onnx.ModelProto, where: str) -> onnx.ModelProto:
    with TemporaryDirectory() as scratch:
        source, target = Path(scratch) / "source.onnx", Path(scratch) / "simplified.onnx"
        onnx.save(model, str(source))
        try:
            open_session(source, optimise="basic", optimised=target)
        except ExportError as error:
            raise ExportError(f"model.onnx cannot be given the fixed shape {where}: {error}") from error
        found = onnx.load(str(target))
    foreign = [node for node in found.graph.node if node.domain not in ("", "ai.onnx")]
    if foreign:
        raise ExportError(
            f"ONNX Runtime made the operator {foreign[0].domain}.{foreign[0].op_type} of model.onnx, which is not "
            "ONNX's own; try another version of onnxruntime"
        )
    kept = [each for each in found.opset_import if each.domain in ("", "ai.onnx")]
    del found.opset_import[:]
    found.opset_import.extend(kept)
    del found.graph.value_info[:], found.metadata_props[:]
    _rename_made(found.graph)
    return found


def _rename_made(graph: onnx.GraphProto) -> None:
    """Add a prefix to the names that ONNX Runtime made, in place.

    It makes the same names when it optimises the graph again, and fails: "Attempt to replace the existing tensor".
    """
    fixed = {value.name for value in (*graph.input, *graph.output)} | {""}

    def renamed(name: str) -> str:
        return name if name in fixed or name.startswith(_PREFIX) else _MADE + name

    for tensor in graph.initializer:
        tensor.name = renamed(tensor.name)
    for node in graph.node:
        node.name = renamed(node.name)
        for names in (node.input, node.output):
            names[:] = [renamed(name) for name in names]
