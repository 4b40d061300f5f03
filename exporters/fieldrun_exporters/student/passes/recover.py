"""Recover: tune codebooks, and the layers of a smaller shape, so that the fields come back.

Codes stay as they are, and so do int8 matrices without a codebook.

Only centroids move (arXiv 2603.17917, section on centroid tuning): the gradient of an entry is the sum over the weights
that share it. The loss is the field regression of the distillation, against the fields of the same student in float32,
on real texts without labels. Entries are rounded to int8 steps at the end: rounding in every step, with a gradient that
passes through, left the fields farther away than before. Where a table has codebooks, only these are tuned: what a
dense palette's entries gain is less than the step that they are rounded to. After `lowrank` the dense layers that are
float32 are tuned too, weights and biases: each was fitted to its own output, none to the field.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fieldrun.errors import ExportError, MissingDependency
from fieldrun.formats.packing import code_bits, expand
from fieldrun.formats.progress import Progress
from fieldrun.formats.tensors import Array
from fieldrun.student.config import SCORE_FLOOR
from fieldrun.student.windows import pad_ids

from ...parity import field_errors
from ...recipe import Recover
from ..deployed import Deployed
from ..simulate import outputs, row_numbers
from . import PassReport

__all__ = ["TorchStudent", "float_layers", "recover"]

_LEAST_TEXTS = 400
_LAYER_RATE = 0.01  # of the learning rate: these were fitted already
_HELD_OUT = 256  # texts that measure the gain, and are not learnt from


def recover(
    deployed: Deployed,
    folded: Deployed,
    sequences: Sequence[Sequence[int]],
    plan: Recover,
    progress: Progress | None = None,
) -> tuple[Deployed, PassReport]:
    """Return `deployed` tuned, and what the fields of held-out texts gained.

    `deployed` has a palette, or is smaller than `folded`, whose fields are the target, and has a float32 layer. Some of
    `sequences`, token ids of `_LEAST_TEXTS` or more real texts, are drawn at random and held out.

    Raises:
        MissingDependency: torch is not installed.
        ExportError: there is nothing to tune, there are too few texts, or the fields are no nearer than before.
    """
    try:
        import torch
    except ImportError as error:
        raise MissingDependency("torch", "distill") from error
    network = TorchStudent(torch, deployed, smaller=deployed.network != folded.network)
    groups = [{"params": network.tuned_codebooks(), "share": 1.0}]
    groups += [{"params": list(network.layers.values()), "share": _LAYER_RATE}]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise ExportError(
            "recover: there is nothing to tune: no part that makes the field is a palette, and 'lowrank' made no "
            "float32 layer smaller; leave the pass out, or give a part another precision"
        )
    sequences = list(dict.fromkeys(map(tuple, sequences)))  # a copy of a held-out text must not be learnt from
    if len(sequences) < _LEAST_TEXTS:
        raise ExportError(
            f"recover: {len(sequences)} different texts are too few; give at least {_LEAST_TEXTS}, better thousands"
        )
    dim = folded.network.field_dim
    order = np.random.default_rng(plan.seed).permutation(len(sequences))  # texts of one source may be side by side
    shuffled = [sequences[i] for i in order]
    answers = outputs(folded, shuffled)
    target = answers[:, :dim]
    train, held = shuffled[:-_HELD_OUT], shuffled[-_HELD_OUT:]
    before = field_errors(target[-_HELD_OUT:], outputs(deployed, held)[:, :dim])
    optimizer = torch.optim.Adam(groups, lr=plan.learning_rate)
    spread, spread_of_logits = (
        float(target.std()) ** 2,
        float(answers[:, dim:].std()) ** 2 if answers.shape[1] > dim else 1,
    )
    rng = np.random.default_rng(plan.seed)
    lengths = np.array([len(ids) for ids in train])
    for step in range(plan.steps):
        near = np.sort(rng.integers(0, len(train), 8 * plan.batch))
        near = near[np.argsort(lengths[near], kind="stable")]  # texts of similar length, of all lengths in turn
        start = int(rng.integers(0, len(near) - plan.batch + 1))
        rows = near[start : start + plan.batch]
        wanted = torch.from_numpy(target[rows])
        output = network.output(pad_ids([train[i] for i in rows]))
        field = output[:, :dim]
        cosine = torch.nn.functional.cosine_similarity(field, wanted)
        loss = torch.nn.functional.mse_loss(field, wanted) / spread + (1 - cosine).mean()
        if "output.weight" in network.layers:  # which also makes the logits
            logits = torch.from_numpy(answers[rows, dim:])
            loss = loss + torch.nn.functional.mse_loss(output[:, dim:], logits) / spread_of_logits
        rate = 0.5 * (1 + np.cos(np.pi * step / plan.steps))
        for group in optimizer.param_groups:
            group["lr"] = plan.learning_rate * max(rate, 1e-2) * group["share"]
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        if progress is not None:
            progress("recover", step + 1, plan.steps)
    packed = dict(deployed.packed) | network.rounded_codebooks()
    tensors = dict(deployed.tensors) | {name: layer.detach().numpy() for name, layer in network.layers.items()}
    result = replace(deployed, packed=packed, tensors=tensors)
    opened = expand(result.stored())
    result = replace(result, tensors={name: opened[name] for name in deployed.tensors})
    after = field_errors(target[-_HELD_OUT:], outputs(result, held)[:, :dim])
    if not after["mean_cosine"] > before["mean_cosine"]:
        raise ExportError(
            f"recover: the fields are no nearer (cosine {before['mean_cosine']:.4f} before, {after['mean_cosine']:.4f} "
            "after); give more texts or another recover.learning_rate, or leave the pass out"
        )
    gap = 1 - before["mean_cosine"]
    changed: dict[str, Mapping[str, Any]] = {
        "field": {
            "before": before,
            "after": after,
            "recovered": (after["mean_cosine"] - before["mean_cosine"]) / gap,
            "texts": len(train),
            "held_out": len(held),
        }
    }
    return result, PassReport(
        name="recover", bytes_before=deployed.nbytes(), bytes_after=result.nbytes(), changed=changed
    )


def float_layers(deployed: Deployed) -> tuple[str, ...]:
    """Return the names of the float32 weights and biases of the layers that make field and logits."""
    floats = [layer for layer in deployed.dense() if layer != "pairs" and deployed.precision(layer) == "fp32"]
    names = [f"{layer}.{kind}" for layer in floats for kind in ("weight", "bias")]
    return tuple(name for name in names if name in deployed.tensors)


class TorchStudent:
    """The deployed form in torch, with codebooks as parameters; of a `smaller` student the float layers too."""

    def __init__(self, torch: Any, deployed: Deployed, *, smaller: bool = False) -> None:
        self.torch, self.net, self.deployed = torch, deployed.network, deployed
        self.tensors = {
            name: torch.from_numpy(np.ascontiguousarray(tensor.astype(np.float32)))
            for name, tensor in deployed.tensors.items()
            if name != "table"
        }
        self.layers = {name: self.tensors[name].requires_grad_() for name in float_layers(deployed) if smaller}
        self.codebooks: dict[str, Any] = {}
        self.codes: dict[str, Array] = {}
        for name, tensor in deployed.packed.items():
            if ".codebook." in name:
                self.codebooks[name] = torch.tensor(tensor.astype(np.float32), requires_grad=True)
                stored = name.replace(".codebook.", ".codes.")
                self.codes[name] = _numbers(deployed.packed[stored], code_bits(len(tensor)))
        self.table = deployed.tensors["table"]
        self.owners = ["", *(name for name in self.codebooks if name.startswith("table."))]
        self.owner = np.zeros(len(self.table), np.uint8)  # by number, 0 for rows that are int8
        self.local = np.zeros(len(self.table), np.int64)
        for number, (start, stop) in enumerate(deployed.blocks.values()):
            often = deployed.packed.get(f"table.often.{number}")
            rows = np.arange(start, stop)
            mask = np.ones(len(rows), bool)
            if often is not None:
                mask = np.unpackbits(often, count=len(rows), bitorder="little").astype(bool)
            for name, own in ((f"table.codebook.{number}", mask), (f"table.codebook.{number}.rarely", ~mask)):
                if name in self.codebooks:
                    self.owner[rows[own]] = self.owners.index(name)
                    self.local[rows[own]] = np.arange(own.sum())

    def _look_up(self, rows: Array) -> Any:
        """Return the float rows of the table numbered `rows (n,)`, `(n, width)`."""
        torch = self.torch
        different, place = np.unique(rows, return_inverse=True)
        owner = self.owner[different]
        order = np.argsort(owner, kind="stable")
        parts = []
        for number in np.unique(owner):
            own = different[order[owner[order] == number]]
            if number:
                name = self.owners[number]
                codes = torch.from_numpy(self.codes[name][self.local[own]].astype(np.int64))
                parts.append(self.codebooks[name][codes].reshape(len(own), -1)[:, : self.net.width])
            else:
                parts.append(torch.from_numpy(np.asarray(self.table[own], np.float32)))
        scale = self.tensors["table.scale"][torch.from_numpy(different[order])]
        back = np.argsort(order, kind="stable")[place.reshape(-1)]
        return (torch.cat(parts) * scale[:, None])[torch.from_numpy(back)]

    def tuned_codebooks(self) -> list[Any]:
        """Return the parameters to tune: a table's codebooks, or if it has none, those of the dense layers."""
        tables = [book for name, book in self.codebooks.items() if name.startswith("table.")]
        return tables or [book for name, book in self.codebooks.items() if not name.startswith("pairs.")]

    def _weight(self, layer: str) -> Any:
        name = f"{layer}.weight"
        book = f"{name}.codebook.0"
        weight = self.tensors[name]
        if book in self.codebooks:
            codes = self.torch.from_numpy(self.codes[book].astype(np.int64))
            weight = self.codebooks[book][codes].reshape(len(codes), -1)[:, : weight.shape[0]].T
        scale = self.tensors.get(f"{name}_scale")
        return weight if scale is None else weight * scale

    def _dense(self, layer: str, x: Any) -> Any:
        y = x @ self._weight(layer)
        bias = self.tensors.get(f"{layer}.bias")
        return y if bias is None else y + bias

    def output(self, ids: Array) -> Any:
        """Return fields and logits of `ids (batch, length)`, as `fieldrun_exporters.student.simulate.outputs`."""
        torch, net, length = self.torch, self.net, ids.shape[1]
        rows = row_numbers(self.deployed, ids)
        values = self._look_up(rows.reshape(-1)).reshape(*rows.shape, net.width)
        g = torch.relu(values.sum(2))
        if net.mixer_kernel:
            g = torch.cat([g[:, k : k + length] for k in range(net.mixer_kernel)], dim=-1)
            g = torch.relu(self._dense("mixer", g))
        pooled = g.amax(1)
        if net.mean:
            a = g @ self.tensors["score.weight"]
            mean = (a * g).sum(1) / (a.sum(1) + SCORE_FLOOR) * self.tensors["mean.gain"]
            pooled = torch.cat([mean, pooled], dim=-1)
        if net.hidden:
            pooled = torch.relu(self._dense("hidden", pooled))
        return self._dense("output", pooled)

    def rounded_codebooks(self) -> dict[str, Array]:
        """Return the codebooks as they are stored."""
        return {
            name: np.clip(np.rint(book.detach().numpy()), -127, 127).astype(np.int8)
            for name, book in self.codebooks.items()
        }


def _numbers(packed: Array, bits: int) -> Array:
    """Return the codes in `packed (rows, bytes) uint8`, `(rows, n) uint8`, with those of the padding."""
    out = np.empty((len(packed), packed.shape[1] * 8 // bits), np.uint8)
    for start in range(0, len(packed), 1 << 14):
        each = np.unpackbits(packed[start : start + (1 << 14)], axis=1, bitorder="little")
        out[start : start + (1 << 14)] = np.packbits(each.reshape(len(each), -1, bits), axis=2, bitorder="little")[
            :, :, 0
        ]
    return out
