"""The command line: `fieldrun COMMAND`, one module per command, loaded when it is called."""

from __future__ import annotations

from .group import main

__all__ = ["main"]
