"""A hook of MkDocs: the page on the command line is the help of every command."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import click

from fieldrun.cli import main

__all__ = ["on_page_markdown"]


def on_page_markdown(markdown: str, *, page: Any, **_: Any) -> str:
    """Return the page `cli.md` with the help of every command, and other pages unchanged."""
    return markdown + "".join(_help(main, "fieldrun")) if page.file.src_uri == "cli.md" else markdown


def _help(command: click.Command, name: str) -> Iterator[str]:
    context = click.Context(command, info_name=name, terminal_width=92)
    yield f"\n## {name}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            if found is not None:
                yield from _help(found, f"{name} {child}")
