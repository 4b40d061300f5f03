"""Where engines are kept on one machine, and everything that is checked before one is loaded.

    ROOT/<name>-<recipe>-<weights>/<target>-sm<capability>/<graph>.engine     what the builder made
                                                           <graph>.json       its key, size, sha256, how it was built
                                                           timing-<builder>.cache    kernel timings that TensorRT took
                                                           .lock              held while engines are built

An engine is code that a device runs. It is loaded only if this user owns it and no other user can write it, its
sidecar's key matches this machine and bundle, and its bytes have the sidecar's sha256.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from fieldrun.errors import EngineError, EngineStale, StorageError, UsageError
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.storage import read_json, sha256_bytes, write_bytes, write_json

from .key import EngineKey

__all__ = ["EngineCache", "Entry", "default_cache"]

SCHEMA = 1
_OTHERS_MAY_WRITE = 0o022
_DIGEST = 64  # hexadecimal digits before a timing cache
_TIMING = re.compile(r"timing(-[0-9a-f]{12})?\.cache")  # the first versions had one for all builders
_LEFT = re.compile(r"\..+\.(engine|json|cache)\.\w+")  # what a killed `write_bytes` leaves
_OURS = re.compile(r"[^/]*-[0-9a-f]{12}/tensorrt(-rtx)?-sm\d+")  # a folder of engines, below the root


def default_cache() -> Path:
    """Return the folder of all engines: `$FIELDRUN_CACHE`, else `fieldrun` in the user's cache folder."""
    own = os.environ.get("FIELDRUN_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "fieldrun" / "engines"


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One engine of the cache: its file, the key in its sidecar, and its size in bytes."""

    path: Path
    key: EngineKey
    bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Return the entry as JSON."""
        return {"path": str(self.path), "bytes": self.bytes, "key": asdict(self.key)}


class EngineCache:
    """The engines under `root`, None for the default folder; `UsageError` for an empty name."""

    def __init__(self, root: str | Path | None = None) -> None:
        if root == "":  # an unset variable gives this, and it would be the current folder
            raise UsageError("the engine cache has an empty name; give a folder, or leave --cache out")
        self.root = default_cache() if root is None else Path(root)

    def folder(self, bundle: Bundle, key: EngineKey) -> Path:
        """Return the folder of `bundle`'s engines for a target and a compute capability."""
        manifest = bundle.manifest
        name = re.sub(r"[^\w.-]+", "-", f"{manifest.name}-{manifest.recipe['name']}")[:80]
        about = f"{name}-{key.weights_sha256[:12]}"
        return self.root / about / f"{key.target}-sm{key.compute_capability.replace('.', '')}"

    def prepare(self, folder: Path, need: int) -> None:
        """Create `folder`, for this user alone, and check that `need` bytes can be written there.

        Raises:
            StorageError: it cannot be created or written, belongs to another user, or its disk has less space.
        """
        import shutil
        import tempfile

        try:
            self._make(folder)
            _check_owner(folder)
            with tempfile.TemporaryFile(dir=folder):
                pass
            free = shutil.disk_usage(folder).free
        except OSError as error:
            why = f"cannot write the engine cache {folder}: {error.strerror or error}"
            if isinstance(error, FileExistsError | NotADirectoryError):
                why = f"a file is where the engine cache {folder} goes"
            raise StorageError(f"{why}; give another one with --cache") from error
        except EngineError as error:
            raise StorageError(str(error)) from error
        if free < need:
            raise StorageError(
                f"the engines need about {need / 1e6:.0f} MB in {folder}, and {free / 1e6:.0f} MB are free; "
                "free space or give another folder with --cache"
            )

    @contextlib.contextmanager
    def lock(self, folder: Path, waiting: Callable[[], None]) -> Iterator[None]:
        """Hold `folder` against other builders; if another holds it, call `waiting` and wait.

        What a killed builder left half-written is deleted before the block runs.

        Raises:
            StorageError: the folder cannot be locked: it cannot be written, or its disk has no locks.
        """
        import fcntl

        lock = folder / ".lock"
        while True:
            with _lock_errors(folder):
                self._make(folder)  # `clear` may have deleted it meanwhile
                try:
                    handle = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
                except FileNotFoundError:
                    continue
            try:
                with _lock_errors(folder):
                    try:
                        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    except BlockingIOError:  # another builder holds it
                        waiting()
                        fcntl.flock(handle, fcntl.LOCK_EX)
                    held = _is_at(handle, lock)  # a lock on a file that `clear` deleted stops no other builder
                    for left in folder.iterdir() if held else ():
                        if _LEFT.fullmatch(left.name):
                            left.unlink()
                if held:
                    yield
                    return
            finally:
                os.close(handle)

    def write(self, folder: Path, key: EngineKey, engine: bytes, about: dict[str, Any]) -> None:
        """Write `engine` and its sidecar; a reader sees the old pair, the new one, or a pair that does not match.

        `about` is `{bytes, seconds, layers}` of the build.

        Raises:
            StorageError: the disk is full or the folder cannot be written; nothing half-written is left.
        """
        path = _engine_path(folder, key.graph)
        write_bytes(path, engine)
        entry = {"bytes": len(engine), "sha256": sha256_bytes(engine)}
        write_json(path.with_suffix(".json"), {"schema": SCHEMA, "key": asdict(key), "engine": entry, "about": about})
        for written in (path, path.with_suffix(".json")):
            written.chmod(0o600)  # a umask that lets the group write would have the engine refused

    def has(self, folder: Path, key: EngineKey) -> bool:
        """Return whether there is an engine for `key`, without reading its bytes."""
        with contextlib.suppress(EngineError):
            return bool(self.check(folder, key, ""))
        return False

    def about(self, folder: Path, key: EngineKey) -> dict[str, Any] | None:
        """Return `{bytes, seconds, layers}` of a valid engine's build; None if there is no valid one."""
        with contextlib.suppress(EngineError):
            return self._read(folder, key, "")[1]
        return None

    def check(self, folder: Path, key: EngineKey, remedy: str) -> dict[str, Any]:
        """Return the sidecar of the engine for `key`, without reading the engine itself.

        Args:
            folder: the folder that `folder` returns.
            key: what this machine and bundle need.
            remedy: the command that builds it, for the errors.

        Raises:
            EngineStale: the engine was built for another machine, version or graph.
            EngineError: the engine is missing or corrupt, or another user can write it.
        """
        path = _engine_path(folder, key.graph)
        if not path.is_file() and not path.with_suffix(".json").is_file():
            raise EngineError(f"no engine of {key.graph} in {folder}; {remedy}")
        try:
            for part in (folder, path, path.with_suffix(".json")):
                _check_owner(part)
            sidecar = read_json(path.with_suffix(".json"))
            if not isinstance(sidecar, dict) or sidecar.get("schema") != SCHEMA or "engine" not in sidecar:
                raise EngineError(f"it has no sidecar of schema {SCHEMA}")
            differences = EngineKey.from_dict(sidecar.get("key")).differences(key)
        except (EngineError, OSError, ValueError) as error:
            raise EngineError(f"the engine {path} cannot be used: {error}; {remedy}") from error
        if differences:
            raise EngineStale(f"the engine {path}", differences, remedy)
        if not _is_whole(sidecar):
            raise EngineError(f"the sidecar of the engine {path} is corrupt; {remedy}")
        return sidecar

    def read(self, folder: Path, key: EngineKey, remedy: str) -> bytes:
        """Return the bytes of the engine for `key`; raises as `check`, and `EngineError` if they were changed."""
        return self._read(folder, key, remedy)[0]

    def _read(self, folder: Path, key: EngineKey, remedy: str) -> tuple[bytes, dict[str, Any]]:
        sidecar = self.check(folder, key, remedy)
        path = _engine_path(folder, key.graph)
        try:
            engine = path.read_bytes()
        except OSError as error:
            raise EngineError(f"the engine {path} cannot be read: {error.strerror}; {remedy}") from error
        if sidecar["engine"] != {"bytes": len(engine), "sha256": sha256_bytes(engine)}:
            raise EngineError(f"the engine {path} was cut or changed after it was built; {remedy}")
        return engine, sidecar["about"]

    def timing(self, folder: Path, key: EngineKey) -> bytes:
        """Return the timing cache of the builder in `key`; empty if it is missing, corrupt or another user's."""
        path = _timing_path(folder, key)
        try:
            _check_owner(path)
            text = path.read_bytes()
        except (EngineError, OSError):
            return b""
        digest, data = text[:_DIGEST], text[_DIGEST:]
        return data if sha256_bytes(data).encode("ascii") == digest else b""

    def write_timing(self, folder: Path, key: EngineKey, data: bytes) -> None:
        """Write TensorRT's timing cache for the next build by the same builder."""
        path = _timing_path(folder, key)
        write_bytes(path, sha256_bytes(data).encode("ascii") + data)
        path.chmod(0o600)

    def entries(self) -> list[Entry]:
        """Return every engine that has a readable sidecar, in the order of their paths."""
        found = []
        for path in (path for folder in self._folders() for path in sorted(folder.glob("*.engine"))):
            if key := _key_of(path):
                found.append(Entry(path=path, key=key, bytes=path.stat().st_size))
        return found

    def clear(self) -> tuple[int, int]:
        """Delete every engine, sidecar and timing cache; return the numbers of engines and bytes.

        Other files stay, and so do the folders that hold them. Only folders with names as `folder` gives them are
        searched.

        Raises:
            StorageError: a build is running, and nothing was deleted; or a file cannot be deleted.
        """
        engines = size = 0
        folders = self._folders()
        try:
            with contextlib.ExitStack() as held:
                for folder in folders:
                    held.enter_context(self.lock(folder, partial(_refuse_to_wait, folder)))
                for folder in folders:
                    for path in _files_of_ours(folder):
                        engines += path.suffix == ".engine"
                        size += path.stat().st_size
                        path.unlink()
                    for empty in (folder, folder.parent):
                        with contextlib.suppress(OSError):
                            empty.rmdir()
        except OSError as error:
            why = f"cannot clear {self.root}: {error.strerror or error}"
            raise StorageError(f"{why}; delete it as its owner") from error
        return engines, size

    def _make(self, folder: Path) -> None:
        for part in (self.root, folder.parent, folder):
            part.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _folders(self) -> list[Path]:
        """Return the folders of engines, in order."""
        found = (path for path in sorted(self.root.glob("*/*")) if path.is_dir())
        return [path for path in found if _OURS.fullmatch(path.relative_to(self.root).as_posix())]


@contextlib.contextmanager
def _lock_errors(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise StorageError(
            f"cannot lock the engine cache {folder}: {error.strerror or error}; run as the cache's owner, or give "
            "another one with --cache"
        ) from error


def _is_at(handle: int, path: Path) -> bool:
    """Return whether the open file `handle` is the one at `path`."""
    try:
        return os.path.samestat(os.fstat(handle), path.stat())
    except FileNotFoundError:
        return False


def _refuse_to_wait(folder: Path) -> None:
    raise StorageError(f"a build is running in {folder}; clear the cache when it has ended")


def _is_whole(sidecar: dict[str, Any]) -> bool:
    """Return whether a sidecar has what `write` writes beside the key."""
    engine, about = sidecar["engine"], sidecar.get("about")
    if not isinstance(engine, dict) or not isinstance(about, dict):
        return False
    if set(engine) != {"bytes", "sha256"} or set(about) != {"bytes", "seconds", "layers"}:
        return False
    size, seconds, layers = about["bytes"], about["seconds"], about["layers"]
    numbers = type(size) is int and type(seconds) in (int, float) and math.isfinite(seconds)
    return numbers and isinstance(layers, dict) and all(isinstance(kind, str) for kind in layers.values())


def _key_of(engine: Path) -> EngineKey | None:
    """Return the key in the sidecar of `engine`, None if there is no sidecar of ours."""
    try:
        sidecar = read_json(engine.with_suffix(".json"))
        return EngineKey.from_dict(sidecar["key"]) if sidecar["schema"] == SCHEMA else None
    except (EngineError, OSError, ValueError, KeyError, TypeError):
        return None


def _files_of_ours(folder: Path) -> list[Path]:
    """Return our files in a folder of engines: engines and their sidecars, even if corrupt, timing caches, the lock."""
    engines = sorted(folder.glob("*.engine"))
    sidecars = [
        path for path in sorted(folder.glob("*.json")) if path.with_suffix(".engine") in engines or _key_of(path)
    ]
    timings = [path for path in sorted(folder.iterdir()) if _TIMING.fullmatch(path.name)]
    lock = folder / ".lock"  # the last: once it is gone the next builder can start
    return [path for path in (*engines, *sidecars, *timings, lock) if path.is_file()]


def _engine_path(folder: Path, graph: str) -> Path:
    return folder / f"{Path(graph).stem}.engine"


def _timing_path(folder: Path, key: EngineKey) -> Path:
    return folder / f"timing-{key.builder()}.cache"


def _check_owner(path: Path) -> None:
    """Raise `EngineError` if another user owns `path` or may write it: an engine is code."""
    about = path.stat()
    if about.st_uid != os.geteuid() or about.st_mode & _OTHERS_MAY_WRITE:
        raise EngineError(f"{path} belongs to another user or can be written by one; give a cache of your own")
