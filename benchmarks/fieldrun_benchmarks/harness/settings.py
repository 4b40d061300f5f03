"""How long and how often a bench measures; the record has the settings that were used."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from fieldrun.errors import UsageError

__all__ = ["SCENARIOS", "Settings"]

SCENARIOS = ("stages", "multi_stream", "offline", "server", "loadgen")
"""What is measured after SingleStream."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one bench; times in seconds.

    `seconds` is one repeat of SingleStream, shared by all subjects; `short_s` one point of the other scenarios. A slice
    has `slice_calls` texts, or as many as a slow subject answers in `slice_s`, after others for `slice_warm_up_s`.
    """

    repeats: int = 5
    seconds: float = 26.0
    slice_calls: int = 200
    slice_s: float = 0.25
    slice_warm_up_s: float = 0.005
    stage_calls: int = 2000
    short_s: float = 3.0
    batches: tuple[int, ...] = (1, 8, 32, 256)
    threads: tuple[int, ...] = (1, 2)
    server_loads: tuple[float, ...] = (0.25, 0.5, 0.75, 0.9)
    cold_runs: int = 9
    scenarios: tuple[str, ...] = SCENARIOS
    timeout_s: float = 120.0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.repeats < 2 or self.slice_calls < 1 or self.stage_calls < 1 or self.cold_runs < 1:
            raise UsageError("a bench needs at least 2 repeats, and at least 1 call of everything else")
        if min(self.seconds, self.slice_s, self.slice_warm_up_s, self.short_s, self.timeout_s) <= 0:
            raise UsageError("the times of a bench must be above 0 s")
        if not self.batches or not self.threads or min(*self.batches, *self.threads) < 1:
            raise UsageError("batches and threads must be 1 or more")
        if not set(self.scenarios) <= set(SCENARIOS):
            raise UsageError(f"the scenarios after SingleStream are {', '.join(SCENARIOS)}, not {self.scenarios}")

    @classmethod
    def quick(cls, *, seed: int = 0, cores: int = 2) -> Settings:
        """Return the settings of a first look: about 20 s for one subject."""
        threads = (1, 2) if cores > 1 else (1,)
        times: dict[str, Any] = {"seconds": 1.2, "short_s": 0.4, "timeout_s": 60.0}
        return cls(stage_calls=300, threads=threads, cold_runs=3, seed=seed, **times)

    @classmethod
    def whole(cls, *, seed: int = 0, cores: int = 2) -> Settings:
        """Return the settings of a report: over two minutes of SingleStream, so that its ends can be compared."""
        return cls(threads=tuple(sorted({1, *(n for n in (2, 4, 8, 16) if n <= cores)})), seed=seed)
