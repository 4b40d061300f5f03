"""Another bundle takes over between two requests: none lost, none answered by two models; a bad one changes nothing."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import shutil
import weakref
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

import fieldrun
from fieldrun.errors import BundleError, IntegrityError
from fieldrun.formats.bundle import seal
from fieldrun.serve import Application, app
from tests.serve.conftest import ask, call, switch
from tests.serve.test_limits import Gate

TEXTS = ["the rain was wet", "a very good film", "transfer my cash"]


def sha(bundle: Path) -> str:
    return str(json.loads((bundle / "manifest.json").read_text("utf-8"))["sha256"])


@pytest.fixture
def damaged(other_bundle: Path, tmp_path: Path) -> Path:
    """A copy of `other_bundle` with a changed byte in its weights."""
    path = shutil.copytree(other_bundle, tmp_path / "damaged")
    data = bytearray((path / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (path / "weights.safetensors").write_bytes(data)
    return path


@pytest.fixture
def wrong(other_bundle: Path, tmp_path: Path) -> Path:
    """A copy of `other_bundle` whose hashes are right and whose golden answers are not its own."""
    path = shutil.copytree(other_bundle, tmp_path / "wrong")
    golden = json.loads((path / "golden.json").read_text("utf-8"))
    golden["fields"][0][0] += 1
    (path / "golden.json").write_text(json.dumps(golden), "utf-8")
    from fieldrun.formats.storage import sha256_file

    manifest = json.loads((path / "manifest.json").read_text("utf-8"))
    manifest["files"]["golden.json"] = {
        "bytes": (path / "golden.json").stat().st_size,
        "sha256": sha256_file(path / "golden.json"),
    }
    (path / "manifest.json").write_text(json.dumps(seal(manifest)), "utf-8")
    return path


def test_a_reload_takes_the_bundle_that_the_link_leads_to(link: Path, toy_bundle: Path, other_bundle: Path) -> None:
    application = app(link)
    assert ask(application, "/health").json["bundle"]["sha256"] == sha(toy_bundle)
    assert ask(application, "/reload", method="POST").json == {"bundle": sha(toy_bundle)[:12], "reloaded": False}
    switch(link, other_bundle)
    assert ask(application, "/reload", method="POST").json == {"bundle": sha(other_bundle)[:12], "reloaded": True}
    found = ask(application, "/scores", {"texts": TEXTS, "task": "mood"}).json
    with fieldrun.load(other_bundle) as model:
        assert [row["scores"] for row in found["results"]] == model.predict_proba(TEXTS, "mood").tolist()
    assert found["bundle"] == sha(other_bundle)[:12]
    assert 'fieldrun_reloads_total{outcome="loaded"} 1' in ask(application, "/metrics").body.decode()


def test_a_request_in_flight_ends_on_the_old_model(
    link: Path, toy_bundle: Path, other_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    application = app(link)
    gate = Gate(application, monkeypatch)

    async def across() -> Any:
        waiting = asyncio.create_task(call(application, "/scores", {"texts": TEXTS, "task": "mood"}))
        while not gate.entered.is_set():
            await asyncio.sleep(0.001)
        switch(link, other_bundle)
        assert await application.reload()
        assert (await call(application, "/field", {"text": "good"})).json["bundle"] == sha(other_bundle)[:12]
        gate.opened.set()
        return (await waiting).json

    found = asyncio.run(across())
    assert found["bundle"] == sha(toy_bundle)[:12]
    with fieldrun.load(toy_bundle) as model:
        assert [row["scores"] for row in found["results"]] == model.predict_proba(TEXTS, "mood").tolist()


def test_the_old_model_is_freed(link: Path, other_bundle: Path) -> None:
    application = app(link)
    ask(application, "/field", {"text": "good"})
    old = weakref.ref(application.current.served.model)
    switch(link, other_bundle)
    ask(application, "/reload", method="POST")
    gc.collect()
    assert old() is None


@pytest.mark.parametrize("bad", ["damaged", "wrong", "missing", "empty"])
def test_a_bundle_that_cannot_be_loaded_leaves_the_old_one(
    bad: str,
    link: Path,
    toy_bundle: Path,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if bad in ("damaged", "wrong"):
        target = request.getfixturevalue(bad)
    else:
        target = tmp_path / bad
        if bad == "empty":
            target.mkdir()
    application = app(link)
    switch(link, target)
    found = ask(application, "/reload", method="POST")
    kind = "IntegrityError" if bad == "damaged" else "BundleError"
    assert (found.status, found.error["type"], found.error["exit_code"]) == (500, kind, 6)
    assert found.json["bundle"] == sha(toy_bundle)[:12]
    assert ask(application, "/field", {"text": "good"}).json["bundle"] == sha(toy_bundle)[:12]
    health = ask(application, "/health")
    assert (health.status, health.json["status"], health.json["reload_error"]["type"]) == (200, "outdated", kind)
    assert [record.__dict__["event"] for record in caplog.records] == ["reload failed"]
    switch(link, toy_bundle)
    assert not ask(application, "/reload", method="POST").json["reloaded"]
    assert ask(application, "/health").json["status"] == "ok"


def test_a_panic_while_loading_leaves_the_old_one(
    link: Path, other_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Panic(BaseException):
        """As the Rust tokenizer raises."""

    def panics(*_: Any, **__: Any) -> None:
        raise Panic("index out of bounds")

    application = app(link)
    monkeypatch.setattr("fieldrun.serve.current.FieldModel", panics)
    switch(link, other_bundle)
    assert "Panic: index out of bounds" in ask(application, "/reload", method="POST").error["message"]
    assert ask(application, "/field", {"text": "good"}).status == 200


def test_a_bundle_must_load_at_the_start(damaged: Path, wrong: Path) -> None:
    with pytest.raises(IntegrityError):
        app(damaged)
    with pytest.raises(BundleError, match="does not give the answers that its export measured"):
        app(wrong)
    assert ask(app(wrong, engine="null"), "/field", {"text": "good"}).status == 200, "nothing to verify"


async def _lifespan(application: Application, during: Any) -> None:
    """Run `during` between the start and the end of a server."""
    events, said = asyncio.Queue[str](), asyncio.Queue[str]()

    async def receive() -> dict[str, Any]:
        return {"type": await events.get()}

    async def send(event: Any) -> None:
        said.put_nowait(event["type"])

    life = asyncio.create_task(application({"type": "lifespan"}, receive, send))
    events.put_nowait("lifespan.startup")
    assert await said.get() == "lifespan.startup.complete"
    await during
    events.put_nowait("lifespan.shutdown")
    assert await said.get() == "lifespan.shutdown.complete"
    await life


def test_a_switched_link_is_noticed(
    link: Path, other_bundle: Path, damaged: Path, caplog: pytest.LogCaptureFixture
) -> None:
    application = app(link, watch_s=0.02)

    async def until(status: str, bundle: str) -> None:
        for _ in range(500):
            health = (await call(application, "/health")).json
            if (health["status"], health["bundle"]["sha256"]) == (status, bundle):
                return
            await asyncio.sleep(0.01)
        pytest.fail(f"not {status} within 5 s")

    async def during() -> None:
        before = application.current.served.sha256
        switch(link, damaged)
        await until("outdated", before)
        switch(link, other_bundle)
        await until("ok", sha(other_bundle))

    with caplog.at_level(logging.INFO):
        asyncio.run(_lifespan(application, during()))
    events = [record.__dict__["event"] for record in caplog.records]
    assert (events[0], events[-1]) == ("started", "stopped")
    assert Counter(events)["reloaded"] == 1


def test_no_answer_is_lost_or_mixed_while_bundles_change(link: Path, toy_bundle: Path, other_bundle: Path) -> None:
    application = app(link, concurrency=4)
    expected = {}
    for bundle in (toy_bundle, other_bundle):
        with fieldrun.load(bundle) as model:
            expected[sha(bundle)[:12]] = model.predict_proba(TEXTS * 20, "mood").tolist()
    seen: Counter[str] = Counter()
    switching = True

    async def client() -> None:
        while switching:
            found = await call(application, "/scores", {"texts": TEXTS * 20, "task": "mood"})
            assert found.status == 200
            assert [row["scores"] for row in found.json["results"]] == expected[found.json["bundle"]]
            seen[found.json["bundle"]] += 1

    async def all_of_it() -> None:
        nonlocal switching
        clients = [asyncio.create_task(client()) for _ in range(4)]
        for target in (other_bundle, toy_bundle, other_bundle):
            await asyncio.sleep(0.1)
            switch(link, target)
            assert await application.reload()
        await asyncio.sleep(0.1)
        switching = False
        await asyncio.gather(*clients)

    asyncio.run(all_of_it())
    assert set(seen) == set(expected)
