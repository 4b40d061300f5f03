"""Palettize: k-means clustering of weights, so that a matrix is codes into a small codebook (arXiv 2603.17917).

Every row (every column of a dense matrix) has its own scale, and the row divided by its scale is clustered: outlier
rows would spoil a codebook that all rows share. `palette16` clusters single numbers; `palette256x4` clusters runs of
four neighbouring numbers, which is better at two bits a number than any choice of four single values (product
quantization, Jegou et al. 2011). `int4` is the palette of the 15 evenly spaced values -7..7.
`palette64:20%+palette256x8` gives the fifth of the rows that texts use most six bits a number, and the others one:
by the checkpoint's token counts, nine tenths of a text's words are in that fifth. Rows count for a codebook by their
use.

The codebook's entries are rounded to int8, so that the matrix is an int8 matrix with one scale a row. It is exactly the
same when a bundle is loaded, and the graphs and kernels of int8 recipes run it without change.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from fieldrun.errors import ExportError
from fieldrun.formats.packing import code_bits, expand, pack_codes, unpack_codes
from fieldrun.formats.tensors import Array

from ...precision import Palette, Precision, Split, palettes
from ..deployed import Deployed
from . import PassReport

__all__ = [
    "Block",
    "Clustered",
    "cluster",
    "cluster_block",
    "int8_rows",
    "kmeans",
    "lloyd",
    "palette_facts",
    "palettize",
]

_SAMPLE = 1_000_000  # numbers that a codebook is made from
_STEPS = 15
_LLOYD_STEPS = 2000  # on sorted numbers a step is cheap, and from the quantiles it takes many
_ROUNDS = 3  # of codes, then scales
_CHUNK = 1 << 16
_VECTORS = 1 << 11  # whose distances to all centroids are held at once: 4 MB stay in the cache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Clustered:
    """`codes (rows, n) uint8`, `codebook (K, d) int8` and `scale (rows,) float16` of a matrix `(rows, width)`."""

    codes: Array
    codebook: Array
    scale: Array
    width: int

    def packed(self) -> Array:
        """Return the codes as they are stored."""
        return pack_codes(self.codes, code_bits(len(self.codebook)))

    def stored(self, name: str) -> dict[str, Array]:
        """Return what is stored of the matrix `name`, but its width."""
        return {f"{name}.codes.0": self.packed(), f"{name}.codebook.0": self.codebook}

    def steps(self) -> Array:
        """Return the int8 matrix `(rows, width)`, unpacked as when a bundle is loaded."""
        return unpack_codes(self.packed(), self.codebook, self.width)

    def values(self) -> Array:
        """Return the matrix `(rows, width) float32`."""
        values: Array = self.steps() * self.scale.astype(np.float32)[:, None]
        return values


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Block:
    """A block of the table: `steps (rows, width) int8` of `scale (rows,) float16`, and what is stored of it.

    `stored` has the names of `formats.packing` without the table's and the part's number: `codes`, `codes.rarely`.
    """

    steps: Array
    scale: Array
    stored: Mapping[str, Array]


def palettize(deployed: Deployed, folded: Deployed, precision: Precision) -> tuple[Deployed, PassReport]:
    """Replace the parts that `precision` says by palettes.

    `deployed` has its int8 and float16 parts already so; the numbers that are clustered are those of `folded`, the same
    in float32. If one block of the table becomes a palette, the others become palettes or int8.

    Raises:
        ExportError: a scale is beyond float16, or nothing became smaller.
    """
    tensors = dict(deployed.tensors)
    packed: dict[str, Array] = {}
    changed: dict[str, Mapping[str, Any]] = {}
    if any(palettes(precision.of(block)) for block in deployed.blocks):
        table, scale = folded.tensors["table"], np.empty(len(folded.tensors["table"]), np.float16)
        steps = np.empty(table.shape, np.int8)
        packed["table.width"] = np.array([table.shape[1]], np.int32)
        for number, (block, (start, stop)) in enumerate(deployed.blocks.items()):
            wanted = precision.of(block)
            found = cluster_block(folded, block, wanted)
            own = {_numbered(name, number): tensor for name, tensor in found.stored.items()}
            packed |= own
            steps[start:stop], scale[start:stop] = found.steps, found.scale
            changed[block] = palette_facts(block, table[start:stop], found.steps, found.scale, wanted, own)
        tensors |= {"table": steps, "table.scale": scale.astype(np.float32)}
    for layer in deployed.dense():
        palette, name = Palette.of(precision.of(layer)), f"{layer}.weight"
        if palette is not None:
            weight = np.ascontiguousarray(folded.tensors[name].T)
            dense = cluster(weight, palette)
            stored = dense.stored(name)
            changed[layer] = palette_facts(layer, weight, dense.steps(), dense.scale, precision.of(layer), stored)
            tensors |= {
                name: np.ascontiguousarray(dense.steps().T),
                f"{name}_scale": dense.scale.astype(np.float32),
            }
            packed |= stored | {f"{name}.width": np.array([weight.shape[1]], np.int32)}
    result = replace(deployed, tensors=tensors, packed=packed)
    report = PassReport.of("palettize", deployed, result, changed)
    opened = expand(result.stored())
    wrong = [name for name in tensors if not np.array_equal(opened[name], tensors[name])]
    if wrong:
        raise ExportError(f"palettize: unpacking {wrong[0]!r} gives other numbers")
    return result, report


def _numbered(name: str, number: int) -> str:
    """Return the stored name of a block's tensor: `codes.rarely` of part 3 is `table.codes.3.rarely`."""
    kind, _, rest = name.partition(".")
    return f"table.{kind}.{number}" + (f".{rest}" if rest else "")


def cluster_block(folded: Deployed, block: str, precision: str) -> Block:
    """Return a block of the table at a precision that it may have beside other blocks: int8, a palette, or a split.

    Raises:
        ExportError: a split, and it is not known how often rows are used.
    """
    start, stop = folded.blocks[block]
    rows = folded.tensors["table"][start:stop]
    usage = None if folded.usage is None else folded.usage[start:stop]
    padding = int(folded.tensors["rows.base"][list(folded.blocks).index("offset0")])
    even = padding - start if start <= padding < stop else None
    split, whole = Split.of(precision), Palette.of(precision)
    if whole is not None:
        found = cluster(rows, whole, even, usage)
        return Block(
            steps=found.steps(), scale=found.scale, stored={"codes": found.packed(), "codebook": found.codebook}
        )
    if split is None:
        steps, scale = int8_rows(rows)
        return Block(steps=steps, scale=scale, stored={"rows": steps})
    if usage is None:
        raise ExportError(
            f"palettize: {precision!r} needs to know how often rows are used, and the checkpoint has no token counts "
            "(usage.safetensors); distill it again, or use one palette for all rows"
        )
    order = np.argsort(-usage.astype(np.int64), kind="stable")
    chosen = np.zeros(len(rows), bool)
    chosen[order[: max(1, len(rows) * split.percent // 100)]] = True
    if even is not None:
        chosen[even] = True  # the padding's row must be exact, wherever codebooks are better
    steps, scale = np.empty(rows.shape, np.int8), np.empty(len(rows), np.float16)
    stored: dict[str, Array] = {"often": np.packbits(chosen, bitorder="little")}
    for name, mask, palette in (("", chosen, split.often), (".rarely", ~chosen, split.rarely)):
        own = int(mask[:even].sum()) if even is not None and mask[even] else None
        found = cluster(rows[mask], palette, own, usage[mask])
        stored |= {f"codes{name}": found.packed(), f"codebook{name}": found.codebook}
        steps[mask], scale[mask] = found.steps(), found.scale
    return Block(steps=steps, scale=scale, stored=stored)


def int8_rows(rows: Array) -> tuple[Array, Array]:
    """Return `rows` as int8 steps of scales that float16 holds."""
    scale = _half(np.abs(rows).max(1) / 127).astype(np.float32)
    steps = np.clip(np.rint(rows / np.where(scale > 0, scale, 1)[:, None]), -127, 127)
    return steps.astype(np.int8), _half(scale)


def palette_facts(
    name: str,
    before: Array,
    steps: Array,
    scale: Array,
    precision: str,
    stored: Mapping[str, Array],
) -> dict[str, Any]:
    """Return bytes and error of a part, and check that a palette has no more values than its codebook."""
    if not np.isfinite(scale).all():
        raise ExportError(f"palettize: a row of {name!r} needs a scale beyond float16; use fp32 or int8 for it")
    after = sum(tensor.nbytes for tensor in stored.values()) + scale.nbytes
    facts: dict[str, Any] = {"weights": int(before.size), "bytes_before": before.nbytes, "bytes_after": after}
    error = norm = 0.0
    for start in range(0, len(before), _CHUNK // 8):
        part = slice(start, start + _CHUNK // 8)
        values = steps[part] * scale[part].astype(np.float32)[:, None]
        error += float(np.square(values - before[part]).sum(dtype=np.float64))
        norm += float(np.square(before[part]).sum(dtype=np.float64))
    facts["relative_error"] = float(np.sqrt(error / norm)) if norm else 0.0
    found = palettes(precision)
    if found:
        books = {name.replace(".codebook.", ".codes."): book for name, book in stored.items() if ".codebook." in name}
        bits = sum(len(stored[name]) * code_bits(len(book)) / book.shape[1] for name, book in books.items())
        facts |= {"precision": precision, "bits": bits / len(before)}
        most = sum(palette.entries * palette.dims for palette in found)
        if len(np.unique(steps)) > most:
            raise ExportError(f"palettize: {name!r} has more values than its palette")
    return facts


def cluster(matrix: Array, palette: Palette, even: int | None = None, usage: Array | None = None) -> Clustered:
    """Return `matrix (rows, width) float32` clustered into `palette`; its width need not divide by `palette.dims`.

    Codes and scales are found in turns: the nearest entry, then the scale with the least squared error. `even` is the
    number of the padding's row, which has one negative number throughout and must be exact. With `usage (rows,)` a row
    counts for the codebook by the square root of how often it is used: rows that are never used count little, and the
    few most frequent words do not decide alone.
    """
    d = palette.dims
    width = matrix.shape[1]
    rows = np.pad(matrix, ((0, 0), (0, -width % d))).astype(np.float32, copy=False)
    peak = np.abs(rows).max(1)
    if palette.linear:
        half = (palette.entries - 2) // 2
        codebook = np.arange(-half, half + 1, dtype=np.float32)[:, None] * (127 // half)
        scale = peak / (half * (127 // half))
    else:
        scale = np.sqrt(np.square(rows, dtype=np.float64).mean(1)).astype(np.float32)
        codebook = _codebook(rows, scale, palette, usage)
        largest = np.abs(codebook).max() or np.float32(1)
        codebook = np.rint(codebook * (127 / largest))
        if even is not None and palette.dims > 1:
            codebook[-1] = -127
        scale = scale * (largest / 127)
    codes = np.zeros((len(rows), rows.shape[1] // d), np.uint8)
    for _ in range(_ROUNDS):
        scale = _stored(scale)
        for start in range(0, len(rows), _CHUNK // 8):
            part = slice(start, start + _CHUNK // 8)
            safe = np.where(scale[part] > 0, scale[part], 1)[:, None]
            vectors = (rows[part] / safe).reshape(-1, d)
            codes[part] = _nearest(vectors, codebook).reshape(-1, codes.shape[1])
        scale = _best_scale(rows, codes, codebook)
    if even is not None:
        entry = int(codebook.max(1).argmin())
        codes[even], scale[even] = entry, rows[even, 0] / codebook[entry, 0]
    return Clustered(codes=codes, codebook=codebook.astype(np.int8), scale=_half(scale), width=width)


def _half(scale: Array) -> Array:
    """Return `scale` in float16: zero if it is too small, and infinity, which `palette_facts` refuses, if too large."""
    with np.errstate(over="ignore"):
        return scale.astype(np.float16)


def _stored(scale: Array) -> Array:
    """Return `scale` as float16 holds it, in float32; zero where it cannot."""
    stored = _half(scale).astype(np.float32)
    return np.where(np.isfinite(stored), stored, 0)


def _best_scale(rows: Array, codes: Array, codebook: Array) -> Array:
    out = np.zeros(len(rows), np.float32)
    for start in range(0, len(rows), _CHUNK // 8):
        part = slice(start, start + _CHUNK // 8)
        steps = codebook[codes[part]].reshape(rows[part].shape).astype(np.float64)
        squares = np.square(steps).sum(1)
        # products and sums apart, because a processor that fuses them rounds differently
        out[part] = (rows[part] * steps).sum(1) / np.where(squares > 0, squares, 1)
    return np.maximum(out, 0)


def _codebook(rows: Array, scale: Array, palette: Palette, usage: Array | None) -> Array:
    """Return the codebook `(K, d) float32` of a sample of the scaled rows."""
    rng = np.random.default_rng(0)
    wanted = min(len(rows), -(-_SAMPLE // rows.shape[1]))
    if usage is None:
        chosen = np.sort(rng.choice(len(rows), wanted, replace=False))
    else:
        weight = np.sqrt(usage + 0.5)
        chosen = np.sort(rng.choice(len(rows), wanted, p=weight / weight.sum()))
    chosen = chosen[scale[chosen] > 0] if (scale[chosen] > 0).any() else chosen
    vectors = (rows[chosen] / np.where(scale[chosen] > 0, scale[chosen], 1)[:, None]).reshape(-1, palette.dims)
    if palette.dims == 1:
        return lloyd(vectors[:, 0], palette.entries)[:, None]
    return kmeans(vectors, palette.entries, rng)


def lloyd(values: Array, entries: int) -> Array:
    """Return the `(entries,) float32` centroids of `values (n,)`, sorted: Lloyd's algorithm from their quantiles."""
    ordered = np.sort(values.astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centroids, settled = np.quantile(ordered, (np.arange(entries) + 0.5) / entries), 1e-5 * ordered.std()
    for _ in range(_LLOYD_STEPS):
        edges = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2)
        edges = np.concatenate([[0], edges, [len(ordered)]])
        counts = np.diff(edges)
        means = np.diff(sums[edges]) / np.maximum(counts, 1)
        before, centroids = centroids, np.where(counts > 0, means, centroids)
        if np.abs(centroids - before).max() < settled:
            break
    return centroids.astype(np.float32)


def kmeans(vectors: Array, entries: int, rng: np.random.Generator) -> Array:
    """Return the `(entries, d) float32` centroids of `vectors (n, d)`; an entry without vectors starts anew."""
    centroids = vectors[rng.choice(len(vectors), entries, replace=len(vectors) < entries)].astype(np.float32)
    for _ in range(_STEPS):
        nearest = _nearest(vectors, centroids)
        counts = np.bincount(nearest, minlength=entries)
        sums = np.stack([np.bincount(nearest, weights=column, minlength=entries) for column in vectors.T], axis=1)
        anew = vectors[rng.integers(0, len(vectors), entries)]
        centroids = np.where(counts[:, None] > 0, sums / np.maximum(counts, 1)[:, None], anew).astype(np.float32)
    return centroids


def _nearest(vectors: Array, centroids: Array) -> Array:
    """Return the number of the centroid `(entries, d)` that is nearest to each of `vectors (n, d)`, `(n,) uint8`."""
    if centroids.shape[1] == 1:
        order = np.argsort(centroids[:, 0], kind="stable")
        ordered = centroids[order, 0]
        return order.astype(np.uint8)[np.searchsorted((ordered[1:] + ordered[:-1]) / 2, vectors[:, 0])]
    wide = _whole(centroids)
    half = np.square(wide).sum(1) / 2
    out = np.empty(len(vectors), np.uint8)
    for start in range(0, len(vectors), _VECTORS):
        part = slice(start, start + _VECTORS)
        out[part] = (_whole(vectors[part]) @ wide.T - half).argmax(1)
    return out


def _whole(numbers: Array) -> Array:
    """Return `numbers` in steps of 1/1024 as whole float64 numbers, whose sums of products are exact.

    So every processor and every BLAS finds the same nearest entry.
    """
    whole: Array = np.rint(numbers.astype(np.float64) * 1024)
    return whole
