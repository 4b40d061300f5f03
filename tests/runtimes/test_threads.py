"""`threads=1` is one thread: no engine, no tokenizer and no BLAS starts others in a process, nor in its fork."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fieldrun_runtimes.engines.native_engine import is_compiled

ENGINES = ("numpy", "onnxruntime", *(("native",) if is_compiled() else ()))
PROGRAM = """
import json, os, sys
import numpy as np

def threads():
    return sorted(os.listdir("/proc/self/task"))

before = threads()  # NumPy's BLAS starts its own at the import
import fieldrun
from fieldrun.heads.head import Head

engine, number = sys.argv[1], int(sys.argv[2])
texts = ["a gripping film", "two hours that i will not get back, " * 30, "a caf\\u00e9 \\u4e2d\\u6587 \\U0001f600"]
with fieldrun.load(engine=engine, threads=number, overflow="window") as model:
    weight = np.random.default_rng(0).standard_normal((256, 200)).astype(np.float32)
    model.attach(Head(name="mine", kind="single", labels=tuple(map(str, range(200))), weight=weight, bias=weight[0]))
    for many in (1, 100):
        batch = texts * many
        for text in texts:
            model.predict([text], "sst2")
        model.predict_all(batch)
        model.predict(batch, "mine")
        model.predict(list(zip(batch, batch)), "rte")
        model.similarity(model.encode(texts), model.encode(texts))
    after = threads()
    sys.stdout.flush()
    child = os.fork()
    if not child:
        model.predict_all(texts * 100)
        os._exit(len(threads()))
    forked = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
print(json.dumps([before, after, forked]))
"""


def count(engine: str, threads: int, **environment: str) -> tuple[list[str], list[str], int]:
    """The threads when NumPy was imported, those after the answers, and the number of them in a fork."""
    others = ("_NUM_THREADS", "_PARALLELISM", "_PROCESS_CONFIG", "_PROCESS_START")  # the last two measure coverage
    kept = {name: value for name, value in os.environ.items() if not name.endswith(others)}
    argv = [sys.executable, "-W", "ignore", "-c", PROGRAM, engine, str(threads)]
    done = subprocess.run(argv, env=kept | environment, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode == 0, done.stderr
    before, after, forked = json.loads(done.stdout)
    return before, after, forked


pytestmark = pytest.mark.skipif(not Path("/proc/self/task").is_dir(), reason="threads are counted in /proc")


@pytest.mark.parametrize("engine", ENGINES)
def test_one_thread_is_one_thread(engine: str) -> None:
    before, after, forked = count(engine, 1, OPENBLAS_NUM_THREADS="1")
    assert len(before) == 1
    assert after == before
    assert forked == 1


@pytest.mark.parametrize("engine", ENGINES)
def test_numpys_own_threads_stay_the_only_others(engine: str) -> None:
    """Also where the machine has many cores: a pool with a thread for each would be seen."""
    before, after, _ = count(engine, 1, OPENBLAS_NUM_THREADS="3", RAYON_NUM_THREADS="5")
    assert after == before


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "numpy"])
def test_more_threads_are_started_where_they_are_asked_for(engine: str) -> None:
    before, after, _ = count(engine, 2, OPENBLAS_NUM_THREADS="1")
    assert len(after) > len(before)
