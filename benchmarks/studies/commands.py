"""Commands of fieldrun as a user types them: timed, watched, or killed on the way."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence

from fieldrun.errors import FieldrunError

__all__ = ["run"]

_PROGRAM = "from fieldrun.cli import main; main(prog_name='fieldrun')"


def run(
    command: Sequence[str],
    *,
    kill_when: Callable[[], bool] | None = None,
    watch: Callable[[int], object] = lambda _: None,
    every_s: float = 0.5,
) -> float:
    """Run `fieldrun` with the arguments `command` and return the seconds it took.

    Args:
        command: what follows `fieldrun`.
        kill_when: asked again and again; once it says True, the command and its processes get SIGKILL.
        watch: called with the number of the process, again and again.
        every_s: seconds between the calls.

    Raises:
        FieldrunError: the command fails, or it ends before it was killed.
    """
    start = time.perf_counter()
    with tempfile.TemporaryFile() as errors:
        process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM, *command],
            stdout=subprocess.DEVNULL,
            stderr=errors,
            start_new_session=True,
        )
        with process:
            while process.poll() is None:
                watch(process.pid)
                if kill_when is not None and kill_when():
                    os.killpg(process.pid, signal.SIGKILL)
                    process.wait()
                    return time.perf_counter() - start
                with contextlib.suppress(subprocess.TimeoutExpired):
                    process.wait(every_s)
        seconds = time.perf_counter() - start
        errors.seek(0)
        said = " ".join(errors.read().decode("utf-8", "replace").split())[-300:]
    if process.returncode:
        raise FieldrunError(f"fieldrun {command[0]} ended with exit code {process.returncode}: {said}")
    if kill_when is not None:
        raise FieldrunError(f"fieldrun {command[0]} ended before it was killed; give it more to do, or a new folder")
    return seconds
