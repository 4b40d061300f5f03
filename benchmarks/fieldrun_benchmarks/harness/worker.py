"""The process that runs one subject: it reads commands from stdin and answers on stdout, one line of JSON each.

It imports little besides the subject, so that its memory is the subject's, and a subject that crashes or hangs stops
nothing else. What the subject prints goes to stderr. `worker_process` starts it.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

from ..machine.sensors import process_memory
from .loadgen import run_loadgen
from .scenario import multi_stream, offline, server, timed_calls, timed_slice
from .subject import Subject, SubjectSpec, open_subject

__all__ = ["Worker", "main"]

_SCENARIOS: dict[str, Callable[..., Any]] = {
    "loadgen": run_loadgen,
    "multi_stream": multi_stream,
    "offline": offline,
    "server": server,
}


class Worker:
    """The commands, by name; every argument and answer is JSON."""

    def __init__(self, spec: SubjectSpec, texts: list[str]) -> None:
        self._spec, self._texts = spec, texts
        self._items = [[text] for text in texts]
        self._subject: Subject | None = None

    def load(self) -> dict[str, Any]:
        """Load the subject and answer one text; return the time of both, memory before and after, `about`, tasks."""
        before, start = process_memory(), time.perf_counter()
        subject = self._subject = open_subject(self._spec)
        loaded = time.perf_counter()
        subject.run([self._texts[0]])
        return {
            "load_ms": round(1e3 * (loaded - start), 2),
            "first_answer_ms": round(1e3 * (time.perf_counter() - loaded), 2),
            "memory": {"before_load": before, "loaded": process_memory()},
            "about": subject.about(),
            "tasks": {task: list(labels) for task, labels in subject.tasks().items()},
        }

    def slice(self, start: int, count: int, warm_up: int) -> dict[str, Any]:
        """Time `count` texts one by one: `scenario.timed_slice`."""
        return asdict(timed_slice(self._loaded.run, self._items, start=start, count=count, warm_up=warm_up))

    def stages(self, count: int, seconds: float) -> dict[str, list[int]]:
        """Time the whole and its parts in turns on `count` texts, or fewer in `seconds`: nanoseconds by part."""
        subject = self._loaded
        found: dict[str, list[int]] = {}
        end = time.perf_counter() + seconds
        for i in range(count):
            if i and time.perf_counter() > end:
                break
            item = self._items[i % len(self._items)]
            calls: dict[str, Callable[[], object]] = {"end_to_end": partial(subject.run, item)}
            calls |= subject.stages(item[0])
            for name in [*calls][i % len(calls) :] + [*calls][: i % len(calls)]:
                calls[name]()  # brings back into the cache what another part has displaced
                found.setdefault(name, []).extend(timed_calls(_call, [calls[name]]))
        return found

    def tokens(self) -> list[int] | None:
        """Return the tokens of every text of the workload."""
        return self._loaded.tokens(self._texts)

    def scenario(self, name: str, **settings: Any) -> Any:
        """Run a scenario of `scenario.py`, or one through LoadGen, and return what it measured."""
        return _SCENARIOS[name](self._loaded.run, self._texts, **settings)

    def predict(self, texts: list[str], task: str) -> list[str]:
        """Return one label per text."""
        return self._loaded.predict(texts, task)

    def memory(self) -> dict[str, Any]:
        """Return this process's memory now."""
        return process_memory()

    def close(self) -> None:
        """Close the subject."""
        if self._subject is not None:
            self._subject.close()

    @property
    def _loaded(self) -> Subject:
        if self._subject is None:
            raise RuntimeError("ask the worker to load its subject first")
        return self._subject


def _call(function: Callable[[], object]) -> None:
    function()


def main() -> None:
    """Read the spec and the texts from the first line, then commands until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # a library that prints must not break the protocol
    start = json.loads(sys.stdin.readline())
    worker = Worker(SubjectSpec(**start["spec"]), start["texts"])
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = {"value": getattr(worker, asked.pop("command"))(**asked)}
        except Exception as error:
            answer = {"error": {"type": type(error).__name__, "message": " ".join(str(error).split())}}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
