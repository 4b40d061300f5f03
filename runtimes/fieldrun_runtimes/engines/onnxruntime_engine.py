"""The ONNX Runtime engine: one session per bucket, opened when the bucket is first used.

Telemetry is off before the first import, spinning is off, threads are what was asked for, and the provider is read back
from the session: the one that was asked for, or an error.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import numpy as np

from fieldrun.errors import BundleError, EngineError, MissingDependency
from fieldrun.formats.bundle import Bundle, GraphNetwork
from fieldrun.formats.tensors import Array

from .buckets import Call, GraphEngine
from .graphs import open_graph
from .packages import importing
from .weights import read_weights

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


def open_session(
    ort: Any,
    bundle: Bundle,
    name: str,
    options: Any,
    provider: str,
    settings: Mapping[str, str] | None = None,
    *,
    share: bool = False,
) -> tuple[Any, dict[str, Array]]:
    """Open a session of the graph `name` of `bundle` on `provider` and no other, from the bytes that were checked.

    Returns the session, and inputs that every call must pass: with `share`, the large tables of the graph.

    Raises:
        BundleError: the graph names weights that the bundle does not have.
        EngineError: ONNX Runtime cannot open the graph, or took another provider.
    """
    graph = open_graph(bundle.contents[name], bundle.contents["weights.safetensors"], name, share=share)
    options.log_severity_level = 3
    try:
        if graph.initializers:
            values = [ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(t)) for t in graph.initializers.values()]
            options.add_external_initializers(list(graph.initializers), values)
        session = ort.InferenceSession(graph.model, options, providers=[(provider, dict(settings or {}))])
    except Exception as error:  # onnxruntime's own kinds are not importable by name
        raise EngineError(f"ONNX Runtime cannot open {name}: {_printable(error)}") from error
    if session.get_providers()[:1] != [provider]:
        raise EngineError(
            f"asked ONNX Runtime for {provider}, it took {session.get_providers()}: a library of it is missing or has "
            "another version; see 'fieldrun doctor'"
        )
    return session, graph.inputs


def _printable(error: Exception) -> str:
    """Return a message, which may quote names of the graph, on one line and without control characters."""
    line = " ".join(str(error).split())
    return "".join(character if character.isprintable() else ascii(character)[1:-1] for character in line)


class OnnxRuntimeEngine(GraphEngine):
    """Runs the bundle's graphs on the CPU provider. All sessions share the table and the bytes of the weights.

    A text gives the same bits whenever it runs in the same bucket; in another bucket, and so in a batch of another
    size, ONNX Runtime may add in another order: fields differ by some 1e-6.
    """

    def __init__(self, bundle: Bundle, threads: int, weights: Mapping[str, Array] | None = None) -> None:
        super().__init__(bundle, bundle.manifest)
        self._ort = import_onnxruntime()
        self._bundle, self._threads = bundle, threads
        # the graphs of a packed table take it as an input, expanded once for all of them
        self._tables: dict[str, Array] = {}
        if not isinstance(self._network, GraphNetwork):
            weights = read_weights(bundle) if weights is None else weights
            if "table" not in weights:
                raise BundleError(f"{bundle.path}: weights.safetensors has no table; copy it again")
            self._tables = {"table": weights["table"]}

    def _open(self, graph: str) -> Call:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.inter_op_num_threads = 1
        # the buffers of a batch are large and its calls rare: give them back instead of keeping an arena per bucket
        options.enable_cpu_mem_arena = any(b.graph == graph and b.batch == 1 for b in self.buckets)
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        session, tables = open_session(self._ort, self._bundle, graph, options, PROVIDER, share=True)
        names = {each.name for each in session.get_inputs()}
        tables |= {name: table for name, table in self._tables.items() if name in names and name not in tables}
        outputs = [output.name for output in session.get_outputs()]

        def call(inputs: dict[str, Array]) -> Array:
            try:
                output: Array = session.run(outputs, inputs | tables)[0]
            except Exception as error:
                raise EngineError(
                    f"ONNX Runtime cannot run {graph}: {_printable(error)}; copy the bundle again"
                ) from error
            return output

        return call
