"""Encoder checkpoint -> fold -> calibrate -> int8 -> what `fieldrun_exporters.graph_export` writes a bundle of."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx

from fieldrun.bundle import Bucket, GraphNetwork
from fieldrun.errors import ExportError
from fieldrun.tensors import Array, write_tensors

from ..graph_export import GraphSource, check_lengths
from ..recipe import Recipe
from .calibrate import fields, input_ranges
from .deployed import DeployedEncoder, check_precision, fold_encoder, int8_encoder
from .graph import encoder_graph
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
        ]

    def facts(self) -> Mapping[str, Any]:
        """Return what the report says of the import."""
        return {"kind": "encoder", "pooling": self.deployed.config.pooling}


def prepare_encoder(
    encoder: Encoder,
    plan: Recipe,
    calibration: Sequence[Sequence[int]],
    proof: Sequence[Sequence[int]],
    progress: Callable[[str, int, int], None],
) -> tuple[EncoderSource, Array]:
    """Return `encoder` after the passes of `plan`, and its fields `(n, hidden) float32` of `proof` before them.

    Raises:
        RecipeError: a part, a type or a bucket that an encoder has not.
        ExportError: a pass did not do what it says.
    """
    check_precision(plan.precision)
    check_lengths(plan, encoder.config.max_positions, "the encoder")
    expected = fields(encoder, proof, progress=lambda done, total: progress("reference", done, total))
    deployed, report = fold_encoder(encoder)
    reports = [report]
    if "int8" in plan.passes:
        ranges: dict[str, float] = {}
        if any(plan.precision.of(name) == "int8" for name in ("qkv", "attention", "up", "down")):
            ranges = input_ranges(
                encoder,
                calibration,
                plan.calibration.percentile,
                lambda done, total: progress("calibrate", done, total),
            )
        deployed, report = int8_encoder(deployed, plan.precision, ranges)
        reports.append(report)
    for part in ("table", *deployed.dense()):  # from the recipe, not from what the passes left
        wanted, found = plan.precision.of(part.split(".")[-1]), deployed.precision(part)
        if found != wanted:
            raise ExportError(f"the recipe wants {part!r} in {wanted}, but the passes left it in {found}")
    source = EncoderSource(
        name=encoder.config.name,
        tokenizer=encoder.tokenizer,
        licence=encoder.licence,
        provenance=encoder.provenance,
        network=GraphNetwork(
            vocab_size=encoder.config.vocab_size, field_dim=encoder.config.hidden, parameters=encoder.parameters()
        ),
        passes=reports,
        deployed=deployed,
    )
    return source, expected
