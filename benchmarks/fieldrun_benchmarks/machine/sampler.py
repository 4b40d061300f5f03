"""The sensors, read repeatedly while something is measured, and a summary of the readings."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from .sensors import THROTTLE_FLAGS, Reading, Sensors, Unavailable

__all__ = ["Sampler"]

_SINCE_START = 16  # from this bit on, the Raspberry Pi's flags are those since it was switched on


@dataclass
class Sampler:
    """Reads the sensors every `interval_s` in a thread, inside its `with` block."""

    sensors: Sensors
    interval_s: float = 0.5
    clock: Callable[[], float] = time.monotonic
    _seen: list[tuple[float, dict[str, Reading]]] = field(default_factory=list)
    _ranges: Mapping[str, float] = field(default_factory=dict)
    _busy: list[Mapping[str, float] | None] = field(default_factory=list)
    _cpu_s: list[float] = field(default_factory=list)  # of this process

    def __enter__(self) -> Sampler:
        self._stop = threading.Event()
        self._ranges = self.sensors.energy_range_j()
        self._look()
        self.take()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()
        self.take()
        self._look()

    def take(self) -> None:
        """Read the sensors once."""
        self._seen.append((self.clock(), self.sensors.read()))

    def _look(self) -> None:
        self._busy.append(self.sensors.busy())
        self._cpu_s.append(time.process_time())

    def _loop(self) -> None:
        while not self._stop.wait(self.interval_s):
            self.take()

    def summary(self, own_cpu_s: float = 0.0) -> dict[str, Any]:
        """Return minima, means, maxima and sums of the readings, each a value or `{"unavailable": why}`.

        `own_cpu_s` is the CPU time of the measured processes; it and that of this process are not "other" processes.
        """
        last = self._seen[-1][1]
        span = max(1e-9, self._seen[-1][0] - self._seen[0][0])
        found: dict[str, Any] = {"seconds": round(span, 2), "readings": len(self._seen)}
        for name in ("clock_mhz", "temperature_c", "power_w"):
            values = self._values(name)
            about = {"min": min(values), "mean": sum(values) / len(values), "max": max(values)} if values else {}
            found[name] = {key: round(value, 1) for key, value in about.items()} or _why(last[name])
        governor = last["governor"]
        found |= {"governor": governor if isinstance(governor, str) else _why(governor)}
        found |= {"throttled": self._throttled(), "energy_j": self._energy(span)}
        return found | self._others(own_cpu_s, span)

    def _throttled(self) -> dict[str, Any]:
        """Return how much the counters grew, and which flags were set in a reading or between two."""
        counts, flags = self._values("throttled"), [int(value) for value in self._values("throttle_flags")]
        found: dict[str, Any] = {"events": counts[-1] - counts[0]} if counts else {}
        if flags:
            since = flags[-1] & ~flags[0]
            seen = functools.reduce(int.__or__, flags) | since >> _SINCE_START
            found["flags"] = [name for bit, name in enumerate(THROTTLE_FLAGS) if seen >> bit & 1]
        return found or _why(self._seen[-1][1]["throttled"])

    def _energy(self, span: float) -> Any:
        counters = [value for _, seen in self._seen if isinstance(value := seen["energy_j"], Mapping)]
        if len(counters) > 1:
            total = 0.0
            for before, after in pairwise(counters):
                for package in before.keys() & after.keys():
                    grown = after[package] - before[package]
                    total += grown if grown >= 0 else grown + self._ranges.get(package, 0.0)
            return {"joules": round(total, 3), "mean_w": round(total / span, 3), "of": "processor packages (RAPL)"}
        watts = self._values("power_w")
        if watts:
            mean = sum(watts) / len(watts)
            return {"joules": round(mean * span, 3), "mean_w": round(mean, 3), "of": "the board"}
        last = self._seen[-1][1]
        reasons = [last[name] for name in ("energy_j", "power_w")]
        return {"unavailable": "; ".join(str(why) for why in reasons if isinstance(why, Unavailable))}

    def _others(self, own_cpu_s: float, span: float) -> dict[str, Any]:
        before, after = self._busy[0], self._busy[-1]
        if before is None or after is None:
            why = {"unavailable": "/proc/stat cannot be read"}
            return {"other_cores": why, "stolen_cores": why}
        own_cpu_s += self._cpu_s[-1] - self._cpu_s[0]
        others = max(0.0, after["busy"] - before["busy"] - own_cpu_s) / span
        stolen = (after["stolen"] - before["stolen"]) / span
        return {"other_cores": round(others, 3), "stolen_cores": round(stolen, 3)}

    def _values(self, name: str) -> list[float]:
        return [value for _, seen in self._seen if isinstance(value := seen[name], float)]


def _why(reading: Reading) -> dict[str, str]:
    return reading.to_dict() if isinstance(reading, Unavailable) else {"unavailable": "not a number"}
