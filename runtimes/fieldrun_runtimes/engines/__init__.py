"""Engines: what runs a bundle's network. Each is one module with one class, found by name and imported on first use."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Protocol, runtime_checkable

from fieldrun.errors import BundleError, EngineError, UnknownName, UsageError
from fieldrun.formats.bundle import Bundle, GraphNetwork, Network
from fieldrun.formats.packing import expand
from fieldrun.formats.tensors import Array, read_tensors

__all__ = ["ENGINES", "PROVIDERS", "Engine", "UnpaddedEngine", "lookup_network", "map_weights", "open_engine"]

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


class Engine(Protocol):
    """What the model needs of an engine. Implementations are thread-safe and hold no state between calls."""

    def run(self, ids: Array) -> tuple[Array, Array]:
        """Return field `(batch, dim)` and logits of all single tasks `(batch, labels)`, float32.

        `ids` is framed for one of the bundle's buckets (`Network.frame`), no row all padding.
        """
        ...

    def run_pairs(self, a: Array, b: Array) -> Array:
        """Return the logits of all pair tasks `(batch, labels) float32` for two fields `(batch, dim) float32`."""
        ...


@runtime_checkable
class UnpaddedEngine(Engine, Protocol):
    """An engine that needs no buckets: it takes many texts in one call, each as long as it is."""

    def run_unpadded(self, sequences: Sequence[Sequence[int]]) -> tuple[Array, Array]:
        """Return what `run` does, for token ids without frame or padding, none longer than the largest bucket."""
        ...


def open_engine(
    name: str,
    bundle: Bundle,
    threads: int,
    weights: Mapping[str, Array] | None = None,
    *,
    provider: str | None = None,
) -> Engine:
    """Open `bundle` with the engine `name` on `threads` CPU threads.

    `weights` are the bundle's, mapped by `map_weights`; two engines that are given the same share one mapping. Without
    them the native engine leaves a packed table as it is, and opens a row when a text first needs it.
    `provider` is what ONNX Runtime runs on: `"cpu"`, which None means too, `"cuda"` or `"cuda-graph"`.

    Raises:
        UnknownName: no such engine or provider.
        UsageError: a provider for an engine that has none.
        MissingDependency: its package is not installed.
        EngineError: it cannot run here.
    """
    if name not in ENGINES:
        raise UnknownName("engine", name, ("auto", *sorted(ENGINES)))
    if provider is not None and provider not in PROVIDERS:
        raise UnknownName("provider", provider, list(PROVIDERS))
    if provider is not None and name != "onnxruntime":
        raise UsageError(f"the provider {provider!r} is ONNX Runtime's; use engine='onnxruntime', not {name!r}")
    module, _, attribute = (ENGINES[name] if provider is None else PROVIDERS[provider]).partition(":")
    if weights is None:
        weights = map_weights(bundle, packed_table=name == "native")
    engine: Engine = getattr(importlib.import_module(module), attribute)(bundle, threads, weights)
    return engine


def map_weights(bundle: Bundle, *, packed_table: bool = False) -> dict[str, Array]:
    """Map `weights.safetensors` of `bundle` and open what is packed; `BundleError` when it is not what it says.

    With `packed_table` a packed table is left in its parts, for the native engine, which opens rows as they are needed.
    Nothing is mapped of a bundle that is nothing but graphs: the engine that runs these maps their weights itself.
    """
    if isinstance(bundle.manifest.network, GraphNetwork):
        return {}
    try:
        return expand(read_tensors(bundle.path / "weights.safetensors"), but=("table",) if packed_table else ())
    except ValueError as error:
        raise BundleError(f"{bundle.path}: weights.safetensors cannot be used ({error}); copy it again") from error


def lookup_network(bundle: Bundle, engine: str) -> Network:
    """Return the look-up network of `bundle`; `EngineError` when it is a graph, which `engine` does not run."""
    network = bundle.manifest.network
    if isinstance(network, GraphNetwork):
        raise EngineError(
            f"{bundle.path} is an ONNX graph, which the engine {engine!r} does not run; use engine='onnxruntime'"
        )
    return network
