"""The null subject: it does nothing, so what is measured is the harness."""

from __future__ import annotations

from typing import Any

from ..harness.subject import Subject, SubjectSpec

__all__ = ["NullSubject"]


class NullSubject(Subject):
    """Returns the texts that it is given."""

    def __init__(self, spec: SubjectSpec) -> None:
        del spec

    def run(self, texts: list[str]) -> object:
        """Return the texts."""
        return texts

    def about(self) -> dict[str, Any]:
        """Return that there is no artifact."""
        return {"artifact": {"unavailable": "the null subject has none"}}
