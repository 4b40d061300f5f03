"""ONNX Runtime on a GPU: the CUDA provider for every node, or an error; `engine="onnxruntime", provider="cuda"`.

It runs the graphs in TensorRT's spelling: ONNX Runtime has no integer matrix product on a GPU, and one node that goes
back to the CPU would be paid for with two copies in every call. Inputs and outputs are bound to fixed buffers on the
device. `provider="cuda-graph"` also captures the call as a CUDA graph, where the driver and the kernels allow it.
"""

from __future__ import annotations

import contextlib
import io
import threading
from collections.abc import Mapping
from typing import Any

import numpy as np

from fieldrun.errors import EngineError
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.tensors import Array

from ..tensorrt.device import require_gpu
from .onnxruntime_engine import import_onnxruntime

__all__ = ["CudaEngine", "CudaGraphEngine"]

PROVIDER = "CUDAExecutionProvider"


class CudaEngine:
    """Runs a bundle's TensorRT graphs on ONNX Runtime's CUDA provider."""

    capture = False

    def __init__(self, bundle: Bundle, threads: int, weights: Mapping[str, Array]) -> None:
        del threads, weights
        self._ort = import_onnxruntime()
        if PROVIDER not in self._ort.get_available_providers():
            raise EngineError(
                f"this onnxruntime {self._ort.__version__} has no CUDA provider: pip uninstall onnxruntime && "
                "pip install 'onnxruntime-gpu[cuda,cudnn]'; or use engine='auto' to run on the CPU"
            )
        require_gpu()
        _load_cuda_libraries(self._ort)
        graphs = bundle.manifest.tensorrt
        if graphs is None:
            raise EngineError(
                f"{bundle.path} has no graphs that ONNX Runtime can run whole on a GPU; "
                "export with a recipe that has [tensorrt], such as jetson-orin-int8"
            )
        self._path = bundle.path
        network = bundle.manifest.network
        margins = sum(network.margins)
        self._dim = network.field_dim
        columns = self._dim + sum(len(t.labels) for t in bundle.manifest.tasks if t.kind == "single")
        labels = sum(len(t.labels) for t in bundle.manifest.tasks if t.kind == "pair")
        self._graphs = {(b.batch, margins + b.length): b.graph for b in graphs.buckets}
        self._pairs = dict(graphs.pair_graphs)
        self._shapes: dict[str, dict[str, tuple[tuple[int, ...], Any]]] = {
            graph: {"ids": (shape, np.int32), "output": ((shape[0], columns), np.float32)}
            for shape, graph in self._graphs.items()
        }
        for batch, graph in self._pairs.items():
            side = ((batch, self._dim), np.float32)
            self._shapes[graph] = {"a": side, "b": side, "logits": ((batch, labels), np.float32)}
        self._slots: dict[str, _Slot] = {}
        self._lock = threading.Lock()

    def run(self, ids: Array) -> tuple[Array, Array]:
        """Return field `(batch, dim)` and logits `(batch, labels)` of `ids`, framed for one of the buckets."""
        graph = self._graphs.get(ids.shape)
        if graph is None:
            raise EngineError(f"no bucket for ids of shape {ids.shape}; the bundle has {sorted(self._graphs)}")
        output = self._slot(graph)({"ids": ids})
        return output[:, : self._dim], output[:, self._dim :]

    def run_pairs(self, a: Array, b: Array) -> Array:
        """Return the pair tasks' logits `(batch, labels) float32`; `batch` must be one of the pair graphs'."""
        graph = self._pairs.get(len(a))
        if graph is None:
            raise EngineError(f"no pair graph for a batch of {len(a)}; there are {sorted(self._pairs)}")
        return self._slot(graph)({"a": a, "b": b})

    def _slot(self, graph: str) -> _Slot:
        with self._lock:
            if graph not in self._slots:
                self._slots[graph] = _Slot(self._ort, self._session(graph), self._shapes[graph])
            return self._slots[graph]

    def _session(self, graph: str) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        # a node that the provider does not take is an error, not a node on the CPU
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        # the table is dequantized once, when the graph is opened, and not in every call
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        settings = {"device_id": "0", "use_tf32": "0", "enable_cuda_graph": "1" if self.capture else "0"}
        try:
            session = self._ort.InferenceSession(str(self._path / graph), options, providers=[(PROVIDER, settings)])
        except Exception as error:  # onnxruntime's own kinds are not importable by name
            raise EngineError(f"ONNX Runtime cannot open {graph} on the GPU: {' '.join(str(error).split())}") from error
        if session.get_providers()[:1] != [PROVIDER]:
            raise EngineError(
                f"asked ONNX Runtime for {PROVIDER}, it took {session.get_providers()}: a library of CUDA is missing "
                "or of another version; see 'fieldrun doctor'"
            )
        return session


def _load_cuda_libraries(ort: Any) -> None:
    """Load the CUDA libraries that pip installed, which the loader does not find by itself; ONNX Runtime has the list.

    It prints what it does not find. A library that is missing indeed is an error when the first session is opened.
    """
    if hasattr(ort, "preload_dlls"):  # from 1.21 on
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()


class CudaGraphEngine(CudaEngine):
    """The same with the call of a bucket captured as a CUDA graph."""

    capture = True


class _Slot:
    """A session whose inputs and output are bound to buffers on the device. One call at a time."""

    def __init__(self, ort: Any, session: Any, shapes: Mapping[str, tuple[tuple[int, ...], Any]]) -> None:
        self._session = session
        self._values = {
            name: ort.OrtValue.ortvalue_from_numpy(np.zeros(shape, dtype), "cuda", 0)
            for name, (shape, dtype) in shapes.items()
        }
        *inputs, output = shapes
        self._output = output
        self._binding = session.io_binding()
        for name in inputs:
            self._binding.bind_ortvalue_input(name, self._values[name])
        self._binding.bind_ortvalue_output(output, self._values[output])
        self._lock = threading.Lock()

    def __call__(self, inputs: Mapping[str, Array]) -> Array:
        with self._lock:
            try:
                for name, value in inputs.items():
                    self._values[name].update_inplace(np.ascontiguousarray(value))
                self._session.run_with_iobinding(self._binding)
                found: Array = np.array(self._values[self._output].numpy())  # a copy: the next call writes there
            except Exception as error:
                raise EngineError(f"ONNX Runtime cannot run on the GPU: {' '.join(str(error).split())}") from error
            return found
