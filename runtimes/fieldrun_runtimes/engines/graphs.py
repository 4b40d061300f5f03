"""ONNX graphs as bytes: where their weights are, and how ONNX Runtime and TensorRT get those without opening a file.

A graph names its weights by file, offset and length. ONNX Runtime and TensorRT would open that file by its path, which
may be long after the bundle was checked. So the graphs are read here, as protocol buffers, as far as that takes: each
reference is resolved in the bytes that were checked, and one to another file is an error.

A large table whose rows are only gathered becomes an input of the graph, so that all sessions share its memory: every
session would copy an initializer.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from fieldrun.errors import BundleError
from fieldrun.formats.tensors import Array

__all__ = ["OpenGraph", "open_graph", "whole_graph"]

_WEIGHTS = "weights.safetensors"
_SHARED = 1 << 20  # bytes from which a table becomes an input
_TYPES: dict[int, Any] = {  # TensorProto.DataType
    1: np.float32,
    2: np.uint8,
    3: np.int8,
    6: np.int32,
    7: np.int64,
    10: np.float16,
}
_EXTERNAL = 1  # TensorProto.DataLocation
_DEPTH = 24  # messages inside each other
_INSIDE = {  # what a message of onnx.proto holds, by field number, as far as tensors may be in it
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "function": {7: "node"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
_MODEL_GRAPH, _GRAPH_NODE, _GRAPH_INITIALIZER, _GRAPH_INPUT = 7, 1, 5, 11
_NODE_INPUT, _NODE_TYPE, _NODE_ATTRIBUTE, _ATTRIBUTE_GRAPHS = 1, 4, 5, (6, 11)
_TENSOR_DIMS, _TENSOR_TYPE, _TENSOR_NAME, _TENSOR_RAW, _TENSOR_EXTERNAL, _TENSOR_LOCATION = 1, 2, 8, 9, 13, 14


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenGraph:
    """A graph for ONNX Runtime: its `model`, the `initializers` to add by name, and the `inputs` of every call."""

    model: bytes
    initializers: dict[str, Array]
    inputs: dict[str, Array]


def open_graph(model: bytes | memoryview, weights: memoryview, name: str, *, share: bool = True) -> OpenGraph:
    """Return the graph `model`, with the references to its weights resolved in the bytes of `weights.safetensors`.

    With `share`, large tables whose rows are gathered become inputs.

    Raises:
        BundleError: it is no ONNX graph, names another file, or bytes that the file does not have.
    """
    with _readable(name):
        return _open(memoryview(model), weights, share)


def whole_graph(model: bytes | memoryview, weights: memoryview, name: str) -> bytes:
    """Return the graph `model` with its weights inside, for a parser that would open their file by its path.

    Raises:
        BundleError: as `open_graph`.
    """
    with _readable(name):
        _open(memoryview(model), weights, share=False)  # which refuses weights in other places than the graph's list
        return b"".join(
            _field(number, _with_weights(value, weights) if number == _MODEL_GRAPH else value)
            for number, value in _fields(memoryview(model))
        )


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    try:
        yield
    except BundleError as error:
        raise BundleError(f"{name}: {error}") from error
    except (IndexError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as error:
        raise BundleError(f"{name} is not an ONNX graph that can be read ({error}); export again") from error


def _open(model: memoryview, weights: memoryview, share: bool) -> OpenGraph:
    parts = list(_fields(model))
    graphs = [value for number, value in parts if number == _MODEL_GRAPH]
    if len(graphs) != 1:
        raise ValueError(f"it has {len(graphs)} graphs")
    fields = list(_fields(graphs[0]))
    initializers = [value for number, value in fields if number == _GRAPH_INITIALIZER]
    if sum(map(_is_external, _tensors("model", model))) != sum(map(_is_external, initializers)):
        raise BundleError("a constant inside a node is stored outside the graph; export again")
    external = dict(_resolve(tensor, weights) for tensor in initializers if _is_external(tensor))
    large = {key for key, tensor in external.items() if tensor.nbytes >= _SHARED} if share else set()
    if large:
        large -= _used_otherwise(fields, large)
    if not large:
        return OpenGraph(model=bytes(model), initializers=external, inputs={})
    graph = b"".join(
        _field(number, value)
        for number, value in fields
        if not (number == _GRAPH_INITIALIZER and _name_of(value) in large)
    )
    graph += b"".join(_field(_GRAPH_INPUT, _value_info(key, external[key])) for key in sorted(large))
    changed = b"".join(_field(number, graph if number == _MODEL_GRAPH else value) for number, value in parts)
    return OpenGraph(
        model=changed,
        initializers={key: tensor for key, tensor in external.items() if key not in large},
        inputs={key: external[key] for key in large},
    )


def _with_weights(graph: memoryview, weights: memoryview) -> bytes:
    parts = []
    for number, value in _fields(graph):
        if number == _GRAPH_INITIALIZER and _is_external(value):
            kept = [_field(n, v) for n, v in _fields(value) if n not in (_TENSOR_EXTERNAL, _TENSOR_LOCATION)]
            data = np.ascontiguousarray(_resolve(value, weights)[1]).tobytes()
            parts.append(_field(number, b"".join([*kept, _field(_TENSOR_RAW, data)])))
        else:
            parts.append(_field(number, value))
    return b"".join(parts)


def _resolve(tensor: memoryview, weights: memoryview) -> tuple[str, Array]:
    """Return name and values of an initializer that is stored outside the graph."""
    dims: list[int] = []
    kind, name = 0, ""
    where: dict[str, str] = {}
    for number, value in _fields(tensor):
        if number == _TENSOR_DIMS:
            dims += [value] if isinstance(value, int) else _packed(value)
        elif number == _TENSOR_TYPE:
            kind = _whole(value)
        elif number == _TENSOR_NAME:
            name = str(value, "utf-8")
        elif number == _TENSOR_EXTERNAL:
            entry = {each: str(text, "utf-8") for each, text in _fields(value)}
            where[entry.get(1, "")] = entry.get(2, "")
    if where.get("location") != _WEIGHTS:
        raise BundleError(f"{name!a} is stored in {where.get('location', '')[:80]!a}, not in {_WEIGHTS}; export again")
    start, size, dtype = int(where.get("offset", "0")), int(where["length"]), np.dtype(_TYPES[kind])
    count = 1
    for dim in dims:
        count *= dim
    if not 0 <= start <= start + size <= len(weights) or size != count * dtype.itemsize:
        raise BundleError(f"{name!a} does not fit into {_WEIGHTS}; export again")
    return name, np.frombuffer(weights, dtype, count, start).reshape(dims)


def _used_otherwise(fields: list[tuple[int, Any]], names: set[str]) -> set[str]:
    """Return those of `names` that are used other than as the table of a Gather."""
    found: set[str] = set()
    for number, value in fields:
        if number == _GRAPH_NODE:
            node = list(_fields(value))
            kind = next((str(text, "utf-8") for each, text in node if each == _NODE_TYPE), "")
            inputs = [str(text, "utf-8") for each, text in node if each == _NODE_INPUT]
            found |= names.intersection(inputs[1:] if kind == "Gather" else inputs)
            if any(
                each == _NODE_ATTRIBUTE and any(n in _ATTRIBUTE_GRAPHS for n, _ in _fields(text)) for each, text in node
            ):
                return names  # a graph inside the node may use any of them
    return found


def _tensors(kind: str, message: memoryview, depth: int = 0) -> Iterator[memoryview]:
    """Yield every tensor in a message of onnx.proto, at any depth."""
    if depth > _DEPTH:
        raise ValueError("it is nested too deep")
    inside = _INSIDE[kind]
    for number, value in _fields(message):
        found = inside.get(number)
        if found == "tensor":
            yield value
        elif found is not None:
            yield from _tensors(found, value, depth + 1)


def _is_external(tensor: memoryview) -> bool:
    return any(
        number == _TENSOR_EXTERNAL or (number == _TENSOR_LOCATION and value == _EXTERNAL)
        for number, value in _fields(tensor)
    )


def _name_of(tensor: memoryview) -> str:
    return next((str(value, "utf-8") for number, value in _fields(tensor) if number == _TENSOR_NAME), "")


def _value_info(name: str, tensor: Array) -> bytes:
    kind = next(number for number, dtype in _TYPES.items() if tensor.dtype == dtype)
    shape = b"".join(_field(1, _field(1, int(size))) for size in tensor.shape)
    return _field(1, name.encode()) + _field(2, _field(1, _field(1, kind) + _field(2, shape)))


def _whole(value: Any) -> int:
    if not isinstance(value, int):
        raise ValueError("a number is stored as bytes")
    return value


def _packed(data: memoryview) -> list[int]:
    values, at = [], 0
    while at < len(data):
        value, at = _varint(data, at)
        values.append(value)
    return values


def _fields(data: memoryview) -> Iterator[tuple[int, Any]]:
    """Yield number and value of each field of a message: an int, or the bytes of anything else."""
    at, end = 0, len(data)
    while at < end:
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        elif wire in (1, 5):
            size = 8 if wire == 1 else 4
        else:
            raise ValueError(f"a field of the type {wire}")
        if size > end - at:
            raise ValueError("a field is longer than the file")
        if wire == 2:
            yield number, data[at : at + size]
        at += size


def _varint(data: memoryview, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
        shift += 7
        if shift > 63:
            raise ValueError("a number of more than 64 bits")


def _field(number: int, value: int | bytes | memoryview) -> bytes:
    if isinstance(value, int):
        return _number(number << 3) + _number(value)
    return _number(number << 3 | 2) + _number(len(value)) + bytes(value)


def _number(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*out, value))
