"""The checkpoint: a trained student and its heads on disk, the exporter's input.

| File | Holds |
|---|---|
| `student.json` | schema, name, shape, licence, provenance, the heads' names, sha256 and size of every other file |
| `student.safetensors` | the student's tensors (`StudentConfig.shapes`), float16 or float32 |
| `tokenizer.json` | the teacher's Rust tokenizer |
| `CARD.md` | the model card, rendered from the record |
| `training.json` | the training record: recipe, curves, results, seconds, machine |
| `heads/<task>.json`, `heads/<task>.safetensors` | one head |
| `usage.safetensors` | how often the training text used every token and n-gram bucket; only where it was counted |

Nothing is read before its hash is checked, and nothing is unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from .card import render_card
from .errors import CheckpointError, SchemaTooNew
from .integrity import FileEntry, check_files, entry_of, read_schema
from .storage import is_folder, new_folder, read_json, write_bytes, write_json
from .student import Head, StudentConfig, check_tensors, from_mapping
from .tensors import Array, read_tensors, write_tensors
from .usage import check_usage

__all__ = ["REFERENCE_CHECKPOINT", "SCHEMA", "Checkpoint", "resolve_checkpoint"]

SCHEMA = 2
REFERENCE_CHECKPOINT = Path(__file__).parents[1] / "checkpoints" / "reference"
_USAGE = "usage.safetensors"
_KEYS = {"schema", "name", "student", "heads", "licence", "provenance", "files"}


def resolve_checkpoint(path: str | Path) -> Path:
    """Return the folder of a checkpoint; `"reference"` is the one in the repository.

    Raises:
        CheckpointError: there is no folder at `path`.
    """
    if str(path) == "reference" and not is_folder(Path(path)):
        if is_folder(REFERENCE_CHECKPOINT):
            return REFERENCE_CHECKPOINT
        raise CheckpointError("the reference checkpoint is in the repository, not the wheel; clone it or give a path")
    folder = Path(path)
    if not is_folder(folder):
        raise CheckpointError(f"no checkpoint at {folder}: give a folder with student.json, made by 'fieldrun distill'")
    return folder


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """A trained student with its heads, in memory; tensors are float32.

    `usage` is what `fieldrun.usage.count_usage` says of the training text, empty where it was not counted.
    """

    name: str
    config: StudentConfig
    tensors: Mapping[str, Array]
    tokenizer: bytes
    heads: tuple[Head, ...]
    licence: str = "unstated"
    provenance: Mapping[str, Any] = field(default_factory=dict)
    record: Mapping[str, Any] = field(default_factory=dict)
    usage: Mapping[str, Array] = field(default_factory=dict)

    def validate(self) -> None:
        """Check every shape, value and name; raises `CheckpointError` with the first that is wrong."""
        check_tensors(self.tensors, self.config.shapes(), "student")
        if self.config.mean and (self.tensors["pool.weight"] < 0).any():
            raise CheckpointError(
                "student: tensor 'pool.weight' holds a negative number, but a pooling score is never negative; "
                "store absolute values or restore the file"
            )
        check_usage(self.config, self.usage)
        names = [head.name for head in self.heads]
        if len(set(names)) != len(names):
            raise CheckpointError(f"two heads have the same name: {', '.join(sorted(names))}")
        for head in self.heads:
            head.validate(self.config.field_dim)
        try:
            tokenizer = json.loads(self.tokenizer.decode("utf-8"))
            ids = [*tokenizer["model"]["vocab"].values(), *(added["id"] for added in tokenizer.get("added_tokens", ()))]
            largest = max(int(i) for i in ids)
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError("tokenizer.json is not a tokenizer with a vocabulary") from error
        if largest >= self.config.vocab_size:
            raise CheckpointError(
                f"tokenizer.json has token id {largest}, the student only {self.config.vocab_size} rows"
            )

    def parameters(self) -> int:
        """Return the number of trained parameters, heads included."""
        return self.config.parameters() + sum(head.weight.size + head.bias.size for head in self.heads)

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """Read and check the checkpoint folder at `path` (or `"reference"`).

        Raises:
            CheckpointError: a file is missing, damaged, has another hash, or a tensor is wrong.
            SchemaTooNew: it was written by a newer fieldrun.
        """
        folder = resolve_checkpoint(path)
        try:
            return cls._read(folder)
        except SchemaTooNew:
            raise
        except (ValueError, OSError) as error:
            raise CheckpointError(f"checkpoint {folder}: {error}; restore it or train again") from error

    @classmethod
    def _read(cls, folder: Path) -> Checkpoint:
        about = read_schema(folder / "student.json", SCHEMA, _KEYS, CheckpointError)
        if not isinstance(about["files"], dict) or not isinstance(about["provenance"], dict):
            raise CheckpointError("student.json: files and provenance must be objects")
        files = {n: FileEntry.from_dict(n, e, CheckpointError) for n, e in about["files"].items()}
        config = from_mapping(StudentConfig, about["student"], "student.json: student")
        heads = about["heads"]
        if not isinstance(heads, list) or not all(isinstance(name, str) for name in heads):
            raise CheckpointError("student.json: heads must be a list of names")
        wanted = {"student.safetensors", "tokenizer.json", "training.json", "CARD.md"}
        wanted |= {f"heads/{name}.{suffix}" for name in heads for suffix in ("json", "safetensors")}
        wanted |= {_USAGE} & set(files)
        if set(files) != wanted:
            raise CheckpointError(
                f"student.json lists other files than a checkpoint has: {sorted(set(files) ^ wanted)}"
            )
        check_files(folder, files, CheckpointError)
        checkpoint = cls(
            name=str(about["name"]),
            config=config,
            tensors=_float32(read_tensors(folder / "student.safetensors")),
            tokenizer=(folder / "tokenizer.json").read_bytes(),
            heads=tuple(_read_head(folder, name) for name in heads),
            licence=str(about["licence"]),
            provenance=about["provenance"],
            record=_read_object(folder / "training.json"),
            usage=dict(read_tensors(folder / _USAGE)) if _USAGE in files else {},
        )
        checkpoint.validate()
        return checkpoint

    def save(self, path: Path, *, dtype: str = "float16") -> None:
        """Write the checkpoint to the new folder `path`, whole or not at all, tensors as `dtype`.

        Raises:
            CheckpointError: it is not valid, or a value does not fit `dtype`.
            OutputExists, StorageError: `path` is taken or cannot be written.
        """
        self.validate()
        with np.errstate(over="ignore"):  # the check below names the tensor that overflows
            stored = {name: tensor.astype(dtype) for name, tensor in self.tensors.items()}
        check_tensors(stored, self.config.shapes(), f"student as {dtype}")
        with new_folder(path) as folder:
            (folder / "heads").mkdir()
            write_bytes(folder / "student.safetensors", write_tensors(stored))
            write_bytes(folder / "tokenizer.json", self.tokenizer)
            write_json(folder / "training.json", dict(self.record))
            write_bytes(folder / "CARD.md", render_card(self).encode("utf-8"))
            if self.usage:
                write_bytes(folder / _USAGE, write_tensors(dict(self.usage)))
            for head in self.heads:
                about: dict[str, Any] = {"name": head.name, "kind": head.kind, "labels": list(head.labels)}
                about |= {"temperature": head.temperature, "about": dict(head.about)}
                write_json(folder / "heads" / f"{head.name}.json", about)
                tensors = {"weight": head.weight.astype(np.float32), "bias": head.bias.astype(np.float32)}
                write_bytes(folder / "heads" / f"{head.name}.safetensors", write_tensors(tensors))
            names = sorted(str(p.relative_to(folder).as_posix()) for p in folder.rglob("*") if p.is_file())
            write_json(
                folder / "student.json",
                {
                    "schema": SCHEMA,
                    "name": self.name,
                    "student": self.config.to_dict(),
                    "heads": [head.name for head in self.heads],
                    "licence": self.licence,
                    "provenance": dict(self.provenance),
                    "files": {name: entry_of(folder / name).to_dict() for name in names},
                },
            )


def _float32(tensors: Mapping[str, Array]) -> dict[str, Array]:
    return {n: t.astype(np.float32) if t.dtype == np.float16 else np.asarray(t) for n, t in tensors.items()}


def _read_object(path: Path) -> dict[str, Any]:
    value = read_json(path)
    if not isinstance(value, dict):
        raise CheckpointError(f"{path.name} must hold an object, not {type(value).__name__}")
    return value


def _read_head(folder: Path, name: str) -> Head:
    value = _read_object(folder / "heads" / f"{name}.json")
    tensors = read_tensors(folder / "heads" / f"{name}.safetensors")
    if set(tensors) != {"weight", "bias"} or set(value) & set(tensors):
        raise CheckpointError(f"head {name!r} must have exactly the tensors 'weight' and 'bias'")
    head: Head = from_mapping(Head, value | _float32(tensors), f"heads/{name}.json")
    if head.name != name:
        raise CheckpointError(f"heads/{name}.json describes the head {head.name!r}")
    return head
