"""Passes: each takes a model in memory and returns it changed, with a report of what changed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from fieldrun.errors import ExportError

from ...builder import Stored

__all__ = ["PassReport"]


@dataclass(frozen=True, slots=True, kw_only=True)
class PassReport:
    """What a pass changed: bytes before and after, and facts per tensor."""

    name: str
    bytes_before: int
    bytes_after: int
    changed: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, name: str, before: Stored, after: Stored, changed: Mapping[str, Mapping[str, Any]]) -> PassReport:
        """Return the report of a pass; `ExportError` if it changed nothing or made nothing smaller."""
        report = cls(name=name, bytes_before=before.nbytes(), bytes_after=after.nbytes(), changed=changed)
        if not changed or report.bytes_after >= report.bytes_before:
            raise ExportError(f"{name}: nothing became smaller; check what the recipe wants of this pass")
        return report
