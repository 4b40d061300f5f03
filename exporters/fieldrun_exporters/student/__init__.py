"""The student: from a checkpoint to the deployed form, its passes and its graphs."""

from __future__ import annotations

__all__: list[str] = []
