"""Progress of long work: a function that is called with (phase, done, total)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Progress", "silent"]

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with the name of the phase, the steps done, and the steps in total."""


def silent(phase: str, done: int, total: int) -> None:
    """Show nothing."""
    del phase, done, total
