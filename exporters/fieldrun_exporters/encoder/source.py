"""Encoder checkpoint -> passes -> the source that `fieldrun_exporters.writer` writes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

import onnx

from fieldrun.errors import ExportError, RecipeError
from fieldrun.formats.bundle import GraphNetwork
from fieldrun.formats.packing import packed_names
from fieldrun.formats.progress import Progress
from fieldrun.formats.tensors import write_tensors

from ..calibrate import CalibrationText, tokenize
from ..parity import Expected, field_errors
from ..precision import MAPS, Palette
from ..recipe import COMPONENTS, Recipe
from ..student.passes import PassReport
from ..writer import Graphs, Source
from .activations import accumulate, fields, input_ranges, input_squares
from .deployed import DeployedEncoder, fold_encoder, int8_encoder, palettize_encoder
from .graph import encoder_graph
from .lowrank import inner_size, lowrank
from .model import Encoder

__all__ = ["EncoderSource", "prepare_encoder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSource(Source):
    """An encoder after its passes."""

    deployed: DeployedEncoder

    def weights(self) -> bytes:
        """Return the safetensors file that all graphs share."""
        return write_tensors(self.deployed.stored())

    def graphs(self, wanted: Graphs) -> Iterator[tuple[str, onnx.ModelProto]]:
        """Yield file name and graph of every bucket."""
        for bucket in wanted.buckets:
            size = bucket.batch, bucket.length
            yield bucket.graph, encoder_graph(self.deployed, wanted.offsets, *size, wanted.metadata)


def prepare_encoder(encoder: Encoder, plan: Recipe, texts: CalibrationText, progress: Progress) -> EncoderSource:
    """Return `encoder` after the passes of `plan`, with its fields before them.

    Raises:
        RecipeError: a part, a type, a component or a bucket that an encoder cannot have.
        ExportError: a pass failed its check.
    """
    config, longest = encoder.config, plan.buckets.lengths[-1]
    plan.precision.check_imported("an encoder", MAPS, palette=True)
    wanted = _inner_sizes(encoder, plan)
    calibration, proof = (tokenize(encoder, part, longest) for part in (texts.calibration, texts.proof))
    expected = fields(encoder, proof, progress=progress, phase="reference")
    deployed, report = fold_encoder(encoder)
    reports, parts, small = [report], {}, encoder
    if "lowrank" in plan.passes:
        small, deployed, report = _smaller(encoder, deployed, plan, calibration, progress)
        reports.append(report)
        parts["lowrank"] = field_errors(expected, fields(small, proof))
    folded = deployed
    if "int8" in plan.passes:
        ranges: dict[str, float] = {}
        if any(plan.precision.of(name) == "int8" for name in MAPS):
            ranges = input_ranges(small, calibration, plan.calibration.percentile, progress)
        deployed, report = int8_encoder(deployed, plan.precision, ranges)
        reports.append(report)
    if "palettize" in plan.passes:
        progress("palettize", 0, 1)
        squares = input_squares(small, calibration)
        deployed, report = palettize_encoder(deployed, folded, plan.precision, squares)
        progress("palettize", 1, 1)
        reports.append(report)
    _check(deployed, plan, wanted)
    return EncoderSource(
        name=config.name,
        tokenizer=encoder.tokenizer,
        licence=encoder.licence,
        provenance=encoder.provenance,
        network=GraphNetwork(vocab_size=config.vocab_size, field_dim=config.hidden, parameters=small.parameters()),
        passes=reports,
        expected=Expected(sequences=proof, fields=expected, logits=expected[:, :0]),
        integer_products=sum(deployed.precision(name) == "int8" for name in deployed.dense()),
        proof={"parts": parts} if parts else {},
        imported={"kind": "encoder", "pooling": config.pooling},
        described=_described(deployed, lowrank="lowrank" in parts),
        deployed=deployed,
    )


def _described(deployed: DeployedEncoder, *, lowrank: bool) -> list[tuple[str, str]]:
    """Return the rows of the card. The inner sizes are those of the first layer: a recipe has one share for all."""
    c = deployed.config
    pooling = {"mean": "mean over the tokens", "cls": "the first token"}[c.pooling]
    qk, vo, inner = deployed.inner_sizes(0)
    sizes = f"{qk} of a query and a key and {vo} of a value per head, {inner} between up and down"
    return [
        ("network", f"transformer encoder, {c.layers} layers of width {c.hidden}, {c.heads} heads"),
        ("vocabulary, positions", f"{c.vocab_size:,}, {c.max_positions}"),
        ("pooling", pooling + (", length 1" if c.normalize else "")),
        *([("inner sizes", sizes)] if lowrank else []),
    ]


def _inner_sizes(encoder: Encoder, plan: Recipe) -> list[tuple[int, int, int]]:
    """Return d_qk, d_vo and d_ff of every layer as the recipe wants them; `RecipeError` where that is not possible."""
    for name in plan.lowrank.wanted:
        if name not in COMPONENTS:
            raise RecipeError(f"lowrank.{name} is for a student; an encoder has {', '.join(COMPONENTS)}")
    wanted = []
    for k in range(encoder.config.layers):
        sizes = dict(zip(COMPONENTS, encoder.inner_sizes(k), strict=True))
        for name in plan.lowrank.wanted:
            share = getattr(plan.lowrank, name)
            kept = inner_size(sizes[name], 1 - share)
            if kept == sizes[name]:
                raise RecipeError(
                    f"lowrank.{name}: a share of {share:g} keeps all {kept} of layer {k}; give less, or leave it out"
                )
            sizes[name] = kept
        wanted.append((sizes["qk"], sizes["ov"], sizes["mlp"]))
    return wanted


def _smaller(
    encoder: Encoder,
    folded: DeployedEncoder,
    plan: Recipe,
    calibration: Sequence[Sequence[int]],
    progress: Progress,
) -> tuple[Encoder, DeployedEncoder, PassReport]:
    """Return `encoder` after A3, the same folded, and the report with the bytes of what is stored."""
    ratios = {name: 1 - getattr(plan.lowrank, name) for name in plan.lowrank.wanted}
    small, report = lowrank(encoder, accumulate(encoder, calibration, progress), ratios, progress)
    deployed, _ = fold_encoder(small)
    return small, deployed, replace(report, bytes_before=folded.nbytes(), bytes_after=deployed.nbytes())


def _check(deployed: DeployedEncoder, plan: Recipe, sizes: Sequence[tuple[int, int, int]]) -> None:
    """Check that every part has the type of the recipe, and every layer its sizes; `ExportError` if not."""
    for part in ("table", *deployed.dense()):
        wanted, found = plan.precision.of(part.split(".")[-1]), deployed.precision(part)
        if (part if part == "table" else f"{part}.weight") in packed_names(deployed.packed):
            found = wanted if Palette.of(wanted) is not None else "a palette"
        if found != wanted:
            raise ExportError(f"the recipe wants {part!r} in {wanted}, but the passes left it in {found}")
    for k, size in enumerate(sizes):
        if deployed.inner_sizes(k) != size:
            raise ExportError(
                f"the recipe wants layer {k} with the inner sizes {size}, but the passes left {deployed.inner_sizes(k)}"
            )
