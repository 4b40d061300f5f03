"""The checks that checkpoints and bundles share: schema versions, known keys, sizes and sha256 of every file."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields
from pathlib import Path, PurePosixPath
from typing import Any

from ..errors import BundleError, CheckpointError, FieldrunError, SchemaTooNew
from .storage import read_json, sha256_file

__all__ = ["FileEntry", "check_files", "entry_of", "from_mapping", "read_schema"]


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
            or not isinstance(value["bytes"], int)
            or not isinstance(value["sha256"], str)
        ):
            raise error(f"the entry of file {name!r} must have exactly 'bytes' and 'sha256'")
        return cls(bytes=value["bytes"], sha256=value["sha256"])


def entry_of(path: Path) -> FileEntry:
    """Return size and sha256 of the file at `path`."""
    return FileEntry(bytes=path.stat().st_size, sha256=sha256_file(path))


def read_schema(
    path: Path, schema: int, keys: Collection[str], error: type[FieldrunError], *, optional: Collection[str] = ()
) -> dict[str, Any]:
    """Read the JSON object at `path` and check its schema version and its keys; those in `optional` may be missing.

    Raises:
        SchemaTooNew: its schema is newer than `schema`.
        FieldrunError: as `error`; it is missing or not JSON, its schema is older, or keys are unknown or missing.
    """
    try:
        value = read_json(path)
    except FileNotFoundError as cause:
        raise error(f"{path.parent} has no {path.name}; it is not {_kind(path)}, or an incomplete copy") from cause
    except (OSError, ValueError) as cause:
        raise error(f"{path.parent}: {cause}; restore the file") from cause
    if not isinstance(value, dict) or not isinstance(value.get("schema"), int):
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


def check_files(folder: Path, files: Mapping[str, FileEntry], error: type[FieldrunError]) -> None:
    """Check that every file is in `folder` with its size and sha256; `error` names the first that is not."""
    root = folder.resolve()
    for name, entry in files.items():
        try:
            _check_file(folder, root, name, entry, error)
        except OSError as cause:
            raise error(f"{folder}: {name} cannot be read ({cause.strerror}); copy it again") from cause


def _check_file(folder: Path, root: Path, name: str, entry: FileEntry, error: type[FieldrunError]) -> None:
    path = folder / name
    if not path.is_file():
        raise error(f"{folder} lacks {name}; copy it again")
    if not path.resolve().is_relative_to(root):
        raise error(f"{folder}: {name} is a link to a file outside the folder; copy the file itself")
    size = path.stat().st_size
    if size != entry.bytes:
        raise error(f"{folder}: {name} has {size} bytes, the manifest says {entry.bytes}; copy it again")
    if sha256_file(path) != entry.sha256:
        raise error(f"{folder}: the sha256 of {name} does not match the manifest; copy it again")


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
        raise error(f"{what} has unknown keys: {', '.join(unknown)}")
    try:
        return cls(**value)
    except TypeError as cause:
        raise error(f"{what} is incomplete or has a value of the wrong type: {cause}") from cause
