"""The search behind `fieldrun compress`: the precision of every part, for a size, a latency or a drop of accuracy."""

from __future__ import annotations

__all__: list[str] = []
