"""The deployed form in NumPy, for measuring what a pass does to a student's answers before a graph is built.

It follows the description in `deployed`, in float32, texts of similar length together. This is for comparing one form
with another; a bundle is proven on its graphs (`fieldrun_exporters.parity`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

import numpy as np

from fieldrun.errors import ExportError
from fieldrun.formats.bundle import Network
from fieldrun.formats.tensors import Array
from fieldrun.heads.head import pair_features
from fieldrun.student.config import SCORE_FLOOR
from fieldrun.student.windows import pad_ids

from ..parity import field_errors
from .deployed import Deployed

__all__ = ["dense", "finish", "input_ranges", "outputs", "row_numbers", "tensor_errors"]

_TEXTS = 64  # simulated together
_LEAST_TEXTS = 16
Record = Callable[[str, Array], None]
"""Called with a layer's name and its input `(rows, inputs) float32`, without padding positions."""


def outputs(
    deployed: Deployed, sequences: Sequence[Sequence[int]], record: Record | None = None, *, halves: bool = False
) -> Array:
    """Return field and logits of every sequence of token ids, `(n, dim + labels) float32`; `halves` as in `dense`."""
    order = np.argsort([len(ids) for ids in sequences], kind="stable")
    out = np.empty((len(sequences), len(deployed.tensors["output.bias"])), np.float32)
    for start in range(0, len(order), _TEXTS):
        rows = order[start : start + _TEXTS]
        out[rows] = _run(deployed, pad_ids([sequences[i] for i in rows]), record, halves)
    return out


def row_numbers(deployed: Deployed, ids: Array) -> Array:
    """Return the table's rows of `ids (batch, length)`, padded at the end with id 0, `(batch, positions, J) int32`.

    There are as many positions as tokens, and after them those that the mixer reads.
    """
    net, tensors = deployed.network, deployed.tensors
    left, right = net.margins
    framed = np.pad(ids, ((0, 0), (left, right))).astype(np.int32)
    positions = ids.shape[1] + max(1, net.mixer_kernel) - 1
    window = np.stack([framed[:, left + s : left + s + positions] for s in net.shifts], axis=-1)
    rows: Array = (window @ tensors["rows.coef"]) % tensors["rows.modulus"] + tensors["rows.base"]
    return rows


def finish(
    network: Network,
    tensors: Mapping[str, Array],
    y: Array,
    record: Record | None = None,
    mask: Array | None = None,
    halves: bool = False,
) -> Array:
    """Return field and logits, `(batch, dim + labels)`, of the sums `y (batch, positions, width)` of table rows.

    `mask (batch, length) bool` says which positions go to `record`; all of them when None. `halves` as in `dense`.
    """

    def seen(layer: str, x: Array) -> None:
        if record is not None:
            record(layer, x)

    length = y.shape[1] - max(1, network.mixer_kernel) + 1
    g = np.maximum(y, 0)
    if network.mixer_kernel:
        g = np.concatenate([g[:, k : k + length] for k in range(network.mixer_kernel)], axis=-1)
        seen("mixer", g.reshape(-1, g.shape[-1]) if mask is None else g[mask])
        g = np.maximum(dense(tensors, "mixer", g, halves), 0)
    pooled = g.max(1)
    if network.mean:
        a = g @ tensors["score.weight"]
        mean = (a * g).sum(1) / (a.sum(1) + SCORE_FLOOR) * tensors["mean.gain"]
        pooled = np.concatenate([mean, pooled], axis=-1)
    if network.hidden:
        seen("hidden", pooled)
        pooled = np.maximum(dense(tensors, "hidden", pooled, halves), 0)
    seen("output", pooled)
    return dense(tensors, "output", pooled, halves)


def _run(deployed: Deployed, ids: Array, record: Record | None, halves: bool) -> Array:
    rows = row_numbers(deployed, ids)
    y = np.zeros((*rows.shape[:2], deployed.network.width), np.float32)
    for j in range(rows.shape[2]):
        y += deployed.tensors["table"][rows[:, :, j]] * deployed.tensors["table.scale"][rows[:, :, j]][:, :, None]
    return finish(deployed.network, deployed.tensors, y, record, ids != 0, halves)


def dense(tensors: Mapping[str, Array], layer: str, x: Array, halves: bool = False) -> Array:
    """Return `x @ weight + bias` of a layer, as its precision says.

    With `halves`, the input and the product of a float16 layer are rounded to float16, as a GPU's are.
    """
    halves = halves and tensors[f"{layer}.weight"].dtype == np.float16
    weight = tensors[f"{layer}.weight"].astype(np.float32)
    if f"{layer}.weight_scale" in tensors:
        weight = weight * tensors[f"{layer}.weight_scale"]
    step = tensors.get(f"{layer}.input_scale")
    if step is not None:
        x = np.clip(np.rint(x / step), -128, 127) * step
    if halves:
        x = x.astype(np.float16).astype(np.float32)
    y: Array = x @ weight
    if halves:
        y = y.astype(np.float16).astype(np.float32)
    bias = tensors.get(f"{layer}.bias")
    return y if bias is None else y + bias


def input_ranges(deployed: Deployed, sequences: Sequence[Sequence[int]], percentile: float) -> dict[str, float]:
    """Return the `percentile` of the absolute input of every layer of the float `deployed` over `sequences`.

    `mean` is that of the half of the pooled vector that is the mean over the tokens.

    Raises:
        ExportError: fewer than 16 sequences.
    """
    if len(sequences) < _LEAST_TEXTS:
        raise ExportError(f"calibration needs at least {_LEAST_TEXTS} texts, not {len(sequences)}")
    seen: dict[str, list[Array]] = {}
    net = deployed.network
    found = outputs(deployed, sequences, lambda name, x: seen.setdefault(name, []).append(np.abs(x)))
    field = found[:, : net.field_dim]
    seen["pairs"] = [np.abs(pair_features(field, np.roll(field, 1, axis=0)))]
    if net.mean:
        half = net.mixer_width or net.width
        seen["mean"] = [part[:, :half] for part in seen["hidden" if net.hidden else "output"]]
    return {
        name: float(np.percentile(np.concatenate([part.ravel() for part in parts]), percentile))
        for name, parts in seen.items()
    }


def tensor_errors(
    folded: Deployed, deployed: Deployed, sequences: Sequence[Sequence[int]]
) -> dict[str, dict[str, float]]:
    """Return, for every part that the passes changed, what that part alone does to the fields of `sequences`.

    Parts of `deployed` are put into `folded`, the student in float32, one at a time. Per part, in the order of the
    student, `field_errors` against `folded`. Pair heads do not change fields.
    """
    dim, before, after = folded.network.field_dim, folded.tensors, deployed.tensors
    changed: dict[str, dict[str, Array]] = {}
    if after["table"].dtype != before["table"].dtype:
        for block, (start, stop) in deployed.blocks.items():
            table = before["table"].copy()
            table[start:stop] = after["table"][start:stop] * after["table.scale"][start:stop, None]
            changed[block] = {"table": table}
    for layer in deployed.dense():
        own = {name: tensor for name, tensor in after.items() if name.startswith(f"{layer}.")}
        pair = own[f"{layer}.weight"], before[f"{layer}.weight"]
        if layer != "pairs" and not (pair[0].dtype == pair[1].dtype and np.array_equal(*pair)):
            gain = {"mean.gain": after["mean.gain"]} if f"{layer}.input_scale" in own else {}
            changed[layer] = own | gain
    expected = outputs(folded, sequences)[:, :dim]
    forms = {part: replace(folded, tensors={**before, **tensors}, packed={}) for part, tensors in changed.items()}
    return {part: field_errors(expected, outputs(form, sequences)[:, :dim]) for part, form in forms.items()}
