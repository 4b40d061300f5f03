"""Forged bundles: changed at random and sealed again with right hashes, to see that loading refuses or answers."""

from __future__ import annotations

__all__: list[str] = []
