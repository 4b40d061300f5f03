"""Parity: every graph, run by ONNX Runtime on real text, against the NumPy reference and against the other buckets."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fieldrun.errors import ExportError, MissingDependency, ParityError
from fieldrun.formats.bundle import Bucket, GraphNetwork, Network
from fieldrun.formats.packing import expand
from fieldrun.formats.tensors import Array, read_tensors
from fieldrun.heads.head import Head, head_logits, pair_features

from .recipe import Parity

__all__ = ["BucketParity", "check_pairs", "check_parity", "field_errors", "open_session", "run_bucket"]


@dataclass(frozen=True, slots=True, kw_only=True)
class BucketParity:
    """One bucket against the reference: cosine and largest absolute difference of the field, and the logits'.

    `bucket_gap` is the largest difference of a text's field from the one it has in the first bucket that fits it.
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

    def to_dict(self) -> dict[str, Any]:
        """Return the measurements as JSON."""
        return asdict(self)


def open_session(graph: Path, *, optimise: bool = True, optimised: Path | None = None, literal: bool = False) -> Any:
    """Return an ONNX Runtime CPU session of `graph`, one thread; writes the optimised graph to `optimised` if given.

    With `optimise` off, the graph runs as it is written, node by node. `literal` computes Q/DQ pairs in float, as they
    are defined, and dequantizes constants once: what a graph in TensorRT's spelling means.

    Raises:
        MissingDependency: onnxruntime is not installed.
        ExportError: it does not open the graph.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        import onnxruntime as ort
    except ImportError as error:
        raise MissingDependency("onnxruntime", "ort") from error
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    if not optimise:
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if literal:
        options.add_session_config_entry("session.disable_quant_qdq", "1")
    if optimised is not None:
        options.optimized_model_filepath = str(optimised)
    try:
        session = ort.InferenceSession(str(graph), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own kinds are not importable by name
        said = " ".join(str(error).split())[:300]
        raise ExportError(
            f"onnxruntime {ort.__version__} cannot open {graph.name} of this export: {said}; try another version of it"
        ) from error
    if not any(each.name == "table" for each in session.get_inputs()):
        return session
    return _WithTable(session, expand(read_tensors(graph.parent / "weights.safetensors"))["table"])


class _WithTable:
    """A session of a graph whose table is packed, which is handed over with every run."""

    def __init__(self, session: Any, table: Array) -> None:
        self._session, self._table = session, table

    def run(self, outputs: Sequence[str], inputs: Mapping[str, Array]) -> list[Array]:
        found: list[Array] = self._session.run(outputs, {**inputs, "table": self._table})
        return found


def run_bucket(
    session: Any, network: Network | GraphNetwork, bucket: Bucket, sequences: Sequence[Sequence[int]]
) -> tuple[Array, Array]:
    """Run `sequences` through one bucket, filling the last batch with copies; return field and logits, one row each."""
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
    sequences: Sequence[Sequence[int]],
    expected: Array,
    expected_logits: Array,
    spans: Mapping[str, tuple[int, int]],
    gate: Parity,
    *,
    literal: bool = False,
) -> tuple[list[BucketParity], Array]:
    """Measure every bucket and refuse what the gate does not allow.

    Args:
        folder: where the graphs are.
        network: the deployed student, or what only its graphs describe.
        buckets: all of them; every text runs through every bucket that it fits in.
        sequences: token ids of real text, special tokens included.
        expected: the reference's field of every sequence, `(n, dim)`.
        expected_logits: the reference's logits of every sequence, `(n, labels)`.
        spans: task -> first and last logit, for the agreement of the best label.
        gate: the tolerances.
        literal: the graphs are TensorRT's (`open_session`).

    Returns:
        What was measured, and the field of every sequence from the first bucket that fits it, `(n, dim)`.

    Raises:
        ParityError: names the bucket, the measure, its value and its limit.
    """
    first: dict[int, Array] = {}
    results = []
    for bucket in buckets:
        chosen = [i for i, ids in enumerate(sequences) if len(ids) <= bucket.length]
        if not chosen:
            raise ParityError(f"no calibration text fits the bucket of {bucket.length} tokens; give shorter texts")
        session = open_session(folder / bucket.graph, literal=literal)
        field, logits = run_bucket(session, network, bucket, [sequences[i] for i in chosen])
        gap = max(float(np.abs(row - first.setdefault(i, row)).max()) for i, row in zip(chosen, field, strict=True))
        want, want_logits = expected[chosen], expected_logits[chosen]
        cosine = (field * want).sum(1) / (np.linalg.norm(field, axis=1) * np.linalg.norm(want, axis=1))
        agreement = [logits[:, a:b].argmax(1) == want_logits[:, a:b].argmax(1) for a, b in spans.values()]
        result = BucketParity(
            batch=bucket.batch,
            length=bucket.length,
            texts=len(chosen),
            mean_cosine=float(cosine.mean()),
            min_cosine=float(cosine.min()),
            max_abs=float(np.abs(field - want).max()),
            max_abs_logits=float(np.abs(logits - want_logits).max(initial=0)),
            bucket_gap=gap,
            top1_agreement=float(np.mean(agreement)) if agreement else 1.0,
        )
        _gate(result, gate)
        results.append(result)
    return results, np.stack([first[i] for i in range(len(sequences))])


def check_pairs(
    folder: Path,
    graphs: Mapping[int, str],
    fields: Array,
    expected: Array,
    heads: Sequence[Head],
    gate: Parity,
    *,
    literal: bool = False,
) -> list[dict[str, float]]:
    """Measure every pair graph, each text with the next one, as `check_parity` does the others.

    Args:
        folder: where the graphs are.
        graphs: batch -> file name.
        fields: what the other graphs made of the texts, `(n, dim)`: a device feeds these to the pair graph.
        expected: the reference's field of every text, `(n, dim)`.
        heads: the pair heads, in the order of the graph's logits.
        gate: the tolerances.
        literal: the graphs are TensorRT's (`open_session`).

    Returns:
        Per graph its batch, `max_abs_logits`, and the share of pairs and tasks with the same best label.

    Raises:
        ParityError: fewer best labels agree than the gate asks for.
    """
    a, b = fields, np.roll(fields, -1, axis=0)
    wanted = pair_features(expected, np.roll(expected, -1, axis=0))
    want = [head_logits(head, wanted) for head in heads]
    results = []
    for batch, graph in sorted(graphs.items()):
        session = open_session(folder / graph, literal=literal)
        rows = [np.arange(start, start + batch) % len(a) for start in range(0, len(a), batch)]
        parts = [session.run(["logits"], {"a": a[r], "b": b[r]})[0] for r in rows]
        logits = np.concatenate(parts)[: len(a)]
        columns = np.split(logits, np.cumsum([len(head.labels) for head in heads])[:-1], axis=1)
        agreement = float(np.mean([x.argmax(1) == y.argmax(1) for x, y in zip(columns, want, strict=True)]))
        largest = float(np.abs(logits - np.concatenate(want, axis=1)).max())
        if not agreement >= gate.min_top1:
            raise ParityError(
                f"pair graph of batch {batch}: min_top1 is {agreement:.3g}, the recipe's limit is {gate.min_top1:.3g}; "
                "nothing was written. Calibrate on text like yours, or keep more parts in fp32"
            )
        results.append({"batch": float(batch), "max_abs_logits": largest, "top1_agreement": agreement})
    return results


def _gate(result: BucketParity, gate: Parity) -> None:
    where = f"bucket {result.batch} x {result.length}"
    checks = (
        ("min_cosine", result.min_cosine, gate.min_cosine, result.min_cosine >= gate.min_cosine),
        ("max_abs", result.max_abs, gate.max_abs, result.max_abs <= gate.max_abs),
        ("min_top1", result.top1_agreement, gate.min_top1, result.top1_agreement >= gate.min_top1),
        ("max_bucket_gap", result.bucket_gap, gate.max_bucket_gap, result.bucket_gap <= gate.max_bucket_gap),
    )
    for name, value, limit, passed in checks:
        if not passed:  # NaN does not pass either
            raise ParityError(
                f"{where}: {name} is {value:.8g}, the recipe's limit is {limit:.8g}; nothing was written. "
                "Calibrate on text like yours, or keep more parts in fp32"
            )


def field_errors(expected: Array, found: Array) -> dict[str, float]:
    """Return how far fields `(n, dim)` are from those expected: cosine (mean, 1st percentile, least) and ranks.

    Rank agreement is the share of texts whose nearest other text, by the fields' cosine, is the same one.
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
