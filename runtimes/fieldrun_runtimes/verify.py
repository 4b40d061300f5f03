"""Replay a bundle's golden texts on this machine and compare with what the export measured."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np

from fieldrun.errors import BundleError, TextTooLong
from fieldrun.formats.bundle import TYPICAL_QUANTILE
from fieldrun.formats.storage import read_json
from fieldrun.formats.tensors import Array
from fieldrun.heads.head import softmax
from fieldrun.heads.saved import head_scores
from fieldrun_runtimes.tensorrt.releases import MODULES

from .engines.onnxruntime_engine import import_onnxruntime
from .model import FieldModel, load
from .tensorrt.library import load_library

__all__ = ["VerifyReport", "verify"]


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """The outcome: largest absolute differences of fields and scores from the golden ones, and whether they pass.

    `engine_version` is that of the library that ran: ONNX Runtime's, TensorRT's, NumPy's or fieldrun's own. `provider`
    is what ONNX Runtime ran on, None for other engines. `by_bucket` has the largest difference of fields in each bucket
    ("1x16" for batch 1 of 16 tokens), `buckets` their number; a bucket that no golden text fits in is not replayed.
    `quartile_abs_field` is the lower quartile, over the texts, of each one's largest difference when it runs alone. A
    deep int8 network may round some texts another way here, which moves them far: then `typical_tolerance` is what the
    quartile must keep; None elsewhere.
    """

    passed: bool
    path: str
    engine: str
    engine_version: str | None
    provider: str | None
    texts: int
    buckets: int
    max_abs_field: float
    max_abs_scores: float
    quartile_abs_field: float
    tolerance: float
    typical_tolerance: float | None
    tokens_equal: bool
    files: int
    by_bucket: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return asdict(self)


def verify(
    path: str | Path = "reference", *, engine: str = "auto", provider: str | None = None, threads: int = 1
) -> VerifyReport:
    """Check every file's hash, then replay the golden texts with `engine` and compare fields and scores.

    Every text runs alone as `encode` runs it, and again through every bucket that it fits in; pairs run through every
    pair graph. A GPU is held to the tolerance that the recipe has for it.

    Raises:
        BundleError, IntegrityError, SchemaTooNew: the bundle is not what it says, its golden texts included.
        UnknownName, MissingDependency, EngineError: the engine is unknown, not installed, or cannot run.
    """
    with load(path, engine=engine, provider=provider, threads=threads, overflow="error") as model:
        on_gpu = model.engine.startswith("tensorrt") or provider in ("cuda", "cuda-graph")
        graphs = model.manifest.tensorrt if on_gpu else None
        tolerance = model.manifest.golden_tolerance if graphs is None else graphs.golden_tolerance
        try:
            return _replay(model, read_json(model.path / "golden.json"), tolerance, provider)
        except (AttributeError, KeyError, OverflowError, TextTooLong, TypeError, ValueError) as error:
            raise BundleError(f"{model.path}: golden.json cannot be used ({error}); export again") from error


def _replay(model: FieldModel, golden: dict[str, Any], tolerance: float, provider: str | None) -> VerifyReport:
    texts, sequences, manifest = golden["texts"], golden["ids"], model.manifest
    if set(golden["scores"]) != set(model.tasks):
        raise ValueError("its scores are not those of the bundle's tasks")
    encodings = [model.forward([text]) for text in texts]
    fields = np.concatenate([encoding.field for encoding in encodings])
    worst_field = _gap(fields, golden["fields"])
    quartile = float(np.quantile(np.abs(fields - np.array(golden["fields"], np.float32)).max(1), TYPICAL_QUANTILE))
    typical = golden.get("typical_tolerance")
    if typical is not None and not 0 < float(typical) < 1:
        raise ValueError(f"a typical_tolerance of {typical!r}")
    by_bucket = {}
    for bucket in manifest.buckets:
        rows = [i for i, ids in enumerate(sequences) if len(ids) <= bucket.length]
        if rows:
            found = model.replay([sequences[i] for i in rows], bucket)
            gap = _gap(found, [golden["fields"][i] for i in rows])
            by_bucket[f"{bucket.batch}x{bucket.length}"] = gap
            worst_field = _worse(worst_field, gap)
    worst_scores = 0.0
    for task, expected in golden["scores"].items():
        if model.kind(task) == "single":
            scores = np.concatenate([model.scores_of(encoding, task) for encoding in encodings])
            worst_scores = _worse(worst_scores, _gap(scores, expected))
            continue
        if task in model.attached:
            scores = head_scores(model.attached[task], fields, np.roll(fields, -1, axis=0))
            worst_scores = _worse(worst_scores, _gap(scores, expected))
            continue
        for batch in manifest.pair_graphs:
            logits = model.replay_pairs(fields, np.roll(fields, -1, axis=0), batch)
            spec = manifest.task(task)
            scores = softmax(logits[:, spec.start : spec.start + len(spec.labels)], spec.temperature)
            worst_scores = _worse(worst_scores, _gap(scores, expected))
    same_tokens = model.token_ids(texts) == sequences
    return VerifyReport(
        passed=same_tokens
        and worst_field <= tolerance
        and worst_scores <= tolerance
        and (typical is None or quartile <= typical),
        path=str(model.path),
        engine=model.engine,
        engine_version=_version(model.engine),
        provider=(provider or "cpu") if model.engine == "onnxruntime" else None,
        texts=len(texts),
        buckets=len(by_bucket),
        max_abs_field=worst_field,
        max_abs_scores=worst_scores,
        quartile_abs_field=quartile,
        tolerance=tolerance,
        typical_tolerance=typical,
        tokens_equal=same_tokens,
        files=len(manifest.files) + 1,
        by_bucket=by_bucket,
    )


def _version(engine: str) -> str | None:
    """Return the version of the library behind `engine`, as it says itself: a Jetson's packages are not pip's."""
    if engine == "onnxruntime":
        return str(import_onnxruntime().__version__)
    if engine in MODULES:
        return str(load_library(engine).__version__)
    if engine == "numpy":
        return np.__version__
    try:
        return metadata.version("fieldrun")
    except metadata.PackageNotFoundError:
        return None


def _worse(a: float, b: float) -> float:
    """Return the larger of two gaps; unlike `max` it keeps a NaN, which passes no tolerance."""
    return float(np.maximum(a, b))


def _gap(found: Array, golden: Any) -> float:
    expected = np.array(golden, np.float32)
    if expected.shape != found.shape:
        raise ValueError(f"values of shape {expected.shape} instead of {found.shape}")
    return float(np.abs(found - expected).max())
