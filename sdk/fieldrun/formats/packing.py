"""Packed tensors: int8 matrices with few different values, stored as codes and expanded when a bundle is loaded.

A matrix `NAME (rows, width) int8` can be stored in consecutive parts, numbered from 0, each either

| Tensor | Shape, type | Holds |
|---|---|---|
| `NAME.rows.<i>` | `(rows_i, width) int8` | the numbers themselves |
| `NAME.codes.<i>` | `(rows_i, bytes) uint8` | a code for every d neighbouring numbers of a row |
| `NAME.codebook.<i>` | `(K, d) int8` | the numbers that a code stands for |
| `NAME.codes.<i>.rarely`, `NAME.codebook.<i>.rarely` | as above | the other rows of a part that is split |
| `NAME.often.<i>` | `(ceil(rows_i / 8),) uint8` | a bit for each row of a split part: 1 for those of `NAME.codes.<i>` |
| `NAME.width` | `(1,) int32` | the matrix's width |

A dense `<layer>.weight` is stored transposed, a row for each output. A code has ceil(log2 K) bits; the codes of a row,
their number rounded up to a multiple of 8, fill its bytes from the lowest bit on. Expanding gives exactly the numbers
that were exported. Most engines expand whole matrices when a bundle is loaded, the native engine a row of the table
when a text first needs it; from then on all are as fast as without packing.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..errors import BundleError
from . import limits
from .tensors import Array

__all__ = [
    "Coded",
    "PackedMatrix",
    "Part",
    "code_bits",
    "expand",
    "pack_codes",
    "packed_names",
    "take_packed",
    "unpack_codes",
]

_UNIT = {1: 8, 2: 8, 3: 12, 4: 8, 5: 10, 6: 12, 7: 14, 8: 8}  # bits of whole codes that are looked up together
_ROWS = 32768  # packed or expanded at once


def code_bits(entries: int) -> int:
    """Return the bits of a code into a codebook of `entries`, 1 to 256; `ValueError` for any other number."""
    if not 1 <= entries <= 256:
        raise ValueError(f"a codebook has 1 to 256 entries, not {entries}")
    return max(1, (entries - 1).bit_length())


def pack_codes(codes: Array, bits: int) -> Array:
    """Return `codes (rows, n) uint8`, each below `2**bits`, as `(rows, bytes) uint8`."""
    padded = np.pad(codes, ((0, 0), (0, -codes.shape[1] % 8)))
    out = np.empty((len(codes), padded.shape[1] * bits // 8), np.uint8)
    for start in range(0, len(codes), _ROWS):
        part = padded[start : start + _ROWS]
        each = np.unpackbits(part[:, :, None], axis=2, count=bits, bitorder="little")
        out[start : start + _ROWS] = np.packbits(each.reshape(len(part), -1), axis=1, bitorder="little")
    return out


def unpack_codes(packed: Array, codebook: Array, width: int) -> Array:
    """Return the matrix `(rows, width) int8` of `packed (rows, bytes) uint8` and `codebook (K, d) int8`.

    Several codes are looked up at once, in a table of all their combinations, so that it takes tens of milliseconds.

    Raises:
        ValueError: a row does not have the bytes of `width` numbers, or a code is not in the codebook.
    """
    entries, each = codebook.shape
    bits = code_bits(entries)
    codes = -(-width // each)
    groups = -(-codes // 8)
    _check_bytes(packed, codebook, width)
    unit = _UNIT[bits]
    together = unit // bits
    digits = np.arange(1 << unit)[:, None] >> (bits * np.arange(together)) & ((1 << bits) - 1)
    known = (digits < entries).all(1)
    table = np.ascontiguousarray(codebook[np.minimum(digits, entries - 1)].reshape(len(digits), together * each))
    looked_up = table.view(np.dtype((np.void, table.shape[1])))[:, 0]
    out = np.empty((len(packed), width), np.int8)
    for start in range(0, len(packed), _ROWS):
        values = _units(packed[start : start + _ROWS].reshape(-1, groups, bits), bits, unit)
        if not known.all() and not known[values].all():
            raise ValueError(f"a code is not in the codebook of {entries} entries")
        rows = looked_up[values].view(np.int8).reshape(len(values), -1)
        out[start : start + _ROWS] = rows[:, :width]
    return out


def _units(groups: Array, bits: int, unit: int) -> Array:
    """Return the numbers of `unit` bits in `groups (rows, groups, bits) uint8`, as `(rows, groups, units)`."""
    if unit == 8:
        return groups
    count = 8 * bits // unit
    out = np.empty((*groups.shape[:2], count), np.uint16)
    for k in range(count):
        first, shift = divmod(k * unit, 8)
        value = groups[:, :, first].astype(np.uint32) >> shift
        for more in range(1, (shift + unit + 7) // 8):
            value |= groups[:, :, first + more].astype(np.uint32) << (8 * more - shift)
        out[:, :, k] = value & ((1 << unit) - 1)
    return out


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Coded:
    """Stored rows: `codes (rows, bytes) uint8` into `codebook (K, d) int8`."""

    codes: Array
    codebook: Array


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """`rows` consecutive rows of a matrix: `plain` numbers, or `coded`.

    In a split part `often (rows,) bool` marks the rows in `coded`, in their order; `rarely` has the others.
    """

    rows: int
    plain: Array | None = None
    coded: Coded | None = None
    often: Array | None = None
    rarely: Coded | None = None

    def open_into(self, out: Array) -> None:
        """Write the rows into `out (rows, width) int8`. `ValueError` if a code or the size is wrong."""
        width = out.shape[1]
        if self.plain is not None:
            out[:] = self.plain
        elif self.coded is not None and self.often is not None and self.rarely is not None:
            out[self.often] = unpack_codes(self.coded.codes, self.coded.codebook, width)
            out[~self.often] = unpack_codes(self.rarely.codes, self.rarely.codebook, width)
        elif self.coded is not None:
            out[:] = unpack_codes(self.coded.codes, self.coded.codebook, width)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class PackedMatrix:
    """A packed int8 matrix `(rows, width)`."""

    width: int
    parts: Sequence[Part]

    @property
    def shape(self) -> tuple[int, int]:
        """The shape of the expanded matrix."""
        return sum(part.rows for part in self.parts), self.width

    def open(self) -> Array:
        """Return the matrix `(rows, width) int8`. `ValueError` if a code is not in its codebook."""
        out, start = np.empty(self.shape, np.int8), 0
        for part in self.parts:
            part.open_into(out[start : start + part.rows])
            start += part.rows
        return out


def packed_names(tensors: Mapping[str, Array]) -> tuple[str, ...]:
    """Return the names of the packed matrices in `tensors`."""
    names = [name.removesuffix(".width") for name in tensors if name.endswith(".width")]
    return tuple(name for name in names if f"{name}.codes.0" in tensors or f"{name}.rows.0" in tensors)


def take_packed(name: str, tensors: dict[str, Array]) -> PackedMatrix:
    """Take the parts of the packed matrix `name` out of `tensors`, without expanding them.

    Raises:
        ValueError: a part is missing or does not fit.
    """
    width = _take_width(name, tensors)
    parts: list[Part] = []
    while width > 0 and (part := _take_part(name, len(parts), width, tensors)) is not None:
        parts.append(part)
    rows = sum(part.rows for part in parts)
    if rows * width > limits.TABLE_BYTES:
        raise ValueError(f"{name} has {rows} rows of {width} numbers, more than {limits.TABLE_BYTES} bytes")
    return PackedMatrix(width=max(width, 0), parts=parts)


def expand(tensors: Mapping[str, Array], *, but: Collection[str] = ()) -> dict[str, Array]:
    """Return `tensors` with every packed matrix in place of its parts, and float16 scales as float32.

    Matrices named in `but` stay packed.

    Raises:
        ValueError: a part is missing or does not fit.
        BundleError: a matrix is a tensor mixture, which only older versions of fieldrun write and read.
    """
    mixture = next((name for name in tensors if ".mixt." in name), None)
    if mixture is not None:
        raise BundleError(
            f"{mixture.partition('.mixt.')[0]!r} is stored as a tensor mixture, which this fieldrun cannot read; "
            "export the checkpoint again with another precision"
        )
    out = dict(tensors)
    for name in packed_names(tensors):
        if name in but:
            continue
        whole = take_packed(name, out).open()
        out[name] = np.ascontiguousarray(whole.T) if name.endswith(".weight") else whole
    return {
        name: t.astype(np.float32) if name.endswith("scale") and t.dtype == np.float16 else t for name, t in out.items()
    }


def _take_width(name: str, tensors: dict[str, Array]) -> int:
    width = tensors.pop(f"{name}.width")
    if width.shape != (1,) or width.dtype != np.int32:
        raise ValueError(f"{name}.width is not (1,) int32")
    return int(width[0])


def _take_part(name: str, number: int, width: int, tensors: dict[str, Array]) -> Part | None:
    plain = tensors.pop(f"{name}.rows.{number}", None)
    if plain is not None:
        if plain.dtype != np.int8 or plain.ndim != 2 or plain.shape[1] != width:
            raise ValueError(f"{name}.rows.{number} is not (rows, {width}) int8")
        return Part(rows=len(plain), plain=plain)
    if f"{name}.codes.{number}" not in tensors:
        return None
    coded = _take_coded(name, f"{number}", width, tensors)
    bits = tensors.pop(f"{name}.often.{number}", None)
    if bits is None:
        return Part(rows=len(coded.codes), coded=coded)
    rarely = _take_coded(name, f"{number}.rarely", width, tensors)
    rows = len(coded.codes) + len(rarely.codes)
    if bits.dtype != np.uint8 or bits.shape != (-(-rows // 8),):
        raise ValueError(f"{name}.often.{number} is not a bit for each of {rows} rows")
    often = np.unpackbits(bits, count=rows, bitorder="little").astype(bool)
    if int(often.sum()) != len(coded.codes):
        raise ValueError(f"{name}.often.{number} chooses {int(often.sum())} rows of {len(coded.codes)}")
    return Part(rows=rows, coded=coded, often=often, rarely=rarely)


def _take_coded(name: str, part: str, width: int, tensors: dict[str, Array]) -> Coded:
    codes = tensors.pop(f"{name}.codes.{part}", np.zeros(0))
    codebook = tensors.pop(f"{name}.codebook.{part}", np.zeros(0))
    if codebook.dtype != np.int8 or codebook.ndim != 2 or 0 in codebook.shape or codes.dtype != np.uint8:
        raise ValueError(f"{name}.codes.{part} has no codebook (K, d) int8")
    if codebook.shape[1] > limits.RUN:
        raise ValueError(f"{name}.codebook.{part} has {codebook.shape[1]} numbers a code, more than {limits.RUN}")
    _check_bytes(codes, codebook, width)
    return Coded(codes=codes, codebook=codebook)


def _check_bytes(packed: Array, codebook: Array, width: int) -> None:
    """`ValueError` unless a row of `packed` has the bytes of `width` numbers."""
    codes = -(-width // codebook.shape[1])
    wanted = -(-codes // 8) * code_bits(len(codebook))
    if packed.ndim != 2 or packed.shape[1] != wanted:
        raise ValueError(f"rows of {width} numbers take {wanted} bytes, not {packed.shape[1:]}")
