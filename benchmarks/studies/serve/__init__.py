"""How many answers `fieldrun serve` gets wrong or loses while bundles change under load."""

from __future__ import annotations

__all__: list[str] = []
