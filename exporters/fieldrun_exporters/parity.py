"""Parity: every graph, run by ONNX Runtime on real text, against the NumPy reference and the other buckets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fieldrun.errors import ExportError, MissingDependency, ParityError
from fieldrun.formats.bundle import Bucket, GraphNetwork, Network
from fieldrun.formats.packing import expand
from fieldrun.formats.tensors import Array, read_tensors
from fieldrun.heads.head import Head
from fieldrun.student.oracle import head_logits, pair_features

from .recipe import Parity

__all__ = [
    "BucketParity",
    "Expected",
    "check_pairs",
    "check_parity",
    "field_errors",
    "import_onnxruntime",
    "one_line",
    "open_session",
    "run_bucket",
]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Expected:
    """What the reference gives for the texts of the proof.

    `sequences` are their token ids, `fields` are `(n, dim) float32`, and `logits` `(n, labels) float32` of all single
    tasks side by side; `spans` has the first column of each task and the one after its last.
    """

    sequences: Sequence[Sequence[int]]
    fields: Array
    logits: Array
    spans: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    pair_heads: Sequence[Head] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketParity:
    """One bucket compared with the reference: cosine and largest absolute difference of the fields and the logits.

    `bucket_gap` is the largest difference between a text's field here and in the first bucket that it fits in.
    """

    batch: int
    length: int
    texts: int
    mean_cosine: float
    min_cosine: float
    max_abs: float
    max_abs_logits: float
    bucket_gap: float
    top1_agreement: float


def import_onnxruntime() -> Any:
    """Import onnxruntime with its telemetry off; `MissingDependency` if it is not installed."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency("onnxruntime", "ort") from error
    return onnxruntime


def one_line(error: Exception) -> str:
    """Return the message of another library's `error` on one line of at most 300 characters."""
    return " ".join(str(error).split())[:300] or type(error).__name__


def open_session(
    graph: Path | bytes, *, optimise: str = "all", optimised: Path | None = None, literal: bool = False
) -> Any:
    """Return an ONNX Runtime session of `graph` on one CPU thread.

    Args:
        graph: the file, or the serialised model.
        optimise: `"all"`; `"basic"`, which keeps to ONNX's own operators; or `"none"`, node by node as written.
        optimised: where to write the optimised graph.
        literal: compute Q/DQ pairs in float, as the standard defines them, and dequantize constants once. This is what
            a graph in TensorRT's spelling means.

    Raises:
        MissingDependency: onnxruntime is not installed.
        ExportError: it cannot open the graph.
    """
    ort = import_onnxruntime()
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    levels = {"all": "ORT_ENABLE_ALL", "basic": "ORT_ENABLE_BASIC", "none": "ORT_DISABLE_ALL"}
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, levels[optimise])
    if literal:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    source = graph if isinstance(graph, bytes) else str(graph)
    try:
        session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds are not importable by name
        name = "the graph" if isinstance(graph, bytes) else graph.name
        raise ExportError(
            f"onnxruntime {ort.__version__} cannot open {name}: {one_line(error)}; try another version of it"
        ) from error
    if isinstance(graph, bytes) or not any(each.name == "table" for each in session.get_inputs()):
        return session
    return _WithTable(session, expand(read_tensors(graph.parent / "weights.safetensors"))["table"])


class _WithTable:
    """A session of a graph that takes its table, which is stored packed, as an input."""

    def __init__(self, session: Any, table: Array) -> None:
        self._session, self._table = session, table

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        found: list[Array] = self._session.run(outputs, {**inputs, "table": self._table})
        return found


def run_bucket(
    session: Any, network: Network | GraphNetwork, bucket: Bucket, sequences: Sequence[Sequence[int]]
) -> tuple[Array, Array]:
    """Run `sequences` through one bucket, the last batch filled with copies; return fields and logits, a row each."""
    outputs = []
    for start in range(0, len(sequences), bucket.batch):
        part = sequences[start : start + bucket.batch]
        ids = network.frame(part, bucket.batch, bucket.length)
        outputs.append(session.run(["output"], {"ids": ids})[0][: len(part)])
    output = np.concatenate(outputs)
    return output[:, : network.field_dim], output[:, network.field_dim :]


def check_parity(
    folder: Path,
    network: Network | GraphNetwork,
    buckets: Sequence[Bucket],
    expected: Expected,
    gate: Parity,
    *,
    literal: bool = False,
) -> tuple[list[BucketParity], Array]:
    """Measure every bucket, and refuse what the gate does not allow.

    Every text runs through every bucket in `folder` that it fits in. `literal` is for graphs in TensorRT's spelling.

    Returns:
        The measurements, and the field of every text from the first bucket that it fits in, `(n, dim) float32`.

    Raises:
        ParityError: names the bucket, the measure, its value and its limit.
    """
    first: dict[int, Array] = {}
    results = []
    for bucket in buckets:
        chosen = [i for i, ids in enumerate(expected.sequences) if len(ids) <= bucket.length]
        if not chosen:
            raise ParityError(f"no calibration text fits the bucket of {bucket.length} tokens; give shorter texts")
        session = open_session(folder / bucket.graph, literal=literal)
        fields, logits = run_bucket(session, network, bucket, [expected.sequences[i] for i in chosen])
        gap = max(float(np.abs(row - first.setdefault(i, row)).max()) for i, row in zip(chosen, fields, strict=True))
        want, want_logits = expected.fields[chosen], expected.logits[chosen]
        cosine = (fields * want).sum(1) / (np.linalg.norm(fields, axis=1) * np.linalg.norm(want, axis=1))
        agreement = [logits[:, a:b].argmax(1) == want_logits[:, a:b].argmax(1) for a, b in expected.spans.values()]
        result = BucketParity(
            batch=bucket.batch,
            length=bucket.length,
            texts=len(chosen),
            mean_cosine=float(cosine.mean()),
            min_cosine=float(cosine.min()),
            max_abs=float(np.abs(fields - want).max()),
            max_abs_logits=float(np.abs(logits - want_logits).max(initial=0)),
            bucket_gap=gap,
            top1_agreement=float(np.mean(agreement)) if agreement else 1.0,
        )
        _gate(result, gate)
        results.append(result)
    return results, np.stack([first[i] for i in range(len(expected.sequences))])


def check_pairs(
    folder: Path,
    graphs: Mapping[int, str],
    fields: Array,
    expected: Expected,
    gate: Parity,
    *,
    literal: bool = False,
) -> list[dict[str, float]]:
    """Measure the pair `graphs`, batch -> file name, on each text with the next one, as `check_parity` does the others.

    `fields (n, dim)` are what the other graphs give for the texts: a device feeds these to the pair graph.

    Returns:
        Per graph its batch, `max_abs_logits`, and the share of pairs and tasks with the same best label.

    Raises:
        ParityError: fewer best labels agree than the gate asks for.
    """
    a, b = fields, np.roll(fields, -1, axis=0)
    wanted = pair_features(expected.fields, np.roll(expected.fields, -1, axis=0))
    want = [head_logits(head.weight, head.bias, wanted) for head in expected.pair_heads]
    results = []
    for batch, graph in sorted(graphs.items()):
        session = open_session(folder / graph, literal=literal)
        rows = [np.arange(start, start + batch) % len(a) for start in range(0, len(a), batch)]
        parts = [session.run(["logits"], {"a": a[r], "b": b[r]})[0] for r in rows]
        logits = np.concatenate(parts)[: len(a)]
        columns = np.split(logits, np.cumsum([len(head.labels) for head in expected.pair_heads])[:-1], axis=1)
        agreement = float(np.mean([x.argmax(1) == y.argmax(1) for x, y in zip(columns, want, strict=True)]))
        largest = float(np.abs(logits - np.concatenate(want, axis=1)).max())
        if not agreement >= gate.min_top1:
            raise ParityError(_beyond(f"pair graph of batch {batch}", "min_top1", agreement, gate.min_top1))
        results.append({"batch": float(batch), "max_abs_logits": largest, "top1_agreement": agreement})
    return results


def _gate(result: BucketParity, gate: Parity) -> None:
    checks = (
        ("min_cosine", result.min_cosine, result.min_cosine >= gate.min_cosine),
        ("max_abs", result.max_abs, result.max_abs <= gate.max_abs),
        ("min_top1", result.top1_agreement, result.top1_agreement >= gate.min_top1),
        ("max_bucket_gap", result.bucket_gap, result.bucket_gap <= gate.max_bucket_gap),
    )
    for name, value, passed in checks:
        if not passed:  # NaN does not pass either
            raise ParityError(_beyond(f"bucket {result.batch} x {result.length}", name, value, getattr(gate, name)))


def _beyond(where: str, measure: str, value: float, limit: float) -> str:
    return (
        f"{where}: {measure} is {value:.8g}, the recipe's limit is {limit:.8g}; nothing was written. "
        "Calibrate on text like yours, or keep more parts in fp32"
    )


def field_errors(expected: Array, found: Array) -> dict[str, float]:
    """Return how near `found (n, dim)` is to `expected`: cosine (mean, 1st percentile, least) and rank agreement.

    `rank_agreement` is the share of texts whose nearest other text, by the cosine of their fields, is the same one.
    """
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (expected, found))
    cosine = (a * b).sum(1)
    nearest = [(x @ x.T - 2 * np.eye(len(x))).argmax(1) for x in (a, b)]
    return {
        "mean_cosine": float(cosine.mean()),
        "p1_cosine": float(np.percentile(cosine, 1)),
        "min_cosine": float(cosine.min()),
        "rank_agreement": float((nearest[0] == nearest[1]).mean()),
    }
