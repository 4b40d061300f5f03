"""Counters in the text format of Prometheus, version 0.0.4.

All of them are changed on the event loop's thread alone, so they need no lock.
(https://prometheus.io/docs/instrumenting/exposition_formats/)
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Iterable, Mapping

from .current import Served

__all__ = ["CONTENT_TYPE", "Metrics"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_BOUNDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)  # seconds
_HELP = {
    "fieldrun_requests_total": ("counter", "Answered requests by endpoint and HTTP status."),
    "fieldrun_errors_total": ("counter", "Errors of requests and of single texts, by the name of the error."),
    "fieldrun_texts_total": ("counter", "Texts and pairs answered."),
    "fieldrun_reloads_total": ("counter", "Bundles taken over after the first, and failed attempts."),
    "fieldrun_requests_in_progress": ("gauge", "Requests that are read or answered now."),
    "fieldrun_bundle_info": ("gauge", "The bundle that answers; its value is always 1."),
    "fieldrun_bundle_loaded_timestamp_seconds": ("gauge", "When that bundle was loaded, in seconds since 1970."),
    "fieldrun_request_seconds": ("histogram", "Time from the first byte of a request to its answer."),
}


class Metrics:
    """What has happened since the service started; the time of requests is kept for `endpoints` alone."""

    def __init__(self, endpoints: Iterable[str]) -> None:
        self.texts = self.in_progress = 0
        self.errors: Counter[str] = Counter()
        self.reloads: Counter[str] = Counter({"loaded": 0, "failed": 0})
        self._requests: Counter[tuple[str, int]] = Counter()
        self._spread = {endpoint: [0] * (len(_BOUNDS) + 1) for endpoint in endpoints}
        self._seconds = dict.fromkeys(self._spread, 0.0)

    def count(self, endpoint: str, status: int, seconds: float) -> None:
        """Count a request to `endpoint` that was answered with `status` after `seconds`."""
        self._requests[endpoint, status] += 1
        if endpoint in self._spread:
            self._spread[endpoint][bisect_left(_BOUNDS, seconds)] += 1
            self._seconds[endpoint] += seconds

    def render(self, served: Served) -> str:
        """Return all metrics as text; `served` is the bundle that answers."""
        about = {"name": served.model.manifest.name, "sha256": served.sha256, "engine": served.model.engine}
        samples: dict[str, Iterable[tuple[Mapping[str, object], float]]] = {
            "fieldrun_requests_total": [({"endpoint": e, "status": s}, n) for (e, s), n in self._requests.items()],
            "fieldrun_errors_total": [({"type": name}, n) for name, n in self.errors.items()],
            "fieldrun_texts_total": [({}, self.texts)],
            "fieldrun_reloads_total": [({"outcome": name}, n) for name, n in self.reloads.items()],
            "fieldrun_requests_in_progress": [({}, self.in_progress)],
            "fieldrun_bundle_info": [(about, 1)],
            "fieldrun_bundle_loaded_timestamp_seconds": [({}, served.loaded)],
        }
        lines = []
        for name, (kind, text) in _HELP.items():
            lines += [f"# HELP {name} {text}", f"# TYPE {name} {kind}"]
            lines += [_sample(name, labels, value) for labels, value in samples.get(name, ())]
        for endpoint, spread in self._spread.items():
            total = 0
            for bound, n in zip([*map(str, _BOUNDS), "+Inf"], spread, strict=True):
                total += n
                lines.append(_sample("fieldrun_request_seconds_bucket", {"endpoint": endpoint, "le": bound}, total))
            lines.append(_sample("fieldrun_request_seconds_sum", {"endpoint": endpoint}, self._seconds[endpoint]))
            lines.append(_sample("fieldrun_request_seconds_count", {"endpoint": endpoint}, total))
        return "\n".join(lines) + "\n"


def _sample(name: str, labels: Mapping[str, object], value: float) -> str:
    shown = ",".join(f'{key}="{_escaped(str(label))}"' for key, label in labels.items())
    return f"{name}{{{shown}}} {value}" if shown else f"{name} {value}"


def _escaped(label: str) -> str:
    return label.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
