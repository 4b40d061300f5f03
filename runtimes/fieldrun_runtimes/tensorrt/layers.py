"""The precision of every dense layer and of the table in an engine, from the builder's own listing of its layers.

The builder logs one line a layer of the engine, with the data types of its inputs and constants and the ONNX nodes that
it came from. A recipe that says int8 and an engine that multiplies floats is what this finds: an engine may fuse as it
likes, but not fall back unnoticed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import numpy as np

from fieldrun.tensors import Array

__all__ = ["LAYERS", "fallen_back", "layer_precisions", "wanted_precisions"]

LAYERS = ("mixer", "hidden", "output", "pairs")

_LAYER = re.compile(
    r"Name: (?P<name>\S+), LayerType: (?P<type>\w+), Inputs: \[(?P<inputs>.*?)\], Constants: \[(?P<constants>.*?)\], "
    r"Outputs: \[(?P<outputs>.*)$"
)
_TENSOR = re.compile(r"Dimensions: \[(?P<shape>[\d,]*)\],.*?Datatype: (?P<type>\w+)")
_PRODUCTS = ("gemm", "runtime_fusion")
_TYPES = {"Float": "fp32", "Half": "fp16", "Int8": "int8"}


def layer_precisions(lines: Sequence[str], table_shape: tuple[int, int]) -> dict[str, str]:
    """Return part -> precision, for the parts that `lines` of the builder's log speak of.

    A layer's is that of its product's weight: "int8" where the input is int8 too, else "int8-weights". (A kernel that
    the product is fused into may read its input in any type.) The table's is that of the constant that rows come from.
    """
    found: dict[str, str] = {}
    for line in lines:
        match = _LAYER.match(line.strip())
        if match is None:
            continue
        constants = [(_shape(t["shape"]), t["type"]) for t in _TENSOR.finditer(match["constants"])]
        inputs = [(_shape(t["shape"]), t["type"]) for t in _TENSOR.finditer(match["inputs"])]
        for shape, kind in constants:
            if shape == table_shape:
                found["table"] = _TYPES.get(kind, kind)
        for layer in LAYERS:
            named = f"[ONNX Layer: {layer}.product]" in match["outputs"]
            # a kernel after the product may carry its name too; only the first has its weight
            weights = [kind for shape, kind in (*constants, *inputs[1:]) if sum(n > 1 for n in shape) >= 2]
            if named and weights and inputs and (layer not in found or match["type"] in _PRODUCTS):
                found[layer] = _product(inputs[0][1], weights[0])
    return found


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)


def _product(left: str, weight: str) -> str:
    left, weight = _TYPES.get(left, left), _TYPES.get(weight, weight)
    return "int8-weights" if weight == "int8" and left != "int8" else weight


def wanted_precisions(weights: Mapping[str, Array]) -> dict[str, str]:
    """Return part -> precision as a bundle's weights have it: what the recipe asked for."""
    types = {np.dtype("f4"): "fp32", np.dtype("f2"): "fp16", np.dtype("i1"): "int8"}
    wanted = {"table": types[weights["table"].dtype]}
    for layer in LAYERS:
        if f"{layer}.weight" in weights:
            kind = types[weights[f"{layer}.weight"].dtype]
            wanted[layer] = "int8-weights" if kind == "int8" and f"{layer}.input_scale" not in weights else kind
    return wanted


def fallen_back(found: Mapping[str, str], wanted: Mapping[str, str]) -> list[str]:
    """Return one line for every part of `found` that is computed in more bits than `wanted` says."""
    bits = {"int8": 8, "int8-weights": 8, "fp16": 16, "fp32": 32}
    return [
        f"{part} is {wanted[part]} in the bundle and {kind} in the engine"
        for part, kind in found.items()
        if part in wanted and bits.get(kind, 32) > bits[wanted[part]]
    ]
