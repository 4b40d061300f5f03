"""The engines `tensorrt` and `tensorrt-rtx`: what `fieldrun build` built on this machine, a CUDA graph for each bucket.

A bucket has fixed shapes, so its buffers, their addresses and the whole call (copy in, run, copy out) are set up once
and captured as a CUDA graph; a call is then one launch. Each bucket has its own stream and lock.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import ModuleType
from typing import Any, ClassVar

import numpy as np

from fieldrun.errors import EngineError
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.tensors import Array

from ..engines.buckets import Call, GraphEngine
from . import cuda
from .cache import EngineCache
from .device import require_gpu
from .key import keys_of
from .library import load_library, quiet_logger

__all__ = ["TensorrtEngine", "TensorrtRtxEngine", "built_engines"]


class TensorrtEngine(GraphEngine):
    """Runs a bundle's engines with TensorRT, which hold the weights."""

    target: ClassVar[str] = "tensorrt"

    def __init__(self, bundle: Bundle, threads: int, weights: Mapping[str, Array] | None = None) -> None:
        del threads, weights
        library = load_library(self.target)
        gpu = require_gpu()  # before a Runtime is made: one without a driver crashes the process when it ends
        self._keys = keys_of(bundle, self.target, library, gpu)
        self._cuda = cuda.load_runtime()
        cuda.call(self._cuda, "cudaSetDevice", 0)
        graphs = bundle.manifest.tensorrt
        if graphs is None:  # keys_of has refused such a bundle
            raise EngineError(f"{bundle.path} has no TensorRT graphs")
        super().__init__(bundle, graphs)
        self._remedy = f"run: fieldrun build {bundle.path} --target {self.target}"
        self._store = EngineCache()
        self._folder = self._store.folder(bundle, next(iter(self._keys.values())))
        for key in self._keys.values():  # at once, and not when the first text of some length comes
            self._store.check(self._folder, key, self._remedy)
        self._library, self._log = library, quiet_logger(library)
        self._runtime = library.Runtime(self._log)

    def _open(self, graph: str) -> Call:
        serialized = self._store.read(self._folder, self._keys[graph], self._remedy)
        engine = self._runtime.deserialize_cuda_engine(serialized)
        if engine is None:
            raise EngineError(
                f"{self.target} cannot open its own engine of {graph}: {self._log.words()}; {self._remedy}"
            )
        return _Context(self._library, self._cuda, engine, graph)


class TensorrtRtxEngine(TensorrtEngine):
    """The same with TensorRT-RTX."""

    target = "tensorrt-rtx"


def built_engines(bundle: Bundle, target: str) -> list[dict[str, Any]]:
    """Return graph, bucket, bytes, sha256, layers and seconds of every engine of `bundle` on this machine.

    Raises:
        EngineError, EngineStale: an engine is missing, or was built for another machine.
        MissingDependency: TensorRT is not installed.
    """
    keys = keys_of(bundle, target, load_library(target), require_gpu())
    store = EngineCache()
    folder = store.folder(bundle, next(iter(keys.values())))
    found = []
    for key in keys.values():
        sidecar = store.check(folder, key, f"run: fieldrun build {bundle.path} --target {target}")
        found.append({"graph": key.graph, "bucket": key.bucket, **sidecar["engine"], **sidecar.get("about", {})})
    return found


class _Context:
    """One engine ready to run: its context, buffers and stream. One call at a time; others wait."""

    def __init__(self, library: ModuleType, runtime: Any, engine: Any, graph: str) -> None:
        self._graph, self._runtime = graph, runtime
        self._engine = engine  # a context needs its engine alive
        self._context = engine.create_execution_context()
        if self._context is None:
            raise EngineError(f"no memory on the GPU for {graph}; close other programs or use smaller batches")
        self._stream = cuda.Stream(runtime)
        self._inputs: dict[str, cuda.Buffer] = {}
        for number in range(engine.num_io_tensors):
            name = engine.get_tensor_name(number)
            shape, dtype = tuple(engine.get_tensor_shape(name)), library.nptype(engine.get_tensor_dtype(name))
            buffer = cuda.Buffer(runtime, shape, dtype)
            if engine.get_tensor_mode(name) == library.TensorIOMode.INPUT:
                self._inputs[name] = buffer
            else:
                self._output = buffer
            if not self._context.set_tensor_address(name, buffer.address):
                raise EngineError(f"TensorRT does not take the address of {name!r} in {graph}")
        self._lock = threading.Lock()
        self._launch = self._prepare()

    def _prepare(self) -> Callable[[], None]:
        """Return what runs the engine once: a captured graph, or the calls themselves if they cannot be captured."""
        for buffer in self._inputs.values():
            buffer.host[...] = 0
        self._enqueue()  # what TensorRT sets up in its first call must not be captured
        self._stream.wait()
        try:
            return self._stream.capture(self._enqueue)
        except EngineError:  # a kernel synchronises; the calls themselves give the same answers
            return self._enqueue

    def _enqueue(self) -> None:
        for buffer in self._inputs.values():
            self._stream.upload(buffer)
        if not self._context.execute_async_v3(self._stream.handle):
            raise EngineError(f"TensorRT cannot run {self._graph}")
        self._stream.download(self._output)

    def __call__(self, inputs: Mapping[str, Array]) -> Array:
        with self._lock:
            cuda.call(self._runtime, "cudaSetDevice", 0)  # the current device is a thread's own
            for name, value in inputs.items():
                np.copyto(self._inputs[name].host, value, casting="same_kind")
            self._launch()
            self._stream.wait()
            return self._output.host.copy()
