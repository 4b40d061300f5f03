"""Write a bundle of an encoder or a foreign graph: graphs -> parity -> golden fields -> manifest, as for a student.

Such a bundle has no tasks of its own; heads are fitted on its fields and attached. A field that fails its gate writes
nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx

from fieldrun._version import __version__
from fieldrun.errors import ExportError, RecipeError
from fieldrun.formats.bundle import MANIFEST, SCHEMA, TYPICAL_QUANTILE, Bucket, GraphNetwork, Manifest
from fieldrun.formats.integrity import entry_of
from fieldrun.formats.progress import Progress
from fieldrun.formats.storage import new_folder, sha256_bytes, write_bytes, write_json
from fieldrun.formats.tensors import Array, data_offsets

from .builder import WEIGHTS_FILE, op_histogram
from .calibrate import CalibrationText
from .golden import golden_fields
from .parity import BucketParity, check_parity, field_errors, open_session
from .recipe import Recipe
from .student.passes import PassReport

__all__ = ["GraphSource", "WrittenGraph", "check_lengths", "write_graph_bundle"]

_SPARE = 4  # times what rounding changed here: another processor's rounding is another draw of the same kind
_FLOOR = 1e-5  # what a bundle of sums in float32 gets


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphSource(ABC):
    """What a graph bundle is made from: an encoder or a foreign graph, its passes done."""

    name: str
    tokenizer: bytes
    licence: str
    provenance: Mapping[str, Any]
    network: GraphNetwork
    passes: Sequence[PassReport]
    parts: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """What a pass alone does to the fields of the proof, by `field_errors`, where that was measured."""

    @abstractmethod
    def weights(self) -> bytes:
        """Return the safetensors file that all graphs share."""

    @abstractmethod
    def graph(
        self, offsets: Mapping[str, tuple[int, int]], bucket: Bucket, metadata: Mapping[str, str]
    ) -> onnx.ModelProto:
        """Return the graph ids -> output of one bucket; `offsets` is of the weights file."""

    @abstractmethod
    def integer_products(self) -> int:
        """Return how many products of every graph must run as int8."""

    @abstractmethod
    def describe(self) -> list[tuple[str, str]]:
        """Return what the card says of the network: rows of a name and a value."""

    @abstractmethod
    def facts(self) -> Mapping[str, Any]:
        """Return what `report.json` says of the import."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WrittenGraph:
    """What was written and measured."""

    bytes: int
    parity: tuple[BucketParity, ...]
    operators: Mapping[str, Mapping[str, int]]
    proof: Mapping[str, Any]


def check_lengths(plan: Recipe, longest: int, what: str) -> None:
    """Refuse a recipe with a bucket of more than `longest` tokens, which `what` cannot take; `RecipeError`."""
    if plan.buckets.lengths[-1] > longest:
        raise RecipeError(
            f"the recipe has a bucket of {plan.buckets.lengths[-1]} tokens, {what} takes {longest}; "
            "copy the recipe and shorten buckets.lengths"
        )


def write_graph_bundle(
    out: Path,
    source: GraphSource,
    plan: Recipe,
    texts: CalibrationText,
    sequences: Sequence[Sequence[int]],
    expected: Array,
    progress: Progress,
) -> WrittenGraph:
    """Write the bundle folder `out`, whole or not at all.

    Args:
        out: must not exist.
        source: what is exported.
        plan: the recipe.
        texts: those it was calibrated on, and those that prove it.
        sequences: token ids of the latter.
        expected: the reference's field of every sequence, `(n, dim) float32`.
        progress: called with (phase, done, total).

    Raises:
        ParityError, ExportError: a graph differs from the reference, or a pass did not do what it says.
        OutputExists, StorageError: `out` is taken or cannot be written.
    """
    network = source.network
    buckets = [
        Bucket(batch=batch, length=length, graph=f"b{batch}-l{length}.onnx")
        for batch in plan.buckets.batches
        for length in plan.buckets.lengths
    ]
    with new_folder(out) as folder:
        weights = source.weights()
        write_bytes(folder / WEIGHTS_FILE, weights)
        write_bytes(folder / "tokenizer.json", source.tokenizer)
        write_bytes(folder / "CARD.md", _card(source, plan, len(weights)).encode("utf-8"))
        metadata = {
            "fieldrun.schema": str(SCHEMA),
            "fieldrun.name": source.name,
            "fieldrun.recipe": plan.name,
            "fieldrun.weights_sha256": sha256_bytes(weights),
            "fieldrun.tasks": "{}",
            "fieldrun.licence": source.licence,
        }
        offsets = data_offsets(folder / WEIGHTS_FILE)
        for done, bucket in enumerate(buckets):
            progress("graphs", done, len(buckets))
            _save(folder / bucket.graph, source.graph(offsets, bucket, metadata))
        progress("graphs", len(buckets), len(buckets))
        operators = _operators(folder, buckets, source.integer_products())
        progress("parity", 0, len(buckets))
        no_logits = expected[:, :0]
        parity, fields = check_parity(folder, network, buckets, sequences, expected, no_logits, {}, plan.parity)
        progress("parity", len(buckets), len(buckets))
        golden, rounding = golden_fields(folder, network, buckets, texts.proof, sequences)
        gap = max(float(rounding.max()), *(bucket.bucket_gap for bucket in parity))
        tolerance = max(_FLOOR, _SPARE * gap)
        quartile = float(np.quantile(rounding, TYPICAL_QUANTILE))
        typical = min(max(_FLOOR, _SPARE * quartile), tolerance)
        golden["typical_tolerance"] = typical
        if not tolerance < 1:
            raise ExportError(f"rounding alone changes fields by {gap:.3g}; keep more parts in fp32")
        write_json(folder / "golden.json", golden)
        proof: dict[str, Any] = {"parts": source.parts} if source.parts else {}
        proof |= {"field": field_errors(expected, fields), "rounding": {"max_abs": gap, "golden_tolerance": tolerance}}
        proof["rounding"] |= {"quartile_abs": quartile, "typical_tolerance": typical}
        write_json(
            folder / "report.json",
            {
                "recipe": plan.to_dict(),
                "import": dict(source.facts()),
                "passes": [p.to_dict() for p in source.passes],
                "parity": [p.to_dict() for p in parity],
                "pair_parity": [],
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
            network=network,
            buckets=tuple(buckets),
            pair_graphs={},
            tasks=(),
            golden_tolerance=tolerance,
            licence=source.licence,
            provenance=source.provenance,
            files={name: entry_of(folder / name) for name in names},
        )
        write_json(folder / MANIFEST, manifest.to_dict())
        total = sum(entry.bytes for entry in manifest.files.values()) + (folder / MANIFEST).stat().st_size
    return WrittenGraph(bytes=total, parity=tuple(parity), operators=operators, proof=proof)


def _save(path: Path, model: onnx.ModelProto) -> None:
    write_bytes(path, model.SerializeToString(deterministic=True))
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{path.name} is not valid ONNX: {' '.join(str(error).split())}") from error


def _operators(folder: Path, buckets: Sequence[Bucket], integer: int) -> dict[str, dict[str, int]]:
    """Return the first graph's operators before and after ONNX Runtime's optimiser.

    Every batch-1 graph and one of each other batch is optimised: a product that is to be int8 and fell out of it is
    refused by name of its graph, and is seen nowhere else.
    """
    found: dict[str, dict[str, int]] = {"graph": op_histogram(folder / buckets[0].graph)}
    checked: set[int] = set()
    for bucket in buckets:
        if bucket.batch > 1 and bucket.batch in checked:
            continue
        checked.add(bucket.batch)
        with TemporaryDirectory() as scratch:
            optimised = Path(scratch) / "optimised.onnx"
            open_session(folder / bucket.graph, optimised=optimised)
            operators = op_histogram(optimised)
        found.setdefault("optimised", operators)
        products = sum(operators.get(op, 0) for op in ("MatMulIntegerToFloat", "QLinearMatMul", "MatMulInteger"))
        if products != integer:
            raise ExportError(
                f"{integer} products are int8, but ONNX Runtime runs {products} of {bucket.graph} as int8: {operators}"
            )
    return found


def _card(source: GraphSource, plan: Recipe, weights_bytes: int) -> str:
    rows = [
        ("parameters", f"{source.network.parameters:,}"),
        ("field", f"{source.network.field_dim}-d"),
        *source.describe(),
        ("licence of the weights", source.licence),
        ("weights file", f"{weights_bytes:,} bytes"),
    ]
    lines = [
        f"# {source.name}",
        "",
        f"An imported model, made into a bundle with the recipe `{plan.name}`. It maps text to a "
        f"{source.network.field_dim}-d field; it has no tasks until a head is fitted and attached.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {value} |" for name, value in rows),
        "",
        "What the import changed is in `report.json`: the fields of real text against the model as it came, per",
        "bucket. sha256 of every file that was imported is in the provenance of the manifest.",
        "",
        "## Limits",
        "",
        "Those of the imported model, which were not examined here.",
        "",
    ]
    return "\n".join(lines)
