"""Encoder checkpoint -> passes -> what `fieldrun_exporters.writer` writes a bundle of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import onnx

from fieldrun.errors import ExportError, RecipeError
from fieldrun.formats.bundle import Bucket, GraphNetwork
from fieldrun.formats.packing import packed_names
from fieldrun.formats.progress import Progress
from fieldrun.formats.tensors import Array, write_tensors

from ..parity import field_errors
from ..precision import Palette
from ..recipe import COMPONENTS, Recipe
from ..student.passes import PassReport
from ..writer import GraphSource, check_lengths
from .activations import accumulate
from .calibrate import fields, input_ranges, input_squares
from .deployed import DeployedEncoder, check_precision, fold_encoder, int8_encoder, palettize_encoder
from .graph import encoder_graph
from .lowrank import inner_size, lowrank
from .model import Encoder

__all__ = ["EncoderSource", "prepare_encoder"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSource(GraphSource):
    """An encoder after its passes."""

    deployed: DeployedEncoder

    def weights(self) -> bytes:
        """Return the safetensors file that all graphs share."""
        return write_tensors(self.deployed.stored())

    def graph(
        self, offsets: Mapping[str, tuple[int, int]], bucket: Bucket, metadata: Mapping[str, str]
    ) -> onnx.ModelProto:
        """Return the graph of one bucket."""
        return encoder_graph(self.deployed, offsets, bucket.batch, bucket.length, metadata)

    def integer_products(self) -> int:
        """Return how many maps are int8 on both sides."""
        return sum(self.deployed.precision(name) == "int8" for name in self.deployed.dense())

    def describe(self) -> list[tuple[str, str]]:
        """Return the rows of the card."""
        c = self.deployed.config
        pooling = {"mean": "mean over the tokens", "cls": "the first token"}[c.pooling]
        return [
            ("network", f"transformer encoder, {c.layers} layers of width {c.hidden}, {c.heads} heads"),
            ("vocabulary, positions", f"{c.vocab_size:,}, {c.max_positions}"),
            ("pooling", pooling + (", length 1" if c.normalize else "")),
            *([("inner sizes", _sizes(self.deployed))] if "lowrank" in self.parts else []),
        ]

    def facts(self) -> Mapping[str, Any]:
        """Return what the report says of the import."""
        return {"kind": "encoder", "pooling": self.deployed.config.pooling}


def prepare_encoder(
    encoder: Encoder,
    plan: Recipe,
    calibration: Sequence[Sequence[int]],
    proof: Sequence[Sequence[int]],
    progress: Progress,
) -> tuple[EncoderSource, Array]:
    """Return `encoder` after the passes of `plan`, and its fields `(n, hidden) float32` of `proof` before them.

    Raises:
        RecipeError: a part, a type, a component or a bucket that an encoder has not.
        ExportError: a pass did not do what it says.
    """
    check_precision(plan.precision)
    check_lengths(plan, encoder.config.max_positions, "the encoder")
    wanted = _inner_sizes(encoder, plan)
    expected = fields(encoder, proof, progress=lambda done, total: progress("reference", done, total))
    deployed, report = fold_encoder(encoder)
    reports, parts, small = [report], {}, encoder
    if "lowrank" in plan.passes:
        small, deployed, report = _smaller(encoder, deployed, plan, calibration, progress)
        reports.append(report)
        parts["lowrank"] = field_errors(expected, fields(small, proof))
    folded = deployed
    if "int8" in plan.passes:
        ranges: dict[str, float] = {}
        if any(plan.precision.of(name) == "int8" for name in ("qkv", "attention", "up", "down")):
            ranges = input_ranges(
                small,
                calibration,
                plan.calibration.percentile,
                lambda done, total: progress("calibrate", done, total),
            )
        deployed, report = int8_encoder(deployed, plan.precision, ranges)
        reports.append(report)
    if "palettize" in plan.passes:
        progress("palettize", 0, 1)
        squares = input_squares(small, calibration)
        deployed, report = palettize_encoder(deployed, folded, plan.precision, squares)
        progress("palettize", 1, 1)
        reports.append(report)
    _check(deployed, plan, wanted)
    source = EncoderSource(
        name=encoder.config.name,
        tokenizer=encoder.tokenizer,
        licence=encoder.licence,
        provenance=encoder.provenance,
        network=GraphNetwork(
            vocab_size=encoder.config.vocab_size, field_dim=encoder.config.hidden, parameters=small.parameters()
        ),
        passes=reports,
        parts=parts,
        deployed=deployed,
    )
    return source, expected


def _inner_sizes(encoder: Encoder, plan: Recipe) -> list[tuple[int, int, int]]:
    """Return d_qk, d_vo and d_ff that the recipe leaves of every layer; `RecipeError` where it cannot."""
    for name in plan.lowrank.wanted:
        if name not in COMPONENTS:
            raise RecipeError(f"lowrank.{name} is of a student; an encoder has {', '.join(COMPONENTS)}")
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
    """Return `encoder` under A3, the same folded, and the report with the bytes of what is stored."""
    ratios = {name: 1 - getattr(plan.lowrank, name) for name in plan.lowrank.wanted}
    small, report = lowrank(encoder, accumulate(encoder, calibration, progress), ratios, progress=progress)
    deployed, _ = fold_encoder(small)
    return small, deployed, replace(report, bytes_before=folded.nbytes(), bytes_after=deployed.nbytes())


def _check(deployed: DeployedEncoder, plan: Recipe, sizes: Sequence[tuple[int, int, int]]) -> None:
    """Refuse what is not as the recipe says: it is asked, not the passes."""
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


def _sizes(deployed: DeployedEncoder) -> str:
    """Return the card's words on the inner sizes, those of the first layer: a recipe has one share for all."""
    qk, vo, inner = deployed.inner_sizes(0)
    return f"{qk} of a query and a key and {vo} of a value per head, {inner} between up and down"
