"""Time subjects on real texts, in turns: every text goes through every subject, in an order drawn anew.

Shared machines drift; what was measured in turns can be compared, what was measured one after the other cannot.
"""

from __future__ import annotations

import gc
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = ["Latency", "Micros", "interleave", "order_of_turn", "summary", "time_in_turns"]

Item = TypeVar("Item")
Micros = npt.NDArray[np.float64]
"""Wall times in microseconds, `(rounds, items)`."""


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
    timed = time_in_turns(subjects, texts, rounds=repeats, warm_up=warm_up)
    return {name: summary(micros) for name, micros in timed.items()}


def time_in_turns(
    subjects: Mapping[str, Callable[[Item], object]],
    items: Sequence[Item],
    *,
    rounds: int = 1,
    warm_up: int = 50,
    apart: bool = False,
) -> dict[str, Micros]:
    """Call every subject with every item, `rounds` times over, and return each call's time, by subject.

    Args:
        subjects: what is called, by name.
        items: what each is called with: texts, or batches of texts.
        rounds: how often all items are gone through.
        warm_up: so many items run once uncounted.
        apart: in one turn each subject gets another item, so that none finds the table rows of its text in the cache
            because another subject that maps the same file has just read them.
    """
    names, n = [*subjects], len(items)
    shift = {name: k * n // len(subjects) if apart else 0 for k, name in enumerate(subjects)}
    for item in items[:warm_up]:
        for subject in subjects.values():
            subject(item)
    times = {name: np.empty((rounds, n)) for name in subjects}
    draw = random.Random(0)
    clock = time.perf_counter_ns
    enabled = gc.isenabled()
    gc.disable()
    try:
        for r in range(rounds):
            for turn in range(n):
                for name in order_of_turn(names, turn + r, draw):
                    i = (turn + shift[name]) % n
                    subject, item = subjects[name], items[i]
                    start = clock()
                    subject(item)
                    times[name][r, i] = (clock() - start) / 1e3
    finally:
        if enabled:
            gc.enable()
    return times


def order_of_turn(items: Sequence[Item], turn: int, draw: random.Random) -> list[Item]:
    """Return who comes when: who is first rotates, the others are drawn; nobody always follows the same neighbour."""
    first = turn % len(items)
    others = [*items[:first], *items[first + 1 :]]
    draw.shuffle(others)
    return [items[first], *others]


def summary(micros: Micros) -> Latency:
    """Return the percentiles of all calls."""
    p50, p90 = np.percentile(micros, [50, 90])
    return Latency(
        calls=micros.size,
        p50_us=round(float(p50), 1),
        p90_us=round(float(p90), 1),
        min_us=round(float(micros.min()), 1),
    )
