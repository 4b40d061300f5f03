"""Write files whole or not at all, and hash them.

Everything is written beside its place, flushed to disk, and renamed. Modules that only writing needs are imported by
the functions that write, so that loading a bundle is fast.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import OutputExists, StorageError

__all__ = [
    "exchange_folders",
    "is_folder",
    "locked_folder",
    "new_folder",
    "parse_json",
    "read_bytes",
    "read_json",
    "sha256_bytes",
    "sha256_file",
    "write_bytes",
    "write_json",
]

_LARGE = 1 << 16  # bytes from which a file is read into pages of its own
_STEP = 1 << 20
_MOST = 1 << 40


def sha256_bytes(data: bytes | memoryview) -> str:
    """Return the sha256 of `data`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Return the sha256 of the file at `path`, in hexadecimal."""
    digest = hashlib.sha256()
    block = memoryview(bytearray(1 << 18))
    with path.open("rb", buffering=0) as file:
        while count := file.readinto(block):
            digest.update(block[:count])
    return digest.hexdigest()


def read_bytes(path: str | Path, most: int = _MOST, *, inside: int | None = None) -> tuple[memoryview, str]:
    """Read the regular file at `path` once; return its bytes, read-only, and their sha256 in hexadecimal.

    The bytes are a copy in memory that no later change of the file alters; those of a large file start at a page. A
    device, a pipe or a folder is never waited for. `inside` is the descriptor of the folder that `path` is relative to.

    Raises:
        ValueError: it is not a regular file, has more than `most` bytes, or changed while it was read.
        OSError: it cannot be opened or read.
        MemoryError: it does not fit into memory.
    """
    import mmap
    import stat

    handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC, dir_fd=inside)
    with open(handle, "rb", buffering=0) as file:
        about = os.fstat(handle)
        if not stat.S_ISREG(about.st_mode):
            raise ValueError(f"{os.path.basename(path)} is not a regular file")
        size, private = about.st_size, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        if size > most:
            raise ValueError(f"{os.path.basename(path)} has {size} bytes, more than {most}")
        try:
            data = memoryview(mmap.mmap(-1, size, flags=private) if size >= _LARGE else bytearray(size))
        except OSError as error:
            raise MemoryError(f"no memory for the {size} bytes of {os.path.basename(path)}") from error
        digest, done = hashlib.sha256(), 0
        while done < size:
            count = file.readinto(data[done : done + _STEP])
            if not count:
                raise ValueError(f"{os.path.basename(path)} was shortened while it was read")
            digest.update(data[done : done + count])
            done += count
    return data.toreadonly(), digest.hexdigest()


def is_folder(path: Path) -> bool:
    """Return whether `path` is a folder; False, and no error, for a name that the system refuses."""
    return os.path.isdir(path)


def write_bytes(path: Path, data: bytes | memoryview) -> None:
    """Write `data` to `path` atomically: a reader sees the old file or the new one.

    Raises:
        StorageError: the folder is missing or not writable, or the disk is full.
    """
    import tempfile

    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise _storage_error(path, error) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(name, 0o666 & ~_umask())
        os.replace(name, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(name)
        if isinstance(error, OSError):
            raise _storage_error(path, error) from error
        raise


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented UTF-8 JSON, atomically; raises as `write_bytes` does."""
    write_bytes(path, (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8"))


def read_json(path: Path) -> Any:
    """Parse the JSON file at `path`; `ValueError` with the file's name if it is not JSON or not a regular file."""
    return parse_json(read_bytes(path)[0], path.name)


def parse_json(data: bytes | memoryview, name: str) -> Any:
    """Parse JSON in UTF-8; `ValueError` with the file's `name` if it is not JSON."""
    try:
        return json.loads(str(data, "utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not valid JSON ({error})") from error


@contextlib.contextmanager
def new_folder(path: Path, *, replace: bool = False, keep: Path | None = None) -> Iterator[Path]:
    """Yield a folder beside `path` that is renamed to `path` at the end of the block, or deleted if the block fails.

    Folders that killed processes left beside `path` are deleted first; the folder of a running process is locked. With
    `replace`, a folder at `path` is exchanged with the new one, atomically if the file system can, and deleted; before
    that, `keep` becomes a copy of it, in the place of what is there.

    Raises:
        OutputExists: `path` exists, and `replace` is not set.
        StorageError: the parent is missing or not writable, or the disk is full.
    """
    import shutil
    import tempfile

    if os.path.lexists(path) and not replace:
        raise OutputExists(f"{path} exists; choose another folder or delete it first")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        _delete_abandoned(path)
        partial = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.partial-"))
        lock = _lock(partial)
    except OSError as error:
        raise _storage_error(path, error) from error
    try:
        yield partial
        _publish(partial, path, replace, keep)
    except BaseException as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, OSError):
            raise _storage_error(path, error) from error
        raise
    finally:
        os.close(lock)


def _lock(folder: Path) -> int:
    """Lock `folder` until the returned descriptor is closed or this process ends; `OSError` if another holds it."""
    import fcntl

    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(handle)
        raise
    return handle


def _delete_abandoned(path: Path) -> None:
    import glob
    import shutil

    for folder in path.parent.glob(f".{glob.escape(path.name)}.partial-*"):
        with contextlib.suppress(OSError):
            handle = _lock(folder)
            shutil.rmtree(folder, ignore_errors=True)
            os.close(handle)


def _publish(partial: Path, path: Path, replace: bool, keep: Path | None) -> None:
    import shutil

    for file in sorted(partial.rglob("*")):
        if file.is_file():
            with file.open("rb") as opened:
                os.fsync(opened.fileno())
    os.chmod(partial, 0o777 & ~_umask())
    if not path.exists():
        os.rename(partial, path)
    elif not replace:
        raise OutputExists(f"another process has just made {path}; choose another folder")
    else:
        if keep is not None:  # first, so that whenever the process is killed, `keep` is of before what is at `path`
            _copy_folder(path, keep)
        _swap(partial, path)
    parent = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(parent)
    finally:
        os.close(parent)
    if replace:
        shutil.rmtree(partial, ignore_errors=True)


def _copy_folder(path: Path, copy: Path) -> None:
    """Make `copy`, in the place of what is there, a folder with the files of `path`, linked where that can be."""
    import shutil
    import tempfile

    def link(one: str, other: str) -> None:
        try:
            os.link(one, other)
        except OSError:  # a file system without hard links
            shutil.copy2(one, other)

    aside = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.partial-"))
    try:
        shutil.copytree(path, aside, symlinks=True, copy_function=link, dirs_exist_ok=True)
        if copy.exists():
            _swap(aside, copy)
        else:
            os.rename(aside, copy)
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _swap(one: Path, other: Path) -> None:
    """Exchange two folders, atomically if the file system can."""
    if _exchange(one, other):
        return
    aside = other.with_name(f".{other.name}.replaced-{os.getpid()}")
    os.rename(other, aside)
    try:
        os.rename(one, other)
    except BaseException:
        os.rename(aside, other)
        raise
    os.rename(aside, one)


def exchange_folders(one: Path, other: Path) -> None:
    """Exchange two folders of one parent, atomically if the file system can; `StorageError` if that fails."""
    try:
        _swap(one, other)
    except OSError as error:
        raise _storage_error(other, error) from error


@contextlib.contextmanager
def locked_folder(folder: Path) -> Iterator[None]:
    """Hold `folder` against other processes that ask for it too; they wait. `StorageError` if it cannot be opened."""
    import fcntl

    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _storage_error(folder, error) from error
    try:
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)


def _exchange(one: Path, other: Path) -> bool:
    """Exchange two folders atomically (`renameat2`); return False if the system or the file system cannot."""
    import ctypes

    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError):
        return False
    return bool(rename(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current


def _storage_error(path: Path, error: OSError) -> StorageError:
    reason = error.strerror or str(error)
    return StorageError(f"cannot write {path}: {reason}; free space or choose a writable place")
