"""The machine that is measured on: its sensors, and what an installation takes of its disk."""

from __future__ import annotations

__all__: list[str] = []
