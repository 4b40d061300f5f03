"""Build engines: every TensorRT graph of a bundle, parsed and compiled under a lock, each renamed into the cache.

Precision is in the graph, so the builder gets no precision flag; it gets a strongly typed network where its version
still offers the choice, no TF32, and a workspace. TensorRT builds for the GPU that it runs on. TensorRT-RTX builds for
any compute capability that it knows, even without a GPU: such an engine does not run here, but shows that the graphs
are accepted.
"""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from fieldrun.errors import EngineError, UsageError
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.progress import Progress, silent

from ..engines.graphs import whole_graph
from ..engines.weights import unusable
from .cache import EngineCache
from .device import find_gpu, require_gpu
from .key import OPTIONS, EngineKey, keys_of
from .layers import fallen_back, layer_precisions, part_shapes, unchecked, wanted_precisions
from .library import load_library, quiet_logger

__all__ = ["BuildReport", "BuiltEngine", "Compiled", "build", "compile_graph"]

_SPARE_BYTES = 8 << 20  # an engine's code and constants, beside the weights


@dataclass(frozen=True, slots=True, kw_only=True)
class Compiled:
    """What the builder made of one graph: the engine, the seconds it took, layer precisions, its timing cache."""

    engine: bytes
    seconds: float
    layers: dict[str, str]
    timing: bytes


@dataclass(frozen=True, slots=True, kw_only=True)
class BuiltEngine:
    """One engine of a report; `reused` if a valid one existed already, `layers` is part -> precision as logged.

    `fallen_back` has a line for each part that is computed in more bits than the bundle's, `unchecked` the parts whose
    precision the log does not give.
    """

    graph: str
    bucket: str
    bytes: int
    seconds: float
    reused: bool
    layers: dict[str, str]
    fallen_back: list[str]
    unchecked: list[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    """What was built, for which device, and where it is."""

    target: str
    version: str
    compute_capability: str
    device: str | None
    folder: Path
    engines: tuple[BuiltEngine, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return asdict(self) | {"folder": str(self.folder)}


def build(
    bundle: str | Path | Bundle,
    *,
    target: str = "tensorrt",
    compute_capability: str | None = None,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> BuildReport:
    """Build an engine for every TensorRT graph of a bundle; engines that are valid already are kept.

    Args:
        bundle: a bundle folder whose recipe has `[tensorrt]`, or an open bundle.
        target: `"tensorrt"` or `"tensorrt-rtx"`.
        compute_capability: such as "8.6"; None for this machine's GPU. Only TensorRT-RTX builds for another one.
        cache: the folder of all engines; None for the default one.
        progress: called with (phase, done, total); the phase is "waiting for another build" while another one runs.

    Raises:
        UsageError: the compute capability is not two numbers with a point.
        UnknownName, MissingDependency, BundleError: the target is unknown, not installed, or the bundle is not valid.
        EngineError: no driver, a capability that the builder does not know, or a graph that TensorRT refuses.
        StorageError: the cache cannot be written or is full; nothing half-written is left.
    """
    report = progress or silent
    if compute_capability is not None and not re.fullmatch(r"\d{1,2}\.\d", compute_capability, re.ASCII):
        raise UsageError(f"a compute capability is two numbers with a point, as in 8.6, not {compute_capability!r}")
    opened = bundle if isinstance(bundle, Bundle) else Bundle.load(bundle)
    library = load_library(target)
    found = require_gpu() if target == "tensorrt" else find_gpu()
    gpu = None if isinstance(found, str) else found
    if target == "tensorrt" and gpu is not None and compute_capability not in (None, gpu.compute_capability):
        raise EngineError(
            f"TensorRT builds for the GPU that it runs on, {gpu.compute_capability}, not for {compute_capability}; "
            "build on the device itself"
        )
    keys = keys_of(opened, target, library, gpu, compute_capability)
    first = next(iter(keys.values()))
    if target == "tensorrt-rtx":
        _capability(library, first.compute_capability)
    store = EngineCache(cache)
    folder = store.folder(opened, first)
    weights = opened.tensors()
    try:
        shapes, wanted = part_shapes(weights), wanted_precisions(weights)
    except KeyError as error:
        raise unusable(opened, error) from error
    each = opened.manifest.files["weights.safetensors"].bytes + _SPARE_BYTES
    absent = [key for key in keys.values() if not store.has(folder, key) and not key.bucket.startswith("pairs")]
    store.prepare(folder, len(absent) * each)
    engines = []
    with store.lock(folder, lambda: report("waiting for another build", 0, 1)):
        for done, (name, key) in enumerate(keys.items()):
            report("engines", done, len(keys))
            about = store.about(folder, key)
            reused = about is not None
            if about is None:
                timing = store.timing(folder, key) if target == "tensorrt" else b""
                model = whole_graph(opened.contents[name], opened.contents["weights.safetensors"], name)
                made = compile_graph(library, model, key, shapes, timing)
                about = {"seconds": made.seconds, "layers": made.layers, "bytes": len(made.engine)}
                store.write(folder, key, made.engine, about)
                if made.timing:
                    store.write_timing(folder, key, made.timing)
            pairs = key.bucket.startswith("pairs")
            here = {part: kind for part, kind in wanted.items() if (part == "pairs") == pairs}
            lines, parts = fallen_back(about["layers"], here), unchecked(about["layers"], here)
            facts = about | {"bucket": key.bucket, "reused": reused}
            engines.append(BuiltEngine(graph=name, fallen_back=lines, unchecked=parts, **facts))
        report("engines", len(keys), len(keys))
    return BuildReport(
        target=target,
        version=first.tensorrt,
        compute_capability=first.compute_capability,
        device=first.device,
        folder=folder,
        engines=tuple(engines),
    )


def _capability(library: ModuleType, capability: str) -> Any:
    """Return TensorRT-RTX's constant for `capability`; `EngineError` lists those that it builds for."""
    names = library.ComputeCapability.__members__
    wanted = f"SM{capability.replace('.', '')}"
    if wanted not in names:
        known = ", ".join(f"{n[2:-1]}.{n[-1]}" for n in names if n.startswith("SM"))
        raise EngineError(f"TensorRT-RTX {library.__version__} builds for {known}, not for {capability}")
    return names[wanted]


def compile_graph(
    library: ModuleType, model: bytes, key: EngineKey, shapes: Mapping[str, tuple[int, ...]], timing: bytes = b""
) -> Compiled:
    """Parse the graph `model`, which holds its weights, and build the engine of `key`.

    Nothing is read by path, so the engine is of the bytes that were checked. `EngineError` quotes parser or builder.
    `shapes` are those of the bundle's parts, which identify them in the log.
    """
    log = quiet_logger(library)
    builder = library.Builder(log)
    if builder is None or not hasattr(builder, "create_network"):
        raise EngineError(f"TensorRT has no builder here: {log.words()}")
    strongly = getattr(library.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if strongly is None else 1 << int(strongly))
    parser = library.OnnxParser(network, log)
    start = time.perf_counter()
    if not parser.parse(model):
        words = "; ".join(parser.get_error(i).desc() for i in range(parser.num_errors)) or log.words()
        raise EngineError(f"TensorRT's parser refuses {key.graph}: {' '.join(words.split())}")
    config = builder.create_builder_config()
    tf32 = getattr(library.BuilderFlag, "TF32", None)
    if tf32 is not None and not OPTIONS["tf32"]:
        config.clear_flag(tf32)
    config.set_memory_pool_limit(library.MemoryPoolType.WORKSPACE, OPTIONS["workspace_mib"] << 20)
    config.profiling_verbosity = library.ProfilingVerbosity.DETAILED
    known = None
    if key.target == "tensorrt-rtx":
        config.num_compute_capabilities = 1
        config.set_compute_capability(_capability(library, key.compute_capability), 0)
    else:
        known = _timing_cache(config, timing)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise EngineError(f"TensorRT cannot build {key.graph}: {log.words()}")
    engine = bytes(plan)
    return Compiled(
        engine=engine,
        seconds=time.perf_counter() - start,
        layers=layer_precisions(log.layers, shapes),
        timing=b"" if known is None else bytes(known.serialize()),
    )


def _timing_cache(config: Any, timing: bytes) -> Any:
    """Give `config` the timing cache `timing`, or an empty one if TensorRT refuses it, and return it.

    Returns None if TensorRT refuses both: the build then measures every kernel and keeps nothing.
    """
    for data in dict.fromkeys((timing, b"")):
        known = config.create_timing_cache(data)
        if known is not None and config.set_timing_cache(known, False):  # False: refuse one of another GPU
            return known
    return None
