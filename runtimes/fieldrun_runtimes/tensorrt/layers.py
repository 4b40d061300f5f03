"""The precision of every dense layer and of the table in an engine, from the builder's own listing of its layers.

The builder logs one line for each layer of the engine, with the data types of its inputs and constants and the ONNX
nodes that it came from. This finds an engine that multiplies floats where the recipe says int8: an engine may fuse
layers as it likes, but not fall back unnoticed.

TensorRT-RTX writes `Datatype: Int8, Format: ...` and lists constants. TensorRT 10 writes `Format/Datatype:` with a word
(`Half`) or a sentence (`Row major Int8 format`), and the type of a kernel's weight, or nothing. What a line does not
say is "unknown", which is neither right nor a fall-back: such a part was not checked.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence

import numpy as np

from fieldrun.formats.tensors import Array

__all__ = ["LAYERS", "fallen_back", "layer_precisions", "part_shapes", "unchecked", "wanted_precisions"]

LAYERS = ("mixer", "hidden", "output", "pairs")

_LAYER = re.compile(
    r"Name: .*?, LayerType: (?P<type>\w+), Inputs: \[(?P<inputs>.*?)\](?:, Constants: \[(?P<constants>.*?)\])?"
    r", Outputs: \[(?P<rest>.*)$"
)
_TENSOR = re.compile(r"Dimensions: \[(?P<shape>[-\d,]*)\],[^{}]*?Datatype: (?P<type>[^,{}]*)")
_WEIGHT = re.compile(r'Weights: \{"Type": "(?P<type>\w+)"')
_PRODUCTS = re.compile(r"gemm|runtime_fusion|MatrixMultiply|Cask\w+")
_WORD = re.compile(r"\b(?:Int8|Half|FP16|Float|FP32)\b")
_TYPES = {"Float": "fp32", "FP32": "fp32", "Half": "fp16", "FP16": "fp16", "Int8": "int8"}
_UNKNOWN = "unknown"
_BITS = {"int8": 8, "int8-weights": 8, "fp16": 16, "fp32": 32}


def part_shapes(weights: Mapping[str, Array]) -> dict[str, tuple[int, ...]]:
    """Return part -> shape, of the table and of every layer's weight."""
    named = {"table": "table"} | {layer: f"{layer}.weight" for layer in LAYERS}
    return {part: weights[name].shape for part, name in named.items() if name in weights}


def layer_precisions(lines: Sequence[str], shapes: Mapping[str, tuple[int, ...]]) -> dict[str, str]:
    """Return part -> precision, for the parts that `lines` of the builder's log name.

    A layer's precision is that of its product's weight: "int8" if the input is int8 too, else "int8-weights". (A kernel
    that the product is fused into may read its input in any type.) If the weight is not listed, an int8 input means
    "int8", as it is multiplied by nothing else, and any other input "unknown". The table's precision is that of the
    constant that its rows come from.

    Args:
        lines: the listing.
        shapes: part -> shape, as `part_shapes` gives it.
    """
    found: dict[str, str] = {}
    for line in lines:
        match = _LAYER.match(line.strip())
        if match is None:
            continue
        inputs, constants = _tensors(match["inputs"]), _tensors(match["constants"] or "")
        for shape, kind in constants if match["constants"] is not None else inputs:
            if shape == shapes.get("table"):
                found["table"] = kind
        product = _PRODUCTS.fullmatch(match["type"]) is not None
        for layer in LAYERS:
            # a kernel after the product may carry its name too; only the first has its weight
            if layer in shapes and f"[ONNX Layer: {layer}.product]" in match["rest"] and inputs:
                weights = [_type(m["type"]) for m in _WEIGHT.finditer(match["rest"])]
                weights += [kind for shape, kind in (*constants, *inputs[1:]) if _holds(shape, shapes[layer])]
                kind = _product(inputs[0][1], weights[0] if weights else None, product)
                if found.get(layer, _UNKNOWN) == _UNKNOWN or (product and kind != _UNKNOWN):
                    found[layer] = kind
    return found


def _tensors(text: str) -> list[tuple[tuple[int, ...], str]]:
    """Return shape and type of every tensor in a list."""
    return [
        (tuple(int(n) for n in m["shape"].split(",") if n.strip("-")), _type(m["type"])) for m in _TENSOR.finditer(text)
    ]


def _type(words: str) -> str:
    word = _WORD.search(words)
    return _TYPES[word[0]] if word is not None else _UNKNOWN


def _holds(shape: tuple[int, ...], weight: tuple[int, ...]) -> bool:
    """Return whether a tensor of `shape` can be that weight, perhaps transposed or with its inputs split in two."""
    return math.prod(shape) == math.prod(weight) and sum(n > 1 for n in shape) >= 2


def _product(left: str, weight: str | None, product: bool) -> str:
    if weight is None:
        return "int8" if product and left == "int8" else _UNKNOWN
    return "int8-weights" if weight == "int8" and left != "int8" else weight


def wanted_precisions(weights: Mapping[str, Array]) -> dict[str, str]:
    """Return part -> precision of a bundle's weights: what the recipe asked for."""
    types = {np.dtype("f4"): "fp32", np.dtype("f2"): "fp16", np.dtype("i1"): "int8"}
    wanted = {"table": types[weights["table"].dtype]}
    for layer in LAYERS:
        if f"{layer}.weight" in weights:
            kind = types[weights[f"{layer}.weight"].dtype]
            wanted[layer] = "int8-weights" if kind == "int8" and f"{layer}.input_scale" not in weights else kind
    return wanted


def fallen_back(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Return one line for every part of `found` that is computed in more bits than `wanted` says."""
    return [
        f"{part} is {wanted[part]} in the bundle and {kind} in the engine"
        for part, kind in found.items()
        if part in wanted and _BITS.get(kind, 0) > _BITS[wanted[part]]
    ]


def unchecked(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Return the parts of `wanted` whose precision the listing does not give."""
    return [part for part in wanted if found.get(part, _UNKNOWN) == _UNKNOWN]
