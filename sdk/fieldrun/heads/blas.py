"""One BLAS thread for small products: many that wait for each other take ten times the processor and more time.

NumPy's wheels bring OpenBLAS, whose number of threads can be set while it runs; other libraries are left alone.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import lru_cache
from pathlib import Path

__all__ = ["one_thread"]

_NAMES = ("scipy_openblas_{}64_", "scipy_openblas_{}", "openblas_{}64_", "openblas_{}")
_lock = threading.Lock()  # held at a fork too: no thread is changing the number then
_own = threading.local()
_depth, _before = 0, 1


class _OneThread:
    """The block of `one_thread`; not a generator, because it is entered for every text."""

    __slots__ = ()

    def __enter__(self) -> None:
        global _depth, _before
        found = _openblas()
        if found is None:
            return
        with _lock:
            if not _depth:
                _before = found[0]()
                if _before > 1:
                    found[1](1)
            _depth += 1
            _own.depth = getattr(_own, "depth", 0) + 1

    def __exit__(self, *_: object) -> None:
        global _depth
        found = _openblas()
        if found is None:
            return
        with _lock:
            _depth -= 1
            _own.depth -= 1
            if not _depth and _before > 1:
                found[1](_before)


_BLOCK = _OneThread()


def one_thread() -> AbstractContextManager[None]:
    """Let OpenBLAS use one thread inside; the last of several that overlap sets the number as it was."""
    return _BLOCK


def _in_fork() -> None:
    """Forget the threads that a forked process does not have."""
    global _depth
    lost, _depth = _depth, getattr(_own, "depth", 0)
    _lock.release()
    found = _openblas() if lost and not _depth and _before > 1 else None
    if found is not None:
        found[1](_before)


os.register_at_fork(before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_in_fork)


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
