"""SingleStream: subjects answer one text after the other, in alternating slices; what the slices say of each.

In every turn each subject answers a slice of texts that ends with the same text, in an order drawn anew. So a slow
moment of the machine slows all subjects, and none always follows the same neighbour. A slow subject gets shorter
slices. `bench` asks worker processes for slices, `timer` calls functions of this process; this code is the same.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fieldrun.formats.progress import Progress

from .percentiles import median_interval, percentiles
from .scenario import SliceTimes
from .settings import Settings

__all__ = ["Slice", "Stream", "by_length", "order_of_turn", "paired_ratio", "single_values", "take_turns", "turns"]

Floats = npt.NDArray[np.float64]
Item = TypeVar("Item")
_FEWEST = 4  # texts of a slice
_FEWEST_WARM = 2  # texts before it
_WINDOWS = 10  # of a repeat
_ECDF = (*(i / 100 for i in range(100)), 0.995, 0.999, 1.0)
_LENGTHS = (0, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 1 << 30)
_MINUTE_S = 60.0


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slice:
    """One subject's answers in one turn, to the texts from `start` on."""

    at_s: float
    turn: int
    repeat: int
    start: int
    times: SliceTimes

    @property
    def micros(self) -> Floats:
        """The times of the calls in microseconds, `(count,)`."""
        return np.array(self.times.nanos) / 1e3


@dataclass(slots=True, kw_only=True, eq=False)
class Stream:
    """One subject in SingleStream.

    Attributes:
        ask: times a slice, given `start`, `count` and `warm_up`, the number of texts before it that do not count.
        calls: texts of a slice, at most.
        warm_up: texts before a slice.
        cpu_s: CPU time of the subject's process when SingleStream began and now.
        failed: why it can no longer be asked.
    """

    ask: Callable[[int, int, int], SliceTimes]
    calls: int = _FEWEST
    warm_up: int = _FEWEST_WARM
    slices: list[Slice] = field(default_factory=list)
    cpu_s: tuple[float, float] = (0.0, 0.0)
    failed: str | None = None

    def fit(self, settings: Settings) -> None:
        """Choose the length of a slice and of its warm-up from the subject's speed; raises what the subject raises."""
        most = max(_FEWEST, settings.slice_calls)
        for _ in range(3):  # what is opened on first use must not count as slow
            times = self.ask(0, self.calls, self.warm_up)
            median_s = max(1e-9, float(np.median(times.nanos)) / 1e9)
            self.calls = int(np.clip(settings.slice_s / median_s, _FEWEST, most))
            self.warm_up = int(np.clip(settings.slice_warm_up_s / median_s, _FEWEST_WARM, self.calls))
            self.cpu_s = (times.process_cpu_s, times.process_cpu_s)


def turns(settings: Settings, n: int, progress: Progress) -> Iterator[tuple[int, int, int]]:
    """Yield `(repeat, end, most)` until every repeat has had its seconds: slices of at most `most` texts end at `end`.

    Each turn ends one text further than a slice is long, so that short slices see every text in time.
    """
    turn, whole = 0, int(settings.repeats * settings.seconds)
    for repeat in range(settings.repeats):
        begin, first = time.perf_counter(), turn
        while turn == first or time.perf_counter() < begin + settings.seconds:
            done = int(repeat * settings.seconds + time.perf_counter() - begin)
            progress("single stream", min(done, whole), whole)
            yield repeat, turn * (settings.slice_calls + 1) % n, settings.slice_calls
            turn += 1


def take_turns(
    streams: Sequence[Stream],
    plan: Iterable[tuple[int, int, int]],
    *,
    n: int,
    seed: int,
    reason: Callable[[Exception], str] = str,
) -> float:
    """Let every stream answer its slice of each turn of `plan`; return the seconds that all of it took.

    Args:
        streams: the subjects; one that raises is marked as failed and left out from then on.
        plan: `(repeat, end, most)` of each turn.
        n: the number of texts.
        seed: of the order within the turns.
        reason: makes the text of `failed` from an error.
    """
    begin, draw = time.perf_counter(), random.Random(seed)
    for turn, (repeat, end, most) in enumerate(plan):
        alive = [stream for stream in streams if not stream.failed]
        if not alive:
            break
        for stream in order_of_turn(alive, turn, draw):
            at_s, count = time.perf_counter() - begin, min(stream.calls, most)
            start = (end - count) % n
            try:
                times = stream.ask(start, count, stream.warm_up)
            except Exception as error:  # whatever a subject does, the others are measured
                stream.failed = reason(error)
                continue
            stream.cpu_s = (stream.cpu_s[0], times.process_cpu_s)
            stream.slices.append(Slice(at_s=at_s, turn=turn, repeat=repeat, start=start, times=times))
    return time.perf_counter() - begin


def order_of_turn(items: Sequence[Item], turn: int, draw: random.Random) -> list[Item]:
    """Return the order of a turn: the first item rotates, the order of the others is drawn."""
    first = turn % len(items)
    others = [*items[:first], *items[first + 1 :]]
    draw.shuffle(others)
    return [items[first], *others]


def single_values(slices: Sequence[Slice]) -> dict[str, Any]:
    """Return the values of a record for one subject's slices; the run may have ended before the last repeat."""
    micros = np.concatenate([piece.micros for piece in slices])
    numbers = dict.fromkeys(piece.repeat for piece in slices)
    repeats = [[piece for piece in slices if piece.repeat == number] for number in numbers]
    medians = [_median(repeat) for repeat in repeats]
    ecdf = zip(_ECDF, np.quantile(micros, _ECDF), strict=True)
    return {
        "loop": "own",
        "calls": len(micros),
        "p50_us": _round(np.median(micros)),
        "mean_us": _round(micros.mean()),
        "min_us": _round(micros.min()),
        "max_us": _round(micros.max()),
        "percentiles": percentiles(micros),
        "repeats_p50_us": [_round(value) for value in medians],
        "variation": round(float(np.std(medians, ddof=1) / np.mean(medians)), 5) if len(medians) > 1 else None,
        "windows_us": [_windows(repeat) for repeat in repeats],
        "over_time": [{"s": round(piece.at_s, 2), "p50_us": _round(_median([piece]))} for piece in _thin(slices)],
        "minutes": _minutes(slices),
        "cpu_us": _round(sum(piece.times.cpu_ns for piece in slices) / 1e3 / len(micros)),
        "involuntary_switches": sum(piece.times.switches for piece in slices),
        "ecdf": [[share, _round(value)] for share, value in ecdf],
    }


def by_length(slices: Sequence[Slice], texts: Sequence[str], counts: Sequence[int] | None) -> dict[str, Any]:
    """Return latency by length: by `counts`, the tokens of every text, or by characters where that is None."""
    lengths = np.array(counts if counts is not None else [len(text) for text in texts])
    sent = lengths[np.concatenate([(p.start + np.arange(len(p.micros))) % len(lengths) for p in slices])]
    micros = np.concatenate([piece.micros for piece in slices])
    found = []
    for low, high in pairwise(_LENGTHS):
        inside = (sent > low) & (sent <= high)
        if inside.any():
            p10, p50, p90 = (_round(value) for value in np.percentile(micros[inside], (10, 50, 90)))
            mean = round(float(sent[inside].mean()), 1)
            found.append({"mean": mean, "calls": int(inside.sum()), "p10_us": p10, "p50_us": p50, "p90_us": p90})
    unit = "characters" if counts is None else "tokens"
    return {"unit": unit, "mean": round(float(lengths.mean()), 1), "classes": found}


def paired_ratio(slices: Sequence[Slice], base: Sequence[Slice]) -> dict[str, Any]:
    """Return how many times the time of `base` the `slices` take: the median of the ratios of slices of one turn.

    The slices of a turn end with the same text. Of the longer slice only the last texts count, as many as the shorter
    one has: a fast subject's first calls of a turn are slower, because the caches hold what ran before.
    """
    by_turn = {piece.turn: piece.micros for piece in base}
    ratios = []
    for piece in slices:
        if (other := by_turn.get(piece.turn)) is not None:
            common = min(len(piece.micros), len(other))
            ratios.append(float(np.median(piece.micros[-common:]) / np.median(other[-common:])))
    if not ratios:
        return {"pairs": 0, "unavailable": "one of the two failed"}
    interval = median_interval(ratios)
    ends = [round(value, 4) for value in interval] if interval else None
    return {"pairs": len(ratios), "median": round(float(np.median(ratios)), 4), "ci95": ends}


def _median(slices: Sequence[Slice]) -> float:
    return float(np.median(np.concatenate([piece.micros for piece in slices])))


def _round(micros: float | np.floating[Any]) -> float:
    return round(float(micros), 3)


def _windows(repeat: Sequence[Slice]) -> list[float]:
    medians = np.array([np.median(piece.micros) for piece in repeat])
    return [_round(np.median(part)) for part in np.array_split(medians, min(_WINDOWS, len(medians)))]


def _thin(slices: Sequence[Slice], most: int = 200) -> Sequence[Slice]:
    return slices[:: max(1, -(-len(slices) // most))]


def _minutes(slices: Sequence[Slice]) -> dict[str, Any]:
    begin, end = slices[0].at_s, slices[-1].at_s
    if end - begin < 2 * _MINUTE_S:
        return {"unavailable": f"the run lasted {end - begin:.0f} s; comparing first and last minute needs 120 s"}
    first = _median([piece for piece in slices if piece.at_s - begin < _MINUTE_S])
    last = _median([piece for piece in slices if end - piece.at_s < _MINUTE_S])
    return {"first_us": _round(first), "last_us": _round(last), "ratio": round(last / first, 4)}
