"""The checkpoint of the shipped student: what `reference` means to `fieldrun export` and `fieldrun compress`."""

from __future__ import annotations

from pathlib import Path

__all__ = ["PATH"]

PATH = Path(__file__).parent / "checkpoint"
"""The checkpoint folder."""
