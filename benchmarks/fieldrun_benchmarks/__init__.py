"""Benchmarks: real text, interleaved timing, records with their conditions, tables rendered from records."""

from __future__ import annotations

__all__: list[str] = []
