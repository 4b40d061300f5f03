"""What can be measured: bundles, the tokenizer, peers, the null subject."""

from __future__ import annotations

__all__: list[str] = []
