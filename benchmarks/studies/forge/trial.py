"""What a process does with forged bundles: load, verify and answer with every engine, and say how each ended.

The process has 1 GB of address space. It writes a line of JSON before and after each trial, so that its parent knows
which bundle ended it.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import traceback
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import fieldrun
from fieldrun.errors import FieldrunError

from .mutants import forge

__all__ = ["MEMORY", "SECONDS", "main"]

MEMORY = 1 << 30
SECONDS = 10
_TEXTS = ["good", "the film was bad " * 60, "caf\u00e9 \u4e2d\u6587 \U0001f600", "[CLS] [MASK] x", "a" * 300]


class _TooLong(Exception):
    """A trial took longer than `SECONDS`."""


def main() -> None:
    """Run the trials that the arguments name: source, work folder, first number, last number, engines."""
    source, work = Path(sys.argv[1]), Path(sys.argv[2])
    first, last, engines = int(sys.argv[3]), int(sys.argv[4]), sys.argv[5].split(",")
    _use(source, engines)  # what is imported at the first use is there before memory is short
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    signal.signal(signal.SIGALRM, _stop)
    for number in range(first, last):
        folder = work / f"forged-{os.getpid()}"
        changed = forge(source, folder, number)
        for engine in engines:
            _say(number=number, engine=engine, changed=changed)
            _say(number=number, engine=engine, outcome=_outcome(folder, engine))


def _use(source: Path, engines: list[str]) -> None:
    for engine in engines:
        with contextlib.suppress(FieldrunError):
            _answer(source, engine)


def _outcome(folder: Path, engine: str) -> str:
    signal.alarm(SECONDS)
    try:
        return _answer(folder, engine)
    except FieldrunError as error:
        message = str(error)
        if not message.replace("\n", " ").isprintable():
            return "bad: a message with control characters: " + ascii(message[:200])
        return f"refused: {type(error).__name__}"
    except _TooLong:
        return "bad: longer than 10 s"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        return f"bad: {type(error).__name__}: {str(error)[:160]!a} at {Path(where.filename).name}:{where.lineno}"
    finally:
        signal.alarm(0)


def _answer(folder: Path, engine: str) -> str:
    with fieldrun.load(folder, engine=engine) as model:
        json.dumps(fieldrun.Bundle.load(folder).about())
        for texts in (_TEXTS, *([text] for text in _TEXTS)):
            if not np.isfinite(model.field(texts)).all():
                return "bad: a field that is not finite"
        for task in model.tasks:
            pairs = model.kind(task) == "pair"
            scores = model.predict_proba([(text, "film") for text in _TEXTS] if pairs else _TEXTS, task)
            if not np.isfinite(scores).all() or abs(float(scores.sum()) - len(scores)) > 1e-3 * len(scores):
                return f"bad: scores of {task!a} that are not probabilities"
    return "answered" if fieldrun.verify(folder, engine=engine).passed else "answered, and verify says no"


def _stop(number: int, frame: FrameType | None) -> None:
    del number, frame
    raise _TooLong


def _say(**facts: Any) -> None:
    sys.stdout.write(json.dumps(facts) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
