"""How long work tells how far it is: a function that is called with (phase, done, total)."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

__all__ = ["Progress", "silent"]

Progress: TypeAlias = Callable[[str, int, int], None]
"""Called with a phase's name, the steps that are done, and how many there are."""


def silent(phase: str, done: int, total: int) -> None:
    """Say nothing."""
    del phase, done, total
