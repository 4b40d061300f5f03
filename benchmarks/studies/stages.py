"""Long studies continue where they were stopped: results by stage in a file, and progress on stderr."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from fieldrun.errors import UsageError
from fieldrun.formats.storage import read_json, write_json

__all__ = ["Stages", "named", "tell"]


class Stages:
    """Results by stage in a JSON file, with the seconds that each took; those of other settings are dropped."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        kept = read_json(path) if path.exists() else {}
        same = kept.get("identity") == json.loads(json.dumps(identity))
        self.state: dict[str, Any] = kept if same else {"identity": identity, "values": {}, "seconds": {}}

    def do(self, name: str, work: Callable[[], Any]) -> Any:
        """Return the result of stage `name`, JSON: the one in the file, or else that of `work`, which is then kept."""
        if name not in self.state["values"]:
            click.echo(f"{self.path.parent.name}: {name}", err=True)
            start = time.monotonic()
            self.state["values"][name] = work()
            self.state["seconds"][name] = round(time.monotonic() - start, 1)
            write_json(self.path, self.state)
        return self.state["values"][name]


def tell() -> Callable[..., None]:
    """Return a callback that prints progress every half minute; its last two arguments are the steps done and all."""
    told = time.monotonic()

    def progress(*at: Any) -> None:
        nonlocal told
        if time.monotonic() - told > 30:
            told = time.monotonic()
            click.echo(f"  {at[-2]:,} of {at[-1]:,}", err=True)

    return progress


def named(text: str) -> tuple[str, Path]:
    """Read `NAME=FOLDER`, or a folder whose own name is taken; `UsageError` for a name that is no file name."""
    name, equals, folder = text.rpartition("=")
    name = name if equals else Path(folder).resolve().name
    if not name or not folder or Path(name).name != name:
        raise UsageError(f"{text!r}: write NAME=FOLDER, and the name without slashes")
    return name, Path(folder)
