"""The state that an interrupted training run resumes from: files of its work folder, written atomically."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch

from fieldrun.errors import StorageError, TrainingError
from fieldrun.formats.storage import read_json

__all__ = ["RunState", "load_json", "load_state", "reason", "save_state"]


def reason(error: BaseException, limit: int = 200) -> str:
    """Return the message of `error` on one line of at most `limit` characters."""
    line = " ".join(str(error).split()) or type(error).__name__
    return line if len(line) <= limit else line[: limit - 3] + "..."


def save_state(path: Path, value: dict[str, Any]) -> None:
    """Write tensors, numbers and strings to `path`: a reader sees the old file or the new one.

    Raises:
        StorageError: the disk is full or the folder is not writable; the old file stays.
    """
    partial = path.with_suffix(".partial")
    try:
        with partial.open("wb") as file:
            torch.save(value, file)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except (OSError, RuntimeError) as error:  # torch's writer reports a full disk as a RuntimeError
        partial.unlink(missing_ok=True)
        raise StorageError(f"cannot write {path}: {reason(error)}; free space or choose another work folder") from error


def load_state(path: Path) -> dict[str, Any]:
    """Read what `save_state` wrote, to the CPU. Only tensors and plain values are unpickled.

    Raises:
        TrainingError: the file is corrupt.
    """
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # zip, pickle and torch errors; all mean the same to the caller
        raise TrainingError(f"{path} is corrupt ({reason(error, 80)}); delete it to repeat its phase") from error
    return state


class RunState:
    """The state file of a training run: plain values, and the state of the `parts` (modules and an optimizer).

    `run` identifies the run; a file of another one is refused.
    """

    def __init__(self, path: Path, run: dict[str, Any], **parts: Any) -> None:
        self.path, self.run, self.parts = path, run, parts

    def save(self, **values: Any) -> None:
        """Write `values` and the state of all parts; raises as `save_state` does."""
        save_state(self.path, {"run": self.run, **values} | {name: p.state_dict() for name, p in self.parts.items()})

    def restore(self) -> dict[str, Any] | None:
        """Load the state of all parts and return the values, or None if there is no file.

        Raises:
            TrainingError: the file is corrupt, or belongs to another run.
        """
        if not self.path.exists():
            return None
        state = load_state(self.path)
        if state["run"] != self.run:
            raise TrainingError(f"{self.path} belongs to another run; choose another work folder")
        for name, part in self.parts.items():
            part.load_state_dict(state[name])
        return state


def load_json(path: Path, default: Any) -> Any:
    """Read a JSON file of the work folder, or return `default` if there is none. `TrainingError` if it is corrupt."""
    try:
        return read_json(path) if path.exists() else default
    except ValueError as error:
        raise TrainingError(f"{path} is corrupt; delete {path.parent} to start again") from error
