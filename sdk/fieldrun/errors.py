"""Every error that fieldrun raises, each with its exit code.

    FieldrunError (1)
    |-- UsageError (2)              an argument that no valid call has
    |   |-- HeadMismatch (2)        a head that does not fit the model it is given to
    |   |-- InputTextError (2)      texts that cannot be encoded
    |   |-- LabelError (2)          labels that no head can learn
    |   |-- NameTaken (2)           a task name that the model already answers
    |   |-- UnknownName (2)         a task, recipe, engine or label that does not exist
    |   `-- OutputExists (2)        the place to write to is taken
    |-- MissingDependency (3)       an extra that is not installed
    |-- DatasetError (4)            a TSV file or data folder that cannot be read
    |-- CheckpointError (5)         a checkpoint that is not what it says
    |-- BundleError (6)             a bundle that is not what it says
    |   |-- IntegrityError (6)      a file whose size or sha256 differs from the manifest
    |   `-- SchemaTooNew (6)        written by a newer fieldrun
    |-- RecipeError (7)             a recipe with unknown, missing or conflicting settings
    |-- ExportError (8)             a pass that did not do what it says
    |   `-- ParityError (8)         an exported graph that differs from the reference
    |-- EngineError (9)             an engine that cannot run here
    |   `-- EngineStale (9)         a compiled engine that is not for this machine or bundle
    |-- TextTooLong (10)            a text over the largest bucket with overflow="error"
    |-- StorageError (11)           a file that cannot be written (permission, full disk)
    `-- TrainingError (12)          training that cannot start, resume or finish

Every message names the fact and the next step. The command line prints it on one line and exits with `exit_code`.
"""

from __future__ import annotations

from typing import ClassVar

__all__ = [
    "BundleError",
    "CheckpointError",
    "DatasetError",
    "EngineError",
    "EngineStale",
    "ExportError",
    "FieldrunError",
    "HeadMismatch",
    "InputTextError",
    "IntegrityError",
    "LabelError",
    "MissingDependency",
    "NameTaken",
    "OutputExists",
    "ParityError",
    "RecipeError",
    "SchemaTooNew",
    "StorageError",
    "TextTooLong",
    "TrainingError",
    "UnknownName",
    "UsageError",
]


class FieldrunError(Exception):
    """Root of every error that fieldrun raises on purpose."""

    exit_code: ClassVar[int] = 1


class UsageError(FieldrunError, ValueError):
    """An argument that no valid call has."""

    exit_code = 2


class HeadMismatch(UsageError):
    """A head whose tensors do not fit the fields of the model it is given to."""


class InputTextError(UsageError):
    """Texts that cannot be encoded: not a list, not strings, empty, or not valid Unicode."""


class LabelError(UsageError):
    """Labels that no head can learn: another number than texts, fewer than two, empty, or not strings."""


class NameTaken(UsageError):
    """A head's name that the model already has as a task; nothing was changed."""


class UnknownName(UsageError):
    """A task, recipe, engine or label that does not exist; the message lists those that do."""

    def __init__(self, kind: str, name: object, known: list[str] | tuple[str, ...]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        listed = ", ".join(self.known) if self.known else "none"
        super().__init__(f"unknown {kind} {name!r}; known: {listed}")


class OutputExists(UsageError):
    """The place to write to is taken; nothing was changed."""


class MissingDependency(FieldrunError, ImportError):
    """A package of an optional extra is not installed; the message has the command that brings it."""

    exit_code = 3

    def __init__(self, package: str, extra: str, command: str | None = None) -> None:
        self.package, self.extra = package, extra
        super().__init__(f"this needs the package {package!r}: " + (command or f"pip install 'fieldrun[{extra}]'"))


class DatasetError(FieldrunError):
    """A TSV file or data folder that cannot be read; the message names file and line."""

    exit_code = 4


class CheckpointError(FieldrunError):
    """A checkpoint that is not what it says: missing or extra tensor, wrong shape, NaN, pickle."""

    exit_code = 5


class BundleError(FieldrunError):
    """A bundle that is not what it says."""

    exit_code = 6


class IntegrityError(BundleError):
    """A bundle file whose size or sha256 differs from the manifest."""


class SchemaTooNew(BundleError):
    """A file written by a newer fieldrun than this one."""


class RecipeError(FieldrunError):
    """A recipe with unknown, missing or conflicting settings."""

    exit_code = 7


class ExportError(FieldrunError):
    """A pass that did not do what it says, or an input that it cannot treat."""

    exit_code = 8


class ParityError(ExportError):
    """An exported graph that differs from the NumPy reference by more than its tolerance."""


class EngineError(FieldrunError):
    """An engine that cannot run here; the message says what is missing."""

    exit_code = 9


class EngineStale(EngineError):
    """A compiled engine whose key is not this machine's and bundle's; the message names both sides of the difference.

    `differences` maps what differs to (what the engine was built for, what is here).
    """

    def __init__(self, engine: str, differences: dict[str, tuple[object, object]], remedy: str) -> None:
        self.differences = differences
        sides = "; ".join(f"{name} {built}, here {now}" for name, (built, now) in differences.items())
        super().__init__(f"{engine} was built for {sides}; {remedy}")


class TextTooLong(FieldrunError):
    """A text has more tokens than the largest bucket and overflow="error" was asked for."""

    exit_code = 10


class StorageError(FieldrunError):
    """A file that cannot be written: permission, full disk, not a folder."""

    exit_code = 11


class TrainingError(FieldrunError):
    """Training that cannot start, resume or finish."""

    exit_code = 12
