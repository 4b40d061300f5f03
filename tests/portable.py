"""Names that a memory card (FAT) and Windows take too."""

from __future__ import annotations

from pathlib import Path

__all__ = ["unportable"]


def unportable(folder: Path) -> list[str]:
    """Return the names below `folder` that not every file system takes, and those that differ in case alone."""
    paths = sorted(folder.rglob("*"))
    found = [path.name for path in paths if set('<>:"\\|?*%') & set(path.name) or path.name[-1] in ". "]
    seen: set[str] = set()
    for path in paths:
        lower = str(path).lower()
        found += [path.name] if lower in seen else []
        seen.add(lower)
    return found
