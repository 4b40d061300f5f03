"""The subjects that fieldrun measures: bundles, their tokenizer, other libraries, and nothing at all."""

from __future__ import annotations

__all__: list[str] = []
