"""The ONNX Runtime engine: one session per bucket, opened when the bucket is first used.

Telemetry is off before the first import, spinning is off, threads are what was asked for, and the provider is read back
from the session: the one that was asked for, or an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fieldrun.errors import BundleError, EngineError, MissingDependency
from fieldrun.formats.bundle import Bundle, GraphNetwork
from fieldrun.formats.tensors import Array, read_tensors

from .buckets import Call, GraphEngine
from .packages import importing
from .weights import map_weights

__all__ = ["OnnxRuntimeEngine", "import_onnxruntime", "open_session"]

PROVIDER = "CPUExecutionProvider"


def import_onnxruntime() -> Any:
    """Import onnxruntime with its telemetry off.

    Raises:
        MissingDependency: it is not installed.
        EngineError: it is installed and broken.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    with importing("onnxruntime", MissingDependency("onnxruntime", "ort")):
        import onnxruntime
    return onnxruntime


def open_session(ort: Any, graph: Path, options: Any, provider: str, settings: Mapping[str, str] | None = None) -> Any:
    """Open a session of the file `graph` on `provider` and no other.

    Raises:
        EngineError: ONNX Runtime cannot open the graph, or took another provider.
    """
    options.log_severity_level = 3
    try:
        session = ort.InferenceSession(str(graph), options, providers=[(provider, dict(settings or {}))])
    except Exception as error:  # onnxruntime's own kinds are not importable by name
        raise EngineError(f"ONNX Runtime cannot open {graph.name}: {' '.join(str(error).split())}") from error
    if session.get_providers()[:1] != [provider]:
        raise EngineError(
            f"asked ONNX Runtime for {provider}, it took {session.get_providers()}: a library of it is missing or has "
            "another version; see 'fieldrun doctor'"
        )
    return session


class OnnxRuntimeEngine(GraphEngine):
    """Runs the bundle's graphs on the CPU provider; `weights.safetensors` is mapped, not read."""

    def __init__(self, bundle: Bundle, threads: int, weights: Mapping[str, Array] | None = None) -> None:
        super().__init__(bundle, bundle.manifest)
        self._ort = import_onnxruntime()
        self._path, self._threads = bundle.path, threads
        # all sessions share one mapping of the table: each would map it again, and resident memory would count it again
        self._rows: Array | None = None
        if not isinstance(self._network, GraphNetwork):
            weights = map_weights(bundle) if weights is None else weights
            if "table" not in weights:
                raise BundleError(f"{bundle.path}: weights.safetensors has no table; copy it again")
            self._rows = weights["table"]
            self._table = self._ort.OrtValue.ortvalue_from_numpy(self._rows)
            # the graphs of a packed table take the table as an input, all others as an initializer
            self._packed = "table.width" in read_tensors(bundle.path / "weights.safetensors")

    def _open(self, graph: str) -> Call:
        takes_table = self._rows is not None and graph not in self.pair_graphs.values()
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        # the buffers of a batch are large and its calls rare: give them back instead of keeping an arena per bucket
        options.enable_cpu_mem_arena = any(b.graph == graph and b.batch == 1 for b in self.buckets)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        if takes_table and not self._packed:
            options.add_initializer("table", self._table)
        session = open_session(self._ort, self._path / graph, options, PROVIDER)
        table = {"table": self._rows} if takes_table and self._packed else {}
        outputs = [output.name for output in session.get_outputs()]

        def call(inputs: dict[str, Array]) -> Array:
            try:
                output: Array = session.run(outputs, inputs | table)[0]
            except Exception as error:
                raise EngineError(f"ONNX Runtime cannot run {graph}: {error}; copy the bundle again") from error
            return output

        return call
