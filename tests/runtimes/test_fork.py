"""A model that was used before a fork, in threads that are busy, answers in the child too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from fieldrun_runtimes.engines.native_engine import is_compiled

PROGRAM = """
import os, sys, threading, time, warnings
import numpy as np
import fieldrun

warnings.simplefilter("ignore")  # Python 3.12 warns of forks under threads
model = fieldrun.load(sys.argv[1], engine=sys.argv[2], threads=int(sys.argv[3]))
texts = ["a good film", "no rain today"] * 40
expected, stop = model.field(texts), threading.Event()
def work():
    while not stop.is_set():
        model.field(texts)
busy = [threading.Thread(target=work) for _ in range(3)]
[thread.start() for thread in busy]
for _ in range(8):
    child = os.fork()
    if not child:
        os._exit(0 if np.array_equal(model.field(texts), expected) else 3)
    end = time.time() + 20
    while (found := os.waitpid(child, os.WNOHANG))[0] == 0 and time.time() < end:
        time.sleep(0.01)
    if found[0] == 0:
        os.kill(child, 9)
        os.waitpid(child, 0)
    if found[0] == 0 or os.waitstatus_to_exitcode(found[1]):
        stop.set()
        sys.exit(f"a child hung or failed: {found}")
stop.set()
"""


@pytest.mark.parametrize(
    ("engine", "threads"),
    [("numpy", 1), ("onnxruntime", 1), ("onnxruntime", 2), *([("native", 2)] if is_compiled() else [])],
)
def test_a_forked_process_answers(engine: str, threads: int, toy_bundle: Path, unmeasured: dict[str, str]) -> None:
    argv = [sys.executable, "-c", PROGRAM, str(toy_bundle), engine, str(threads)]
    done = subprocess.run(argv, env=unmeasured, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
