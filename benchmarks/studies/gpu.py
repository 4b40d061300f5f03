"""A bundle on this machine's GPU: golden fields, and latency and throughput of every bucket.

`make test-gpu` calls `measure` for every GPU engine that is installed. A call is timed whole: copy in, run, copy out.
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import numpy as np

import fieldrun
from fieldrun.formats.bundle import Bundle
from fieldrun_runtimes.engines import open_engine
from fieldrun_runtimes.engines.buckets import GraphEngine
from fieldrun_runtimes.tensorrt.device import jetpack, require_gpu

__all__ = ["measure", "median_interval"]

_CALLS = 500
_WARM_UP = 50


def measure(bundle: str | Path, engine: str, provider: str | None = None, *, calls: int = _CALLS) -> dict[str, Any]:
    """Return a record's values for `bundle` on `engine` and `provider`: GPU, verification, and each bucket's speed.

    TensorRT engines are built first, if they are not there.

    Raises:
        EngineError, MissingDependency: there is no GPU, or the engine cannot be had here; the message says why.
    """
    gpu = require_gpu()
    built = None
    if engine.startswith("tensorrt"):
        built = fieldrun.build(bundle, target=engine).to_dict()
        del built["folder"]  # a path of this machine
    (verified,) = fieldrun.verify(bundle, engine=engine, provider=provider).engines
    opened = Bundle.load(bundle)
    manifest, runner = opened.manifest, open_engine(engine, opened, provider=provider)
    buckets = []
    if isinstance(runner, GraphEngine):
        for bucket in runner.buckets:
            rng = np.random.default_rng(bucket.length)
            ids = rng.integers(1, manifest.network.vocab_size, size=(bucket.batch, bucket.length)).tolist()
            micros = np.empty(calls)
            for call in range(-_WARM_UP, calls):
                start = time.perf_counter()
                runner.run_bucket(ids, bucket)
                if call >= 0:
                    micros[call] = 1e6 * (time.perf_counter() - start)
            p50 = float(np.median(micros))
            buckets.append(
                {
                    "batch": bucket.batch,
                    "length": bucket.length,
                    "calls": calls,
                    "p50_us": round(p50, 1),
                    "p50_us_ci95": [round(x, 1) for x in median_interval(micros)],
                    "p90_us": round(float(np.percentile(micros, 90)), 1),
                    "texts_per_s": round(1e6 * bucket.batch / p50),
                }
            )
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


def median_interval(values: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    """Return the 95 % interval of the median of `values (n,)`: order statistics n/2 -+ 0.98 sqrt(n).

    (Conover, "Practical Nonparametric Statistics", 3rd ed., 3.2: the normal approximation of the sign test.)
    """
    ordered = np.sort(values)
    n = len(ordered)
    reach = 1.96 * np.sqrt(n) / 2
    low, high = int(np.floor(n / 2 - reach)), int(np.ceil(n / 2 + reach))
    return float(ordered[max(low, 0)]), float(ordered[min(high, n - 1)])
