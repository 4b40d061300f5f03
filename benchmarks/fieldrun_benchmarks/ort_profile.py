"""Where ONNX Runtime's time goes at batch 1: `session.run` from Python, and its own profile, summed by operator.

The bucket is the one that the median length of the texts falls in, and only texts that fall in it are run. What a call
costs without any work is told by a graph of one node; the rest of `session.run` is the nodes. How the nodes share it is
told by ONNX Runtime's profile. Its microseconds are no absolute times: writing an event costs more than a small node,
so that the profiled run is several times slower than the plain one, and durations are whole microseconds, cut off.
"""

from __future__ import annotations

import importlib
import json
import tempfile
from collections import defaultdict
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from tokenizers import Tokenizer

from fieldrun.bundle import Bucket, Bundle
from fieldrun.errors import DatasetError, MissingDependency
from fieldrun.tensors import Array, read_tensors

from .latency import interleave, summary, time_in_turns

__all__ = ["bucket_of_median", "profile", "summarize"]

_RUNS = 2000
_TIMED = 1000
_IMPORTS = {"onnxruntime": "ort", "onnx": "export"}


def profile(
    bundle: Bundle, tokenizer: Tokenizer, texts: Sequence[str], answer: Callable[[str], object]
) -> dict[str, Any]:
    """Profile `bundle` on the texts that fall in the bucket of their median length.

    `answer` is the whole way of one text. It is timed in turns with the tokenizer, with `session.run`, and with
    `session.run` of a graph of one node that has the same input.

    Raises:
        MissingDependency: onnxruntime or onnx is not installed.
        DatasetError: no text falls in the bucket.
    """
    ids = {text: tokenizer.encode_batch_fast([text])[0].ids for text in texts}
    bucket, lengths = bucket_of_median(bundle, [len(ids[text]) for text in texts])
    chosen = [text for text in texts if len(ids[text]) in lengths]
    if not chosen:
        raise DatasetError(f"no text has {lengths.start} to {lengths.stop - 1} tokens, as the bucket's do")
    feeds = {text: {"ids": bundle.manifest.network.frame([ids[text]], 1, bucket.length)} for text in chosen}
    table = _import("onnxruntime").OrtValue.ortvalue_from_numpy(
        read_tensors(bundle.path / "weights.safetensors")["table"]
    )
    run = _open(bundle.path / bucket.graph, table).run
    empty = _open(_one_node(next(iter(feeds.values()))["ids"])).run
    subjects: dict[str, Callable[[str], object]] = {
        "tokenizer": lambda text: tokenizer.encode_batch_fast([text])[0].ids,
        "session_run": lambda text: run(None, feeds[text]),
        "session_run_of_one_node": lambda text: empty(None, feeds[text]),
        "all_labels": answer,
    }
    rounds = -(-_TIMED // len(chosen))
    timed = {name: summary(t) for name, t in time_in_turns(subjects, chosen, rounds=rounds, apart=True).items()}
    with tempfile.TemporaryDirectory() as scratch:
        session = _open(bundle.path / bucket.graph, table, profile_in=Path(scratch))
        profiled = interleave(
            {"session_run": lambda text: session.run(None, feeds[text])}, chosen, repeats=-(-_RUNS // len(chosen))
        )
        events = json.loads(Path(session.end_profiling()).read_text("utf-8"))
    return {
        "bucket": {"batch": bucket.batch, "length": bucket.length, "graph": bucket.graph},
        "texts": {"in_bucket": len(chosen), "of": len(texts)},
        "p50_us": {name: value.p50_us for name, value in timed.items()},
        "profiled_session_run_p50_us": profiled["session_run"].p50_us,
        **summarize(events),
    }


def bucket_of_median(bundle: Bundle, tokens: Sequence[int]) -> tuple[Bucket, range]:
    """Return the batch-1 bucket that the median of `tokens` falls in, and the token counts that it is taken for."""
    buckets = sorted((b for b in bundle.manifest.buckets if b.batch == 1), key=lambda b: b.length)
    median = float(np.median(tokens))
    place = next((i for i, bucket in enumerate(buckets) if median <= bucket.length), len(buckets) - 1)
    shorter = buckets[place - 1].length if place else 0
    return buckets[place], range(shorter + 1, buckets[place].length + 1)


def summarize(events: Sequence[dict[str, Any]], *, warm_up: int = 50) -> dict[str, Any]:
    """Sum ONNX Runtime's events per run and operator, over the runs after the first `warm_up`.

    Of the runs, those count whose nodes take neither less nor more than the middle half: a run in which another process
    had the core says nothing. `median_us` are medians of an operator's sums, `mean_us` means, `share` is of the latter.
    """
    spans = sorted(
        (float(event["ts"]), float(event["dur"]))
        for event in events
        if event.get("cat") == "Session" and event.get("name") == "model_run"
    )
    starts = np.array([start for start, _ in spans])
    runs: list[dict[str, list[float]]] = [defaultdict(list) for _ in spans]
    for event in events:
        if event.get("cat") == "Node" and str(event.get("name")).endswith("_kernel_time"):
            place = int(np.searchsorted(starts, float(event["ts"]), side="right")) - 1
            runs[place][str(event["args"]["op_name"])].append(float(event["dur"]))
    runs, whole = runs[warm_up:], np.array([dur for _, dur in spans[warm_up:]])
    counts = {op: len(values) for op, values in runs[0].items()}
    sums = np.array([[sum(run[op]) for op in counts] for run in runs])
    total = sums.sum(1)
    low, high = np.percentile(total, [25, 75])
    kept = (total >= low) & (total <= high)
    means, medians = sums[kept].mean(0), np.median(sums[kept], axis=0)
    operators = [
        {
            "op": op,
            "nodes": count,
            "median_us": round(float(medians[i]), 1),
            "mean_us": round(float(means[i]), 2),
            "share": round(float(means[i] / means.sum()), 3),
        }
        for i, (op, count) in enumerate(counts.items())
    ]
    return {
        "runs": len(runs),
        "runs_kept": int(kept.sum()),
        "model_run_us": round(float(np.median(whole[kept])), 1),
        "nodes": sum(counts.values()),
        "nodes_us": round(float(np.median(total[kept])), 1),
        "operators": sorted(operators, key=lambda entry: -entry["mean_us"]),
    }


def _open(graph: Path | bytes, table: Any = None, profile_in: Path | None = None) -> Any:
    """Open a session with the settings of the ONNX Runtime engine."""
    ort = _import("onnxruntime")
    options = ort.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if table is not None:
        options.add_initializer("table", table)
    if profile_in is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_in / "profile")
    model = graph if isinstance(graph, bytes) else str(graph)
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _one_node(ids: Array) -> bytes:
    """Return a graph that casts `ids` to float and nothing else."""
    onnx = _import("onnx")
    helper, kinds = onnx.helper, onnx.TensorProto
    graph = helper.make_graph(
        [helper.make_node("Cast", ["ids"], ["output"], to=kinds.FLOAT)],
        "one",
        [helper.make_tensor_value_info("ids", kinds.INT32, list(ids.shape))],
        [helper.make_tensor_value_info("output", kinds.FLOAT, list(ids.shape))],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    data: bytes = model.SerializeToString()
    return data


def _import(name: str) -> Any:
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise MissingDependency(name, _IMPORTS[name]) from error
