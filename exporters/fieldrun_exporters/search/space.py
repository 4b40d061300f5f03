"""What `compress` chooses from: every part of a student at every level, its bytes, and what it does to the fields.

A position's sum is the sum over its blocks, so that a candidate is judged without building it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fieldrun.formats.progress import Progress
from fieldrun.formats.storage import write_bytes
from fieldrun.formats.tensors import Array, read_tensors, write_tensors
from fieldrun.student.windows import pad_ids

from ..precision import Palette, Split
from ..student.deployed import Deployed
from ..student.passes.int8 import quantize_columns, quantize_rows
from ..student.passes.palettize import cluster, cluster_block
from ..student.simulate import finish, row_numbers

__all__ = ["DENSE_LEVELS", "TABLE_LEVELS", "Levels", "Space", "least_bytes", "unit"]

TABLE_LEVELS = (
    "int8",
    "palette64",
    "palette16",
    "palette64:30%+palette256x4",
    "palette64x2",
    "palette64:20%+palette256x8",
    "palette256x4",
    "palette16:15%+palette256x8",
    "palette256x8",
)
DENSE_LEVELS = ("int8-weights", "palette64", "palette16", "palette8")
"""The levels of a part, most bytes first."""

_BATCH = 64
_WIDTH = 4  # bytes of a packed matrix's width

Levels = tuple[int, ...]


def unit(fields: Array) -> Array:
    """Return `fields (n, dim)` of length 1."""
    found: Array = fields / np.maximum(np.linalg.norm(fields, axis=1, keepdims=True), 1e-12)
    return found


def least_bytes(folded: Deployed) -> int:
    """Return a size that no candidate goes below, without clustering: a bit for each number, and the rows' scales."""
    numbers = folded.tensors["table"].size + sum(
        folded.tensors[f"{layer}.weight"].size for layer in folded.dense() if layer != "pairs"
    )
    return numbers // 8 + 2 * len(folded.tensors["table"])


class Space:
    """Every part at every level: its bytes, and what it gives on the calibration texts.

    `target (texts, dim)` are the fields to come near to; `work` keeps what was clustered.
    """

    def __init__(
        self, folded: Deployed, sequences: Sequence[Sequence[int]], work: Path, report: Progress, target: Array
    ) -> None:
        self.folded, self.parts = folded, (*folded.blocks, *(n for n in folded.dense() if n != "pairs"))
        tables = [level for level in TABLE_LEVELS if folded.usage is not None or not Split.of(level)]
        self.levels = {part: tables if part in folded.blocks else DENSE_LEVELS for part in self.parts}
        order = np.argsort([len(ids) for ids in sequences], kind="stable")
        groups = [order[i : i + _BATCH] for i in range(0, len(order), _BATCH)]
        self.rows = [row_numbers(folded, pad_ids([sequences[i] for i in group])) for group in groups]
        self._work = work
        self._sums: dict[tuple[str, int], list[Array]] = {}
        self._dense: dict[tuple[str, int], dict[str, Array]] = {}
        self._bytes: dict[tuple[str, int], int] = {}
        total, done = sum(len(levels) for levels in self.levels.values()), 0
        for part in self.parts:
            for number, level in enumerate(self.levels[part]):
                report("cluster", done, total)
                tensors = self._clustered(part, level)
                self._bytes[part, number] = int(tensors.pop("bytes")[0])
                if part in folded.blocks:
                    self._sums[part, number] = self._sum(part, tensors["steps"], tensors["scale"])
                else:
                    self._dense[part, number] = {
                        f"{part}.weight": tensors["steps"].T,
                        f"{part}.weight_scale": tensors["scale"],
                    }
                done += 1
        report("cluster", total, total)
        self._fixed = sum(
            tensor.nbytes
            for name, tensor in folded.tensors.items()
            if name not in ("table", "table.scale", "pairs.weight") and name.removesuffix(".weight") not in self.parts
        )
        self._pairs = {"pairs": "int8-weights"} if "pairs.weight" in folded.tensors else {}
        if self._pairs:
            self._fixed += folded.tensors["pairs.weight"].size + 4 * folded.tensors["pairs.weight"].shape[1]
        self._target = unit(target[order])

    def _clustered(self, part: str, level: str) -> dict[str, Array]:
        """Return steps, scale and stored bytes of `part` at `level`, from the work folder if they are there."""
        name = level.replace(":", "-").replace("%", "")  # which FAT or Windows refuse
        path = self._work / f"{part}-{name}.safetensors"
        if path.exists():
            try:
                return dict(read_tensors(path))
            except ValueError:
                path.unlink()
        if part in self.folded.blocks:
            block = cluster_block(self.folded, part, level)
            steps, scale, stored = block.steps, block.scale, sum(tensor.nbytes for tensor in block.stored.values())
        else:
            matrix, palette = np.ascontiguousarray(self.folded.tensors[f"{part}.weight"].T), Palette.of(level)
            if palette is None:
                steps, scale = quantize_rows(matrix)
                stored = steps.nbytes + scale.nbytes
            else:
                found = cluster(matrix, palette)
                steps, scale = found.steps(), found.scale
                stored = found.packed().nbytes + found.codebook.nbytes + scale.nbytes + _WIDTH
        tensors = {"steps": steps, "scale": scale.astype(np.float32), "bytes": np.array([stored], np.int64)}
        write_bytes(path, write_tensors(tensors))
        return tensors

    def _sum(self, block: str, steps: Array, scale: Array) -> list[Array]:
        """Return what `block` adds to every position of every batch of texts."""
        start, stop = self.folded.blocks[block]
        base = self.folded.tensors["rows.base"]
        columns = np.flatnonzero((base >= start) & (base < stop))
        sums = []
        for rows in self.rows:
            total = np.zeros((*rows.shape[:2], steps.shape[1]), np.float32)
            for j in columns:
                own = rows[:, :, j] - start
                total += steps[own] * scale[own][:, :, None].astype(np.float32)
            sums.append(total)
        return sums

    def error(self, levels: Levels) -> float:
        """Return 1 - the mean cosine of the fields with the target's."""
        tensors = dict(self.folded.tensors)
        chosen = dict(zip(self.parts, levels, strict=True))
        for part, level in chosen.items():
            tensors |= self._dense.get((part, level), {})
        blocks = [self._sums[block, chosen[block]] for block in self.folded.blocks]
        found = [
            finish(self.folded.network, tensors, np.sum([sums[i] for sums in blocks], axis=0))
            for i in range(len(self.rows))
        ]
        fields = unit(np.concatenate(found)[:, : self.folded.network.field_dim])
        return float(1 - (fields * self._target).sum(1).mean())

    def deployed(self, levels: Levels) -> Deployed:
        """Return what the passes make of a candidate, from the clustered parts, for NumPy; nothing in it is packed."""
        chosen = dict(zip(self.parts, levels, strict=True))
        found = {part: self._clustered(part, self.levels[part][level]) for part, level in chosen.items()}
        blocks = [found[block] for block in self.folded.blocks]
        tensors = dict(self.folded.tensors) | {
            "table": np.concatenate([block["steps"] for block in blocks]),
            "table.scale": np.concatenate([block["scale"] for block in blocks]).astype(np.float32),
        }
        for part, level in chosen.items():
            tensors |= self._dense.get((part, level), {})
        if self._pairs:
            steps, scale = quantize_columns(tensors["pairs.weight"], 127)
            tensors |= {"pairs.weight": steps, "pairs.weight_scale": scale}
        return replace(self.folded, tensors=tensors)

    def size(self, levels: Levels) -> int:
        """Return the bytes of the weights."""
        chosen = dict(zip(self.parts, levels, strict=True))
        packed = any(self.levels[block][chosen[block]] != "int8" for block in self.folded.blocks)
        scales = len(self.folded.tensors["table"]) * (2 if packed else 4) + (_WIDTH if packed else 0)
        return self._fixed + scales + sum(self._bytes[key] for key in chosen.items())

    def uniform(self, *, dense: int | None = None) -> list[Levels]:
        """Return all tables at one level and all dense layers at one, or at `dense`, most bytes first."""
        tables = range(len(self.levels[next(iter(self.folded.blocks))]))
        others = range(len(DENSE_LEVELS)) if dense is None else (dense,)
        found = [
            tuple(table if part in self.folded.blocks else other for part in self.parts)
            for table in tables
            for other in others
        ]
        return list(dict.fromkeys(found))

    def rules(self, levels: Levels) -> dict[str, str]:
        """Return the rules of `[precision]`; pair heads, which do not change fields, have int8 weights."""
        return {part: self.levels[part][level] for part, level in zip(self.parts, levels, strict=True)} | self._pairs
