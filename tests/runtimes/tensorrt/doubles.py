"""Strict doubles of TensorRT, the CUDA runtime and the CUDA driver, written from their published Python and C APIs.

There is no GPU and no full TensorRT where these tests run. The doubles have the documented names, argument orders and
lifetimes and nothing else: a call that the API does not have fails, as does one out of order (a Runtime before the
driver has answered, an engine dropped before its context, a tensor without an address, memory that was freed, work that
a stream has not been waited for). What they execute is the graph itself, with ONNX Runtime on the CPU, on "device
memory" that is reached through addresses alone; so the numbers that come back went through the whole call sequence.

They prove the calling code against the documents, not TensorRT.
"""

from __future__ import annotations

import ctypes
import sys
import types
import weakref
from collections.abc import Callable
from importlib.machinery import ModuleSpec
from typing import Any

import numpy as np
import onnx
import pytest

from fieldrun_exporters.parity import open_session
from fieldrun_runtimes.tensorrt import device


class Machine:
    """What all doubles share: the driver's state, device memory, streams, and everything that was called."""

    def __init__(self) -> None:
        self.driver_ready = False
        self.memory: dict[int, Any] = {}
        self.pinned: dict[int, Any] = {}
        self.streams: dict[int, Stream] = {}
        self.calls: list[str] = []
        self.capturable = True
        self.parser_error: str | None = None
        self.log_lines: list[str] = []
        self.takes_timings = True

    def view(self, address: int, size: int) -> Any:
        """The bytes at an address of device memory; an address that was never allocated, or was freed, is a fault."""
        assert address in self.memory, f"illegal device address {address:#x}"
        assert len(self.memory[address]) >= size, "out of bounds"
        return self.memory[address]


class Stream:
    """Work that is done when the stream is waited for, or kept in a graph while it captures."""

    def __init__(self) -> None:
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None

    def give(self, work: Callable[[], None]) -> None:
        (self.queue if self.captured is None else self.captured).append(work)

    def wait(self) -> None:
        assert self.captured is None, "cudaErrorStreamCaptureUnsupported"
        while self.queue:
            self.queue.pop(0)()


class Code(int):
    """A cudaError_t."""


SUCCESS, UNSUPPORTED = Code(0), Code(900)


class _Handle:
    def __init__(self, number: int) -> None:
        self.number = number

    def __int__(self) -> int:
        return self.number


class _Enum:
    def __init__(self, name: str, number: int) -> None:
        self.name, self.number = name, number

    def __int__(self) -> int:
        return self.number


def _names(*names: str) -> Any:
    return types.SimpleNamespace(**{name: _Enum(name, number) for number, name in enumerate(names)})


def cuda_runtime(machine: Machine) -> types.ModuleType:
    """`cuda.bindings.runtime`: functions return a tuple whose first item is the error code."""
    module = types.ModuleType("cuda.bindings.runtime")

    def cuda_malloc(size: int) -> tuple[Code, int]:
        block = (ctypes.c_byte * size)()
        address = 0x7000_0000_0000 + 4096 * (len(machine.memory) + 1)  # no host address: only copies may use it
        machine.memory[address] = block
        return SUCCESS, address

    def cuda_free(pointer: int) -> tuple[Code]:
        assert machine.memory.pop(pointer, None) is not None, "freed twice"
        return (SUCCESS,)

    def cuda_host_alloc(size: int, flags: int) -> tuple[Code, int]:
        assert flags == 0
        block = (ctypes.c_byte * size)()
        machine.pinned[ctypes.addressof(block)] = block
        return SUCCESS, ctypes.addressof(block)

    def cuda_free_host(pointer: int) -> tuple[Code]:
        assert machine.pinned.pop(pointer, None) is not None, "freed twice"
        return (SUCCESS,)

    def cuda_memcpy_async(dst: int, src: int, count: int, kind: Any, stream: _Handle) -> tuple[Code]:
        to_device = kind.name == "cudaMemcpyHostToDevice"
        host, there = (src, dst) if to_device else (dst, src)
        assert host in machine.pinned, "an asynchronous copy needs page-locked memory"
        block = machine.view(there, count)

        def work() -> None:
            target, source = (block, machine.pinned[host]) if to_device else (machine.pinned[host], block)
            ctypes.memmove(target, source, count)

        machine.streams[int(stream)].give(work)
        return (SUCCESS,)

    def cuda_stream_create_with_flags(flags: int) -> tuple[Code, _Handle]:
        assert flags == 1, "the default stream's rules would serialise everything"
        handle = _Handle(0x5000 + len(machine.streams))
        machine.streams[int(handle)] = Stream()
        return SUCCESS, handle

    def cuda_stream_synchronize(stream: _Handle) -> tuple[Code]:
        machine.streams[int(stream)].wait()
        return (SUCCESS,)

    def cuda_stream_begin_capture(stream: _Handle, mode: Any) -> tuple[Code]:
        assert mode.name == "cudaStreamCaptureModeThreadLocal"
        machine.streams[int(stream)].captured = []
        return (SUCCESS,)

    def cuda_stream_end_capture(stream: _Handle) -> tuple[Code, Any]:
        found = machine.streams[int(stream)]
        work, found.captured = found.captured, None
        return (SUCCESS, work) if machine.capturable else (UNSUPPORTED, None)

    def cuda_graph_launch(executable: list[Callable[[], None]], stream: _Handle) -> tuple[Code]:
        machine.calls.append("cudaGraphLaunch")
        for work in executable:
            machine.streams[int(stream)].give(work)
        return (SUCCESS,)

    functions: dict[str, Any] = {
        "cudaSetDevice": lambda ordinal: (SUCCESS,) if ordinal == 0 else (UNSUPPORTED,),
        "cudaMalloc": cuda_malloc,
        "cudaFree": cuda_free,
        "cudaHostAlloc": cuda_host_alloc,
        "cudaFreeHost": cuda_free_host,
        "cudaMemcpyAsync": cuda_memcpy_async,
        "cudaStreamCreateWithFlags": cuda_stream_create_with_flags,
        "cudaStreamDestroy": lambda stream: (SUCCESS,),
        "cudaStreamSynchronize": cuda_stream_synchronize,
        "cudaStreamBeginCapture": cuda_stream_begin_capture,
        "cudaStreamEndCapture": cuda_stream_end_capture,
        "cudaGraphInstantiate": lambda graph, flags: (SUCCESS, list(graph)) if flags == 0 else (UNSUPPORTED, None),
        "cudaGraphDestroy": lambda graph: (SUCCESS,),
        "cudaGraphExecDestroy": lambda executable: (SUCCESS,),
        "cudaGraphLaunch": cuda_graph_launch,
        "cudaGetErrorString": lambda code: (SUCCESS, b"operation not supported"),
        "cudaMemcpyKind": _names("cudaMemcpyHostToHost", "cudaMemcpyHostToDevice", "cudaMemcpyDeviceToHost"),
        "cudaStreamCaptureMode": _names("cudaStreamCaptureModeGlobal", "cudaStreamCaptureModeThreadLocal"),
    }
    for name, value in functions.items():
        setattr(module, name, value)
    return module


class Driver:
    """`libcuda.so.1`, as ctypes sees it."""

    def __init__(self, machine: Machine, *, name: bytes = b"Double GPU", capability: tuple[int, int] = (8, 6)) -> None:
        self._machine, self._name, self._capability = machine, name, capability

    def cuInit(self, flags: int) -> int:  # noqa: N802
        self._machine.driver_ready = True
        return 0

    def cuDeviceGetCount(self, count: Any) -> int:  # noqa: N802
        count._obj.value = 1
        return 0

    def cuDeviceGet(self, device_: Any, ordinal: int) -> int:  # noqa: N802
        device_._obj.value = ordinal
        return 0

    def cuDeviceGetName(self, name: Any, size: int, device_: Any) -> int:  # noqa: N802
        name.value = self._name
        return 0

    def cuDeviceGetAttribute(self, value: Any, attribute: int, device_: Any) -> int:  # noqa: N802
        value._obj.value = self._capability[attribute - 75]
        return 0

    def cuDeviceGetUuid(self, uuid: Any, device_: Any) -> int:  # noqa: N802
        uuid.raw = bytes(range(16))
        return 0

    def cuDriverGetVersion(self, version: Any) -> int:  # noqa: N802
        version._obj.value = 13000
        return 0


class HostMemory:
    """IHostMemory: a buffer."""

    def __init__(self, data: bytes) -> None:
        self._data = data

    def __buffer__(self, flags: int) -> memoryview:
        return memoryview(self._data)

    def __bytes__(self) -> bytes:
        return self._data

    @property
    def nbytes(self) -> int:
        return len(self._data)


def tensorrt(machine: Machine, version: str, *, rtx: bool = False, typed_flag: bool = True) -> types.ModuleType:
    """The module `tensorrt` or `tensorrt_rtx` of `version`."""
    module = types.ModuleType("tensorrt_rtx" if rtx else "tensorrt")
    module.__spec__ = ModuleSpec(module.__name__, None)  # so that the doctor can look for it
    alive: weakref.WeakSet[Any] = weakref.WeakSet()

    class Severity:
        pass

    class ILogger:
        INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = (Severity() for _ in range(5))

        def __init__(self) -> None:
            self._made = True

    class Logger(ILogger):
        def __init__(self, min_severity: Any) -> None:
            super().__init__()

        def log(self, severity: Any, message: str) -> None:
            pass

    class Config:
        __slots__ = ("_timing", "num_compute_capabilities", "profiling_verbosity", "target")
        profiling_verbosity: Any

        def __init__(self) -> None:
            self._timing: Any = None
            self.num_compute_capabilities = 0
            self.target: Any = None

        def clear_flag(self, flag: Any) -> None:
            assert flag.name == "TF32", f"{flag.name} is a precision flag"

        def set_memory_pool_limit(self, pool: Any, pool_size: int) -> None:
            assert (pool.name, pool_size) == ("WORKSPACE", 256 << 20)

        def create_timing_cache(self, serialized_timing_cache: bytes) -> Any:
            assert not rtx, "deprecated in TensorRT-RTX"
            machine.calls.append(f"timing {len(serialized_timing_cache)}")
            head, _, made_by = serialized_timing_cache.partition(b" by ")
            if serialized_timing_cache and head != b"measured":
                return None  # bytes that are no timing cache
            made = made_by.decode() or version
            return types.SimpleNamespace(made_by=made, serialize=lambda: HostMemory(f"measured by {made}".encode()))

        def set_timing_cache(self, cache: Any, ignore_mismatch: bool) -> bool:
            assert cache is not None
            assert not ignore_mismatch, "a cache of another GPU must not decide"
            if not machine.takes_timings or cache.made_by != version:
                return False
            self._timing = cache
            return True

        def set_compute_capability(self, compute_capability: Any, index: int) -> bool:
            assert rtx
            assert 0 <= index < self.num_compute_capabilities
            self.target = compute_capability
            return True

    class Network:
        model: bytes | None = None

    class OnnxParser:
        num_errors = 0

        def __init__(self, network: Network, logger: Any) -> None:
            assert isinstance(logger, ILogger)
            self._network, self._logger = network, logger

        def parse(self, model: bytes, path: str | None = None) -> bool:
            assert isinstance(model, bytes)
            assert path is None, "the parser would open the weights by path"
            if machine.parser_error is not None:
                self.num_errors = 1
                return False
            self._network.model = model
            return True

        def get_error(self, index: int) -> Any:
            assert index < self.num_errors
            return types.SimpleNamespace(desc=lambda: machine.parser_error)

    class Builder:
        def __init__(self, logger: Any) -> None:
            assert isinstance(logger, ILogger)
            assert rtx or machine.driver_ready, "TensorRT's builder needs a GPU"
            self._logger: Any = logger

        def create_network(self, flags: int = 0) -> Network:
            if typed_flag:
                assert flags == 1 << 1, "not strongly typed: the builder would choose the precision"
            else:
                assert flags == 0, "an unknown flag"
            return Network()

        def create_builder_config(self) -> Config:
            return Config()

        def build_serialized_network(self, network: Network, config: Config) -> HostMemory | None:
            assert network.model is not None
            assert config.profiling_verbosity.name == "DETAILED"
            machine.calls.append(f"build {onnx.load_model_from_string(network.model).graph.name}")
            self._logger.log(ILogger.VERBOSE, "\n".join(["Layers:", *machine.log_lines]))
            return HostMemory(version.encode() + b"\n" + network.model)

    class Runtime:
        def __init__(self, logger: Any) -> None:
            assert isinstance(logger, ILogger)
            assert machine.driver_ready, "a Runtime without a driver crashes the process when it ends"
            self._logger = logger
            alive.add(self)
            machine.calls.append("Runtime")

        def deserialize_cuda_engine(self, serialized_engine: bytes) -> Any:
            machine.calls.append("deserialize_cuda_engine")
            made_by, _, model = bytes(serialized_engine).partition(b"\n")
            return Engine(self, model) if made_by.decode() == version else None

    class Engine:
        def __init__(self, runtime: Any, graph: bytes) -> None:
            self._runtime: Any = weakref.ref(runtime)
            model = onnx.load_model_from_string(graph)
            self._session = open_session(graph, literal=True)
            self._tensors = [*((t, True) for t in model.graph.input), *((t, False) for t in model.graph.output)]
            self.num_io_tensors = len(self._tensors)

        def _find(self, name: str) -> tuple[Any, bool]:
            return next((t, is_input) for t, is_input in self._tensors if t.name == name)

        def get_tensor_name(self, index: int) -> str:
            return str(self._tensors[index][0].name)

        def get_tensor_shape(self, name: str) -> tuple[int, ...]:
            return tuple(d.dim_value for d in self._find(name)[0].type.tensor_type.shape.dim)

        def get_tensor_dtype(self, name: str) -> Any:
            return self._find(name)[0].type.tensor_type.elem_type

        def get_tensor_mode(self, name: str) -> Any:
            return module.TensorIOMode.INPUT if self._find(name)[1] else module.TensorIOMode.OUTPUT

        def create_execution_context(self) -> Any:
            return Context(self)

    class Context:
        def __init__(self, engine: Any) -> None:
            self._engine: Any = weakref.ref(engine)
            self._addresses: dict[str, int] = {}

        def set_tensor_address(self, name: str, memory: int) -> bool:
            assert isinstance(memory, int)
            self._addresses[name] = memory
            return True

        def execute_async_v3(self, stream_handle: int) -> bool:
            assert isinstance(stream_handle, int)
            engine = self._engine()
            assert engine is not None, "the engine was let go of before its context"
            assert engine._runtime() is not None, "the runtime was let go of before its engine"
            arrays = {}
            for number in range(engine.num_io_tensors):
                name = engine.get_tensor_name(number)
                shape, dtype = engine.get_tensor_shape(name), module.nptype(engine.get_tensor_dtype(name))
                block = machine.view(self._addresses[name], int(np.prod(shape)) * np.dtype(dtype).itemsize)
                arrays[name] = np.frombuffer(block, dtype).reshape(shape)

            def work() -> None:
                inputs = {t.name: arrays[t.name] for t, is_input in engine._tensors if is_input}
                outputs = [t.name for t, is_input in engine._tensors if not is_input]
                for name, value in zip(outputs, engine._session.run(outputs, inputs), strict=True):
                    arrays[name][...] = value

            machine.calls.append("execute_async_v3")
            machine.streams[stream_handle].give(work)
            return True

    flags = ["EXPLICIT_BATCH", "STRONGLY_TYPED"] if typed_flag else ["EXPLICIT_BATCH"]
    precision = ["FP16", "INT8"] if version.startswith("10") else []
    members: dict[str, Any] = {
        "__version__": version,
        "ILogger": ILogger,
        "Logger": Logger,
        "Builder": Builder,
        "OnnxParser": OnnxParser,
        "Runtime": Runtime,
        "NetworkDefinitionCreationFlag": _names(*flags),
        "BuilderFlag": _names("TF32", *precision),
        "MemoryPoolType": _names("WORKSPACE"),
        "ProfilingVerbosity": _names("DETAILED"),
        "TensorIOMode": _names("NONE", "INPUT", "OUTPUT"),
        "nptype": lambda kind: {1: np.float32, 6: np.int32}[kind],
    }
    if rtx:
        capabilities = {name: _Enum(name, i) for i, name in enumerate(("NONE", "CURRENT", "SM86", "SM89", "SM120"))}
        members["ComputeCapability"] = types.SimpleNamespace(__members__=capabilities)
    for name, value in members.items():
        setattr(module, name, value)
    return module


def install(
    monkeypatch: pytest.MonkeyPatch,
    *,
    version: str = "10.3.0",
    rtx: bool = False,
    typed_flag: bool = True,
    gpu: bytes | None = b"Double GPU",
) -> Machine:
    """Put the doubles in place of the packages and of the driver, `gpu` None for a machine without one."""
    machine = Machine()
    name = "tensorrt_rtx" if rtx else "tensorrt"
    monkeypatch.setitem(sys.modules, name, tensorrt(machine, version, rtx=rtx, typed_flag=typed_flag))
    bindings = types.ModuleType("cuda.bindings")
    bindings.runtime = cuda_runtime(machine)  # type: ignore[attr-defined]
    package = types.ModuleType("cuda")
    package.bindings = bindings  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "cuda", package)
    monkeypatch.setitem(sys.modules, "cuda.bindings", bindings)
    monkeypatch.setitem(sys.modules, "cuda.bindings.runtime", bindings.runtime)

    def load(path: str) -> Any:
        assert path == "libcuda.so.1"
        if gpu is None:
            raise OSError("libcuda.so.1: cannot open shared object file")
        return Driver(machine, name=gpu)

    shim = types.SimpleNamespace(**{key: getattr(ctypes, key) for key in ("byref", "c_int", "create_string_buffer")})
    shim.CDLL = load
    monkeypatch.setattr(device, "ctypes", shim)
    device.find_gpu.cache_clear()
    return machine
