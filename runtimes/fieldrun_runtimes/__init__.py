"""Runtimes: text -> token ids -> engine -> field -> labels, with NumPy, `tokenizers` and one engine."""

from __future__ import annotations

__all__: list[str] = []
