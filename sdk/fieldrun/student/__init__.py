"""The student: its shape, its formulas in NumPy, and how often its training text uses each token."""

from __future__ import annotations

__all__: list[str] = []
