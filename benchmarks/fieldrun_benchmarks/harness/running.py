"""A subject that is being measured: its process, its values so far, and what happens when it fails."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fieldrun.errors import FieldrunError

from .scenario import SliceTimes
from .settings import Settings
from .single_stream import Stream
from .subject import SubjectSpec
from .worker_process import WorkerProcess

__all__ = ["Running", "reason"]


@dataclass(slots=True, kw_only=True, eq=False)
class Running:
    """A subject and what was measured of it; `open` starts a process for it."""

    spec: SubjectSpec
    open: Callable[[], WorkerProcess]
    values: dict[str, Any] = field(init=False)
    stream: Stream = field(init=False)
    labels: dict[str, set[str]] = field(default_factory=dict)  # by task
    rates: dict[tuple[int, int], list[float]] = field(default_factory=dict)  # texts a second by batch and threads
    _worker: WorkerProcess | None = None

    def __post_init__(self) -> None:
        self.values = {"kind": self.spec.kind, "threads": self.spec.threads}
        self.stream = Stream(ask=self._slice)

    @property
    def failed(self) -> str | None:
        """Why the subject can no longer be measured."""
        return self.stream.failed

    @property
    def worker(self) -> WorkerProcess:
        """The subject's process, started on first use; raises `FieldrunError` when it cannot start."""
        if self._worker is None:
            self._worker = self.open()
        return self._worker

    def load(self, settings: Settings) -> None:
        """Load the subject in its process and find out how fast it is; a failure is noted."""
        try:
            loaded = self.worker.ask("load")
            self.stream.fit(settings)
        except Exception as error:  # whatever a subject does, the others are measured
            self.stream.failed = reason(error)
            return
        self.labels = {task: set(labels) for task, labels in loaded.pop("tasks").items()}
        self.values |= {"slice_calls": self.stream.calls, **loaded}

    def guard(self, name: str, call: Callable[..., Any], *arguments: Any, again: bool = False) -> None:
        """Put what `call(self, ...)` returns into the values, or the reason why there is no value.

        A subject that has failed is not asked. With `again`, one that gave no answer in time is started again.
        """
        if self.failed:
            self.values.setdefault(name, {"unavailable": f"not measured: {self.failed}"})
            return
        lived = self.worker.alive
        try:
            self.values[name] = call(self, *arguments)
        except Exception as error:  # the code of a subject may raise anything; the values of the others must be kept
            self.values[name] = {"unavailable": reason(error)}
            if not lived or self.worker.alive:
                return
            if again and self.worker.hung:
                self._restart(name)
            else:
                self.stream.failed = reason(error)

    def _restart(self, name: str) -> None:
        self.values.setdefault("restarted_after", []).append(name)
        self.worker.close()
        self._worker = None
        try:
            self.worker.ask("load")
        except FieldrunError as error:
            self.stream.failed = reason(error)

    def _slice(self, start: int, count: int, warm_up: int) -> SliceTimes:
        answer = self.worker.ask("slice", start=start, count=count, warm_up=warm_up)
        return SliceTimes(**answer | {"nanos": np.array(answer["nanos"], np.int64)})


def reason(error: Exception) -> str:
    """Return the message of an error, with its class unless that is one of ours."""
    text = " ".join(str(error).split())
    return text if isinstance(error, FieldrunError) else f"{type(error).__name__}: {text}".rstrip(": ")
