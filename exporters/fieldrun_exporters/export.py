"""Checkpoint -> passes -> graphs -> parity -> bundle: the exporter's main road, top to bottom.

An export that fails anywhere leaves nothing behind. Same checkpoint, recipe, calibration text and library versions:
same bytes.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fieldrun._version import __version__
from fieldrun.errors import ExportError, OutputExists, UsageError
from fieldrun.evaluation.dataset import Dataset
from fieldrun.formats.bundle import MANIFEST, SCHEMA, Bucket, Manifest, TaskSpec, TensorrtGraphs
from fieldrun.formats.integrity import entry_of
from fieldrun.formats.progress import Progress, silent
from fieldrun.formats.storage import new_folder, sha256_bytes, write_bytes, write_json
from fieldrun.formats.tensors import Array, data_offsets, write_tensors
from fieldrun.heads.head import head_logits
from fieldrun.heads.trained import Checkpoint
from fieldrun.student.oracle import forward
from fieldrun.student.windows import pad_ids

from .builder import WEIGHTS_FILE, op_histogram
from .calibrate import CalibrationText, input_ranges, tokenize
from .golden import golden_replies
from .imported import export_imported, imported_kind
from .parity import BucketParity, check_pairs, check_parity, field_errors, open_session
from .precision import Precision, branches_of, palettes
from .recipe import Recipe, load_recipe
from .student.cautions import cautions
from .student.deployed import Deployed
from .student.drop import accuracy_drop, check_drop, check_tasks
from .student.graph import field_graph, pair_graph
from .student.passes import PassReport
from .student.passes.fold import fold
from .student.passes.fp16 import fp16
from .student.passes.int8 import int8
from .student.passes.lowrank import lowrank
from .student.passes.mixt import mixt
from .student.passes.palettize import palettize
from .student.passes.prune_vocabulary import prune_vocabulary
from .student.passes.recover import float_layers, recover
from .student.simulate import outputs, tensor_errors
from .student.tensorrt_bundle import check_tensorrt, tensorrt_graphs

__all__ = ["GOLDEN_TOLERANCE", "ExportReport", "export", "task_specs"]

_ALL = 1 << 30  # texts
GOLDEN_TOLERANCE = 1e-5
"""Largest absolute difference of a golden field or score when it is replayed by the engine that measured it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ExportReport:
    """What an export did: where, how big, what each pass changed, and how close every bucket is to the reference."""

    path: Path
    recipe: str
    bytes: int
    passes: tuple[PassReport, ...]
    parity: tuple[BucketParity, ...]
    operators: Mapping[str, Mapping[str, int]]
    proof: Mapping[str, Any]
    """`field`: how far all fields are from the reference's; `parts`: what each part alone does to them; `accuracy`."""
    warnings: tuple[str, ...] = ()
    """What works and is slower, takes more memory, or does nothing: a line each, with the reason."""

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {
            "path": str(self.path),
            "recipe": self.recipe,
            "bytes": self.bytes,
            "passes": [p.to_dict() for p in self.passes],
            "parity": [p.to_dict() for p in self.parity],
            "operators": {name: dict(counts) for name, counts in self.operators.items()},
            "proof": dict(self.proof),
            "warnings": list(self.warnings),
        }


def export(
    checkpoint: str | Path,
    out: str | Path,
    *,
    recipe: str | Path = "cpu-int8",
    calibration: Sequence[str] | None = None,
    data: Mapping[str, Dataset] | None = None,
    max_drop: float | None = None,
    progress: Progress | None = None,
) -> ExportReport:
    """Export a checkpoint as a bundle and prove it.

    Args:
        checkpoint: a checkpoint folder, or `"reference"`; or a folder that `fieldrun import-encoder` made, or one with
            a foreign `model.onnx` and its `tokenizer.json`.
        out: the bundle folder to write; must not exist.
        recipe: a shipped recipe's name or the path of a `.toml` file.
        calibration: real texts, at least 16, to calibrate and compare on; a shipped sample when None.
        data: task -> labelled rows that no pass has seen; how accuracy changes on them goes into `report.json`.
        max_drop: points of accuracy, as the mean over the tasks of `data`, that the passes may cost.
        progress: called with (phase, done, total).

    Raises:
        CheckpointError, RecipeError, UnknownName, InputTextError: an input is wrong.
        ParityError, ExportError: a graph differs from the reference, a pass did not do what it says, or accuracy falls
            by more than `max_drop`.
        UsageError, DatasetError: `max_drop` without `data` or not a number, or rows that do not fit their task.
        OutputExists, StorageError: `out` is taken or cannot be written.
    """
    report = progress or silent
    out = Path(out)
    if os.path.lexists(out):
        raise OutputExists(f"{out} exists; choose another folder or delete it first")
    plan = load_recipe(recipe)
    kind = imported_kind(checkpoint)
    if kind is not None:
        if data or max_drop is not None:
            raise UsageError("an imported model has no heads whose accuracy could drop; leave out data and max_drop")
        written, changed = export_imported(kind, checkpoint, out, plan, calibration, report)
        return ExportReport(
            path=out,
            recipe=plan.name,
            bytes=written.bytes,
            passes=tuple(changed),
            parity=written.parity,
            operators=written.operators,
            proof=written.proof,
        )
    report("read", 0, 1)
    source = original = Checkpoint.load(checkpoint)
    if plan.prunes and calibration is None:
        raise UsageError("prune-vocabulary keeps what your texts use; give them as calibration (--calibration FILE)")
    texts = CalibrationText(calibration, plan.calibration.texts)
    report("passes", 0, len(plan.passes))
    tasks = task_specs(source)
    check_tasks(tasks, data or {})
    if max_drop is not None and (not data or not isinstance(max_drop, int | float) or not max_drop >= 0):
        raise UsageError(f"max_drop is a number of points from 0 on, of accuracy on `data`; not {max_drop!r}")
    longest = plan.buckets.lengths[-1]
    reports = []
    if plan.prunes:
        domain = tokenize(source, texts.learning(_ALL), longest)
        source, pruned = prune_vocabulary(source, domain, plan.prune)
        reports.append(pruned)
    folded, shaped, deployed, passes = _passes(source, plan, texts, report)
    reports += passes
    proven = tokenize(source, texts.proof, longest)
    parts = tensor_errors(shaped, deployed, proven)
    dim = folded.network.field_dim
    if shaped is not folded:
        found = [outputs(form, proven)[:, :dim] for form in (folded, shaped)]
        parts = {"lowrank": field_errors(*found), **parts}
    whole = fold(original)[0] if plan.prunes else folded
    if plan.prunes:
        found = [outputs(whole, tokenize(original, texts.proof, longest))[:, :dim], outputs(folded, proven)[:, :dim]]
        parts = {"prune-vocabulary": field_errors(*found), **parts}
    proof: dict[str, Any] = {"parts": parts}
    if data:
        report("accuracy", 0, 1)
        proof["accuracy"] = accuracy_drop((original, whole), (source, deployed), tasks, data, longest)
        report("accuracy", 1, 1)
        if max_drop is not None:
            check_drop(proof["accuracy"], max_drop, proof["parts"])
    warnings = cautions(deployed, plan)
    with new_folder(out) as folder:
        manifest, parity, operators = _write(folder, source, plan, deployed, reports, texts, proof, warnings, report)
        write_json(folder / MANIFEST, manifest.to_dict())
        total = sum(entry.bytes for entry in manifest.files.values()) + (folder / MANIFEST).stat().st_size
    return ExportReport(
        path=out,
        recipe=plan.name,
        bytes=total,
        passes=tuple(reports),
        parity=tuple(parity),
        operators=operators,
        proof=proof,
        warnings=warnings,
    )


def _passes(
    source: Checkpoint,
    plan: Recipe,
    texts: CalibrationText,
    progress: Progress,
) -> tuple[Deployed, Deployed, Deployed, list[PassReport]]:
    """Return the student in float32, with its final sizes, and after all passes, and what each pass reports."""
    deployed, report = fold(source)
    reports = [report]
    folded = shaped = deployed
    plan.precision.check_parts(deployed.blocks)

    def sequences(chosen: Sequence[str]) -> list[list[int]]:
        return tokenize(source, chosen, plan.buckets.lengths[-1])

    for name in plan.passes[plan.prunes + 1 :]:
        if name == "lowrank":
            deployed, report = lowrank(deployed, sequences(texts.learning(plan.lowrank.texts)), plan.lowrank)
            shaped = deployed
        elif name == "mixt":
            deployed, report = mixt(deployed, plan.precision)
        elif name == "int8":
            ranges = input_ranges(shaped, sequences(texts.calibration), plan.calibration.percentile)
            deployed, report = int8(deployed, plan.precision, ranges)
        elif name == "fp16":
            deployed, report = fp16(deployed, plan.precision)
        elif name == "palettize":
            deployed, report = palettize(deployed, shaped, plan.precision)
        else:
            deployed, report = recover(
                deployed,
                folded,
                sequences(texts.learning(plan.recover.texts)),
                plan.recover,
                lambda done, total: progress("recover", done, total),
            )
            if shaped is not folded:  # what was tuned belongs to the shape, and is no loss of a precision
                tuned = {layer: deployed.tensors[layer] for layer in float_layers(deployed)}
                shaped = replace(shaped, tensors=dict(shaped.tensors) | tuned)
        reports.append(report)
    return folded, shaped, deployed, reports


def task_specs(source: Checkpoint) -> tuple[TaskSpec, ...]:
    """Return where the logits of every head of `source` are in the deployed form."""
    start = {"single": 0, "pair": 0}
    tasks = []
    for head in source.heads:
        tasks.append(
            TaskSpec(
                name=head.name,
                kind=head.kind,
                labels=head.labels,
                start=start[head.kind],
                temperature=head.temperature,
            )
        )
        start[head.kind] += len(head.labels)
    return tuple(tasks)


def _write(
    folder: Path,
    source: Checkpoint,
    plan: Recipe,
    deployed: Deployed,
    reports: Sequence[PassReport],
    texts: CalibrationText,
    proof: dict[str, Any],
    warnings: Sequence[str],
    report: Progress,
) -> tuple[Manifest, list[BucketParity], dict[str, dict[str, int]]]:
    tasks = task_specs(source)
    weights = write_tensors(deployed.stored())
    write_bytes(folder / WEIGHTS_FILE, weights)
    write_bytes(folder / "tokenizer.json", source.tokenizer)
    write_bytes(folder / "CARD.md", source.card(plan.name, len(weights)).encode("utf-8"))
    metadata = {
        "fieldrun.schema": str(SCHEMA),
        "fieldrun.name": source.name,
        "fieldrun.recipe": plan.name,
        "fieldrun.weights_sha256": sha256_bytes(weights),
        "fieldrun.tasks": json.dumps({t.name: {"kind": t.kind, "start": t.start, "labels": t.labels} for t in tasks}),
        "fieldrun.licence": source.licence,
    }
    offsets = data_offsets(folder / WEIGHTS_FILE)
    buckets = [
        Bucket(batch=batch, length=length, graph=f"b{batch}-l{length}.onnx")
        for batch in plan.buckets.batches
        for length in plan.buckets.lengths
    ]
    for bucket in buckets:
        _save(folder / bucket.graph, field_graph(deployed, offsets, bucket.batch, bucket.length, metadata))
    pairs: dict[int, str] = {}
    if "pairs.weight" in deployed.tensors:
        pairs = {batch: f"pair-b{batch}.onnx" for batch in plan.buckets.batches}
        for batch, name in pairs.items():
            _save(folder / name, pair_graph(deployed, offsets, batch, metadata))
    operators = _check_optimised(folder, buckets[0], deployed, plan.precision)
    engines: TensorrtGraphs | None = None
    if plan.tensorrt is not None:
        engines, models = tensorrt_graphs(deployed, offsets, buckets, pairs, plan.tensorrt.golden_tolerance, metadata)
        for name, model in models.items():
            _save(folder / name, model)
        operators["tensorrt"] = op_histogram(folder / engines.buckets[0].graph)

    report("parity", 0, len(buckets))
    sequences = tokenize(source, texts.proof, plan.buckets.lengths[-1])
    expected = np.concatenate([forward(source.config, source.tensors, pad_ids([ids])) for ids in sequences])
    singles = [head for head in source.heads if head.kind == "single"]
    logits: Array = np.concatenate(
        [head_logits(h, expected) for h in singles] or [np.zeros((len(expected), 0), np.float32)], axis=1
    )
    spans = {t.name: (t.start, t.start + len(t.labels)) for t in tasks if t.kind == "single"}
    parity, fields = check_parity(folder, deployed.network, buckets, sequences, expected, logits, spans, plan.parity)
    proof["field"] = field_errors(expected, fields)
    pair_heads = [head for head in source.heads if head.kind == "pair"]
    pair_parity = check_pairs(folder, pairs, fields, expected, pair_heads, plan.parity)
    report("parity", len(buckets), len(buckets))
    chosen = tokenize(source, texts.chosen, plan.buckets.lengths[-1])
    golden = golden_replies(folder, deployed.network, buckets, pairs, tasks, texts.chosen, chosen)
    write_json(folder / "golden.json", golden)
    proven: dict[str, Any] = {}
    if engines is not None:
        report("tensorrt", 0, 1)
        proven["tensorrt"] = check_tensorrt(
            folder, deployed, engines, golden, sequences, expected, logits, spans, pair_heads, plan
        )
        report("tensorrt", 1, 1)
    write_json(
        folder / "report.json",
        {
            "recipe": plan.to_dict(),
            "passes": [p.to_dict() for p in reports],
            "warnings": list(warnings),
            "parity": [p.to_dict() for p in parity],
            "pair_parity": pair_parity,
            **proven,
            "operators": operators,
            "proof": proof,
            "calibration": texts.facts(),
            "libraries": {name: version(name) for name in ("onnx", "onnxruntime", "numpy", "tokenizers")},
        },
    )
    names = sorted(path.name for path in folder.iterdir())
    manifest = Manifest(
        schema=SCHEMA,
        name=source.name,
        fieldrun=__version__,
        recipe=plan.to_dict(),
        network=deployed.network,
        buckets=tuple(buckets),
        pair_graphs=pairs,
        tasks=tasks,
        golden_tolerance=GOLDEN_TOLERANCE,
        licence=source.licence,
        provenance=source.provenance,
        files={name: entry_of(folder / name) for name in names},
        tensorrt=engines,
    )
    return manifest, parity, operators


def _save(path: Path, model: onnx.ModelProto) -> None:
    write_bytes(path, model.SerializeToString(deterministic=True))
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{path.name} is not valid ONNX: {error}") from error


def _check_optimised(
    folder: Path, bucket: Bucket, deployed: Deployed, precision: Precision
) -> dict[str, dict[str, int]]:
    """Return a graph's operators before and after ONNX Runtime's optimiser; refuse a quantized layer that fell out.

    What must be int8 is taken from the recipe, not from what the passes left.
    """
    blocks = {precision.of(block) for block in deployed.blocks}
    types = {"table": blocks.pop() if len(blocks) == 1 else "int8"} | {n: precision.of(n) for n in deployed.dense()}
    wants = {
        part: ("int8" if part == "table" else "int8-weights")
        if palettes(value)
        else "fp32"
        if branches_of(value)
        else value
        for part, value in types.items()
    }
    wrong = [name for name, want in wants.items() if deployed.precision(name) != want]
    if wrong:
        raise ExportError(f"the recipe wants {wrong[0]!r} in {wants[wrong[0]]}, but the passes left it otherwise")
    with tempfile.TemporaryDirectory() as scratch:
        optimised = Path(scratch) / "optimised.onnx"
        open_session(folder / bucket.graph, optimised=optimised)
        operators = {"graph": op_histogram(folder / bucket.graph), "optimised": op_histogram(optimised)}
    layers = [n for n in deployed.dense() if n != "pairs" and deployed.precision(n) == "int8"]
    integer = sum(
        operators["optimised"].get(op, 0) for op in ("MatMulIntegerToFloat", "QLinearMatMul", "MatMulInteger")
    )
    if integer != len(layers):
        raise ExportError(
            f"{len(layers)} layers are int8, but ONNX Runtime runs {integer} as int8: {operators['optimised']}"
        )
    return operators
