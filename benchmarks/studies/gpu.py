"""A bundle on this machine's GPU: golden fields, and latency and throughput of every bucket.

`make test-gpu` calls `measure` for every GPU engine that is installed. A bucket is filled with texts of its length; the
time is from texts to fields.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import fieldrun
from fieldrun_benchmarks.harness.timer import time_texts
from fieldrun_runtimes.tensorrt.device import jetpack, require_gpu

__all__ = ["measure"]

_CALLS = 500


def measure(bundle: str | Path, engine: str, provider: str | None = None, *, calls: int = _CALLS) -> dict[str, Any]:
    """Return a record's values for `bundle` on `engine` and `provider`: GPU, verification, and each bucket's speed.

    TensorRT engines are built first unless the cache has them.

    Raises:
        EngineError, MissingDependency: this machine has no GPU or cannot run the engine; the message says why.
    """
    gpu = require_gpu()
    built = None
    if engine.startswith("tensorrt"):
        built = fieldrun.build(bundle, target=engine).to_dict()
        del built["folder"]  # a path of this machine
    (verified,) = fieldrun.verify(bundle, engine=engine, provider=provider).engines
    with fieldrun.load(bundle, engine=engine, provider=provider) as model:
        manifest = model.manifest
        buckets = []
        for bucket in manifest.buckets:
            texts = [" ".join(["film"] * (bucket.length - 2))] * bucket.batch  # two tokens mark the ends
            timed = time_texts({engine: model.field}, [texts] * calls, repeats=1)[engine]
            speed = {"texts_per_s": round(1e6 * bucket.batch / timed["p50_us"])}
            buckets.append({"batch": bucket.batch, "length": bucket.length} | timed | speed)
    return {
        "gpu": {"name": gpu.name, "compute_capability": gpu.compute_capability, "cuda": gpu.cuda, "jetpack": jetpack()},
        "engine": engine,
        "provider": provider,
        "recipe": manifest.recipe["name"],
        "weights_sha256": manifest.files["weights.safetensors"].sha256,
        "build": built,
        "verify": verified.to_dict(),
        "buckets": buckets,
    }
