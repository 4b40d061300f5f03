"""Device memory, streams and CUDA graphs, through NVIDIA's own `cuda-bindings`, imported when first needed."""

from __future__ import annotations

import ctypes
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np

from fieldrun.errors import EngineError, MissingDependency
from fieldrun.formats.tensors import Array

from ..engines.packages import importing

__all__ = ["Buffer", "Stream", "call", "load_runtime"]

_INSUFFICIENT_DRIVER = 35  # cudaErrorInsufficientDriver
_NON_BLOCKING = 1  # cudaStreamNonBlocking: does not wait for the default stream


def load_runtime() -> Any:
    """Import the bindings of the CUDA runtime; `MissingDependency` if not installed, `EngineError` if broken."""
    with importing("cuda.bindings.runtime", MissingDependency("cuda-bindings", "tensorrt")):
        from cuda.bindings import runtime
    return runtime


def call(runtime: Any, name: str, *arguments: Any) -> Any:
    """Call the CUDA function `name` and return its result, or None; `EngineError` names the failure."""
    code, *results = getattr(runtime, name)(*arguments)
    if int(code) != 0:
        reason = runtime.cudaGetErrorString(code)[1].decode("utf-8", "replace")
        if int(code) == _INSUFFICIENT_DRIVER:
            raise EngineError(
                f"{name}: {reason}: cuda-python is newer than this driver; pip install 'cuda-bindings<13' for CUDA 12, "
                "which JetPack 6 has"
            )
        raise EngineError(f"{name}: {reason}; is the GPU out of memory or used by another process?")
    return results[0] if results else None


class Stream:
    """A CUDA stream and the graphs captured on it. Freed with the object, or when the process ends."""

    def __init__(self, runtime: Any) -> None:
        self._runtime = runtime
        self._stream = call(runtime, "cudaStreamCreateWithFlags", _NON_BLOCKING)
        self.handle = int(self._stream)
        weakref.finalize(self, runtime.cudaStreamDestroy, self._stream)

    def upload(self, buffer: Buffer) -> None:
        """Copy a buffer's host side to the device, after the work that the stream already has."""
        self._copy(buffer.address, buffer.pinned, buffer, "cudaMemcpyHostToDevice")

    def download(self, buffer: Buffer) -> None:
        """Copy a buffer's device side to the host."""
        self._copy(buffer.pinned, buffer.address, buffer, "cudaMemcpyDeviceToHost")

    def _copy(self, to: int, source: int, buffer: Buffer, kind: str) -> None:
        way = getattr(self._runtime.cudaMemcpyKind, kind)
        call(self._runtime, "cudaMemcpyAsync", to, source, buffer.host.nbytes, way, self._stream)

    def wait(self) -> None:
        """Wait until all work of the stream is done."""
        call(self._runtime, "cudaStreamSynchronize", self._stream)

    def capture(self, work: Callable[[], None]) -> Callable[[], None]:
        """Record what `work` puts on the stream and return a function that repeats it with one launch.

        Raises:
            EngineError: `work` does something that a CUDA graph cannot contain.
        """
        mode = self._runtime.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        call(self._runtime, "cudaStreamBeginCapture", self._stream, mode)
        try:
            work()
        finally:  # a stream that keeps capturing is of no other use
            graph = call(self._runtime, "cudaStreamEndCapture", self._stream)
        executable = call(self._runtime, "cudaGraphInstantiate", graph, 0)
        call(self._runtime, "cudaGraphDestroy", graph)
        weakref.finalize(self, self._runtime.cudaGraphExecDestroy, executable)
        runtime, stream = self._runtime, self._stream
        return lambda: call(runtime, "cudaGraphLaunch", executable, stream)


class Buffer:
    """One tensor on the device at `address`, with a page-locked copy `host` of the same shape and dtype."""

    def __init__(self, runtime: Any, shape: tuple[int, ...], dtype: Any) -> None:
        size = int(np.prod(shape)) * np.dtype(dtype).itemsize
        self.address = int(call(runtime, "cudaMalloc", size))
        weakref.finalize(self, runtime.cudaFree, self.address)
        self.pinned = int(call(runtime, "cudaHostAlloc", size, 0))
        # callers get copies of the array, which may outlive the buffer
        weakref.finalize(self, runtime.cudaFreeHost, self.pinned)
        raw = (ctypes.c_byte * size).from_address(self.pinned)
        self.host: Array = np.frombuffer(raw, dtype).reshape(shape)
