"""Read text files and the metadata of installed packages; nothing is imported."""

from __future__ import annotations

import contextlib
import re
from importlib import metadata
from pathlib import Path

__all__ = ["ROOT", "parse_dpkg_status", "read", "version"]

ROOT = Path("/")


def read(path: Path) -> str | None:
    """Return the text of `path`, None where it cannot be read."""
    with contextlib.suppress(OSError):
        return path.read_text("utf-8", errors="replace")
    return None


def version(*distributions: str) -> str | None:
    """Return the version of the first of `distributions` that is installed with Python, None if none is."""
    for name in distributions:
        with contextlib.suppress(metadata.PackageNotFoundError):
            return metadata.version(name)
    return None


def parse_dpkg_status(text: str) -> dict[str, str]:
    """Return the version of every installed package, from the text of `/var/lib/dpkg/status`."""
    packages = {}
    for stanza in re.split(r"\n\s*\n", text):
        facts = dict(re.findall(r"^(Package|Status|Version): (.+)$", stanza, re.MULTILINE))
        if facts.get("Status", "").endswith(" installed") and "Package" in facts and "Version" in facts:
            packages[facts["Package"]] = facts["Version"]
    return packages
