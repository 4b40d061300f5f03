"""Passes: each takes a model in memory and returns it changed, with a report of what changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

__all__ = ["PassReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassReport:
    """What a pass changed: bytes before and after, and facts per tensor."""

    name: str
    bytes_before: int
    bytes_after: int
    changed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return {
            "name": self.name,
            "bytes_before": self.bytes_before,
            "bytes_after": self.bytes_after,
            "changed": {name: dict(facts) for name, facts in self.changed.items()},
        }
