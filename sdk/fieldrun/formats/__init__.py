"""What lies on disk: bundles, checkpoints, their tensors, hashes and cards."""

from __future__ import annotations

__all__: list[str] = []
