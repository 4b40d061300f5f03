"""Read and write safetensors files with NumPy alone.

A bundle's weights are one safetensors file. ONNX Runtime maps it as the graphs' external data, the NumPy engine maps
it through `read_tensors`; both use the same bytes. The format is public: an 8-byte little-endian header length, a JSON
header `{name: {dtype, shape, data_offsets}}`, then the buffers without gaps.
"""

from __future__ import annotations

import json
import math
import mmap
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import CheckpointError

__all__ = [
    "ALIGNMENT",
    "Array",
    "check_tensors",
    "data_offsets",
    "read_tensors",
    "shortest",
    "tensors_in",
    "write_tensors",
]

Array = npt.NDArray[Any]
Bytes = bytes | memoryview

ALIGNMENT = 64
"""Every buffer starts at a multiple of this many bytes, a cache line; the first one at a multiple of a page."""

_PAGE = 4096
_MAX_HEADER = 1 << 24
_MAX_ELEMENTS = 1 << 48
_DTYPES: dict[str, np.dtype[Any]] = {
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
    "I8": np.dtype("i1"),
    "U8": np.dtype("u1"),
    "I32": np.dtype("<i4"),
    "I64": np.dtype("<i8"),
}
_NAMES = {dtype: name for name, dtype in _DTYPES.items()}
_BF16 = np.dtype("<u2")  # NumPy has no bfloat16: it is the upper half of a float32


def shortest(x: np.float32) -> float:
    """Return the float with the fewest digits that is `x` in float32, for JSON."""
    return float(str(x))


def _header(data: Bytes, file: str) -> tuple[dict[str, Any], int]:
    size = len(data)
    if size < 8:
        raise ValueError(f"{file} is not a safetensors file: it has {size} bytes")
    (length,) = struct.unpack("<Q", data[:8])
    if length > min(_MAX_HEADER, size - 8):
        raise ValueError(f"{file} is truncated or not a safetensors file")
    try:
        header = json.loads(str(data[8 : 8 + length], "utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not a safetensors file: its header is not JSON") from error
    if not isinstance(header, dict):
        raise ValueError(f"{file} is not a safetensors file: its header is not an object")
    return header, 8 + length


def _entries(data: Bytes, file: str) -> tuple[dict[str, tuple[np.dtype[Any], tuple[int, ...], int, int]], int]:
    """Return name -> (dtype, shape, start, stop) relative to the data, and where the data starts; checked."""
    header, data_start = _header(data, file)
    data_bytes = len(data) - data_start
    entries = {}
    for name, entry in header.items():
        if name == "__metadata__":
            continue
        try:
            dtype = _BF16 if entry["dtype"] == "BF16" else _DTYPES[entry["dtype"]]
            shape = tuple(entry["shape"])
            start, stop = entry["data_offsets"]
            if any(type(n) is not int or n < 0 for n in (*shape, start, stop)):
                raise ValueError("not a size")
            if math.prod(n or 1 for n in shape) > _MAX_ELEMENTS:
                raise ValueError("too large for an array, even if empty")
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"{file}: tensor {name!r} has an unknown dtype, shape or offset") from error
        if not start <= stop <= data_bytes or stop - start != math.prod(shape) * dtype.itemsize:
            raise ValueError(f"{file} is truncated or corrupt: tensor {name!r} does not fit in the file")
        entries[name] = (dtype, shape, start, stop)
    position = 0
    for name, (_, _, start, stop) in sorted(entries.items(), key=lambda item: item[1][2:]):
        if start != position:
            raise ValueError(f"{file} is corrupt: tensor {name!r} overlaps another or leaves a gap")
        position = stop
    if position != data_bytes:
        raise ValueError(f"{file} is corrupt: {data_bytes - position} bytes at its end belong to no tensor")
    return entries, data_start


def read_tensors(path: Path) -> dict[str, Array]:
    """Map the safetensors file at `path`; return its tensors as read-only arrays that share the mapping.

    For files that nobody else can change while they are used; `tensors_in` takes bytes that were read before.

    Raises:
        ValueError: the file is not a safetensors file, is truncated, or has overlapping tensors; the message names it.
        OSError: the file cannot be opened.
    """
    return tensors_in(_mapped(path), path.name)


def tensors_in(data: Bytes, file: str) -> dict[str, Array]:
    """Return the tensors of a safetensors `file` whose bytes are `data`, as read-only arrays that share them.

    Only bfloat16 tensors, which foreign files may have, are copied: they become float32. `ValueError` as for
    `read_tensors`.
    """
    entries, data_start = _entries(data, file)
    tensors: dict[str, Array] = {}
    for name, (dtype, shape, start, stop) in entries.items():
        count = (stop - start) // dtype.itemsize
        whole = np.frombuffer(data, dtype, count, data_start + start) if count else np.empty(0, dtype)
        tensor = whole.reshape(shape)
        tensors[name] = (tensor.astype(np.uint32) << 16).view(np.float32) if dtype == _BF16 else tensor
    return tensors


def data_offsets(path: Path) -> dict[str, tuple[int, int]]:
    """Return, for every tensor, its absolute offset and its length in bytes in the file at `path`."""
    entries, data_start = _entries(_mapped(path), path.name)
    return {name: (data_start + start, stop - start) for name, (_, _, start, stop) in entries.items()}


def _mapped(path: Path) -> Bytes:
    with path.open("rb") as file:
        empty = not path.stat().st_size
        return b"" if empty else memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))


def write_tensors(tensors: Mapping[str, Array]) -> bytes:
    """Return `tensors` as the bytes of a safetensors file.

    Tensors whose size is a multiple of `ALIGNMENT` come first, so that every large buffer is aligned without gaps; the
    others follow by the size of their elements. The bytes do not depend on the order of the mapping.

    Raises:
        ValueError: a dtype that the format or fieldrun does not support.
    """
    header: dict[str, Any] = {}
    parts: list[bytes] = []
    position = 0
    for name in sorted(tensors, key=lambda n: (tensors[n].nbytes % ALIGNMENT != 0, -tensors[n].itemsize, n)):
        array = np.asarray(tensors[name], order="C")
        little = array.dtype.newbyteorder("<") if array.dtype.itemsize > 1 else array.dtype
        if little not in _NAMES:
            raise ValueError(f"tensor {name!r} has dtype {array.dtype}; the supported ones are {list(_DTYPES)}")
        data = array.astype(little, copy=False).tobytes()
        header[name] = {
            "dtype": _NAMES[little],
            "shape": list(array.shape),
            "data_offsets": [position, position + len(data)],
        }
        parts.append(data)
        position += len(data)
    encoded = json.dumps(header, separators=(",", ":")).encode("utf-8")
    encoded += b" " * (-(8 + len(encoded)) % _PAGE)
    return struct.pack("<Q", len(encoded)) + encoded + b"".join(parts)


def check_tensors(tensors: Mapping[str, Array], shapes: Mapping[str, tuple[int, ...]], what: str) -> None:
    """Check that `tensors` has exactly the names and shapes of `shapes` and only finite floats.

    Raises:
        CheckpointError: the first tensor that is missing, unknown, of a wrong shape or type, or not finite.
    """
    missing, unknown = sorted(set(shapes) - set(tensors)), sorted(set(tensors) - set(shapes))
    if missing:
        raise CheckpointError(f"{what} lacks the tensor {missing[0]!r}")
    if unknown:
        raise CheckpointError(f"{what} has an unknown tensor {unknown[0]!r}")
    for name, shape in shapes.items():
        tensor = tensors[name]
        if tensor.shape != shape:
            raise CheckpointError(f"{what}: tensor {name!r} has shape {tensor.shape}, expected {shape}")
        if tensor.dtype.kind != "f":
            raise CheckpointError(f"{what}: tensor {name!r} has dtype {tensor.dtype}, expected a float")
        if not np.isfinite(tensor).all():
            raise CheckpointError(f"{what}: tensor {name!r} holds NaN or infinity; train again or restore the file")
