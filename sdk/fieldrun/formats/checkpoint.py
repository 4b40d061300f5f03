"""The checkpoint: a trained student and its heads on disk, the exporter's input.

| File | Holds |
|---|---|
| `student.json` | schema, name, shape, licence, provenance, the heads' names, sha256 and size of every other file |
| `student.safetensors` | the student's tensors (`StudentConfig.shapes`), float16 or float32 |
| `tokenizer.json` | the teacher's Rust tokenizer |
| `CARD.md` | the model card, rendered from the record |
| `training.json` | the training record: recipe, curves, results, seconds, machine |
| `heads/<task>.json`, `heads/<task>.safetensors` | one head |
| `usage.safetensors` | how often the training text used every token and n-gram bucket; optional |

No file is read before its hash is checked, and nothing is unpickled.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import util
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, SchemaTooNew
from .integrity import FileEntry, entry_of, read_files, read_schema
from .storage import is_folder, new_folder, parse_json, write_bytes, write_json
from .tensors import Array, tensors_in, write_tensors

__all__ = [
    "REFERENCE_CHECKPOINT",
    "SCHEMA",
    "CheckpointFiles",
    "read_checkpoint",
    "resolve_checkpoint",
    "write_checkpoint",
]

SCHEMA = 2
REFERENCE_CHECKPOINT = Path(__file__).parents[2] / "checkpoints" / "reference"
_USAGE = "usage.safetensors"
_KEYS = {"schema", "name", "student", "heads", "licence", "provenance", "files"}


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class CheckpointFiles:
    """The contents of a checkpoint's files, as plain values.

    `student` is the shape, `StudentConfig.to_dict()`; `heads` has, for each task, `name`, `kind`, `labels`,
    `temperature`, `about` and the tensors `weight` and `bias`. `tensors` are as stored.
    """

    name: str
    student: Mapping[str, Any]
    tensors: Mapping[str, Array]
    tokenizer: bytes
    heads: tuple[Mapping[str, Any], ...]
    licence: str
    provenance: Mapping[str, Any]
    record: Mapping[str, Any]
    usage: Mapping[str, Array]


def resolve_checkpoint(path: str | Path) -> Path:
    """Return the folder of a checkpoint; the string `"reference"` is the shipped one, whatever the current folder has.

    The shipped checkpoint is part of a clone of fieldrun, and of the wheel `fieldrun-reference` that is built from it.

    Warns:
        UserWarning: the current folder has a checkpoint of the name too; `"./reference"` is that one.

    Raises:
        CheckpointError: there is no folder at `path`, or the shipped checkpoint is not installed.
    """
    if path == "reference":
        if Path("reference", "student.json").is_file():
            warnings.warn("'reference' is the shipped checkpoint; write ./reference for the folder here", stacklevel=2)
        found = util.find_spec("fieldrun_reference")
        wheel = Path(found.origin).parent if found is not None and found.origin else None
        for folder in (REFERENCE_CHECKPOINT, *([wheel / "checkpoint"] if wheel else [])):
            if is_folder(folder):
                return folder
        raise CheckpointError(
            "the reference checkpoint is not installed; in a clone of fieldrun run 'make wheels', then "
            "'pip install dist/fieldrun_reference-*.whl'"
        )
    folder = Path(path)
    if not is_folder(folder):
        raise CheckpointError(
            f"no checkpoint at {folder}: give a folder with student.json, made by 'fieldrun distill'; a model of a "
            "hub is downloaded first, then imported with 'fieldrun import-encoder'"
        )
    return folder


def read_checkpoint(path: str | Path) -> CheckpointFiles:
    """Read the checkpoint folder at `path` (or `"reference"`), every file once its hash is checked.

    Raises:
        CheckpointError: a file is missing or corrupt.
        SchemaTooNew: the checkpoint was written by a newer fieldrun.
    """
    folder = resolve_checkpoint(path)
    try:
        return _read(folder)
    except SchemaTooNew:
        raise
    except (ValueError, OSError) as error:
        raise CheckpointError(f"checkpoint {folder}: {error}; restore it or train again") from error


def _read(folder: Path) -> CheckpointFiles:
    about = read_schema(folder / "student.json", SCHEMA, _KEYS, CheckpointError)
    if not isinstance(about["files"], dict) or not isinstance(about["provenance"], dict):
        raise CheckpointError("student.json: files and provenance must be objects")
    files = {n: FileEntry.from_dict(n, e, CheckpointError) for n, e in about["files"].items()}
    heads = about["heads"]
    if not isinstance(heads, list) or not all(isinstance(name, str) for name in heads):
        raise CheckpointError("student.json: heads must be a list of names")
    wanted = {"student.safetensors", "tokenizer.json", "training.json", "CARD.md"}
    wanted |= {f"heads/{name}.{suffix}" for name in heads for suffix in ("json", "safetensors")}
    wanted |= {_USAGE} & set(files)
    if set(files) != wanted:
        raise CheckpointError(f"the files in student.json are not those of a checkpoint: {sorted(set(files) ^ wanted)}")
    read = read_files(folder, files, CheckpointError)
    return CheckpointFiles(
        name=str(about["name"]),
        student=about["student"],
        tensors=tensors_in(read["student.safetensors"], "student.safetensors"),
        tokenizer=bytes(read["tokenizer.json"]),
        heads=tuple(_read_head(read, name) for name in heads),
        licence=str(about["licence"]),
        provenance=about["provenance"],
        record=_read_object(read, "training.json"),
        usage=tensors_in(read[_USAGE], _USAGE) if _USAGE in files else {},
    )


def write_checkpoint(path: Path, files: CheckpointFiles, card: str) -> None:
    """Write `files` and the model card to the new folder `path`, whole or not at all.

    Raises:
        OutputExists, StorageError: `path` exists or cannot be written.
    """
    with new_folder(path) as folder:
        (folder / "heads").mkdir()
        write_bytes(folder / "student.safetensors", write_tensors(dict(files.tensors)))
        write_bytes(folder / "tokenizer.json", files.tokenizer)
        write_json(folder / "training.json", dict(files.record))
        write_bytes(folder / "CARD.md", card.encode("utf-8"))
        if files.usage:
            write_bytes(folder / _USAGE, write_tensors(dict(files.usage)))
        for head in files.heads:
            tensors = {name: head[name].astype(np.float32) for name in ("weight", "bias")}
            about = {key: value for key, value in head.items() if key not in tensors}
            write_json(folder / "heads" / f"{head['name']}.json", about)
            write_bytes(folder / "heads" / f"{head['name']}.safetensors", write_tensors(tensors))
        names = sorted(str(p.relative_to(folder).as_posix()) for p in folder.rglob("*") if p.is_file())
        write_json(
            folder / "student.json",
            {
                "schema": SCHEMA,
                "name": files.name,
                "student": dict(files.student),
                "heads": [head["name"] for head in files.heads],
                "licence": files.licence,
                "provenance": dict(files.provenance),
                "files": {name: entry_of(folder / name).to_dict() for name in names},
            },
        )


def _read_object(read: Mapping[str, memoryview], name: str) -> dict[str, Any]:
    value = parse_json(read[name], name)
    if not isinstance(value, dict):
        raise CheckpointError(f"{name} must hold an object, not {type(value).__name__}")
    return value


def _read_head(read: Mapping[str, memoryview], name: str) -> dict[str, Any]:
    value = _read_object(read, f"heads/{name}.json")
    tensors = tensors_in(read[f"heads/{name}.safetensors"], f"{name}.safetensors")
    if set(tensors) != {"weight", "bias"} or set(value) & set(tensors):
        raise CheckpointError(f"head {name!r} must have exactly the tensors 'weight' and 'bias'")
    if value.get("name") != name:
        raise CheckpointError(f"heads/{name}.json describes the head {value.get('name')!r}")
    return value | dict(tensors)
