"""Write a bundle: weights -> graphs -> parity -> golden replies -> manifest, whole or not at all.

A student, an imported encoder and a foreign graph are three kinds of `Source`; there is one writer for all of them. An
imported model has no tasks of its own: heads are fitted on its fields and attached.
"""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import onnx

from fieldrun._version import __version__
from fieldrun.errors import ExportError
from fieldrun.formats.bounds import widest_tolerance
from fieldrun.formats.bundle import (
    MANIFEST,
    SCHEMA,
    Bucket,
    GraphNetwork,
    Manifest,
    Network,
    TaskSpec,
    TensorrtGraphs,
)
from fieldrun.formats.integrity import entry_of
from fieldrun.formats.progress import Progress
from fieldrun.formats.storage import new_folder, sha256_bytes, write_bytes, write_json
from fieldrun.formats.tensors import data_offsets

from .builder import WEIGHTS_FILE, op_histogram
from .calibrate import CalibrationText, tokenize
from .golden import golden_replies
from .parity import BucketParity, Expected, check_pairs, check_parity, field_errors, one_line, open_session
from .recipe import Parity, Recipe
from .student.passes import PassReport

__all__ = ["Graphs", "Source", "Written", "write_bundle"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Graphs:
    """The graphs to build, by file name: one for each bucket, and of `pairs`, batch -> file name, one for each batch.

    `offsets` has byte offset and length of every tensor in the weights file; `metadata` goes into every graph.
    """

    buckets: Sequence[Bucket]
    pairs: Mapping[int, str]
    offsets: Mapping[str, tuple[int, int]]
    metadata: Mapping[str, str]
    tensorrt: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Source(ABC):
    """A model after its passes, and what its graphs are compared with."""

    name: str
    tokenizer: bytes
    licence: str
    provenance: Mapping[str, Any]
    network: Network | GraphNetwork
    passes: Sequence[PassReport]
    expected: Expected
    integer_products: int
    """How many products of every field graph must run as int8."""
    tasks: tuple[TaskSpec, ...] = ()
    proof: Mapping[str, Any] = field(default_factory=dict)
    """`parts`: what each part or pass alone does to the fields, by `field_errors`; `accuracy` where it was measured."""
    warnings: tuple[str, ...] = ()
    golden_tolerance: float | None = None
    """How far a device may be from the golden replies; measured when None (`fieldrun_exporters.golden`)."""
    imported: Mapping[str, Any] = field(default_factory=dict)
    """What `report.json` says about the import."""
    described: Sequence[tuple[str, str]] = ()
    """What the card says about an imported network: rows of a name and a value."""

    @abstractmethod
    def weights(self) -> bytes:
        """Return the safetensors file that all graphs share."""

    @abstractmethod
    def graphs(self, wanted: Graphs) -> Iterator[tuple[str, onnx.ModelProto]]:
        """Yield file name and graph: of buckets, ids -> field and logits; of batches of pairs, fields -> logits."""

    def card(self, plan: Recipe, weights_bytes: int) -> str:
        """Return `CARD.md`."""
        rows = [
            ("parameters", f"{self.network.parameters:,}"),
            ("field", f"{self.network.field_dim}-d"),
            *self.described,
            ("licence of the weights", self.licence),
            ("weights file", f"{weights_bytes:,} bytes"),
        ]
        return _CARD.format(
            name=self.name,
            recipe=plan.name,
            dim=self.network.field_dim,
            rows="\n".join(f"| {name} | {value} |" for name, value in rows),
        )

    def prove(
        self, folder: Path, graphs: TensorrtGraphs | None, golden: Mapping[str, Any], gate: Parity
    ) -> Mapping[str, Any]:
        """Check more of the graphs in `folder` than parity; return the results for `report.json`.

        Raises:
            ParityError: a graph is beyond a limit.
        """
        del folder, graphs, golden, gate
        return {}


_CARD = """# {name}

An imported model, made into a bundle with the recipe `{recipe}`. It maps text to a {dim}-d field; \
it has no tasks until a head is fitted and attached.

| | |
|---|---|
{rows}

What the import changed is in `report.json`: the fields of real text, compared with the original model in every
bucket. The sha256 of every imported file is in the provenance of the manifest.

## Limits

Those of the imported model, which was not evaluated here.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What was written and measured."""

    bytes: int
    parity: tuple[BucketParity, ...]
    operators: Mapping[str, Mapping[str, int]]
    proof: Mapping[str, Any]


def write_bundle(out: Path, source: Source, plan: Recipe, texts: CalibrationText, progress: Progress) -> Written:
    """Write the bundle folder `out`, whole or not at all.

    Args:
        out: must not exist.
        source: what is exported.
        plan: the recipe.
        texts: those that were calibrated on, and those of the proof.
        progress: called with (phase, done, total).

    Raises:
        ParityError, ExportError: a graph differs from the reference, or a pass failed its check.
        OutputExists, StorageError: `out` is taken or cannot be written.
    """
    batches, lengths = plan.buckets.batches, plan.buckets.lengths
    buckets = [Bucket(batch=b, length=n, graph=f"b{b}-l{n}.onnx") for b in batches for n in lengths]
    pairs = {b: f"pair-b{b}.onnx" for b in batches if any(task.kind == "pair" for task in source.tasks)}
    with new_folder(out) as folder:
        weights = source.weights()
        write_bytes(folder / WEIGHTS_FILE, weights)
        write_bytes(folder / "tokenizer.json", source.tokenizer)
        write_bytes(folder / "CARD.md", source.card(plan, len(weights)).encode("utf-8"))
        about = {task.name: {"kind": task.kind, "start": task.start, "labels": task.labels} for task in source.tasks}
        metadata = {
            "fieldrun.schema": str(SCHEMA),
            "fieldrun.name": source.name,
            "fieldrun.recipe": plan.name,
            "fieldrun.weights_sha256": sha256_bytes(weights),
            "fieldrun.tasks": json.dumps(about),
            "fieldrun.licence": source.licence,
        }
        offsets, total = data_offsets(folder / WEIGHTS_FILE), len(buckets) + len(pairs)
        wanted = Graphs(buckets=buckets, pairs=pairs, offsets=offsets, metadata=metadata)
        for done, (name, model) in enumerate(source.graphs(wanted)):
            progress("graphs", done, total)
            _save(folder / name, model)
        progress("graphs", total, total)
        operators = _operators(folder, buckets, source.integer_products)
        engines = None if plan.tensorrt is None else _tensorrt(buckets, pairs, plan.tensorrt.golden_tolerance)
        if engines is not None:
            wanted = replace(wanted, buckets=engines.buckets, pairs=engines.pair_graphs, tensorrt=True)
            for name, model in source.graphs(wanted):
                _save(folder / name, model)
            operators["tensorrt"] = op_histogram(folder / engines.buckets[0].graph)

        progress("parity", 0, 1)
        parity, fields = check_parity(folder, source.network, buckets, source.expected, plan.parity)
        pair_parity = check_pairs(folder, pairs, fields, source.expected, plan.parity)
        progress("parity", 1, 1)
        chosen = texts.proof if source.golden_tolerance is None else texts.chosen
        golden = golden_replies(
            folder,
            source.network,
            buckets,
            pairs,
            source.tasks,
            chosen,
            tokenize(source, chosen, lengths[-1]),
            tokenizer=source.tokenizer,
            tolerance=source.golden_tolerance,
            bucket_gap=max(bucket.bucket_gap for bucket in parity),
            recipe=plan.to_dict(),
        )
        if engines is not None:
            widest = widest_tolerance(plan.to_dict(), np.array(golden.replies["fields"]), student=True, gpu=True)
            engines = replace(engines, golden_tolerance=min(engines.golden_tolerance, widest))
        write_json(folder / "golden.json", golden.replies)
        progress("prove", 0, 1)
        more = source.prove(folder, engines, golden.replies, plan.parity)
        progress("prove", 1, 1)
        proof = {**source.proof, "field": field_errors(source.expected.fields, fields), **golden.proof}
        write_json(
            folder / "report.json",
            {
                "recipe": plan.to_dict(),
                **({"import": source.imported} if source.imported else {}),
                "passes": [asdict(report) for report in source.passes],
                "warnings": list(source.warnings),
                "parity": [asdict(bucket) for bucket in parity],
                "pair_parity": pair_parity,
                **more,
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
            network=source.network,
            buckets=tuple(buckets),
            pair_graphs=pairs,
            tasks=source.tasks,
            golden_tolerance=golden.tolerance,
            licence=source.licence,
            provenance=source.provenance,
            files={name: entry_of(folder / name) for name in names},
            tensorrt=engines,
        )
        write_json(folder / MANIFEST, manifest.to_dict())
        size = sum(entry.bytes for entry in manifest.files.values()) + (folder / MANIFEST).stat().st_size
    return Written(bytes=size, parity=tuple(parity), operators=operators, proof=proof)


def _save(path: Path, model: onnx.ModelProto) -> None:
    write_bytes(path, model.SerializeToString(deterministic=True))
    try:
        onnx.checker.check_model(str(path))
    except onnx.checker.ValidationError as error:
        raise ExportError(f"{path.name} is not valid ONNX: {one_line(error)}") from error


def _tensorrt(buckets: Sequence[Bucket], pairs: Mapping[int, str], tolerance: float) -> TensorrtGraphs:
    """Return the manifest's entry for the graphs in TensorRT's spelling."""
    return TensorrtGraphs(
        buckets=tuple(Bucket(batch=b.batch, length=b.length, graph=f"trt-{b.graph}") for b in buckets),
        pair_graphs={batch: f"trt-{name}" for batch, name in pairs.items()},
        golden_tolerance=float(tolerance),
    )


def _operators(folder: Path, buckets: Sequence[Bucket], integer: int) -> dict[str, dict[str, int]]:
    """Return the first graph's operators before and after ONNX Runtime's optimiser.

    An int8 product that ONNX Runtime runs in float is refused. Where there are such products, every batch-1 graph is
    optimised and checked, and one of each other batch.
    """
    found: dict[str, dict[str, int]] = {"graph": op_histogram(folder / buckets[0].graph)}
    checked: set[int] = set()
    for bucket in buckets if integer else buckets[:1]:
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
                f"{integer} products must be int8, but ONNX Runtime runs {products} of {bucket.graph} as int8: "
                f"{operators}"
            )
    return found
