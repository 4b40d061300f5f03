"""Long studies go on where they were killed: results by stage in a file, and how far a stage is."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click

from fieldrun.formats.storage import read_json, write_json

__all__ = ["Stages", "tell"]


class Stages:
    """Results by stage in a JSON file, with the seconds that each took; those of other settings are dropped."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path = path
        kept = read_json(path) if path.exists() else {}
        same = kept.get("identity") == json.loads(json.dumps(identity))
        self.state: dict[str, Any] = kept if same else {"identity": identity, "values": {}, "seconds": {}}

    def do(self, name: str, work: Callable[[], Any]) -> Any:
        """Return the result of stage `name`, JSON: the one that is kept, or else that of `work`, which is kept now."""
        if name not in self.state["values"]:
            click.echo(f"{self.path.parent.name}: {name}", err=True)
            start = time.monotonic()
            self.state["values"][name] = work()
            self.state["seconds"][name] = round(time.monotonic() - start, 1)
            write_json(self.path, self.state)
        return self.state["values"][name]


def tell() -> Callable[[int, int], None]:
    """Return a callback that says how far a stage is, every half minute."""
    told = time.monotonic()

    def progress(done: int, total: int) -> None:
        nonlocal told
        if time.monotonic() - told > 30:
            told = time.monotonic()
            click.echo(f"  {done:,} of {total:,}", err=True)

    return progress
