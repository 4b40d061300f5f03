"""A record: one measurement with its conditions, as JSON. Tables and reports are rendered from records only."""

from __future__ import annotations

import contextlib
import datetime
import os
import platform
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from fieldrun.errors import FieldrunError, SchemaTooNew, StorageError
from fieldrun.formats.storage import read_json, write_json

__all__ = [
    "SCHEMA",
    "THREAD_SETTINGS",
    "append_record",
    "conditions",
    "cores_allowed",
    "make_folder",
    "new_record",
    "read_record",
    "write_record",
]

SCHEMA = 1
THREAD_SETTINGS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TOKENIZERS_PARALLELISM")
_PACKAGES = {  # the distributions looked for under each name: ONNX Runtime for GPUs has its own
    "fieldrun": ("fieldrun",),
    "numpy": ("numpy",),
    "onnxruntime": ("onnxruntime", "onnxruntime-gpu"),
    "tokenizers": ("tokenizers",),
}


def conditions() -> dict[str, Any]:
    """Return what a reader needs to judge a measurement: date, processor, cores, threads, load, system, versions."""
    return {
        "date": datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        "processor": _processor(),
        "architecture": platform.machine(),
        "cores_allowed": cores_allowed(),
        "threads": {name: os.environ.get(name) for name in THREAD_SETTINGS},
        "load_average": round(os.getloadavg()[0], 2),
        "system": platform.system(),
        "python": platform.python_version(),
        "packages": {name: _version(*distributions) for name, distributions in _PACKAGES.items()},
    }


def cores_allowed() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def new_record(kind: str, command: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return a record of `kind` made by `command`; `values` without conditions get those of this machine now."""
    found = values if "conditions" in values else {"conditions": conditions(), **values}
    return {"schema": SCHEMA, "kind": kind, "command": command, **found}


def write_record(path: Path, kind: str, command: str, values: Mapping[str, Any]) -> None:
    """Write `new_record` to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(path, new_record(kind, command, values))


def make_folder(folder: Path) -> None:
    """Make a folder for records, unless it exists; `StorageError` when that fails."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {folder}: {error.strerror}; choose another place") from error


def append_record(folder: Path, record: Mapping[str, Any]) -> Path:
    """Write a record to a new file of `folder`, named by kind and time (UTC, to the microsecond), and return its path.

    Raises:
        StorageError: the file cannot be written.
    """
    stamp = datetime.datetime.now(datetime.timezone.utc).strftime("%Y%m%dT%H%M%S.%fZ")
    path = folder / f"{record['kind']}-{stamp}.json"
    write_json(path, record)
    return path


def read_record(path: Path, *kinds: str) -> dict[str, Any]:
    """Read the record at `path`, which must be of one of `kinds`.

    Raises:
        SchemaTooNew: it was written by a newer fieldrun.
        FieldrunError: it is missing, not JSON, or of another kind.
    """
    try:
        value = read_json(path)
    except (OSError, ValueError) as error:
        raise FieldrunError(f"cannot read the record {path}: {error}; measure again") from error
    if not isinstance(value, dict) or not {"schema", "kind"} <= value.keys():
        raise FieldrunError(f"{path} is not a record: it has no schema or no kind")
    if value["schema"] != SCHEMA:  # before the kind, whose name a newer schema may change
        raise SchemaTooNew(
            f"{path} has schema {value['schema']!r}, this fieldrun reads {SCHEMA}: pip install --upgrade fieldrun"
        )
    if value["kind"] not in kinds:
        raise FieldrunError(f"{path} is not a record of kind {' or '.join(map(repr, kinds))}, but of {value['kind']!r}")
    return value


def _processor() -> str:
    """Return the name of the processor; on ARM, of the board and its cores, since "model name" is the same on all."""
    try:
        text = Path("/proc/cpuinfo").read_text("utf-8", errors="replace")
    except OSError:
        text = ""
    facts: dict[str, list[str]] = {}
    for line in text.splitlines():
        key, _, value = line.partition(":")
        facts.setdefault(key.strip(), []).append(value.strip())
    parts = zip(facts.get("CPU implementer", ()), facts.get("CPU part", ()), strict=False)
    cores = [f"ARM implementer {implementer} part {part}" for implementer, part in dict.fromkeys(parts)]
    names = [*facts.get("Model", ())[:1], *cores] or facts.get("model name", ())[:1]
    return ", ".join(names) or platform.processor() or platform.machine()


def _version(*distributions: str) -> str | None:
    for name in distributions:
        with contextlib.suppress(PackageNotFoundError):
            return version(name)
    return None
