"""The files on disk: bundles, checkpoints, their tensors, hashes and model cards."""

from __future__ import annotations

__all__: list[str] = []
