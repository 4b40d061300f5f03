"""A subject that is being measured: its process, its values so far, and what becomes of it when something fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from fieldrun.errors import FieldrunError

from ..machine.sensors import Unavailable
from ..subjects.subject import SubjectSpec
from .single_stream import Slice
from .worker_process import WorkerProcess

__all__ = ["Running", "reason"]


@dataclass(slots=True, kw_only=True, eq=False)
class Running:
    """A subject and what was measured of it; `open` starts a process for it."""

    spec: SubjectSpec
    open: Callable[[], WorkerProcess]
    values: dict[str, Any]
    calls: int = 0  # of a slice
    warm_up: int = 0  # calls before a slice that do not count
    labels: dict[str, set[str]] = field(default_factory=dict)  # by task
    rates: dict[tuple[int, int], list[float]] = field(default_factory=dict)  # texts a second by batch and threads
    slices: list[Slice] = field(default_factory=list)
    cpu_s: float = 0.0  # of its process, when SingleStream began
    failed: str | None = None
    _worker: WorkerProcess | None = None

    @property
    def worker(self) -> WorkerProcess:
        """The process that the subject lives in, started on first use; raises `FieldrunError` when it cannot start."""
        if self._worker is None:
            self._worker = self.open()
        return self._worker

    def guard(self, name: str, call: Callable[..., Any], *arguments: Any, again: bool = False) -> None:
        """Put what `call(self, ...)` returns into the values, or why there is nothing; who died is not asked again.

        With `again`, one that gave no answer in time is started anew for what comes next.
        """
        if self.failed:
            self.values.setdefault(name, Unavailable(f"not measured: {self.failed}").to_dict())
            return
        lived = self.worker.alive
        try:
            self.values[name] = call(self, *arguments)
        except Exception as error:  # a subject's own code may raise anything, and the others' values must not be lost
            self.values[name] = Unavailable(reason(error)).to_dict()
            if not lived or self.worker.alive:
                return
            if again and self.worker.hung:
                self._restart(name)
            else:
                self.failed = reason(error)

    def _restart(self, name: str) -> None:
        self.values.setdefault("restarted_after", []).append(name)
        self.worker.close()
        self._worker = None
        try:
            self.worker.ask("load")
        except FieldrunError as error:
            self.failed = reason(error)


def reason(error: Exception) -> str:
    """Return what an error says, with its kind where that is not one of ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, FieldrunError) else f"{type(error).__name__}: {text}".rstrip(": ")
