"""Heads: labels on fields, trained on the device, and kept in a bundle."""

from __future__ import annotations

__all__: list[str] = []
