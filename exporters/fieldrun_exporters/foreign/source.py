"""Foreign graph -> fixed shapes -> calibrate -> int8 -> what `fieldrun_exporters.writer` writes a bundle of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from fieldrun.errors import ExportError, RecipeError
from fieldrun.formats.bundle import Bucket, GraphNetwork
from fieldrun.formats.progress import Progress
from fieldrun.formats.storage import sha256_bytes
from fieldrun.formats.tensors import Array, write_tensors

from ..builder import WEIGHTS_FILE
from ..encoder.calibrate import Largest
from ..precision import Precision
from ..recipe import Recipe
from ..student.passes import PassReport
from ..student.passes.int8 import facts, quantize_columns, quantize_rows
from ..writer import GraphSource
from .fixed import fixed_graph
from .quantize import Layer, constants, find_layers, find_tables, quantize_graph
from .read import ForeignModel
from .reference import Reference, import_onnxruntime

__all__ = ["ForeignSource", "prepare_foreign"]

_INLINE = 1024  # bytes; a smaller constant stays in its graph
_KINDS = {"tables": ("fp32", "int8"), "dense": ("fp32", "int8", "int8-weights")}
_TYPES = {
    TensorProto.FLOAT,
    TensorProto.FLOAT16,
    TensorProto.INT8,
    TensorProto.UINT8,
    TensorProto.INT32,
    TensorProto.INT64,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ForeignSource(GraphSource):
    """A foreign graph after its passes. `graphs` are without the constants that stand in `tensors`."""

    graphs: Mapping[tuple[int, int], onnx.ModelProto]
    tensors: Mapping[str, Array]
    pooled: str
    integer: int

    def weights(self) -> bytes:
        """Return the safetensors file that all graphs share."""
        return write_tensors(self.tensors)

    def graph(
        self, offsets: Mapping[str, tuple[int, int]], bucket: Bucket, metadata: Mapping[str, str]
    ) -> onnx.ModelProto:
        """Return the graph of one bucket."""
        model = onnx.ModelProto()
        model.CopyFrom(self.graphs[bucket.batch, bucket.length])
        for tensor in model.graph.initializer:
            if tensor.data_location != TensorProto.EXTERNAL:
                continue
            offset, length = offsets[tensor.external_data[0].value]
            del tensor.external_data[:]
            for key, value in (("location", WEIGHTS_FILE), ("offset", str(offset)), ("length", str(length))):
                tensor.external_data.add(key=key, value=value)
        model.producer_name, model.graph.name = "fieldrun", f"foreign-b{bucket.batch}-l{bucket.length}"
        model.producer_version = ""
        helper.set_model_props(model, dict(metadata))
        return model

    def integer_products(self) -> int:
        """Return how many products are int8 on both sides."""
        return self.integer

    def describe(self) -> list[tuple[str, str]]:
        """Return the rows of the card."""
        return [("network", "a foreign ONNX graph"), ("how the field is made", self.pooled)]

    def facts(self) -> Mapping[str, Any]:
        """Return what the report says of the import."""
        return {"kind": "onnx", "field": self.pooled, "pad_id": self.network.pad_id}


def prepare_foreign(
    model: ForeignModel,
    plan: Recipe,
    calibration: Sequence[Sequence[int]],
    proof: Sequence[Sequence[int]],
    progress: Progress,
) -> tuple[ForeignSource, Array]:
    """Return `model` in the fixed shapes and the precision of `plan`, and its fields `(n, dim)` of `proof` before.

    Raises:
        RecipeError: a part, a type or a bucket that the graph has not.
        ExportError: the graph cannot be treated, or a pass did not do what it says.
    """
    _check_plan(model, plan)
    reference = Reference(model)
    progress("reference", 0, 1)
    expected, rank = reference.fields(proof)
    reference.check_company(proof, expected)
    progress("reference", 1, 1)
    dim = expected.shape[1]
    shapes = [(batch, length) for batch in plan.buckets.batches for length in plan.buckets.lengths]
    stored = _Stored()
    graphs: dict[tuple[int, int], onnx.ModelProto] = {}
    layers: list[Layer] = []
    limits: list[float] = []
    kinds: list[str] = []
    changed: dict[str, dict[str, Any]] = {}
    before = 0
    for done, shape in enumerate(shapes):
        progress("passes", done, len(shapes))
        fixed = fixed_graph(model, rank, dim, *shape)
        found = find_layers(fixed.graph) if "int8" in plan.passes else []
        tables = find_tables(fixed.graph, model.vocab_size) if plan.precision.of("table") == "int8" else []
        if not graphs:
            before = sum(numpy_helper.to_array(t).nbytes for t in fixed.graph.initializer if _is_stored(t))
            kind = plan.precision.of("qkv")  # any of the dense maps: a foreign graph has no names for them
            layers, kinds = found, [kind] * len(found)
            if "int8" in kinds:
                limits = _ranges(model, plan, rank, dim, calibration, len(layers))
            limits = limits or [0.0] * len(layers)
            changed = _changes(fixed, layers, kinds, limits, tables)
        same = [np.array_equal(a.weight, b.weight) for a, b in zip(layers, found, strict=False)]
        if len(found) != len(layers) or not all(same):
            raise ExportError(f"the graph has other products in the bucket {shape} than in the first; use one length")
        if kinds and kinds[0] != "fp32":
            fixed = quantize_graph(fixed, found, kinds, limits, tables)
        elif tables:
            fixed = quantize_graph(fixed, [], [], [], tables)
        left = {tensor.name for tensor in fixed.graph.initializer} & set(tables)
        if left:
            raise ExportError(f"int8: the table {min(left)!r} is still a float")
        graphs[shape] = stored.strip(fixed)
    progress("passes", len(shapes), len(shapes))
    reports = [PassReport(name="fold", bytes_before=before, bytes_after=before)]
    if "int8" in plan.passes:
        after = sum(tensor.nbytes for tensor in stored.tensors.values())
        if not changed or after >= before:
            raise ExportError("int8: nothing was quantized; the graph has no product with a constant float matrix")
        reports.append(PassReport(name="int8", bytes_before=before, bytes_after=after, changed=changed))
    pooled = {2: "as the graph gives it", 3: f"{model.pooling} of the token states"}[rank]
    source = ForeignSource(
        name=model.name,
        tokenizer=model.tokenizer,
        licence=model.licence,
        provenance=model.provenance,
        network=GraphNetwork(
            vocab_size=model.vocab_size, field_dim=dim, parameters=model.parameters(), pad_id=model.pad_id
        ),
        passes=reports,
        graphs=graphs,
        tensors=stored.tensors,
        pooled=pooled + (", length 1" if rank == 3 and model.normalize else ""),
        integer=kinds.count("int8"),
    )
    return source, expected


def _check_plan(model: ForeignModel, plan: Recipe) -> None:
    _check_parts(plan.precision)
    for name, fixed, wanted in (
        ("batches", model.batch, plan.buckets.batches),
        ("lengths", model.length, plan.buckets.lengths),
    ):
        if fixed is not None and set(wanted) != {fixed}:
            raise RecipeError(
                f"model.onnx has fixed {name} of {fixed}; set buckets.{name} = [{fixed}] in a recipe of your own, or "
                "export the model with free shapes"
            )


def _check_parts(precision: Precision) -> None:
    for name in precision.rules:
        if name not in ("default", *_KINDS):
            raise RecipeError(
                f"precision.{name}: a foreign graph has no such part; it has {' and '.join(_KINDS)}. "
                "Use --recipe encoder-int8 or one made from it"
            )
    for kind, known in _KINDS.items():
        value = precision.of("qkv" if kind == "dense" else "table")
        if value not in known:
            raise RecipeError(f"precision.{kind} of a foreign graph is one of {', '.join(known)}, not {value!r}")


def _changes(
    fixed: onnx.ModelProto,
    layers: Sequence[Layer],
    kinds: Sequence[str],
    limits: Sequence[float],
    tables: Sequence[str],
) -> dict[str, dict[str, Any]]:
    known, changed = constants(fixed.graph), {}
    for name in tables:
        table = numpy_helper.to_array(known[name])
        rows, scale = quantize_rows(table)
        changed[name] = facts(table, rows, scale[:, None])
    for layer, kind, limit in zip(layers, kinds, limits, strict=True):
        if kind == "fp32":
            continue
        quantized, scale = quantize_columns(layer.weight, 63 if kind == "int8" else 127)
        changed[layer.node] = facts(layer.weight, quantized, scale)
        if kind == "int8":
            changed[layer.node]["input_range"] = limit
    return changed


def _ranges(
    model: ForeignModel, plan: Recipe, rank: int, dim: int, sequences: Sequence[Sequence[int]], count: int
) -> list[float]:
    """Return the `percentile` of the absolute input of every product over `sequences`, those of padding left out."""
    ort = import_onnxruntime()
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
        options = ort.SessionOptions()
        options.intra_op_num_threads = 1
        options.log_severity_level = 4
        session = ort.InferenceSession(fixed.SerializeToString(), options, providers=["CPUExecutionProvider"])
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
        raise ExportError("int8: the calibration text never reached a product; give more text")
    return limits


def _is_stored(tensor: TensorProto) -> bool:
    """Whether a constant goes into the weights file; a small one stays in its graph."""
    return tensor.data_type in _TYPES and numpy_helper.to_array(tensor).nbytes >= _INLINE


class _Stored:
    """The constants of all graphs, each once, by name."""

    def __init__(self) -> None:
        self.tensors: dict[str, Array] = {}
        self._names: dict[tuple[str, str, tuple[int, ...]], str] = {}

    def strip(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """Take the constants of `model` over; what is left of them is the name they are stored under."""
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
