"""Foreign graph -> fixed shapes -> calibrate -> int8 -> the source that `fieldrun_exporters.writer` writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fieldrun.errors import ExportError, RecipeError
from fieldrun.formats.bundle import GraphNetwork
from fieldrun.formats.progress import Progress
from fieldrun.formats.storage import sha256_bytes
from fieldrun.formats.tensors import Array, write_tensors

from ..builder import WEIGHTS_FILE
from ..calibrate import CalibrationText, Largest, tokenize
from ..parity import Expected, open_session
from ..recipe import Recipe
from ..student.passes import PassReport
from ..student.passes.int8 import facts, quantize_rows
from ..writer import Graphs, Source
from .fixed import fixed_graph
from .quantize import Layer, Product, constants, find_layers, find_tables, quantize_graph
from .read import ForeignModel
from .reference import Reference

__all__ = ["ForeignSource", "prepare_foreign"]

_INLINE = 1024  # bytes; a smaller constant stays in its graph
_TYPES = {
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.INT32,
    TensorProto.INT64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignSource(Source):
    """A foreign graph after its passes. The constants in `tensors` are taken out of `models`."""

    models: Mapping[tuple[int, int], onnx.ModelProto]
    """By batch and length."""
    tensors: Mapping[str, Array]

    def weights(self) -> bytes:
        """Return the safetensors file that all graphs share."""
        return write_tensors(self.tensors)

    def graphs(self, wanted: Graphs) -> Iterator[tuple[str, onnx.ModelProto]]:
        """Yield file name and graph of every bucket."""
        for bucket in wanted.buckets:
            model = onnx.ModelProto()
            model.CopyFrom(self.models[bucket.batch, bucket.length])
            for tensor in model.graph.initializer:
                if tensor.data_location != TensorProto.EXTERNAL:
                    continue
                offset, length = wanted.offsets[tensor.external_data[0].value]
                del tensor.external_data[:]
                for key, value in (("location", WEIGHTS_FILE), ("offset", str(offset)), ("length", str(length))):
                    tensor.external_data.add(key=key, value=value)
            model.producer_name, model.graph.name = "fieldrun", f"foreign-b{bucket.batch}-l{bucket.length}"
            model.producer_version = ""
            helper.set_model_props(model, dict(wanted.metadata))
            yield bucket.graph, model


def prepare_foreign(model: ForeignModel, plan: Recipe, texts: CalibrationText, progress: Progress) -> ForeignSource:
    """Return `model` in the fixed shapes and the precision of `plan`, with its fields before them.

    Raises:
        RecipeError: a part, a type or a bucket that the graph cannot have.
        ExportError: the graph cannot be exported, or a pass failed its check.
    """
    _check_plan(model, plan)
    longest = plan.buckets.lengths[-1]
    calibration, proof = (tokenize(model, part, longest) for part in (texts.calibration, texts.proof))
    reference = Reference(model)
    progress("reference", 0, 1)
    expected, rank = reference.fields(proof)
    reference.check_batches(proof, expected)
    progress("reference", 1, 1)
    dim = expected.shape[1]
    shapes = [(batch, length) for batch in plan.buckets.batches for length in plan.buckets.lengths]
    first = fixed_graph(model, rank, dim, *shapes[0])
    before = sum(numpy_helper.to_array(t).nbytes for t in first.graph.initializer if _is_stored(t))
    kind = plan.precision.of("qkv")  # any dense map: the maps of a foreign graph have no names
    layers = find_layers(first.graph) if kind != "fp32" else []
    limits: Sequence[float | None] = [None] * len(layers)
    if kind == "int8" and layers:
        limits = _ranges(model, plan, rank, dim, calibration, len(layers))
    products = [Product.of(layer, limit) for layer, limit in zip(layers, limits, strict=True)]
    names = find_tables(first.graph, model.vocab_size) if plan.precision.of("table") == "int8" else []
    known = constants(first.graph)
    tables = {name: quantize_rows(numpy_helper.to_array(known[name])) for name in names}
    stored = _Stored()
    models: dict[tuple[int, int], onnx.ModelProto] = {}
    for done, shape in enumerate(shapes):
        progress("passes", done, len(shapes))
        fixed = fixed_graph(model, rank, dim, *shape) if done else first
        found = find_layers(fixed.graph) if layers else []
        same = [np.array_equal(a.weight, b.weight) for a, b in zip(layers, found, strict=False)]
        if len(found) != len(layers) or not all(same):
            raise ExportError(f"the graph has other products in the bucket {shape} than in the first; use one length")
        if products or tables:
            fixed = quantize_graph(fixed, found, products, tables)
        left = {tensor.name for tensor in fixed.graph.initializer} & set(tables)
        if left:
            raise ExportError(f"int8: the table {min(left)!r} is still a float")
        models[shape] = stored.strip(fixed)
    progress("passes", len(shapes), len(shapes))
    reports = [PassReport(name="fold", bytes_before=before, bytes_after=before)]
    if "int8" in plan.passes:
        after = sum(tensor.nbytes for tensor in stored.tensors.values())
        changed = _changed(layers, products, known, tables)
        if not changed or after >= before:
            raise ExportError("int8: nothing was quantized; the graph has no product with a constant float matrix")
        reports.append(PassReport(name="int8", bytes_before=before, bytes_after=after, changed=changed))
    pooled = {2: "as the graph gives it", 3: f"{model.pooling} of the token states"}[rank]
    pooled += ", length 1" if rank == 3 and model.normalize else ""
    return ForeignSource(
        name=model.name,
        tokenizer=model.tokenizer,
        licence=model.licence,
        provenance=model.provenance,
        network=GraphNetwork(
            vocab_size=model.vocab_size, field_dim=dim, parameters=model.parameters(), pad_id=model.pad_id
        ),
        passes=reports,
        expected=Expected(sequences=proof, fields=expected, logits=expected[:, :0]),
        integer_products=len(products) if kind == "int8" else 0,
        imported={"kind": "onnx", "field": pooled, "pad_id": model.pad_id},
        described=[("network", "a foreign ONNX graph"), ("how the field is made", pooled)],
        models=models,
        tensors=stored.tensors,
    )


def _check_plan(model: ForeignModel, plan: Recipe) -> None:
    plan.precision.check_imported("a foreign graph", (), palette=False)
    for name, fixed, wanted in (
        ("batches", model.batch, plan.buckets.batches),
        ("lengths", model.length, plan.buckets.lengths),
    ):
        if fixed is not None and set(wanted) != {fixed}:
            raise RecipeError(
                f"model.onnx has fixed {name} of {fixed}; set buckets.{name} = [{fixed}] in a recipe of your own, or "
                "export the model with free shapes"
            )


def _changed(
    layers: Sequence[Layer],
    products: Sequence[Product],
    known: Mapping[str, TensorProto],
    tables: Mapping[str, tuple[Array, Array]],
) -> dict[str, dict[str, Any]]:
    """Return what the report says of every table and product."""
    changed = {
        name: facts(numpy_helper.to_array(known[name]), rows, scale[:, None]) for name, (rows, scale) in tables.items()
    }
    for layer, product in zip(layers, products, strict=True):
        changed[layer.node] = facts(layer.weight, product.weight, product.scale)
        if product.limit is not None:
            changed[layer.node]["input_range"] = product.limit
    return changed


def _ranges(
    model: ForeignModel, plan: Recipe, rank: int, dim: int, sequences: Sequence[Sequence[int]], count: int
) -> list[float]:
    """Return the `percentile` of the absolute input of every product over `sequences`, without padding."""
    seen: list[Largest | None] = [None] * count
    sizes: dict[int, list[int]] = {}
    for i in sorted(range(len(sequences)), key=lambda i: -len(sequences[i])):  # the longest first: it bounds the others
        sizes.setdefault(next(n for n in plan.buckets.lengths if n >= len(sequences[i])), []).append(i)
    batch = plan.buckets.batches[0]
    for length, rows in sizes.items():
        fixed = fixed_graph(model, rank, dim, batch, length)
        layers = find_layers(fixed.graph)
        names = list(dict.fromkeys(layer.input for layer in layers))
        fixed.graph.output.extend(helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in names)
        session = open_session(fixed.SerializeToString())
        for i in rows:
            ids = np.full((batch, length), model.pad_id, np.int32)
            ids[:, : len(sequences[i])] = sequences[i]
            values = dict(zip(names, session.run(names, {"ids": ids}), strict=True))
            for k, layer in enumerate(layers):
                x = values[layer.input].reshape(-1, layer.weight.shape[0])
                if len(x) == ids.size:
                    x = x[ids.ravel() != model.pad_id]
                watch = seen[k] or Largest(x.size * len(sequences), plan.calibration.percentile)
                seen[k] = watch
                watch.add(np.abs(x))
    limits = [0.0 if watch is None else watch.value() for watch in seen]
    if not all(limit > 0 for limit in limits):
        raise ExportError("int8: no calibration text uses one of the products; give more text")
    return limits


def _is_stored(tensor: TensorProto) -> bool:
    """Whether a constant goes into the weights file; small ones stay in their graph."""
    return tensor.data_type in _TYPES and numpy_helper.to_array(tensor).nbytes >= _INLINE


class _Stored:
    """The constants of all graphs, each once, by name."""

    def __init__(self) -> None:
        self.tensors: dict[str, Array] = {}
        self._names: dict[tuple[str, str, tuple[int, ...]], str] = {}

    def strip(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Move the constants of `model` here; in their place it gets the name that each is stored under."""
        for tensor in model.graph.initializer:
            if not _is_stored(tensor):
                continue
            value = numpy_helper.to_array(tensor)
            key = (sha256_bytes(value.tobytes()), str(value.dtype), value.shape)
            if key not in self._names:
                self._names[key] = tensor.name if tensor.name not in self.tensors else f"{tensor.name}.{key[0][:8]}"
                self.tensors[self._names[key]] = np.ascontiguousarray(value)
            kept = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=tensor.dims)
            kept.data_location = TensorProto.EXTERNAL
            kept.external_data.add(key="location", value=self._names[key])
            tensor.CopyFrom(kept)
        return model
