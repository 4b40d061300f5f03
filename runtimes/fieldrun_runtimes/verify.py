"""Replay a bundle's golden texts on this machine and compare with what the export measured."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from fieldrun._version import __version__
from fieldrun.errors import BundleError, EngineError, IntegrityError, MissingDependency, TextTooLong, UsageError
from fieldrun.formats.bounds import widest_tolerance
from fieldrun.formats.bundle import MANIFEST, TYPICAL_QUANTILE, Bundle, Network
from fieldrun.formats.limits import GOLDEN
from fieldrun.formats.storage import parse_json, sha256_bytes, write_json
from fieldrun.formats.tensors import Array
from fieldrun.heads.head import softmax

from .engines import ENGINES, GPU_ENGINES, PROVIDERS
from .engines.buckets import GraphEngine
from .engines.onnxruntime_engine import import_onnxruntime
from .engines.weights import check_padding
from .model import Encoding, FieldModel
from .tensorrt.device import find_gpu, require_gpu
from .tensorrt.engine import built_engines
from .tensorrt.library import MODULES, load_library

__all__ = ["EngineReport", "VerifyReport", "verify"]

_ALL: tuple[tuple[str, str | None], ...] = (
    *((engine, None) for engine in ENGINES if engine != "null"),
    *(("onnxruntime", provider) for provider in PROVIDERS if provider in GPU_ENGINES),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineReport:
    """How far one engine's answers are from the golden ones.

    `engine_version` is that of the library that ran: ONNX Runtime's, TensorRT's, NumPy's or fieldrun's own. `provider`
    is what ONNX Runtime ran on, None for other engines. `max_abs_field` and `max_abs_scores` are the largest absolute
    differences, `min_cosine` is the smallest cosine of a field and its golden one, `agreement` the share of scores
    whose best label is the golden one. `by_bucket` has the largest difference of fields in each bucket ("1x16" for
    batch 1 of 16 tokens) that a golden text fits in; it is empty for an engine that runs no graph. `buckets` is their
    number.

    `identified` is the share of texts whose field is nearer to its own golden field than to any other; it must be 1: a
    tolerance that lets a text pass for another one proves nothing.

    `tolerance` is that of the bundle, or less: no more than `fieldrun.formats.bounds` allows a recipe of its kind.

    `quartile_abs_field` is the lower quartile, over the texts, of each one's largest difference when it runs alone. A
    deep int8 network may round some texts another way here, which moves them far: then the quartile must keep to
    `typical_tolerance`, None elsewhere.
    """

    passed: bool
    engine: str
    engine_version: str
    provider: str | None
    threads: int
    texts: int
    buckets: int
    max_abs_field: float
    max_abs_scores: float
    min_cosine: float
    agreement: float
    identified: float
    quartile_abs_field: float
    tolerance: float
    typical_tolerance: float | None
    tokens_equal: bool
    by_bucket: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON; a number that is not finite is null."""
        return _as_json(self)


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyReport:
    """The outcome: one entry for each engine that ran, and why the others were skipped.

    `passed` is true when every engine that ran keeps the bundle's tolerance. `max_abs_field` and `max_abs_scores` are
    the largest of all engines, `texts` and `files` the numbers of golden texts and of files that were checked.
    `manifest_sha256` is that of the file `manifest.json` that was read.
    """

    passed: bool
    path: str
    manifest_sha256: str
    texts: int
    files: int
    max_abs_field: float
    max_abs_scores: float
    engines: tuple[EngineReport, ...]
    skipped: dict[str, str]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON; a number that is not finite is null."""
        return _as_json(self)

    def write(self, folder: Path, *, machine: Mapping[str, Any]) -> list[Path]:
        """Write a record for each engine to `folder`, with the facts of the `machine`, and return their paths.

        A record is `verify-BUNDLE-RECIPE-ENGINE[-PROVIDER].json`; an older one of the same name is replaced. It also
        has the bundle's hashes and, of a GPU engine, the GPU and the layers of TensorRT's engines; it has no path.

        Raises:
            StorageError: the folder cannot be written.
            BundleError, IntegrityError: another bundle is at `path` now.
        """
        bundle = Bundle.load(self.path)
        if sha256_bytes(bundle.contents[MANIFEST]) != self.manifest_sha256:
            raise IntegrityError(f"{self.path} was replaced after it was verified; verify it again")
        manifest, found = bundle.manifest, []
        about = {"bundle": manifest.name, "recipe": manifest.recipe["name"], "sha256": manifest.to_dict()["sha256"]}
        about |= {"files": self.files, "files_sha256": {name: entry.sha256 for name, entry in manifest.files.items()}}
        about["conditions"] = {"date": date.today().isoformat(), "machine": dict(machine)}
        for entry in self.engines:
            provider = "" if entry.provider is None else f" --provider {entry.provider}"
            command = f"fieldrun verify {manifest.name} --engine {entry.engine}{provider}"
            parts = (manifest.name, manifest.recipe["name"], entry.engine, entry.provider)
            name = "-".join(re.sub(r"[^\w.-]+", "-", str(part)) for part in parts if part is not None)
            value = {
                "schema": 1,
                "kind": "verify",
                "command": command,
                **about,
                **entry.to_dict(),
                **_gpu(bundle, entry),
            }
            found.append(folder / f"verify-{name}.json")
            write_json(found[-1], value)
        return found


def verify(
    path: str | Path | Bundle = "reference", *, engine: str = "auto", provider: str | None = None, threads: int = 1
) -> VerifyReport:
    """Check every file's hash, then replay the golden texts and compare fields and scores.

    `path` is a bundle folder, or a bundle that was loaded; of that one, the bytes that were loaded are replayed.
    `engine` and `provider` are as for `load`; `"all"` replays every engine that is installed and able to run the
    bundle, on a GPU where there is one. Every text runs alone, and again in company: where an engine runs graphs, every
    text in every bucket that it fits in and every pair in every pair graph; elsewhere all texts in one batch. A GPU is
    held to the tolerance that the recipe has for it. Whatever the manifest says, none is wider than
    `fieldrun.formats.bounds` allows.

    Raises:
        BundleError, IntegrityError, SchemaTooNew: the bundle is not what it says, its golden texts included.
        UnknownName, MissingDependency, EngineError: the engine is unknown, not installed, or cannot run.
        UsageError: a provider together with `"all"`.
    """
    bundle = path if isinstance(path, Bundle) else Bundle.load(path)
    check_padding(bundle.exported())
    found, skipped = [], {}
    if engine != "all":
        found.append(_replay(bundle, engine, provider, threads))
    elif provider is not None:
        raise UsageError("engine='all' tries every provider; leave the provider out")
    else:
        gpu = find_gpu()
        for name, way in _ALL:
            on_gpu = (way or name) in GPU_ENGINES
            title = name if way is None else f"{name} on {way}"
            if on_gpu and isinstance(gpu, str):
                skipped[title] = gpu
                continue
            try:
                found.append(_replay(bundle, name, way, 1 if on_gpu or name == "numpy" else threads))
            except (EngineError, MissingDependency) as error:
                skipped[title] = str(error)
        if not found:
            raise EngineError(f"no engine can run {bundle.path}: " + "; ".join(sorted(set(skipped.values()))))
    return VerifyReport(
        passed=all(entry.passed for entry in found),
        path=str(bundle.path),
        manifest_sha256=sha256_bytes(bundle.contents[MANIFEST]),
        texts=found[0].texts,
        files=len(bundle.manifest.files) + 1,
        max_abs_field=float(np.max([entry.max_abs_field for entry in found])),  # which keeps a NaN
        max_abs_scores=float(np.max([entry.max_abs_scores for entry in found])),
        engines=tuple(found),
        skipped=skipped,
    )


def _replay(bundle: Bundle, engine: str, provider: str | None, threads: int) -> EngineReport:
    with FieldModel(bundle, engine=engine, provider=provider, threads=threads, overflow="error") as model:
        on_gpu = model.engine in GPU_ENGINES or provider in GPU_ENGINES
        graphs = model.manifest.tensorrt if on_gpu else None
        stated = model.manifest.golden_tolerance if graphs is None else graphs.golden_tolerance
        student = isinstance(model.manifest.network, Network)
        try:
            golden = parse_json(bundle.contents["golden.json"], "golden.json")
            fields = np.array(golden["fields"], np.float32)
            widest = widest_tolerance(model.manifest.recipe, fields, student=student, gpu=on_gpu)
            return _compare(model, golden, min(stated, widest), provider, threads)
        except (AttributeError, KeyError, OverflowError, TextTooLong, TypeError, ValueError) as error:
            raise BundleError(f"{bundle.path}: golden.json cannot be used ({error}); export again") from error


def _compare(
    model: FieldModel, golden: dict[str, Any], tolerance: float, provider: str | None, threads: int
) -> EngineReport:
    texts, fields = golden["texts"], np.array(golden["fields"], np.float32)
    if not isinstance(texts, list) or not 0 < len(texts) == len(fields) <= GOLDEN:
        raise ValueError(f"it must have 1 to {GOLDEN} texts, and a field for each")
    if set(golden["scores"]) != set(model.tasks):
        raise ValueError("its scores are not those of the bundle's tasks")
    typical = golden.get("typical_tolerance")
    if typical is not None and not 0 < float(typical) < 1:
        raise ValueError(f"a typical_tolerance of {typical!r}")
    alone = [model.forward([text]) for text in texts]
    encoding = Encoding(**{name: np.concatenate([getattr(one, name) for one in alone]) for name in Encoding.__slots__})
    sequences = model.token_ids(texts)
    gaps = _gaps(encoding.field, fields)
    quartile = float(np.quantile(gaps.max(1), TYPICAL_QUANTILE))
    norms = np.linalg.norm(encoding.field, axis=1) * np.linalg.norm(fields, axis=1)
    cosines = (encoding.field * fields).sum(1) / np.maximum(norms, np.finfo(np.float32).tiny)
    engine, by_bucket = model._engine, {}
    if isinstance(engine, GraphEngine):
        for bucket in engine.buckets:
            rows = [i for i, ids in enumerate(sequences) if len(ids) <= bucket.length]
            if rows:
                found, _ = engine.run_bucket([sequences[i] for i in rows], bucket)
                by_bucket[f"{bucket.batch}x{bucket.length}"] = float(_gaps(found, fields[rows]).max())
        worst_field = float(np.max([gaps.max(), *by_bucket.values()]))
    else:
        worst_field = float(np.maximum(gaps.max(), _gaps(engine.run(sequences)[0], fields).max()))
    worst_scores, agree = 0.0, []
    for task, wanted in golden["scores"].items():
        for scores in _scores(model, encoding, task):
            expected = np.array(wanted, np.float32)
            worst_scores = float(np.maximum(worst_scores, _gaps(scores, expected).max()))
            agree.append(scores.argmax(1) == expected.argmax(1))
    identified = _identified(encoding.field, fields)
    same_tokens = sequences == [list(ids) for ids in golden["ids"]]
    if "tokenizer" in golden:  # bundles of earlier versions have none
        every = golden["tokenizer"]
        same_tokens &= model._tokenize.whole(list(every["texts"])) == [list(ids) for ids in every["ids"]]
    within = worst_field <= tolerance and worst_scores <= tolerance and (typical is None or quartile <= typical)
    within &= identified == 1
    return EngineReport(
        passed=same_tokens and within,
        engine=model.engine,
        engine_version=_version(model.engine),
        provider=(provider or "cpu") if model.engine == "onnxruntime" else None,
        threads=threads,
        texts=len(texts),
        buckets=len(by_bucket),
        max_abs_field=worst_field,
        max_abs_scores=worst_scores,
        min_cosine=float(cosines.min()),
        agreement=float(np.mean(np.concatenate(agree))) if agree else 1.0,
        identified=identified,
        quartile_abs_field=quartile,
        tolerance=tolerance,
        typical_tolerance=typical,
        tokens_equal=same_tokens,
        by_bucket=by_bucket,
    )


def _scores(model: FieldModel, encoding: Encoding, task: str) -> Iterator[Array]:
    """Yield the scores of `task`, once for each graph that gives them; the pair of a text is the next text."""
    if model.kind(task) == "single":
        yield model.scores_of(encoding, task)
        return
    after, engine = np.roll(encoding.field, -1, axis=0), model._engine
    if task in model.attached or not isinstance(engine, GraphEngine):
        yield model.scores_of(encoding, task, replace(encoding, field=after))
        return
    spec = model.manifest.task(task)
    for batch in engine.pair_graphs:
        logits = engine.run_pair_graph(encoding.field, after, batch)
        yield softmax(logits[:, spec.start : spec.start + len(spec.labels)], spec.temperature)


def _version(engine: str) -> str:
    """Return the version of the library behind `engine`, as it says itself: a Jetson's packages are not pip's."""
    if engine == "onnxruntime":
        return str(import_onnxruntime().__version__)
    if engine in MODULES:
        return str(load_library(engine).__version__)
    return np.__version__ if engine == "numpy" else __version__


def _gpu(bundle: Bundle, entry: EngineReport) -> dict[str, Any]:
    """Return the GPU that `entry` ran on, and of TensorRT the engines that ran; nothing for a CPU."""
    if entry.engine not in GPU_ENGINES and entry.provider not in GPU_ENGINES:
        return {}
    gpu = require_gpu()
    about = {"name": gpu.name, "compute_capability": gpu.compute_capability, "cuda": gpu.cuda}
    return {"gpu": about, "engines": built_engines(bundle, entry.engine) if entry.engine in MODULES else None}


def _gaps(found: Array, expected: Array) -> Array:
    if expected.shape != found.shape:
        raise ValueError(f"values of shape {expected.shape} instead of {found.shape}")
    return np.asarray(np.abs(found - expected))


def _identified(found: Array, golden: Array) -> float:
    """Return the share of rows of `found (n, dim)` whose nearest row of `golden (n, dim)` is their own."""
    squares = (golden**2).sum(1) - 2 * found @ golden.T  # the squared distances less what a row has in common
    slack = 1e-5 * float(np.abs(squares).max(initial=1e-30))  # equal texts are as near as each other
    return float(np.mean(np.diag(squares) <= squares.min(1) + slack))


def _as_json(report: EngineReport | VerifyReport) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(json.dumps(asdict(report)), parse_constant=lambda _: None)
    return value
