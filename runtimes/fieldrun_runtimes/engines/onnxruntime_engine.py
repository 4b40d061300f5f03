"""The ONNX Runtime engine: one session per bucket, opened when the bucket is first used.

Telemetry is off before the first import, spinning is off, threads are what was asked for, and the provider is read back
from the session: the one that was asked for, or an error.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Mapping
from typing import Any

from fieldrun.errors import BundleError, EngineError, MissingDependency
from fieldrun.formats.bundle import Bundle, GraphNetwork
from fieldrun.formats.tensors import Array, read_tensors

from .packages import importing

__all__ = ["PROVIDER", "OnnxRuntimeEngine", "import_onnxruntime"]

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


class OnnxRuntimeEngine:
    """Runs the bundle's graphs on the CPU provider; `weights.safetensors` is mapped, not read."""

    def __init__(self, bundle: Bundle, threads: int, weights: Mapping[str, Array]) -> None:
        self._ort = import_onnxruntime()
        self._bundle, self._threads = bundle, threads
        network = bundle.manifest.network
        margins = sum(network.margins)
        self._graphs = {(b.batch, margins + b.length): b.graph for b in bundle.manifest.buckets}
        self._dim = network.field_dim
        self._pairs = set(bundle.manifest.pair_graphs.values())
        # one mapping of the table for all sessions: each would map it again, and resident memory would count it again
        self._table, self._packed = None, False
        if not isinstance(network, GraphNetwork):
            if "table" not in weights:
                raise BundleError(f"{bundle.path}: weights.safetensors has no table; copy it again")
            self._rows = weights["table"]
            self._table = self._ort.OrtValue.ortvalue_from_numpy(self._rows)
            self._packed = "table.width" in read_tensors(bundle.path / "weights.safetensors")
        self._small = {b.graph for b in bundle.manifest.buckets if b.batch == 1}
        self._sessions: dict[str, Any] = {}
        self._lock = threading.Lock()

    def run(self, ids: Array) -> tuple[Array, Array]:
        """Return field `(batch, dim)` and logits `(batch, labels)` of `ids`, framed for one of the buckets."""
        graph = self._graphs.get(ids.shape)
        if graph is None:
            raise EngineError(f"no bucket for ids of shape {ids.shape}; the bundle has {sorted(self._graphs)}")
        output = self._run(graph, ("output",), {"ids": ids})
        return output[:, : self._dim], output[:, self._dim :]

    def run_pairs(self, a: Array, b: Array) -> Array:
        """Return the pair tasks' logits `(batch, labels) float32`; `batch` must be one of the pair graphs'."""
        graph = self._bundle.manifest.pair_graphs.get(len(a))
        if graph is None:
            raise EngineError(
                f"no pair graph for a batch of {len(a)}; there are {sorted(self._bundle.manifest.pair_graphs)}"
            )
        return self._run(graph, ("logits",), {"a": a, "b": b})

    def _run(self, graph: str, outputs: tuple[str, ...], inputs: dict[str, Array]) -> Array:
        session = self._sessions.get(graph) or self._open(graph)
        try:
            if self._packed and graph not in self._pairs:  # a graph of a packed table is handed it with every run
                inputs = {**inputs, "table": self._rows}
            values: Array = session.run(outputs, inputs)[0]
        except Exception as error:  # as in _open
            raise EngineError(f"ONNX Runtime cannot run {graph}: {error}; copy the bundle again") from error
        return values

    def _open(self, graph: str) -> Any:
        with self._lock:
            if graph in self._sessions:
                return self._sessions[graph]
            options = self._ort.SessionOptions()
            options.intra_op_num_threads = self._threads
            options.inter_op_num_threads = 1
            options.log_severity_level = 3
            # a batch's buffers are large and its calls rare: give them back instead of keeping an arena per bucket
            options.enable_cpu_mem_arena = graph in self._small
            if self._table is not None and graph not in self._pairs and not self._packed:
                options.add_initializer("table", self._table)
            options.add_session_config_entry("session.intra_op.allow_spinning", "0")
            try:
                session = self._ort.InferenceSession(str(self._bundle.path / graph), options, providers=[PROVIDER])
            except Exception as error:  # onnxruntime's own kinds are not importable by name
                raise EngineError(f"ONNX Runtime cannot open {graph}: {error}") from error
            if session.get_providers() != [PROVIDER]:
                raise EngineError(f"asked ONNX Runtime for {PROVIDER}, it took {session.get_providers()}")
            self._sessions[graph] = session
            return session
