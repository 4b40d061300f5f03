"""Every error that fieldrun raises, each with its exit code.

    FieldrunError (1)
    |-- UsageError (2)              an argument that is never valid
    |   |-- HeadMismatch (2)        a head that does not fit the model
    |   |-- InputTextError (2)      texts that cannot be encoded
    |   |-- LabelError (2)          labels that a head cannot be trained on
    |   |-- NameTaken (2)           a task name that the model already has
    |   |-- UnknownName (2)         a task, recipe, engine or label that does not exist
    |   `-- OutputExists (2)        the output already exists
    |-- MissingDependency (3)       a package of an extra is not installed
    |-- DatasetError (4)            a TSV file or data folder that cannot be read
    |-- CheckpointError (5)         an incomplete or corrupt checkpoint
    |-- BundleError (6)             an incomplete or corrupt bundle
    |   |-- IntegrityError (6)      a file whose size or sha256 differs from the manifest
    |   `-- SchemaTooNew (6)        a file written by a newer fieldrun
    |-- RecipeError (7)             a recipe with unknown, missing or conflicting settings
    |-- ExportError (8)             a pass that failed, or an input that it does not support
    |   `-- ParityError (8)         an exported graph that differs from the reference
    |-- EngineError (9)             an engine that cannot run on this machine
    |   `-- EngineStale (9)         a compiled engine that was built for something else
    |-- TextTooLong (10)            a text with more tokens than the limit, with overflow="error"
    |-- StorageError (11)           a file that cannot be written (permission, full disk)
    `-- TrainingError (12)          training that cannot start, resume or finish

Every message names the fact and the next step. The command line prints it on one line and exits with `exit_code`.
"""

from __future__ import annotations

from typing import Any, ClassVar

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
    """The base class of all errors that fieldrun raises on purpose."""

    exit_code: ClassVar[int] = 1

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle message and facts, whatever the arguments of `__init__` are: a pool that cannot unpickle hangs."""
        return _restored, (type(self), self.args, self.__dict__.copy())


def _restored(kind: type[FieldrunError], arguments: tuple[Any, ...], facts: dict[str, Any]) -> FieldrunError:
    error = kind.__new__(kind, *arguments)
    error.__dict__.update(facts)
    return error


class UsageError(FieldrunError, ValueError):
    """An argument that is never valid."""

    exit_code = 2


class HeadMismatch(UsageError):
    """A head whose tensors do not fit the fields of the model."""


class InputTextError(UsageError):
    """Texts that cannot be encoded: not a list, not strings, empty, or not valid Unicode."""


class LabelError(UsageError):
    """Labels that a head cannot be trained on: too few, empty, or not one for each text."""


class NameTaken(UsageError):
    """The model already has a task of this name. Nothing was changed."""


class UnknownName(UsageError):
    """A task, recipe, engine or label that does not exist. The message lists the known ones."""

    def __init__(self, kind: str, name: object, known: list[str] | tuple[str, ...]) -> None:
        self.kind, self.name, self.known = kind, name, tuple(known)
        listed = ", ".join(self.known) if self.known else "none"
        super().__init__(f"unknown {kind} {name!r}; known: {listed}")


class OutputExists(UsageError):
    """The output already exists. Nothing was changed."""


class MissingDependency(FieldrunError, ImportError):
    """A package of an optional extra is not installed. The message has the command that installs it."""

    exit_code = 3

    def __init__(self, package: str, extra: str, command: str | None = None) -> None:
        self.package, self.extra = package, extra
        super().__init__(f"this needs the package {package!r}: " + (command or f"pip install 'fieldrun[{extra}]'"))

    @classmethod
    def of(cls, error: ModuleNotFoundError) -> MissingDependency | None:
        """Return the error for a module of one of our extras that was not found; None for any other module.

        A package of ours is missing where an app was packed without it.
        """
        module = (error.name or "").partition(".")[0]
        ours = "fieldrun.distill" if error.name == "fieldrun.distill" else module
        if ours in ("fieldrun.distill", "fieldrun_benchmarks", "fieldrun_exporters"):
            return cls(ours, "", f"this app was packed without it; add --collect-all {ours} to the call of pyinstaller")
        package, extra = _EXTRAS.get(module, ("", ""))
        return cls(package or module, extra) if extra else None


_EXTRAS = {  # module -> the package it comes in, if that has another name, and the extra of ours that has it
    "cuda": ("cuda-bindings", "tensorrt"),
    "jinja2": ("", "bench"),
    "markupsafe": ("jinja2", "bench"),
    "matplotlib": ("", "bench"),
    "mlperf_loadgen": ("mlcommons-loadgen", "bench"),
    "onnx": ("", "export"),
    "onnxruntime": ("", "ort"),
    "packaging": ("", "bench"),
    "ray": ("", "ray"),
    "rich": ("", "export"),
    "sklearn": ("scikit-learn", "sklearn"),
    "tomli": ("", "export"),
    "torch": ("", "distill"),
    "transformers": ("", "distill"),
    "uvicorn": ("", "serve"),
}


class DatasetError(FieldrunError):
    """A TSV file or data folder that cannot be read. The message names the file and the line."""

    exit_code = 4


class CheckpointError(FieldrunError):
    """An incomplete or corrupt checkpoint: a missing or extra tensor, a wrong shape, NaN, pickled data."""

    exit_code = 5


class BundleError(FieldrunError):
    """An incomplete or corrupt bundle."""

    exit_code = 6


class IntegrityError(BundleError):
    """A bundle file whose size or sha256 differs from the manifest."""


class SchemaTooNew(BundleError):
    """A file written by a newer fieldrun than this one."""


class RecipeError(FieldrunError):
    """A recipe with unknown, missing or conflicting settings."""

    exit_code = 7


class ExportError(FieldrunError):
    """A pass that failed, or an input that it does not support."""

    exit_code = 8


class ParityError(ExportError):
    """An exported graph that differs from the NumPy reference by more than the parity limits."""


class EngineError(FieldrunError):
    """An engine that cannot run on this machine. The message says what is missing."""

    exit_code = 9


class EngineStale(EngineError):
    """A compiled engine that was built for another machine, bundle or library. The message lists the differences.

    `differences` maps each of them to (the value the engine was built for, the value here).
    """

    def __init__(self, engine: str, differences: dict[str, tuple[object, object]], remedy: str) -> None:
        self.differences = differences
        sides = "; ".join(f"{name} {built}, here {now}" for name, (built, now) in differences.items())
        super().__init__(f"{engine} was built for {sides}; {remedy}")


class TextTooLong(FieldrunError):
    """A text has more tokens than the largest bucket, and `overflow` is `"error"`."""

    exit_code = 10


class StorageError(FieldrunError):
    """A file that cannot be written: no permission, a full disk, or not a folder."""

    exit_code = 11


class TrainingError(FieldrunError):
    """Training that cannot start, resume or finish."""

    exit_code = 12
