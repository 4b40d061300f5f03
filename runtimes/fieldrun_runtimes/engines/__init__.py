"""Engines: what runs a bundle's network. Each is one module with one class, found by name and imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Protocol

from fieldrun.errors import UnknownName, UsageError
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.tensors import Array

__all__ = ["ENGINES", "GPU_ENGINES", "PROVIDERS", "Engine", "open_engine"]

ENGINES = {
    "native": "fieldrun_runtimes.engines.native_engine:NativeEngine",
    "numpy": "fieldrun_runtimes.engines.numpy_engine:NumpyEngine",
    "null": "fieldrun_runtimes.engines.null_engine:NullEngine",
    "onnxruntime": "fieldrun_runtimes.engines.onnxruntime_engine:OnnxRuntimeEngine",
    "tensorrt": "fieldrun_runtimes.tensorrt.engine:TensorrtEngine",
    "tensorrt-rtx": "fieldrun_runtimes.tensorrt.engine:TensorrtRtxEngine",
}
PROVIDERS = {
    "cpu": ENGINES["onnxruntime"],
    "cuda": "fieldrun_runtimes.engines.cuda_provider:CudaEngine",
    "cuda-graph": "fieldrun_runtimes.engines.cuda_provider:CudaGraphEngine",
}
"""What ONNX Runtime runs on."""

GPU_ENGINES = ("tensorrt", "tensorrt-rtx", "cuda", "cuda-graph")
"""The engines and providers that run on a GPU."""


class Engine(Protocol):
    """What the model needs of an engine. Implementations are thread-safe and hold no state between calls.

    How far a text's answer depends on its company: `native` and `numpy` give the same bits alone, in any batch, in any
    windows of other texts and on any number of threads. Engines of graphs give the same bits in the same bucket only: a
    batch is another bucket, and may add in another order (differences of some 1e-6 in a field on a CPU). Two engines,
    two processors or two versions of a library differ by as much, so a label may differ where its two best scores are
    nearer than that.
    """

    def run(self, sequences: Sequence[Sequence[int]]) -> tuple[Array, Array]:
        """Return field `(n, dim)` and logits of all single tasks `(n, labels)`, float32, of `n` texts' token ids.

        There is at least one text; each has at least one token, and none more than the largest bucket takes.
        """
        ...

    def run_pairs(self, a: Array, b: Array) -> Array:
        """Return the logits of all pair tasks `(n, labels) float32` for two fields `(n, dim) float32`."""
        ...


def open_engine(
    name: str,
    bundle: Bundle,
    threads: int = 1,
    weights: Mapping[str, Array] | None = None,
    *,
    provider: str | None = None,
) -> Engine:
    """Open `bundle` with the engine `name` on `threads` CPU threads.

    `weights` are the bundle's, as `read_weights` gives them, for two engines that share one copy; None lets the
    engine read what it needs. `provider` is what ONNX Runtime runs on: `"cpu"` (the same as None), `"cuda"` or
    `"cuda-graph"`.

    Raises:
        UnknownName: no such engine or provider.
        UsageError: a provider for an engine other than ONNX Runtime, or several threads for an engine that uses one.
        MissingDependency: its package is not installed.
        EngineError: it cannot run here.
    """
    if name not in ENGINES:
        raise UnknownName("engine", name, ("auto", *sorted(ENGINES)))
    if provider is not None and provider not in PROVIDERS:
        raise UnknownName("provider", provider, list(PROVIDERS))
    if provider is not None and name != "onnxruntime":
        raise UsageError(f"the provider {provider!r} is ONNX Runtime's; use engine='onnxruntime', not {name!r}")
    if threads > 1 and ({name, provider} & {"numpy", *GPU_ENGINES}):
        raise UsageError(
            f"threads={threads}: the engine {provider if provider in GPU_ENGINES else name!r} uses one CPU thread; "
            "leave threads at 1, or use engine='native' or 'onnxruntime'"
        )
    module, _, attribute = (ENGINES[name] if provider is None else PROVIDERS[provider]).partition(":")
    engine: Engine = getattr(importlib.import_module(module), attribute)(bundle, threads, weights)
    return engine
