"""Time functions of this process on real texts: the loop of `fieldrun bench`, without its worker processes.

timing = time_texts({"tokenizer": tokenize, "model": label}, texts, repeats=5)
timing["model"]["p50_us"], timing.ratio("model", "tokenizer")["median"]
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from .percentiles import calls_needed, median_interval
from .scenario import timed_slice
from .settings import Settings
from .single_stream import Slice, Stream, paired_ratio, single_values, take_turns
from .subject import SubjectSpec, open_subject

__all__ = ["Timing", "text_to_labels_us", "time_texts"]

Item = TypeVar("Item")
_ROUNDS = 7


@dataclass(frozen=True, slots=True)
class Timing:
    """What one run of `time_texts` measured, by subject."""

    slices: Mapping[str, Sequence[Slice]]

    def __getitem__(self, name: str) -> dict[str, Any]:
        """Return the wall time of one subject's calls, in microseconds.

        `ci95_us` is the 95 % interval of the median, None for fewer than 6 calls; `p99_us` is None for fewer calls than
        a 99th percentile needs (662).
        """
        values = single_values(self.slices[name])
        micros = np.concatenate([piece.micros for piece in self.slices[name]])
        interval = median_interval(micros)
        p50, p90, p99 = (round(float(value), 3) for value in np.quantile(micros, (0.5, 0.9, 0.99)))
        return {
            "calls": len(micros),
            "p50_us": p50,
            "p90_us": p90,
            "p99_us": p99 if len(micros) >= calls_needed(0.99) else None,
            "min_us": values["min_us"],
            "ci95_us": interval and (round(interval[0], 3), round(interval[1], 3)),
            "repeats_p50_us": tuple(values["repeats_p50_us"]),
        }

    def ratio(self, of: str, to: str) -> dict[str, Any]:
        """Return how many times the time of `to` `of` takes: `median`, its `ci95`, and the number of `pairs`."""
        return paired_ratio(self.slices[of], self.slices[to])


def time_texts(
    subjects: Mapping[str, Callable[[Item], object]],
    texts: Sequence[Item],
    *,
    repeats: int = 5,
    warm_up: int | None = None,
) -> Timing:
    """Call every subject with every text `repeats` times, one text at a time, in alternating slices.

    Args:
        subjects: what is called, by name.
        texts: what each is called with: texts, or whatever the subjects take.
        repeats: how often each subject answers all texts.
        warm_up: texts before each slice that do not count; as many as take 5 ms when None.

    Raises:
        Exception: whatever a subject raises.
    """
    settings = Settings()
    count = -(-len(texts) // settings.slice_calls)  # slices of a repeat, all of nearly the same length
    ends = [len(texts) * i // count for i in range(count + 1)]
    streams = {name: Stream(ask=_asker(subject, texts)) for name, subject in subjects.items()}
    for stream in streams.values():
        if warm_up is None:
            stream.fit(settings)
        else:
            stream.warm_up = warm_up
        stream.calls = len(texts)
    plan = [(repeat, ends[i + 1], ends[i + 1] - ends[i]) for repeat in range(repeats) for i in range(count)]
    take_turns([*streams.values()], plan, n=len(texts), seed=0, reason=_raise)
    return Timing({name: stream.slices for name, stream in streams.items()})


def text_to_labels_us(bundle: Path, texts: Sequence[str]) -> float:
    """Return the microseconds in which `bundle` answers one text with all its labels, on one thread.

    This is the least of the repeats' medians, because other programs only ever add time. Raises as `fieldrun.load`.
    """
    subject = open_subject(SubjectSpec(name="bundle", kind="bundle", place=str(bundle)))
    try:
        timing = time_texts({"bundle": lambda text: subject.run([text])}, texts, repeats=_ROUNDS)
    finally:
        subject.close()
    return float(min(timing["bundle"]["repeats_p50_us"]))


def _asker(subject: Callable[[Item], object], texts: Sequence[Item]) -> Callable[[int, int, int], Any]:
    return lambda start, count, warm_up: timed_slice(subject, texts, start=start, count=count, warm_up=warm_up)


def _raise(error: Exception) -> str:
    raise error
