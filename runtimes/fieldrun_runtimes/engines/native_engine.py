"""The native engine: one call of a small C library (`native/native.c`), compiled when fieldrun is installed.

It computes what the NumPy engine does, on the same weights, in float32 throughout and without padding. A text's
answer has the same bits alone, in any batch and on any number of threads.

A packed table stays packed in memory: a row is opened when a text first needs it, into memory that the system gives
page by page. A process that has read some thousand words holds their rows and no others, and starts at once.
"""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import threading
from array import array
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from itertools import chain, pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fieldrun.errors import BundleError, EngineError
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.packing import Coded, PackedMatrix, code_bits, take_packed
from fieldrun.formats.tensors import Array
from fieldrun.student.config import SCORE_FLOOR

from .numpy_engine import PairHeads
from .weights import check_weights, lookup_network, read_weights, unusable

if TYPE_CHECKING:
    from concurrent.futures import Future, ThreadPoolExecutor

__all__ = ["LIBRARY", "NativeEngine", "is_compiled", "load_library"]

LIBRARY = Path(__file__).parents[1] / "native" / "native.so.1"
"""Where the installation puts the compiled library."""

_SPLIT = 16  # texts that are worth a thread
_PANEL = 16  # outputs that stand together in a packed weight, as in native.c
_WIDEST = 2  # the widest instructions that a call may use: 0 plain, 1 AVX2, 2 AVX-512; the processor decides below it


class _Layer(ctypes.Structure):
    _fields_ = (
        ("inputs", ctypes.c_int32),
        ("outputs", ctypes.c_int32),
        ("weight", ctypes.c_void_p),
        ("packed", ctypes.c_void_p),
        ("weight_q", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
        ("output_scale", ctypes.c_void_p),
        ("input_scale", ctypes.c_float),
    )


class _Coded(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("bits", "entries", "run", "bytes")),
        *((name, ctypes.c_void_p) for name in ("codes", "book")),
    )


class _Part(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int64) for name in ("start", "stop")),
        *((name, ctypes.c_void_p) for name in ("plain", "often", "before")),
        *((name, _Coded) for name in ("rows", "rarely")),
    )


class _Packing(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("rows", "parts")),
        *((name, ctypes.c_void_p) for name in ("part", "scale", "slot", "used")),
    )


class _Network(ctypes.Structure):
    _fields_ = (
        *((name, ctypes.c_int32) for name in ("shifts", "blocks", "width", "kernel", "left", "right", "mean")),
        *((name, ctypes.c_void_p) for name in ("shift", "coef", "modulus", "base")),
        *((name, ctypes.c_void_p) for name in ("table_q", "table_f", "table_scale", "score", "packed")),
        ("floor", ctypes.c_float),
        ("share", ctypes.c_float),
        *((name, _Layer) for name in ("mixer", "hidden", "output")),
    )


def is_compiled() -> bool:
    """Say whether the library was compiled when fieldrun was installed."""
    return LIBRARY.is_file()


@cache
def load_library() -> Any:
    """Load the compiled library; `EngineError` when it was not compiled or is for another machine."""
    if not is_compiled():
        raise EngineError(
            "the native engine was not compiled: no C compiler was found when fieldrun was installed; "
            "install gcc and then fieldrun again, or use engine='auto'"
        )
    try:
        library = ctypes.CDLL(str(LIBRARY))
        pointer, number = ctypes.c_void_p, ctypes.c_int32
        library.fieldrun_run.argtypes = [*[pointer] * 3, number, number, *[pointer] * 3, number]
        library.fieldrun_scratch.argtypes = [pointer, number, ctypes.POINTER(ctypes.c_int64)]
        library.fieldrun_scratch.restype = ctypes.c_int64
    except (OSError, AttributeError) as error:
        raise EngineError(f"the native engine cannot be loaded: {error}; install fieldrun again") from error
    return library


class _Scratch:
    """One thread's working memory: the addresses of the library's, and the arrays of a single text."""

    def __init__(self, floats: int, integers: int, outputs: int) -> None:
        self._kept = np.empty(floats, np.float32), np.empty(integers, np.uint32)
        self.floats, self.integers = (memory.ctypes.data for memory in self._kept)
        self.starts = array("q", (0, 0))
        self.output = np.empty((1, outputs), np.float32)
        self.address = self.output.ctypes.data


class NativeEngine:
    """Runs any student with the compiled library; each thread that calls it has a scratch of its own.

    With `threads` above 1 a batch is split over that many threads, at least `_SPLIT` texts each; the answers have the
    same bits as on one thread.
    """

    def __init__(self, bundle: Bundle, threads: int, weights: Mapping[str, Array] | None = None) -> None:
        net = lookup_network(bundle, "native")
        self._library = load_library()
        self._call = self._library.fieldrun_run
        weights = dict(read_weights(bundle, packed_table=True) if weights is None else weights)
        packed = None
        if "table" not in weights and "table.width" in weights:
            try:
                packed = take_packed("table", weights)
            except ValueError as error:
                raise unusable(bundle, error) from error
        table = weights.get("table")
        shape = packed.shape if packed is not None else None if table is None else table.shape
        check_weights(bundle, net, weights, shape)
        self._pairs = PairHeads(weights)
        self._kept: list[Any] = []  # what the structure points at
        self._net = _Network(
            shifts=len(net.shifts),
            blocks=weights["rows.coef"].shape[1],
            width=net.width,
            kernel=max(1, net.mixer_kernel),
            left=net.margins[0],
            right=net.margins[1],
            mean=net.mean,
            shift=self._keep(np.array(net.shifts, np.int32)),
            coef=self._keep(weights["rows.coef"], np.int32),
            modulus=self._keep(weights["rows.modulus"], np.int32),
            base=self._keep(weights["rows.base"], np.int32),
            table_q=self._keep(table) if table is not None and table.dtype == np.int8 else None,
            table_f=self._keep(table, np.float32) if table is not None and table.dtype != np.int8 else None,
            table_scale=self._keep(weights["table.scale"], np.float32),
            score=self._keep(weights["score.weight"], np.float32) if net.mean else None,
            floor=SCORE_FLOOR,
            share=float(1 / weights["mean.gain"][0]),
            mixer=self._layer(weights, "mixer") if net.mixer_kernel else _Layer(),
            hidden=self._layer(weights, "hidden") if net.hidden else _Layer(),
            output=self._layer(weights, "output"),
        )
        if packed is not None:
            self._leave_packed(packed)
        self._address = ctypes.addressof(self._net)
        self._outputs, self._dim = int(self._net.output.outputs), net.field_dim
        self._longest = max(bucket.length for bucket in bundle.manifest.buckets)
        self._local = threading.local()
        self._threads = threads
        self._pool: tuple[int, ThreadPoolExecutor] | None = None

    def run(self, sequences: Sequence[Sequence[int]]) -> tuple[Array, Array]:
        """Return field `(n, dim)` and logits `(n, labels)` float32 of `n` texts' token ids."""
        if len(sequences) == 1:  # Python's own array: asking NumPy for an address costs a microsecond
            ids, scratch = array("i", sequences[0]), self._scratch()
            scratch.starts[1] = len(ids)
            self._run(scratch, ids.buffer_info()[0], scratch.starts.buffer_info()[0], 1, scratch.address)
            output = scratch.output.copy()
        else:
            output = self._run_many(sequences)
        return output[:, : self._dim], output[:, self._dim :]

    def _run_many(self, sequences: Sequence[Sequence[int]]) -> Array:
        n = len(sequences)
        starts = np.zeros(n + 1, np.int64)
        np.cumsum([len(ids) for ids in sequences], out=starts[1:])
        ids = np.fromiter(chain.from_iterable(sequences), np.int32, int(starts[-1]))
        output = np.empty((n, self._outputs), np.float32)

        def part(first: int, last: int) -> None:
            where, into = starts.ctypes.data + 8 * first, output.ctypes.data + output.strides[0] * first
            self._run(self._scratch(), ids.ctypes.data, where, last - first, into)

        parts = max(1, min(self._threads, n // _SPLIT))
        share = starts[-1] * np.arange(1, parts) // parts  # the same number of tokens for each thread
        cuts = [0, *np.searchsorted(starts, share).tolist(), n]
        others = [self._submit(part, *cut) for cut in pairwise(cuts[1:])]
        part(*cuts[:2])
        for other in others:
            other.result()
        return output

    def run_pairs(self, a: Array, b: Array) -> Array:
        """Return the pair tasks' logits `(n, labels) float32` for fields `a`, `b` `(n, dim) float32`."""
        return self._pairs(a, b)

    def _run(self, scratch: _Scratch, ids: int, starts: int, texts: int, output: int) -> None:
        """Call the library with the addresses of its arrays."""
        failed = self._call(
            self._address, ids, starts, texts, self._longest, output, scratch.floats, scratch.integers, _WIDEST
        )
        if failed == 1:
            raise EngineError(f"a text has no token, or more than the largest bucket of {self._longest} tokens")
        if failed:
            raise BundleError("weights.safetensors has a code beyond its codebook; copy the bundle again")

    def _scratch(self) -> _Scratch:
        """Return this thread's scratch."""
        try:
            found: _Scratch = self._local.scratch
        except AttributeError:
            integers = ctypes.c_int64()
            floats = self._library.fieldrun_scratch(self._address, self._longest, ctypes.byref(integers))
            found = self._local.scratch = _Scratch(floats, integers.value, self._outputs)
        return found

    def _submit(self, work: Callable[[int, int], None], first: int, last: int) -> Future[None]:
        """Hand a part of a batch to another thread; the threads start with the first batch that is split."""
        from concurrent.futures import ThreadPoolExecutor

        pool = self._pool
        if pool is None or pool[0] != os.getpid():  # a forked process has none of its parent's threads
            pool = self._pool = os.getpid(), ThreadPoolExecutor(self._threads - 1, "fieldrun")
        return pool[1].submit(work, first, last)

    def _keep(self, array: Array, dtype: Any = None) -> int:
        """Keep `array`, contiguous and of `dtype`, and return its address."""
        kept = np.ascontiguousarray(array, dtype)
        self._kept.append(kept)
        return int(kept.ctypes.data)

    def _leave_packed(self, packed: PackedMatrix) -> None:
        """Point the structure at `packed`, and at memory for the rows that will be opened."""
        rows, width = packed.shape
        parts, start = [], 0
        for part in packed.parts:
            one = _Part(start=start, stop=start + part.rows)
            if part.plain is not None:
                one.plain = self._keep(part.plain)
            elif part.coded is not None:
                one.rows = self._coded(part.coded)
            if part.often is not None and part.rarely is not None:
                one.rarely = self._coded(part.rarely)
                one.often = self._keep(np.packbits(part.often, bitorder="little"))
                counts = np.add.reduceat(part.often, np.arange(0, part.rows, 64), dtype=np.uint32)
                one.before = self._keep(np.cumsum(counts, dtype=np.uint32) - counts)
            parts.append(one)
            start += part.rows
        held = (_Part * len(parts))(*parts)
        packing = _Packing(
            rows=rows,
            parts=len(parts),
            part=ctypes.addressof(held),
            scale=self._net.table_scale,
            slot=self._keep(np.zeros(rows, np.int32)),
            used=self._keep(np.zeros(1, np.int32)),
        )
        self._kept += [held, packing]
        self._net.packed = ctypes.addressof(packing)
        self._net.table_q = self._keep(_pages(2 * rows * width))
        self._net.table_scale = self._keep(_pages(2 * rows * 4))

    def _coded(self, coded: Coded) -> _Coded:
        entries, run = coded.codebook.shape
        return _Coded(
            bits=code_bits(entries),
            entries=entries,
            run=run,
            bytes=coded.codes.shape[1],
            codes=self._keep(coded.codes),
            book=self._keep(coded.codebook),
        )

    def _layer(self, weights: Mapping[str, Array], name: str) -> _Layer:
        weight = weights[f"{name}.weight"]
        inputs, outputs = weight.shape
        layer = _Layer(inputs=inputs, outputs=outputs)
        panels = np.pad(weight, ((0, 0), (0, -outputs % _PANEL))).reshape(inputs, -1, _PANEL).transpose(1, 0, 2)
        layer.packed = self._keep(panels, np.float32)
        if weight.dtype == np.int8:
            layer.weight_q = self._keep(weight)
        else:
            layer.weight = self._keep(weight, np.float32)
        if name != "mixer":  # which has no bias, whatever the file holds
            layer.bias = self._keep(weights[f"{name}.bias"], np.float32)
        if weight.dtype == np.int8:
            scale = weights[f"{name}.weight_scale"]
            step = weights.get(f"{name}.input_scale")
            if step is not None:
                layer.input_scale = float(step[0])
                scale = scale * step
            layer.output_scale = self._keep(scale, np.float32)
        return layer


def _pages(size: int) -> Array:
    """Return `size` bytes of zeros, int8, that cost nothing before they are written to.

    They are not NumPy's, for which it asks huge pages: these are to be taken up a few rows at a time.
    """
    try:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    except OSError as error:
        raise MemoryError(f"no memory for {size} bytes") from error
    if hasattr(mmap, "MADV_NOHUGEPAGE"):
        with contextlib.suppress(OSError):  # a kernel without huge pages
            memory.madvise(mmap.MADV_NOHUGEPAGE)
    return np.frombuffer(memory, np.int8)
