"""The machine: its sensors, and the disk space of installed packages."""

from __future__ import annotations

__all__: list[str] = []
