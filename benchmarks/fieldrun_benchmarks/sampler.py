"""The sensors read again and again while something is measured, and what was seen in all."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from types import TracebackType
from typing import Any

from .sensors import Reading, Sensors, Unavailable

__all__ = ["Sampler"]


@dataclass
class Sampler:
    """Reads the sensors every `interval_s` in a thread, between `with` and its end; `summary` says what was seen."""

    sensors: Sensors
    interval_s: float = 0.5
    clock: Callable[[], float] = time.monotonic
    _seen: list[tuple[float, dict[str, Reading]]] = field(default_factory=list)
    _ranges: float | None = None
    _busy: list[Mapping[str, float] | None] = field(default_factory=list)

    def __enter__(self) -> Sampler:
        self._stop = threading.Event()
        self._ranges = self.sensors.energy_range_j()
        self._busy.append(self.sensors.busy())
        self.take()
        self._thread = threading.Thread(target=self._loop, daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()
        self.take()
        self._busy.append(self.sensors.busy())

    def take(self) -> None:
        """Read the sensors once."""
        self._seen.append((self.clock(), self.sensors.read()))

    def _loop(self) -> None:
        while not self._stop.wait(self.interval_s):
            self.take()

    def summary(self, own_cpu_s: float = 0.0) -> dict[str, Any]:
        """Return what was seen, each a value or `{"unavailable": why}`; `own_cpu_s` is the CPU time of the measured."""
        last = self._seen[-1][1]
        span = max(1e-9, self._seen[-1][0] - self._seen[0][0])
        found: dict[str, Any] = {"seconds": round(span, 2), "readings": len(self._seen)}
        for name in ("clock_mhz", "temperature_c", "power_w"):
            values = self._values(name)
            found[name] = (
                {
                    "min": round(min(values), 1),
                    "mean": round(sum(values) / len(values), 1),
                    "max": round(max(values), 1),
                }
                if values
                else _why(last[name])
            )
        governor = last["governor"]
        found["governor"] = governor if isinstance(governor, str) else _why(governor)
        throttled = self._values("throttled")
        found["throttled"] = {"events": throttled[-1] - throttled[0]} if throttled else _why(last["throttled"])
        found["energy_j"] = self._energy(span)
        found["other_cores"], found["stolen_cores"] = self._others(own_cpu_s, span)
        return found

    def _energy(self, span: float) -> Any:
        counter = self._values("energy_j")
        if len(counter) > 1:
            total = 0.0
            for before, after in pairwise(counter):
                total += after - before if after >= before else after - before + (self._ranges or 0.0)
            return {"joules": round(total, 3), "mean_w": round(total / span, 3), "of": "processor packages (RAPL)"}
        watts = self._values("power_w")
        if watts:
            mean = sum(watts) / len(watts)
            return {"joules": round(mean * span, 3), "mean_w": round(mean, 3), "of": "the board"}
        last = self._seen[-1][1]
        reasons = [last[name] for name in ("energy_j", "power_w")]
        return {"unavailable": "; ".join(r.why for r in reasons if isinstance(r, Unavailable))}

    def _others(self, own_cpu_s: float, span: float) -> tuple[Any, Any]:
        before, after = self._busy[0], self._busy[-1]
        if before is None or after is None:
            why = Unavailable("/proc/stat cannot be read").to_dict()
            return why, why
        others = max(0.0, after["busy"] - before["busy"] - own_cpu_s) / span
        return round(others, 3), round((after["stolen"] - before["stolen"]) / span, 3)

    def _values(self, name: str) -> list[float]:
        return [value for _, seen in self._seen if isinstance(value := seen[name], float)]


def _why(reading: Reading) -> dict[str, str]:
    return reading.to_dict() if isinstance(reading, Unavailable) else {"unavailable": "not a number"}
