"""A trained student with its heads, in memory: what `distill` makes and `export` takes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import CheckpointError, SchemaTooNew
from ..formats.card import render_card
from ..formats.checkpoint import CheckpointFiles, read_checkpoint, write_checkpoint
from ..formats.integrity import from_mapping
from ..formats.tensors import Array, check_tensors
from ..student.config import StudentConfig
from ..student.token_counts import check_usage
from .head import Head

__all__ = ["Checkpoint"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """A trained student with its heads; tensors are float32.

    `usage` is what `count_usage` says of the training text, empty where it was not counted.
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

    def card(self, recipe: str | None = None, weights_bytes: int | None = None) -> str:
        """Return the model card, as that of a bundle made with `recipe` when given."""
        return render_card(
            name=self.name,
            student=self.config.to_dict(),
            parameters=self.parameters(),
            tasks=len(self.heads),
            licence=self.licence,
            provenance=self.provenance,
            record=self.record,
            recipe=recipe,
            weights_bytes=weights_bytes,
        )

    @classmethod
    def load(cls, path: str | Path) -> Checkpoint:
        """Read and check the checkpoint folder at `path` (or `"reference"`).

        Raises:
            CheckpointError: a file is missing or corrupt, or a tensor is wrong.
            SchemaTooNew: it was written by a newer fieldrun.
        """
        files = read_checkpoint(path)
        try:
            checkpoint = cls(
                name=files.name,
                config=from_mapping(StudentConfig, files.student, "student.json: student"),
                tensors=_float32(files.tensors),
                tokenizer=files.tokenizer,
                heads=tuple(from_mapping(Head, _float32(head), f"heads/{head['name']}.json") for head in files.heads),
                licence=files.licence,
                provenance=files.provenance,
                record=files.record,
                usage=files.usage,
            )
            checkpoint.validate()
        except SchemaTooNew:
            raise
        except ValueError as error:
            raise CheckpointError(f"checkpoint {path}: {error}; restore it or train again") from error
        return checkpoint

    def save(self, path: Path, *, dtype: str = "float16") -> None:
        """Write the checkpoint to the new folder `path`, whole or not at all, tensors as `dtype`.

        Raises:
            CheckpointError: it is not valid, or a value does not fit `dtype`.
            OutputExists, StorageError: `path` exists or cannot be written.
        """
        self.validate()
        with np.errstate(over="ignore"):  # the check below names the tensor that overflows
            stored = {name: tensor.astype(dtype) for name, tensor in self.tensors.items()}
        check_tensors(stored, self.config.shapes(), f"student as {dtype}")
        files = CheckpointFiles(
            name=self.name,
            student=self.config.to_dict(),
            tensors=stored,
            tokenizer=self.tokenizer,
            heads=tuple(
                {
                    "name": head.name,
                    "kind": head.kind,
                    "labels": list(head.labels),
                    "temperature": head.temperature,
                    "about": dict(head.about),
                    "weight": head.weight,
                    "bias": head.bias,
                }
                for head in self.heads
            ),
            licence=self.licence,
            provenance=self.provenance,
            record=self.record,
            usage=self.usage,
        )
        write_checkpoint(path, files, self.card())


def _float32(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return `values` with float16 arrays as float32."""
    return {
        name: value.astype(np.float32) if getattr(value, "dtype", None) == np.float16 else value
        for name, value in values.items()
    }
