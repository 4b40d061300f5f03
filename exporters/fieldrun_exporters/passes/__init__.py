"""Passes: each takes a model in memory and returns it changed, with a report of what changed."""

from __future__ import annotations

__all__: list[str] = []
