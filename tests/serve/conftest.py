"""Two toy bundles with the same tasks and different weights, and a caller of ASGI applications."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

import fieldrun
from fieldrun.serve import Application
from tests import toy

JSON = {"content-type": "application/json"}


@dataclass(frozen=True, kw_only=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def error(self) -> Any:
        return self.json["error"]


async def call(
    application: Application,
    path: str,
    value: object = None,
    *,
    method: str | None = None,
    headers: Mapping[str, str] | None = None,
    chunks: Iterable[bytes | float] = (),
    root_path: str = "",
) -> Reply:
    """Send one request, as an ASGI server would: `value` as JSON, or `chunks` of a body and seconds to wait."""
    parts = list(chunks) or [b"" if value is None else json.dumps(value).encode()]
    headers = JSON if headers is None else headers
    found: dict[str, Any] = {"body": b""}

    async def receive() -> dict[str, Any]:
        while parts and isinstance(parts[0], float):
            await asyncio.sleep(parts.pop(0))  # type: ignore[arg-type]
        return {"type": "http.request", "body": parts.pop(0), "more_body": bool(parts)}

    async def send(event: Any) -> None:
        if event["type"] == "http.response.start":
            found.update(event)
        else:
            found["body"] += event["body"]

    scope = {
        "type": "http",
        "method": method or ("GET" if value is None and not chunks else "POST"),
        "path": root_path + path,
        "root_path": root_path,
        "headers": [(name.encode(), text.encode()) for name, text in headers.items()],
    }
    await application(scope, receive, send)
    shown = {name.decode(): text.decode() for name, text in found["headers"]}
    assert shown["content-length"] == str(len(found["body"]))
    return Reply(status=found["status"], headers=shown, body=found["body"])


def ask(application: Application, path: str, value: object = None, **settings: Any) -> Reply:
    """`call`, alone."""
    return asyncio.run(call(application, path, value, **settings))


@pytest.fixture(scope="session")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the tasks of `toy_bundle` and other weights; treat it as read-only."""
    folder = tmp_path_factory.mktemp("other")
    toy.toy_checkpoint(seed=1).save(folder / "checkpoint")
    fieldrun.export(folder / "checkpoint", folder / "bundle", recipe="cpu-int8")
    return folder / "bundle"


@pytest.fixture
def link(toy_bundle: Path, tmp_path: Path) -> Path:
    """A symbolic link to `toy_bundle`; `switch` leads it elsewhere."""
    path = tmp_path / "current"
    path.symlink_to(toy_bundle)
    return path


def switch(link: Path, target: Path) -> None:
    """Lead `link` to `target` in one step."""
    new = link.with_name("new")
    new.symlink_to(target)
    new.replace(link)
