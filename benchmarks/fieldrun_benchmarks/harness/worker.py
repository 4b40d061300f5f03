"""The process that a subject lives in: it reads commands from stdin and answers on stdout, one line of JSON each.

Only the subject and these few modules are in it, so that its memory is the subject's, and a subject that crashes or
hangs takes nothing with it. What the subject prints goes to stderr.

    python -m fieldrun_benchmarks.harness.worker        # started by `worker_process`, never by hand
"""

from __future__ import annotations

import base64
import json
import os
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..machine.sensors import process_memory
from ..subjects.subject import Subject, SubjectSpec, open_subject
from .loadgen import run_loadgen
from .scenario import multi_stream, offline, server, timed_calls

__all__ = ["Worker", "main", "pack"]


class Worker:
    """The commands, by name; every argument and answer is JSON."""

    def __init__(self, spec: SubjectSpec, texts: list[str]) -> None:
        self._spec, self._texts = spec, texts
        self._subject: Subject | None = None

    def load(self) -> dict[str, Any]:
        """Load the subject and answer one text: how long both took, what it is, memory before and after."""
        before = process_memory()
        start = time.perf_counter()
        subject = self._subject = open_subject(self._spec)
        loaded = time.perf_counter()
        subject.run([self._texts[0]])
        answered = time.perf_counter()
        return {
            "about": subject.about(),
            "load_ms": round(1e3 * (loaded - start), 2),
            "first_answer_ms": round(1e3 * (answered - loaded), 2),
            "memory_before": before,
            "memory_loaded": process_memory(),
            "tasks": {task: list(labels) for task, labels in subject.tasks().items()},
        }

    def slice(self, start: int, count: int, warm_up: int) -> dict[str, Any]:
        """Time `count` texts one by one from text `start` on, after `warm_up` texts that do not count."""
        run, n = self._loaded.run, len(self._texts)
        items = [[self._texts[(start + i) % n]] for i in range(-warm_up, count)]
        for item in items[:warm_up]:
            run(item)
        usage, cpu = resource.getrusage(resource.RUSAGE_SELF), time.process_time_ns()
        nanos = timed_calls(run, items[warm_up:])
        cpu = time.process_time_ns() - cpu
        switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - usage.ru_nivcsw
        return {"nanos": pack(nanos), "cpu_ns": cpu, "process_cpu_s": time.process_time(), "switches": switches}

    def stages(self, count: int, seconds: float) -> dict[str, Any]:
        """Time the whole and its inner parts in turns: nanoseconds of every call, by part.

        They are timed on `count` texts, or on as many as `seconds` allow.
        """
        subject = self._loaded
        found: dict[str, list[int]] = {}
        end = time.perf_counter() + seconds
        for i in range(count):
            if i and time.perf_counter() > end:
                break
            text = self._texts[i % len(self._texts)]
            calls: dict[str, Callable[[], object]] = {"end_to_end": lambda text=text: subject.run([text])}  # type: ignore[misc]
            calls |= subject.stages(text)
            names = [*calls][i % len(calls) :] + [*calls][: i % len(calls)]
            for name in names:
                calls[name]()  # what another part has put out of the cache comes back
                found.setdefault(name, []).append(timed_calls(lambda call: call(), [calls[name]])[0])
        return {name: pack(np.array(nanos, np.int64)) for name, nanos in found.items()}

    def tokens(self) -> list[int] | None:
        """Return the tokens of every text of the workload."""
        return self._loaded.tokens(self._texts)

    def multi_stream(self, seconds: float) -> dict[str, Any]:
        """Run MultiStream."""
        return {"nanos": pack(multi_stream(self._loaded.run, self._texts, seconds=seconds))}

    def offline(self, batch: int, threads: int, seconds: float) -> float:
        """Run Offline: texts a second."""
        return offline(self._loaded.run, self._texts, batch=batch, threads=threads, seconds=seconds)

    def server(self, per_second: float, seconds: float, seed: int) -> dict[str, Any]:
        """Run Server."""
        found = server(self._loaded.run, self._texts, per_second=per_second, seconds=seconds, seed=seed)
        return {"nanos": pack(found["nanos"]), "unsent": found["unsent"]}

    def loadgen(
        self, scenario: str, seconds: float, expected_us: float, per_second: float, bound_ms: float
    ) -> dict[str, Any]:
        """Run a scenario through LoadGen."""
        return run_loadgen(
            self._loaded.run,
            self._texts,
            scenario,
            seconds=seconds,
            expected_us=expected_us,
            per_second=per_second,
            bound_ms=bound_ms,
        )

    def predict(self, texts: list[str], task: str) -> list[str]:
        """Return one label a text."""
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
            raise RuntimeError("load comes first")
        return self._subject


def pack(nanos: npt.NDArray[np.int64]) -> str:
    """Return nanoseconds `(n,) int64` as text: base64 of little-endian int64."""
    return base64.b64encode(nanos.astype("<i8").tobytes()).decode("ascii")


def main() -> None:
    """Read the spec and the texts from the first line, then commands until stdin ends or `close` comes."""
    answers = os.fdopen(os.dup(1), "w", encoding="ascii")
    os.dup2(2, 1)  # a library that prints must not break the protocol
    start = json.loads(sys.stdin.readline())
    worker = Worker(SubjectSpec(**start["spec"]), start["texts"])
    for line in sys.stdin:
        asked = json.loads(line)
        try:
            answer = json.dumps({"value": getattr(worker, asked.pop("command"))(**asked)})
        except Exception as error:
            message = " ".join(str(error).split())
            answer = json.dumps({"error": {"type": type(error).__name__, "message": message}})
        answers.write(answer + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
