"""The harness's side of a `worker`: start it, ask it, and report in one line why it ended."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import selectors
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fieldrun import errors
from fieldrun.errors import FieldrunError

from .record import THREAD_SETTINGS
from .subject import SubjectSpec, source_module

__all__ = ["WorkerProcess", "link_packages", "worker_environment"]

_CHUNK = 1 << 20


class WorkerProcess:
    """One subject in a process of its own."""

    def __init__(self, spec: SubjectSpec, texts: Sequence[str], *, timeout_s: float) -> None:
        self.spec, self._timeout_s = spec, timeout_s
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the process
        self._buffer = b""
        self.hung = False
        """Whether the process was ended because it gave no answer in time."""
        self._links = tempfile.TemporaryDirectory()
        other = spec.python != sys.executable
        packages = link_packages(Path(self._links.name), source_module(spec)) if other else None
        try:
            self._process = subprocess.Popen(
                [spec.python, "-m", "fieldrun_benchmarks.harness.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=self._errors,
                env=worker_environment(packages),
            )
        except OSError as error:
            self._errors.close()
            self._links.cleanup()
            raise FieldrunError(f"{spec.name}: cannot start {spec.python}: {error.strerror}") from error
        self._send({"spec": asdict(spec), "texts": list(texts)})

    def ask(self, command: str, **arguments: Any) -> Any:
        """Return the answer to a command.

        Raises:
            FieldrunError: the subject raised, crashed, or gave no answer within the time limit. An error of fieldrun
                keeps its class. A process that hangs is killed.
        """
        self._send({"command": command, **arguments})
        answer = json.loads(self._line(str(arguments.get("name", command))))
        if "error" not in answer:
            return answer["value"]
        kind, message = answer["error"]["type"], answer["error"]["message"]
        if kind not in errors.__all__:
            raise FieldrunError(f"{self.spec.name}: {command} failed with {kind}: {message}")
        with contextlib.suppress(TypeError):  # a class that is made from its facts cannot be made from a message
            raise getattr(errors, kind)(f"{self.spec.name}: {message}")
        raise FieldrunError(f"{self.spec.name}: {message}")

    @property
    def alive(self) -> bool:
        """Whether the process still runs."""
        return self._process.poll() is None

    def close(self) -> None:
        """End the process; one that does not end by itself is killed."""
        with contextlib.suppress(FieldrunError):
            if self._process.poll() is None:
                self.ask("close")
        with contextlib.suppress(OSError):
            if self._process.stdin:
                self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._kill()
        if self._process.stdout:
            self._process.stdout.close()
        self._errors.close()
        self._links.cleanup()

    def __enter__(self) -> WorkerProcess:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if isinstance(error, KeyboardInterrupt):
            self._kill()
        self.close()

    def _send(self, value: Mapping[str, Any]) -> None:
        try:
            if self._process.stdin:
                self._process.stdin.write(json.dumps(value).encode("ascii") + b"\n")
                self._process.stdin.flush()
        except OSError as error:
            raise self._crashed() from error

    def _line(self, command: str) -> bytes:
        stdout = self._process.stdout
        if stdout is None:
            raise self._crashed()
        with selectors.DefaultSelector() as ready:
            ready.register(stdout, selectors.EVENT_READ)
            while b"\n" not in self._buffer:
                if not ready.select(self._timeout_s):
                    self.hung = True
                    self._kill()
                    raise FieldrunError(
                        f"{self.spec.name}: no answer to {command} within {self._timeout_s:g} s; it was stopped"
                    )
                data = os.read(stdout.fileno(), _CHUNK)
                if not data:
                    raise self._crashed()
                self._buffer += data
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _crashed(self) -> FieldrunError:
        code = self._process.wait()
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").strip().splitlines() or ["it printed nothing"]
        how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
        return FieldrunError(f"{self.spec.name}: the subject's process {how}: {lines[-1]}")

    def _kill(self) -> None:
        self._process.kill()
        self._process.wait()


def worker_environment(packages: Path | None = None) -> dict[str, str]:
    """Return the environment of a worker: one thread per library; `packages` replaces PYTHONPATH."""
    threads = {name: os.environ.get(name, "1") for name in THREAD_SETTINGS if name != "TOKENIZERS_PARALLELISM"}
    fixed = {"TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1", "RAYON_NUM_THREADS": "1"}
    found = os.environ | fixed | threads
    return found if packages is None else found | {"PYTHONPATH": str(packages)}


def link_packages(folder: Path, *modules: str) -> Path:
    """Link what another interpreter must import into `folder`, and return it.

    These are the packages of fieldrun that a worker needs and the top-level packages of `modules`, but nothing else
    from the environment of this interpreter.
    """
    for root in dict.fromkeys(name.partition(".")[0] for name in ("fieldrun", "fieldrun_benchmarks", *modules) if name):
        spec = importlib.util.find_spec(root)
        if spec is not None:
            place = Path(str([*(spec.submodule_search_locations or ()), spec.origin][0]))
            (folder / place.name).symlink_to(place)
    return folder
