"""Student checkpoint -> passes -> what each pass costs -> the source that `fieldrun_exporters.writer` writes."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fieldrun.errors import ExportError, ParityError, UsageError
from fieldrun.evaluation.dataset import Dataset
from fieldrun.formats.bundle import TensorrtGraphs
from fieldrun.formats.progress import Progress
from fieldrun.formats.tensors import Array, write_tensors
from fieldrun.heads.trained import Checkpoint
from fieldrun.student.oracle import forward, head_logits, pad_ids

from ..builder import GraphBuilder
from ..calibrate import CalibrationText, tokenize
from ..parity import Expected, check_pairs, check_parity, field_errors, open_session, run_bucket
from ..precision import Precision, palettes
from ..recipe import Parity, Recipe
from ..writer import Graphs, Source
from .cautions import cautions
from .deployed import Deployed
from .drop import accuracy_drop, check_drop, check_tasks
from .graph import field_graph, pair_graph
from .passes import PassReport
from .passes.fold import fold
from .passes.fp16 import fp16
from .passes.int8 import int8
from .passes.lowrank import lowrank
from .passes.palettize import palettize
from .passes.prune_vocabulary import prune_vocabulary
from .passes.recover import float_layers, recover
from .simulate import input_ranges, outputs, tensor_errors
from .tensorrt_graph import TensorrtBuilder, tensorrt_field_graph

__all__ = ["GOLDEN_TOLERANCE", "StudentSource", "prepare_student", "run_passes"]

GOLDEN_TOLERANCE = 1e-5
"""Largest absolute difference of a golden field or score when it is repeated by the engine that measured it."""

_ALL = 1 << 30  # texts


@dataclass(frozen=True, slots=True, kw_only=True)
class StudentSource(Source):
    """A student after its passes."""

    checkpoint: Checkpoint
    deployed: Deployed

    def weights(self) -> bytes:
        """Return the safetensors file that all graphs share."""
        return write_tensors(self.deployed.stored())

    def graphs(self, wanted: Graphs) -> Iterator[tuple[str, onnx.ModelProto]]:
        """Yield file name and graph of every bucket and of every batch of pairs, in the spelling asked for."""
        make, builder = field_graph, GraphBuilder
        if wanted.tensorrt:
            make, builder = tensorrt_field_graph, TensorrtBuilder
        for bucket in wanted.buckets:
            yield bucket.graph, make(self.deployed, wanted.offsets, bucket.batch, bucket.length, wanted.metadata)
        for batch, name in wanted.pairs.items():
            b, title = builder(self.deployed, wanted.offsets), name.removesuffix(".onnx")
            yield name, pair_graph(b, self.network.field_dim, batch, title, wanted.metadata)

    def card(self, plan: Recipe, weights_bytes: int) -> str:
        """Return `CARD.md`: that of the checkpoint, as a bundle."""
        return self.checkpoint.card(plan.name, weights_bytes)

    def prove(
        self, folder: Path, graphs: TensorrtGraphs | None, golden: Mapping[str, Any], gate: Parity
    ) -> Mapping[str, Any]:
        """Hold the graphs in TensorRT's spelling to the recipe's gate, and to the golden fields, on a CPU.

        ONNX Runtime runs such a graph as the standard defines it, with Q/DQ pairs in float. Only the rounding of fp16
        products is missing on a CPU, and NumPy computes that.

        Raises:
            ParityError: a graph is not within the gate, or a golden field is farther off than half of the recipe's
                `golden_tolerance`.
        """
        if graphs is None:
            return {}
        parity, fields = check_parity(folder, self.network, graphs.buckets, self.expected, gate, literal=True)
        pair_parity = check_pairs(folder, graphs.pair_graphs, fields, self.expected, gate, literal=True)
        ids, wanted, dim = golden["ids"], np.array(golden["fields"], np.float32), self.network.field_dim
        gap = float(np.abs(outputs(self.deployed, ids, halves=True)[:, :dim] - wanted).max())
        for bucket in graphs.buckets:
            rows = [i for i, tokens in enumerate(ids) if len(tokens) <= bucket.length]
            if rows:
                session = open_session(folder / bucket.graph, literal=True)
                found, _ = run_bucket(session, self.network, bucket, [ids[i] for i in rows])
                gap = max(gap, float(np.abs(found - wanted[rows]).max()))
        if not gap <= graphs.golden_tolerance / 2:
            raise ParityError(
                f"the TensorRT graphs are {gap:.3g} from the golden fields before any GPU, more than half of the "
                f"{graphs.golden_tolerance:.3g} that a GPU is granted: tensorrt.golden_tolerance, or the bound of such "
                "a recipe where that is less; nothing was written. Keep more in fp32, or raise it up to the bound"
            )
        measured = [asdict(bucket) for bucket in parity]
        return {"tensorrt": {"parity": measured, "pair_parity": pair_parity, "golden_gap": gap}}


def prepare_student(
    checkpoint: Checkpoint,
    plan: Recipe,
    texts: CalibrationText,
    progress: Progress,
    *,
    data: Mapping[str, Dataset],
    max_drop: float | None,
) -> StudentSource:
    """Return `checkpoint` after the passes of `plan`, with what each part costs the fields, and `data` the accuracy.

    Raises:
        RecipeError, UsageError, UnknownName, DatasetError: an input does not fit the student.
        ExportError: a pass failed its check, or accuracy falls by more than `max_drop` points.
    """
    check_tasks(checkpoint.heads, data)
    longest, source, reports = plan.buckets.lengths[-1], checkpoint, []
    if plan.prunes:
        if not texts.given:
            raise UsageError(
                "prune-vocabulary keeps what your texts use; give them as calibration (--calibration FILE)"
            )
        domain = tokenize(source, texts.learning(_ALL), longest)
        source, pruned = prune_vocabulary(source, domain, plan.prune)
        reports.append(pruned)
    folded, shaped, deployed, passes = run_passes(source, plan, texts, progress)
    _check_precision(deployed, plan.precision)

    proven, dim = tokenize(source, texts.proof, longest), deployed.network.field_dim
    parts = tensor_errors(shaped, deployed, proven)
    if shaped is not folded:
        parts = {"lowrank": field_errors(*(outputs(form, proven)[:, :dim] for form in (folded, shaped))), **parts}
    whole = folded
    if plan.prunes:
        whole, _ = fold(checkpoint)
        before = outputs(whole, tokenize(checkpoint, texts.proof, longest))[:, :dim]
        parts = {"prune-vocabulary": field_errors(before, outputs(folded, proven)[:, :dim]), **parts}
    proof: dict[str, Any] = {"parts": parts}
    if data:
        progress("accuracy", 0, 1)
        proof["accuracy"] = accuracy_drop((checkpoint, whole), (source, deployed), data, longest)
        progress("accuracy", 1, 1)
        if max_drop is not None:
            check_drop(proof["accuracy"], max_drop, parts)
    integer = [n for n in deployed.dense() if n != "pairs" and deployed.precision(n) == "int8"]
    return StudentSource(
        name=source.name,
        tokenizer=source.tokenizer,
        licence=source.licence,
        provenance=source.provenance,
        network=deployed.network,
        passes=[*reports, *passes],
        expected=_expected(source, deployed, proven),
        integer_products=len(integer),
        tasks=deployed.tasks,
        proof=proof,
        warnings=cautions(deployed, plan),
        golden_tolerance=GOLDEN_TOLERANCE,
        checkpoint=source,
        deployed=deployed,
    )


def run_passes(
    source: Checkpoint, plan: Recipe, texts: CalibrationText, progress: Progress
) -> tuple[Deployed, Deployed, Deployed, list[PassReport]]:
    """Return the student in float32, with its final sizes, and after all passes; and what each pass reports."""
    deployed, report = fold(source)
    reports = [report]
    folded = shaped = deployed
    plan.precision.check_parts(deployed.blocks)

    def sequences(chosen: Sequence[str]) -> list[list[int]]:
        return tokenize(source, chosen, plan.buckets.lengths[-1])

    for name in plan.passes[plan.prunes + 1 :]:
        progress(name, 0, 1)
        if name == "lowrank":
            deployed, report = lowrank(deployed, sequences(texts.learning(plan.lowrank.texts)), plan.lowrank)
            shaped = deployed
        elif name == "int8":
            ranges = input_ranges(shaped, sequences(texts.calibration), plan.calibration.percentile)
            deployed, report = int8(deployed, plan.precision, ranges)
        elif name == "fp16":
            deployed, report = fp16(deployed, plan.precision)
        elif name == "palettize":
            deployed, report = palettize(deployed, shaped, plan.precision)
        else:
            learnt = sequences(texts.learning(plan.recover.texts))
            deployed, report = recover(deployed, folded, learnt, plan.recover, progress)
            if shaped is not folded:  # what was tuned belongs to the shape, and is not a loss of precision
                tuned = {layer: deployed.tensors[layer] for layer in float_layers(deployed)}
                shaped = replace(shaped, tensors=dict(shaped.tensors) | tuned)
        progress(name, 1, 1)
        reports.append(report)
    return folded, shaped, deployed, reports


def _check_precision(deployed: Deployed, precision: Precision) -> None:
    """Check that every part has the type of the recipe; `ExportError` if not."""
    blocks = {precision.of(block) for block in deployed.blocks}
    types = {"table": blocks.pop() if len(blocks) == 1 else "int8"} | {n: precision.of(n) for n in deployed.dense()}
    for part, value in types.items():
        wanted = value if not palettes(value) else "int8" if part == "table" else "int8-weights"
        found = deployed.precision(part)
        if found != wanted:
            raise ExportError(f"the recipe wants {part!r} in {wanted}, but the passes left it in {found}")


def _expected(source: Checkpoint, deployed: Deployed, sequences: Sequence[Sequence[int]]) -> Expected:
    """Return what the NumPy reference gives for `sequences`, each text alone."""
    fields = np.concatenate([forward(source.config, source.tensors, pad_ids([ids])) for ids in sequences])
    singles = [head_logits(head.weight, head.bias, fields) for head in source.heads if head.kind == "single"]
    logits: Array = np.concatenate(singles or [fields[:, :0]], axis=1)
    spans = {t.name: (t.start, t.start + len(t.labels)) for t in deployed.tasks if t.kind == "single"}
    pairs = tuple(head for head in source.heads if head.kind == "pair")
    return Expected(sequences=sequences, fields=fields, logits=logits, spans=spans, pair_heads=pairs)
