"""One BLAS thread for small products: many that wait for each other take ten times the processor and more time.

NumPy's wheels bring OpenBLAS, whose number of threads can be set while it runs; other libraries are left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import threading
from collections.abc import Callable, Iterator
from functools import lru_cache
from pathlib import Path

__all__ = ["one_thread"]

_NAMES = ("scipy_openblas_{}64_", "scipy_openblas_{}", "openblas_{}64_", "openblas_{}")
_lock = threading.Lock()
_depth, _before = 0, 1


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Let OpenBLAS use one thread inside; the last of several that overlap sets the number as it was."""
    global _depth, _before
    found = _openblas()
    if found is None:
        yield
        return
    get, put = found
    with _lock:
        if not _depth:
            _before = get()
            put(1)
        _depth += 1
    try:
        yield
    finally:
        with _lock:
            _depth -= 1
            if not _depth:
                put(_before)


@lru_cache(maxsize=1)
def _openblas() -> tuple[Callable[[], int], Callable[[int], object]] | None:
    """Return how to get and set the threads of the OpenBLAS in this process, None without one."""
    try:
        lines = Path("/proc/self/maps").read_text("utf-8", "replace").splitlines()
    except OSError:
        return None
    for path in sorted({line.split(maxsplit=5)[5] for line in lines if "openblas" in line and ".so" in line}):
        with contextlib.suppress(OSError):
            library = ctypes.CDLL(path)
            for name in _NAMES:
                get = getattr(library, name.format("get_num_threads"), None)
                put = getattr(library, name.format("set_num_threads"), None)
                if get is not None and put is not None:
                    return get, put
    return None
