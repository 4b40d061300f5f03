"""ONNX Runtime on a GPU: the CUDA provider for every node, or an error; `engine="onnxruntime", provider="cuda"`.

It runs the bundle's TensorRT graphs: ONNX Runtime has no integer matrix product on a GPU, and a single node on the CPU
would cost two copies in every call. Inputs and outputs are bound to fixed buffers on the device.
`provider="cuda-graph"` also captures the call as a CUDA graph, where the driver and the kernels allow it.
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
from .buckets import Call, GraphEngine
from .onnxruntime_engine import import_onnxruntime, open_session

__all__ = ["CudaEngine", "CudaGraphEngine"]

PROVIDER = "CUDAExecutionProvider"
_TYPES = {"tensor(int32)": np.int32, "tensor(float)": np.float32}


class CudaEngine(GraphEngine):
    """Runs a bundle's TensorRT graphs on ONNX Runtime's CUDA provider.

    A text gives the same numbers in the same bucket; in a bucket of another size a kernel may add in another order.
    """

    capture = False

    def __init__(self, bundle: Bundle, threads: int, weights: Mapping[str, Array] | None = None) -> None:
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
        super().__init__(bundle, graphs)
        self._bundle = bundle

    def _open(self, graph: str) -> Call:
        options = self._ort.SessionOptions()
        # a node that the provider does not take is an error, not a node on the CPU
        options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
        # the table is dequantized once, when the graph is opened, and not in every call
        options.add_session_config_entry("session.disable_quant_qdq", "1")
        settings = {"device_id": "0", "use_tf32": "0", "enable_cuda_graph": "1" if self.capture else "0"}
        session, _ = open_session(self._ort, self._bundle, graph, options, PROVIDER, settings)
        return _Bound(self._ort, session)


def _load_cuda_libraries(ort: Any) -> None:
    """Load the CUDA libraries that pip installed, which the loader does not find by itself; ONNX Runtime has the list.

    It prints what it does not find. A library that is needed and missing is an error when the first session is opened.
    """
    if hasattr(ort, "preload_dlls"):  # from 1.21 on
        with contextlib.redirect_stdout(io.StringIO()):
            ort.preload_dlls()


class CudaGraphEngine(CudaEngine):
    """The same with the call of a bucket captured as a CUDA graph."""

    capture = True


class _Bound:
    """A session whose inputs and output are bound to buffers on the device. One call at a time."""

    def __init__(self, ort: Any, session: Any) -> None:
        def on_device(tensor: Any) -> Any:
            return ort.OrtValue.ortvalue_from_numpy(np.zeros(tensor.shape, _TYPES[tensor.type]), "cuda", 0)

        self._session = session
        self._inputs = {tensor.name: on_device(tensor) for tensor in session.get_inputs()}
        (output,) = session.get_outputs()
        self._output = on_device(output)
        self._binding = session.io_binding()
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        self._binding.bind_ortvalue_output(output.name, self._output)
        self._lock = threading.Lock()

    def __call__(self, inputs: Mapping[str, Array]) -> Array:
        with self._lock:
            try:
                for name, value in inputs.items():
                    self._inputs[name].update_inplace(np.ascontiguousarray(value))
                self._session.run_with_iobinding(self._binding)
                found: Array = np.array(self._output.numpy())  # a copy: the next call writes there
            except Exception as error:
                raise EngineError(f"ONNX Runtime cannot run on the GPU: {' '.join(str(error).split())}") from error
            return found
