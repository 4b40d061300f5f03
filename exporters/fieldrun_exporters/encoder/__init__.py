"""Transformer encoders: imported from Hugging Face folders, run in NumPy, made into graphs and bundles."""

from __future__ import annotations

__all__: list[str] = []
