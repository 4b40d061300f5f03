"""Time subjects on real texts, in turns: every text goes through every subject, and the order rotates.

Shared machines drift; what was measured in turns can be compared, what was measured one after the other cannot.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

__all__ = ["Latency", "interleave"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Latency:
    """Wall time per call in microseconds: median, 90th percentile, minimum, of `calls` calls."""

    calls: int
    p50_us: float
    p90_us: float
    min_us: float

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON."""
        return asdict(self)


def interleave(
    subjects: Mapping[str, Callable[[str], object]], texts: Sequence[str], *, repeats: int = 1, warm_up: int = 50
) -> dict[str, Latency]:
    """Call every subject with every text, `repeats` times over, and return each subject's latency.

    The first `warm_up` texts run once uncounted. The garbage collector rests while a subject is timed.
    """
    names = list(subjects)
    for text in texts[:warm_up]:
        for name in names:
            subjects[name](text)
    nanoseconds: dict[str, list[int]] = {name: [] for name in names}
    clock = time.perf_counter_ns
    enabled = gc.isenabled()
    gc.disable()
    try:
        for repeat in range(repeats):
            for i, text in enumerate(texts):
                turn = (i + repeat) % len(names)
                for name in names[turn:] + names[:turn]:
                    subject = subjects[name]
                    start = clock()
                    subject(text)
                    nanoseconds[name].append(clock() - start)
    finally:
        if enabled:
            gc.enable()
    return {name: _latency(np.array(values, np.float64) / 1e3) for name, values in nanoseconds.items()}


def _latency(micros: np.ndarray[Any, np.dtype[np.float64]]) -> Latency:
    p50, p90 = np.percentile(micros, [50, 90])
    return Latency(
        calls=len(micros),
        p50_us=round(float(p50), 1),
        p90_us=round(float(p90), 1),
        min_us=round(float(micros.min()), 1),
    )
