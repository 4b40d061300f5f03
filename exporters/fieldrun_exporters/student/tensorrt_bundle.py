"""The TensorRT part of a bundle: its graphs, and their proof on a CPU before any GPU has seen them.

ONNX Runtime runs a TensorRT-spelled graph as the standard defines it, Q/DQ pairs in float. So the export can hold every
such graph to the recipe's gate, and to the golden fields that a GPU will be asked to repeat. One thing it leaves out on
a CPU: it multiplies floats where the graph has halves. What rounding to halves does, NumPy says.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fieldrun.errors import ParityError
from fieldrun.formats.bundle import Bucket, TensorrtGraphs
from fieldrun.formats.tensors import Array
from fieldrun.heads.head import Head

from ..parity import check_pairs, check_parity, open_session, run_bucket
from ..recipe import Recipe
from .deployed import Deployed
from .simulate import outputs
from .tensorrt_graph import tensorrt_field_graph, tensorrt_pair_graph

__all__ = ["check_tensorrt", "tensorrt_graphs"]


def tensorrt_graphs(
    deployed: Deployed,
    offsets: Mapping[str, tuple[int, int]],
    buckets: Sequence[Bucket],
    pairs: Mapping[int, str],
    tolerance: float,
    metadata: Mapping[str, str],
) -> tuple[TensorrtGraphs, dict[str, onnx.ModelProto]]:
    """Return what the manifest says of the TensorRT graphs of `buckets` and `pairs`, and the graphs by file name."""
    graphs = TensorrtGraphs(
        buckets=tuple(Bucket(batch=b.batch, length=b.length, graph=f"trt-{b.graph}") for b in buckets),
        pair_graphs={batch: f"trt-{name}" for batch, name in pairs.items()},
        golden_tolerance=float(tolerance),
    )
    models = {b.graph: tensorrt_field_graph(deployed, offsets, b.batch, b.length, metadata) for b in graphs.buckets} | {
        name: tensorrt_pair_graph(deployed, offsets, batch, metadata) for batch, name in graphs.pair_graphs.items()
    }
    return graphs, models


def check_tensorrt(
    folder: Path,
    deployed: Deployed,
    graphs: TensorrtGraphs,
    golden: Mapping[str, Any],
    sequences: Sequence[Sequence[int]],
    expected: Array,
    logits: Array,
    spans: Mapping[str, tuple[int, int]],
    pair_heads: Sequence[Head],
    plan: Recipe,
) -> dict[str, Any]:
    """Measure every TensorRT graph in `folder` as `check_parity` and `check_pairs` do, and on the golden texts.

    Returns:
        What goes into `report.json`: `parity` per bucket, `pair_parity`, and `golden_gap`, the largest difference of a
        golden field.

    Raises:
        ParityError: a graph is not within the recipe's gate, or a golden field is farther off than half of
            `golden_tolerance`.
    """
    network = deployed.network
    parity, found = check_parity(
        folder, network, graphs.buckets, sequences, expected, logits, spans, plan.parity, literal=True
    )
    pair_parity = check_pairs(folder, graphs.pair_graphs, found, expected, pair_heads, plan.parity, literal=True)
    fields = np.array(golden["fields"], np.float32)
    gap = float(np.abs(outputs(deployed, golden["ids"], halves=True)[:, : network.field_dim] - fields).max())
    for bucket in graphs.buckets:
        rows = [i for i, ids in enumerate(golden["ids"]) if len(ids) <= bucket.length]
        if rows:
            session = open_session(folder / bucket.graph, literal=True)
            found, _ = run_bucket(session, network, bucket, [golden["ids"][i] for i in rows])
            gap = max(gap, float(np.abs(found - fields[rows]).max()))
    if not gap <= graphs.golden_tolerance / 2:
        raise ParityError(
            f"the TensorRT graphs are {gap:.3g} from the golden fields before any GPU, more than half of "
            f"tensorrt.golden_tolerance, {graphs.golden_tolerance:.3g}; nothing was written. "
            "Raise it or keep more in fp32"
        )
    return {"parity": [p.to_dict() for p in parity], "pair_parity": pair_parity, "golden_gap": gap}
