"""Exporters: checkpoint -> graph -> passes -> quantized graph -> parity -> bundle."""

from __future__ import annotations

__all__: list[str] = []
