"""How long a bundle takes from a text to all its labels, here and now: a look for a search, not a benchmark."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path

from .model import load

__all__ = ["text_to_labels_us"]

_ROUNDS = 7


def text_to_labels_us(bundle: Path, texts: Sequence[str]) -> float:
    """Return the microseconds from a text to all labels, one thread, batch 1: the least of the rounds' medians.

    Other programs only ever add time, so the least is what the bundle takes. Raises as `fieldrun.load` does.
    """
    with load(bundle) as model:
        for text in texts[:16]:
            model.predict_all([text])
        medians = []
        for _ in range(_ROUNDS):
            times = []
            for text in texts:
                start = time.perf_counter()
                model.predict_all([text])
                times.append(time.perf_counter() - start)
            medians.append(statistics.median(times))
    return 1e6 * min(medians)
