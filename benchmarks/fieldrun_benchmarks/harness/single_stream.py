"""What the slices of SingleStream say of a subject: percentiles, spread, drift, latency by length."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt

from ..machine.sensors import Unavailable
from .percentiles import median_interval, percentiles

__all__ = ["Slice", "by_length", "paired_ratio", "single_values"]

Floats = npt.NDArray[np.float64]
_WINDOWS = 10  # a repeat
_ECDF = (*(i / 100 for i in range(100)), 0.995, 0.999, 1.0)
_LENGTHS = (0, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 1 << 30)
_MINUTE_S = 60.0


@dataclass(slots=True, kw_only=True, eq=False)
class Slice:
    """What one subject did in one turn: `micros` of the texts from `start` on, `cpu_ns` and `switches` meanwhile.

    `process_cpu_s` is the CPU time of its whole process, warm-up and answering included, from its start to here.
    """

    at_s: float
    turn: int
    repeat: int
    start: int
    micros: Floats
    cpu_ns: int
    process_cpu_s: float
    switches: int


def single_values(slices: Sequence[Slice], count: int) -> dict[str, Any]:
    """Return what a record says of one subject's slices in `count` repeats; the run may have ended before the last."""
    micros = np.concatenate([piece.micros for piece in slices])
    repeats = [[p for p in slices if p.repeat == repeat] for repeat in range(count)]
    windows = [_windows([float(np.median(p.micros)) for p in repeat]) for repeat in repeats if repeat]
    medians = [float(np.median(np.concatenate([p.micros for p in repeat]))) for repeat in repeats if repeat]
    return {
        "loop": "own",
        "calls": len(micros),
        "p50_us": round(float(np.median(micros)), 3),
        "mean_us": round(float(micros.mean()), 3),
        "min_us": round(float(micros.min()), 3),
        "max_us": round(float(micros.max()), 3),
        "percentiles": percentiles(micros),
        "repeats_p50_us": [round(value, 3) for value in medians],
        "variation": round(float(np.std(medians, ddof=1) / np.mean(medians)), 5) if len(medians) > 1 else None,
        "windows_us": [[round(value, 3) for value in window] for window in windows],
        "over_time": [{"s": round(p.at_s, 2), "p50_us": round(float(np.median(p.micros)), 3)} for p in _thin(slices)],
        "minutes": _minutes(slices),
        "cpu_us": round(sum(p.cpu_ns for p in slices) / 1e3 / len(micros), 3),
        "involuntary_switches": sum(p.switches for p in slices),
        "ecdf": [[p, round(float(value), 3)] for p, value in zip(_ECDF, np.quantile(micros, _ECDF), strict=True)],
    }


def by_length(slices: Sequence[Slice], texts: Sequence[str], counts: Sequence[int] | None) -> dict[str, Any]:
    """Return latency by the number of tokens, `counts` of every text, or of characters where there are none."""
    lengths = np.array(counts if counts is not None else [len(text) for text in texts])
    sent = np.concatenate([(p.start + np.arange(len(p.micros))) % len(lengths) for p in slices])
    micros = np.concatenate([p.micros for p in slices])
    found = []
    for low, high in pairwise(_LENGTHS):
        inside = (lengths[sent] > low) & (lengths[sent] <= high)
        if inside.any():
            p10, p50, p90 = (round(float(value), 3) for value in np.percentile(micros[inside], (10, 50, 90)))
            mean = round(float(lengths[sent][inside].mean()), 1)
            found.append({"mean": mean, "calls": int(inside.sum()), "p10_us": p10, "p50_us": p50, "p90_us": p90})
    unit = "characters" if counts is None else "tokens"
    return {"unit": unit, "mean": round(float(lengths.mean()), 1), "classes": found}


def paired_ratio(slices: Sequence[Slice], base: Sequence[Slice]) -> dict[str, Any]:
    """Return how many times `base`'s time `slices` take: the median of the ratios of slices' medians, paired by turn.

    The slices of a turn end with the same text. Of the longer one only the last texts count, those of the shorter: a
    fast subject's first calls of a turn are slower, because the caches are full of what ran before.
    """
    by_turn = {piece.turn: piece for piece in base}
    ratios = []
    for piece in slices:
        if piece.turn in by_turn:
            other = by_turn[piece.turn].micros
            common = min(len(piece.micros), len(other))
            ratios.append(float(np.median(piece.micros[-common:]) / np.median(other[-common:])))
    if not ratios:
        return {"pairs": 0, **Unavailable("one of the two failed").to_dict()}
    interval = median_interval(ratios)
    ends = [round(value, 4) for value in interval] if interval else None
    return {"pairs": len(ratios), "median": round(float(np.median(ratios)), 4), "ci95": ends}


def _windows(values: Sequence[float]) -> list[float]:
    count = min(_WINDOWS, len(values))
    return [float(np.median(part)) for part in np.array_split(np.array(values), count)]


def _thin(slices: Sequence[Slice], most: int = 200) -> Sequence[Slice]:
    step = max(1, -(-len(slices) // most))
    return slices[::step]


def _minutes(slices: Sequence[Slice]) -> dict[str, Any]:
    span = slices[-1].at_s - slices[0].at_s
    if span < 2 * _MINUTE_S:
        return Unavailable(f"the run lasted {span:.0f} s; the first and the last minute need 120 s").to_dict()
    first = [p.micros for p in slices if p.at_s - slices[0].at_s < _MINUTE_S]
    last = [p.micros for p in slices if slices[-1].at_s - p.at_s < _MINUTE_S]
    before, after = (float(np.median(np.concatenate(part))) for part in (first, last))
    return {"first_us": round(before, 3), "last_us": round(after, 3), "ratio": round(after / before, 4)}
