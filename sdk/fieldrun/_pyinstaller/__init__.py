"""Where PyInstaller finds the hook of fieldrun; it asks through the entry point `pyinstaller40`."""

from __future__ import annotations

from pathlib import Path

__all__ = ["hook_folders"]


def hook_folders() -> list[str]:
    """Return the folder of the hook."""
    return [str(Path(__file__).parent / "hooks")]
