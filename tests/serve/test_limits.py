"""Limits of size, number and time, each with its status, and the counters that show them."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import threading
from pathlib import Path
from typing import Any

import pytest

from fieldrun.errors import UsageError
from fieldrun.serve import Application, Limits, app
from tests.serve.conftest import Reply, ask, call


class Gate:
    """Holds the model of an application until it is opened."""

    def __init__(self, application: Application, monkeypatch: pytest.MonkeyPatch) -> None:
        model = application.current.served.model
        forward, self.entered, self.opened = model.forward, threading.Event(), threading.Event()

        def held(*texts: Any, **settings: Any) -> Any:
            self.entered.set()
            assert self.opened.wait(20)
            return forward(*texts, **settings)

        monkeypatch.setattr(model, "forward", held)


def test_a_body_may_not_be_too_large(toy_bundle: Path) -> None:
    application = app(toy_bundle, limits=Limits(body_bytes=100))
    said = ask(application, "/field", {"text": "good " * 30})
    assert (said.status, said.error["type"], said.headers["connection"]) == (413, "UsageError", "close")
    assert ask(application, "/field", chunks=[b"x" * 60, b"x" * 60]).status == 413
    endless = itertools.repeat(b"x" * 60)
    assert ask(application, "/field", chunks=itertools.islice(endless, 1000)).status == 413
    assert ask(application, "/field", {"text": "good"}).status == 200


def test_a_request_may_not_have_too_many_texts(toy_bundle: Path) -> None:
    application = app(toy_bundle, limits=Limits(texts=3))
    found = ask(application, "/field", {"texts": ["good"] * 4})
    assert (found.status, found.error["message"]) == (413, "4 texts; one request takes at most 3: send several")
    assert ask(application, "/field", {"texts": ["good"] * 3}).status == 200


def test_a_text_may_not_be_too_long(toy_bundle: Path) -> None:
    application = app(toy_bundle, limits=Limits(characters=10))
    found = ask(application, "/field", {"texts": ["good", "good good good"]})
    assert (found.status, found.error["type"], found.error["index"]) == (400, "TextTooLong", 1)
    found = ask(application, "/predict", {"pair": ["good", "good good good"], "task": "same"})
    assert found.error["type"] == "TextTooLong"


def test_a_body_may_not_be_too_slow(toy_bundle: Path) -> None:
    application = app(toy_bundle, limits=Limits(seconds=0.1))
    found = ask(application, "/field", chunks=[b'{"text"', 5.0, b': "good"}'])
    assert (found.status, found.headers["connection"]) == (408, "close")


def test_an_answer_may_not_be_too_slow(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    application = app(toy_bundle, limits=Limits(seconds=0.2), concurrency=1)
    gate = Gate(application, monkeypatch)

    async def both() -> list[Reply]:
        # the second one waits for the only thread, and is taken back from its queue
        return await asyncio.gather(*(call(application, "/field", {"text": "good"}) for _ in range(2)))

    for found in asyncio.run(both()):
        assert (found.status, found.error["type"], found.headers["retry-after"]) == (503, "EngineError", "1")
    gate.opened.set()
    assert ask(application, "/field", {"text": "good"}).status == 200


def test_no_more_requests_at_once_than_allowed(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    application = app(toy_bundle, limits=Limits(requests=2))
    gate = Gate(application, monkeypatch)

    async def three() -> list[Reply]:
        first = [asyncio.create_task(call(application, "/field", {"text": "good"})) for _ in range(2)]
        while not gate.entered.is_set():
            await asyncio.sleep(0.001)
        third = await call(application, "/field", {"text": "good"})
        assert (await call(application, "/health")).status == 200, "health is answered under load"
        gate.opened.set()
        return [*(await asyncio.gather(*first)), third]

    assert [found.status for found in asyncio.run(three())] == [200, 200, 503]


def test_an_unforeseen_error_is_logged_and_hides_its_details(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    application = app(toy_bundle)
    monkeypatch.setattr(application.current.served.model, "forward", lambda *_, **__: 1 / 0)
    with caplog.at_level(logging.ERROR):
        found = ask(application, "/field", {"text": "a secret"})
    assert (found.status, found.error["type"], found.error["exit_code"]) == (500, "FieldrunError", 1)
    assert "division" not in found.error["message"]
    assert caplog.records[0].exc_info
    assert "secret" not in caplog.text


def test_a_client_that_leaves_gets_no_answer(toy_bundle: Path) -> None:
    application = app(toy_bundle)

    async def receive() -> dict[str, Any]:
        return {"type": "http.disconnect"}

    async def send(event: Any) -> None:
        pytest.fail("an answer to nobody")

    scope = {"type": "http", "method": "POST", "path": "/field", "headers": [(b"content-type", b"application/json")]}
    asyncio.run(application(scope, receive, send))
    assert "fieldrun_requests_in_progress 1" in ask(application, "/metrics").body.decode()  # /metrics itself


def test_metrics(toy_bundle: Path) -> None:
    application = app(toy_bundle)
    ask(application, "/field", {"texts": ["good", "bad"]})
    ask(application, "/predict", {"text": "good"})
    ask(application, "/nope/" + "x" * 100)
    found = ask(application, "/metrics")
    assert found.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
    lines = found.body.decode().splitlines()
    assert 'fieldrun_requests_total{endpoint="/field",status="200"} 1' in lines
    assert 'fieldrun_requests_total{endpoint="/predict",status="400"} 1' in lines
    assert 'fieldrun_requests_total{endpoint="other",status="404"} 1' in lines
    assert "fieldrun_texts_total 2" in lines
    assert 'fieldrun_request_seconds_bucket{endpoint="/field",le="+Inf"} 1' in lines
    assert 'fieldrun_request_seconds_count{endpoint="/field"} 1' in lines
    served = application.current.served
    assert f'fieldrun_bundle_info{{name="toy",sha256="{served.sha256}",engine="{served.model.engine}"}} 1' in lines
    kinds = {line.split()[2] for line in lines if line.startswith("# TYPE")}
    shown = {line.partition("{")[0].split()[0] for line in lines if not line.startswith("#")}
    assert shown <= kinds | {f"fieldrun_request_seconds_{part}" for part in ("bucket", "sum", "count")}


def test_one_line_per_request_if_asked_for(toy_bundle: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO):
        ask(app(toy_bundle), "/health")
        assert not caplog.records
        ask(app(toy_bundle, access_log=True), "/field", {"text": "a secret"})
    facts = json.loads(json.dumps(caplog.records[0].__dict__["facts"]))
    assert (facts["method"], facts["endpoint"], facts["status"]) == ("POST", "/field", 200)
    assert "secret" not in caplog.text


@pytest.mark.parametrize(
    "settings",
    [{"concurrency": 0}, {"concurrency": 1.5}, {"watch_s": -1.0}, {"watch_s": float("nan")}],
)
def test_settings_are_checked(toy_bundle: Path, settings: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=next(iter(settings))):
        app(toy_bundle, **settings)


@pytest.mark.parametrize("name", ["body_bytes", "texts", "characters", "seconds", "requests"])
@pytest.mark.parametrize("value", [0, -1, True, "3", float("inf")])
def test_limits_are_checked(name: str, value: Any) -> None:
    with pytest.raises(UsageError, match=name):
        Limits(**{name: value})
