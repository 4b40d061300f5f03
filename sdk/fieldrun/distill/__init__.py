"""Distillation: train a student and its heads from a frozen Hugging Face encoder (extra `distill`)."""

from __future__ import annotations

__all__: list[str] = []
