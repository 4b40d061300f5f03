"""An encoder in deployed form: what passes change and its graphs are built from.

| Tensor | Shape, type |
|---|---|
| `table` | `(vocab, hidden)` float32, or int8 with `table.scale (vocab, 1) float32` |
| `positions` | `(positions, hidden) float32`: position and type embedding in one |
| `layer<k>.qkv` | query (scaled), key and value map side by side, `(hidden, heads * (2 d_qk + d_vo))` |
| `layer<k>.attention`, `layer<k>.up`, `layer<k>.down` | as in `Encoder` |
| `<map>.weight`, `<map>.bias` | float32, or an int8 weight with `<map>.weight_scale (outputs,) float32` |
| `<map>.input_scale` | `(1,) float32`, only where the map's input is int8 too |
| `<norm>.weight`, `<norm>.bias` | of the layer norms, float32 |

An int8 table or weight may be a palette, which is stored as codes (`fieldrun.formats.packing`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fieldrun.errors import ExportError
from fieldrun.formats.packing import expand
from fieldrun.formats.tensors import Array

from ..builder import Stored
from ..precision import MAPS, Palette, Precision
from ..student.passes import PassReport
from ..student.passes.int8 import facts, quantize_layer, quantize_rows
from ..student.passes.palettize import Clustered, cluster, palette_facts
from .model import Encoder, EncoderConfig

__all__ = ["DeployedEncoder", "fold_encoder", "int8_encoder", "palettize_encoder"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class DeployedEncoder(Stored):
    """An encoder's shape and its deployed tensors."""

    config: EncoderConfig

    def dense(self) -> tuple[str, ...]:
        """Return the names of all maps `x @ weight + bias`, from the first to the last."""
        return tuple(f"layer{k}.{name}" for k in range(self.config.layers) for name in MAPS)

    def inner_sizes(self, layer: int) -> tuple[int, int, int]:
        """Return d_qk and d_vo, both per head, and d_ff of `layer`."""
        heads, width = self.config.heads, self.tensors[f"layer{layer}.qkv.weight"].shape[1]
        value, inner = (self.tensors[f"layer{layer}.{name}.weight"].shape[0] for name in ("attention", "down"))
        return (width - value) // heads // 2, value // heads, inner

    def stored(self) -> dict[str, Array]:
        """Return the tensors as a bundle holds them; the bias of an int8 map is negative, as its graph subtracts it."""
        out = {name: tensor for name, tensor in Stored.stored(self).items() if not name.endswith(".input_scale")}
        packed = {name: out.pop(name) for name in self.packed}
        for name in self.dense():
            if self.precision(name) == "int8":
                out[f"{name}.negative_bias"] = -out.pop(f"{name}.bias")
        return out | packed


def fold_encoder(encoder: Encoder) -> tuple[DeployedEncoder, PassReport]:
    """Return `encoder` in deployed form, all float32.

    Position and type embedding are added, query, key and value become one map, and the softmax scale goes into the
    query's columns. Per layer that saves two products and the scaling of every score.
    """
    source, scale = encoder.tensors, np.float32(encoder.config.scale)
    tensors = {
        "table": source["embeddings.word"],
        "positions": source["embeddings.position"] + source["embeddings.type"],
    }
    for name, tensor in source.items():
        if "norm." in name or name.split(".")[1] in MAPS:
            tensors[name] = tensor
    for k in range(encoder.config.layers):
        for part in ("weight", "bias"):
            query, key, value = (source[f"layer{k}.{name}.{part}"] for name in ("query", "key", "value"))
            tensors[f"layer{k}.qkv.{part}"] = np.concatenate([query * scale, key, value], axis=-1)
    deployed = DeployedEncoder(config=encoder.config, tensors=tensors)
    before = sum(tensor.nbytes for tensor in source.values())
    return deployed, PassReport(name="fold", bytes_before=before, bytes_after=deployed.nbytes())


def int8_encoder(
    deployed: DeployedEncoder, precision: Precision, input_ranges: Mapping[str, float]
) -> tuple[DeployedEncoder, PassReport]:
    """Quantize what `precision` says, in the same way as `fieldrun_exporters.student.passes.int8`.

    Layer norms, softmax and biases stay float. `input_ranges` has the largest absolute input of each map to represent.

    Raises:
        ExportError: a map has no calibrated range, or nothing became smaller.
    """
    tensors = dict(deployed.tensors)
    changed: dict[str, dict[str, Any]] = {}
    if precision.of("table") == "int8":
        quantized, scale = quantize_rows(tensors["table"])
        changed["table"] = facts(tensors["table"], quantized, scale[:, None])
        tensors |= {"table": quantized, "table.scale": scale[:, None]}
    for name in deployed.dense():
        wanted = precision.of(name.split(".")[1])
        if wanted in ("int8", "int8-weights"):
            changed[name] = quantize_layer(tensors, name, wanted, input_ranges)
    result = replace(deployed, tensors=tensors)
    return result, PassReport.of("int8", deployed, result, changed)


def palettize_encoder(
    deployed: DeployedEncoder,
    folded: DeployedEncoder,
    precision: Precision,
    squares: Mapping[str, Array],
) -> tuple[DeployedEncoder, PassReport]:
    """Replace the parts that `precision` says by palettes, as `fieldrun_exporters.student.passes.palettize` does.

    A row of the table and a column of a map have a scale of their own; a map's columns share one where that gives a
    nearer output. The maps' inputs stay float.

    `deployed` has its int8 parts already so; the numbers that are clustered are those of `folded`, the same in float32.
    `squares` has the mean square of every input of a map, `(inputs,) float64`, on real text.

    Raises:
        ExportError: a scale is beyond float16, or nothing became a palette although something should.
    """
    tensors, packed = dict(deployed.tensors), dict(deployed.packed)
    changed: dict[str, Mapping[str, Any]] = {}
    for part in ("table", *deployed.dense()):
        wanted = precision.of(part.split(".")[-1])
        palette = Palette.of(wanted)
        if palette is None:
            continue
        name = part if part == "table" else f"{part}.weight"
        rows = np.ascontiguousarray(folded.tensors[name] if part == "table" else folded.tensors[name].T)
        found = cluster(rows, palette) if part == "table" else _nearest(rows, palette, squares[part])
        stored = found.stored(name)
        changed[part] = palette_facts(part, rows, found.steps(), found.scale, wanted, stored)
        packed |= stored | {f"{name}.width": np.array([rows.shape[1]], np.int32)}
        scale = found.scale.astype(np.float32)
        if part == "table":
            tensors |= {"table": found.steps(), "table.scale": scale[:, None]}
        else:
            tensors |= {name: np.ascontiguousarray(found.steps().T), f"{name}_scale": scale}
    result = replace(deployed, tensors=tensors, packed=packed)
    report = PassReport.of("palettize", deployed, result, changed)
    opened = expand(result.packed)
    wrong = [name for name in opened if not np.array_equal(opened[name], tensors[name])]
    if wrong:
        raise ExportError(f"palettize: unpacking {wrong[0]!r} gives other numbers")
    return result, report


def _nearest(rows: Array, palette: Palette, squares: Array) -> Clustered:
    """Return the map `rows (outputs, inputs)` clustered with a scale for each output or one for all: the nearer.

    A trained map may have a weight a hundred times as large as the others, for an input that is as large (massive
    activations, Sun et al. 2024), and a scale for its output cannot serve both. So errors are weighted by their input.
    """
    found = [cluster(rows, palette)]
    if rows.shape[1] % palette.dims == 0:
        flat = cluster(rows.reshape(1, -1), palette)
        codes, scale = flat.codes.reshape(len(rows), -1), np.repeat(flat.scale, len(rows))
        found.append(Clustered(codes=codes, codebook=flat.codebook, scale=scale, width=rows.shape[1]))
    return min(found, key=lambda each: float((np.square(each.values() - rows, dtype=np.float64) @ squares).sum()))
