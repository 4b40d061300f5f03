"""The checks that checkpoints and bundles share: schema versions, known keys, sizes and sha256 of every file."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import BundleError, CheckpointError, FieldrunError, SchemaTooNew
from .limits import check_json
from .storage import parse_json, read_bytes, sha256_file

__all__ = ["FileEntry", "entry_of", "from_mapping", "open_folder", "read_files", "read_schema"]

_ABOUT = 16 << 20  # bytes of a file that describes a folder


@dataclass(frozen=True, slots=True, kw_only=True)
class FileEntry:
    """Size in bytes and sha256 (hexadecimal) of one file."""

    bytes: int
    sha256: str

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object of this entry."""
        return {"bytes": self.bytes, "sha256": self.sha256}

    @classmethod
    def from_dict(cls, name: str, value: Any, error: type[FieldrunError]) -> FileEntry:
        """Read the entry of file `name`. Names that leave the folder are refused."""
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name or ":" in name or str(pure) != name:
            raise error(f"the file name {name!r} points outside its folder; do not use this copy")
        if (
            not isinstance(value, Mapping)
            or set(value) != {"bytes", "sha256"}
            or type(value["bytes"]) is not int
            or not isinstance(value["sha256"], str)
        ):
            raise error(f"the entry of file {name!r} must have exactly 'bytes' and 'sha256'")
        return cls(bytes=value["bytes"], sha256=value["sha256"])


def entry_of(path: Path) -> FileEntry:
    """Return size and sha256 of the file at `path`."""
    return FileEntry(bytes=path.stat().st_size, sha256=sha256_file(path))


def read_schema(
    path: Path,
    schema: int,
    keys: Collection[str],
    error: type[FieldrunError],
    *,
    optional: Collection[str] = (),
    data: bytes | memoryview | None = None,
) -> dict[str, Any]:
    """Read the JSON object at `path` and check its schema version and its keys; those in `optional` may be missing.

    `data` are the file's bytes if they were read before.

    Raises:
        SchemaTooNew: its schema is newer than `schema`.
        FieldrunError: as `error`; it is missing or not JSON, its schema is older, or keys are unknown or missing.
    """
    try:
        value = parse_json(read_bytes(path, _ABOUT)[0] if data is None else data, path.name)
        check_json(value, path.name)
    except FileNotFoundError as cause:
        raise error(f"{path.parent} has no {path.name}; it is not {_kind(path)}, or an incomplete copy") from cause
    except (BundleError, OSError, ValueError) as cause:
        raise error(f"{path.parent}: {cause}; restore the file") from cause
    if not isinstance(value, dict) or type(value.get("schema")) is not int:
        raise error(f"{path} has no schema version; it is not {_kind(path)}")
    if value["schema"] > schema:
        raise SchemaTooNew(
            f"{path} has schema {value['schema']}, this fieldrun reads {schema}: pip install --upgrade fieldrun"
        )
    if 0 < value["schema"] < schema:
        again = "import it again" if path.name == "encoder.json" else "train again"
        again = "export the checkpoint again" if error is BundleError else again
        raise error(
            f"{path} has schema {value['schema']}, this fieldrun reads {schema}; {again}, or use the older fieldrun"
        )
    unknown, missing = sorted(set(value) - set(keys) - set(optional)), sorted(set(keys) - set(value))
    if value["schema"] < 1 or unknown or missing:
        raise error(f"{path}: unknown keys {unknown}, missing keys {missing}, schema {value['schema']}")
    return value


@contextlib.contextmanager
def open_folder(folder: Path, error: type[FieldrunError]) -> Iterator[int]:
    """Yield a descriptor of `folder`: what is read by it is of one folder, even if another one takes its name."""
    try:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as cause:
        raise error(f"{folder} cannot be read ({cause.strerror}); copy it again") from cause
    try:
        yield handle
    finally:
        os.close(handle)


def read_files(
    folder: Path,
    files: Mapping[str, FileEntry],
    error: type[FieldrunError],
    *,
    inside: int | None = None,
    most: Callable[[str], int] | None = None,
) -> dict[str, memoryview]:
    """Read every file in `folder` once and check its size and sha256; `error` names the first that differs.

    Use the bytes that are returned, and do not open the files again: they may change at any time. `inside` is the
    folder's descriptor, `most` gives the most bytes of each file.
    """
    found = {}
    if inside is None:
        with open_folder(folder, error) as handle:
            return read_files(folder, files, error, inside=handle, most=most)
    root = folder.resolve()
    for name, entry in files.items():
        try:
            if not (folder / name).resolve().is_relative_to(root):
                raise error(f"{folder}: {name} is a link to a file outside the folder; copy the file itself")
            size = os.stat(name, dir_fd=inside).st_size
            if size != entry.bytes:
                raise error(f"{folder}: {name} has {size} bytes, the manifest says {entry.bytes}; copy it again")
            found[name], sha256 = read_bytes(name, entry.bytes if most is None else most(name), inside=inside)
        except (FileNotFoundError, IsADirectoryError, NotADirectoryError) as cause:
            raise error(f"{folder} lacks {name}; copy it again") from cause
        except OSError as cause:
            raise error(f"{folder}: {name} cannot be read ({cause.strerror}); copy it again") from cause
        except (MemoryError, ValueError) as cause:
            if isinstance(cause, error):
                raise
            raise error(f"{folder}: {cause}; copy it again") from cause
        if sha256 != entry.sha256:
            raise error(f"{folder}: the sha256 of {name} does not match the manifest; copy it again")
    return found


def _kind(path: Path) -> str:
    kinds = {"student.json": "a checkpoint", "encoder.json": "an encoder checkpoint"}
    return kinds.get(path.name, "a bundle")


def from_mapping(cls: Any, value: Any, what: str, error: type[Exception] = CheckpointError) -> Any:
    """Build the dataclass `cls` from a JSON object; unknown and missing keys are errors that name them."""
    if not isinstance(value, Mapping):
        raise error(f"{what} must be an object, not {type(value).__name__}")
    known = {f.name for f in fields(cls)}
    unknown = sorted(set(value) - known)
    if unknown:
        raise error(f"{what} has unknown keys: {', '.join(ascii(name)[1:-1] for name in unknown)}")
    try:
        return cls(**value)
    except TypeError as cause:
        raise error(f"{what} is incomplete or has a value of the wrong type: {cause}") from cause
