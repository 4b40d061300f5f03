"""The ASGI application: routes, limits, the threads that run the model, and the watch over the bundle.

It uses no framework. Eight fixed paths, JSON bodies of known size and one shape of error need none, and the model is
the same whether a framework's 19 ms of imports and 3 MiB stand before it or not.
(https://asgi.readthedocs.io/en/latest/specs/www.html)
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from fieldrun._version import __version__
from fieldrun.errors import EngineError, FieldrunError, UnknownName, UsageError

from .answers import answer, as_json
from .current import Current, Served
from .log import log
from .metrics import CONTENT_TYPE, Metrics
from .openapi import describe
from .questions import KEYS, Limits, Refused, error_object

__all__ = ["Application", "app"]

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]

_ROUTES = {
    "/predict": "POST",
    "/scores": "POST",
    "/field": "POST",
    "/reload": "POST",
    "/health": "GET",
    "/metrics": "GET",
    "/openapi.json": "GET",
    "/docs": "GET",
}
_PAGE_RULES = "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'"
_SLOWEST_RETRY_S = 60.0
_DRAINED = 16  # so many times the largest body is read and dropped: a client that still sends would miss the answer


def app(
    bundle: str | Path = "reference",
    *,
    engine: str = "auto",
    provider: str | None = None,
    threads: int = 1,
    overflow: str = "truncate",
    unknown: str = "answer",
    limits: Limits | None = None,
    concurrency: int | None = None,
    watch_s: float = 1.0,
    access_log: bool = False,
) -> Application:
    """Load `bundle` and return an ASGI application that answers with it.

    Args:
        bundle: a bundle folder, a symbolic link to one, or `"reference"`.
        engine, provider, threads, overflow, unknown: as `fieldrun.load`.
        limits: what a request may ask for; the default limits where it is None.
        concurrency: how many requests the model answers at once, each in a thread; by default one per CPU that this
            process may use, and at least 2, so that a short request never waits for a long one to end.
        watch_s: how often, in seconds, to look whether `bundle` leads to another bundle; 0 for never.
        access_log: log one line per request.

    Raises:
        UsageError: `concurrency` is not a positive integer, or `watch_s` is negative.
        FieldrunError: the bundle cannot be loaded, or fails verification.
    """
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    workers = max(2, cpus) if concurrency is None else concurrency
    if not isinstance(workers, int) or workers < 1:
        raise UsageError(f"concurrency must be a positive integer, not {concurrency!r}")
    if not 0 <= watch_s < float("inf"):
        raise UsageError(f"watch_s must be a number of seconds, 0 for never, not {watch_s!r}")
    settings = {"threads": threads, "overflow": overflow, "unknown": unknown}
    current = Current(bundle, engine=engine, provider=provider, **settings)
    return Application(current, limits or Limits(), workers, watch_s, access_log)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Reply:
    status: int
    body: bytes
    kind: str = "application/json"
    headers: Mapping[str, str] = field(default_factory=dict)


class _Left(Exception):
    """The client closed the connection before its request was complete."""


class Application:
    """A callable for any ASGI server; see `app`, which makes one."""

    def __init__(self, current: Current, limits: Limits, concurrency: int, watch_s: float, access_log: bool) -> None:
        self.current, self.limits = current, limits
        self._watch_s, self._access_log = watch_s, access_log
        self._pool = ThreadPoolExecutor(concurrency, thread_name_prefix="fieldrun-model")
        self._metrics, self._asked = Metrics(KEYS), asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one connection event of ASGI: a request, or the start and the end of the server."""
        if scope["type"] == "lifespan":
            await self._live(receive, send)
        elif scope["type"] == "http":
            await self._serve(scope, receive, send)
        else:
            raise NotImplementedError(f"ASGI {scope['type']}")

    async def reload(self) -> bool:
        """Load what the bundle's path leads to now; return whether another bundle answers from here on.

        Raises:
            FieldrunError: it cannot be loaded or fails verification; the old one keeps answering.
        """
        loop, old = asyncio.get_running_loop(), self.current.served
        began = loop.time()
        try:
            replaced = await loop.run_in_executor(None, self.current.refresh)
        except FieldrunError as error:
            self._metrics.reloads["failed"] += 1
            log(logging.ERROR, "reload failed", serving=old.short, **error_object(error))
            raise
        if replaced:
            new = self.current.served
            self._metrics.reloads["loaded"] += 1
            log(logging.INFO, "reloaded", bundle=new.short, replaced=old.short, seconds=round(loop.time() - began, 3))
        return replaced

    def look(self) -> None:
        """Look at once, in the event loop's thread, whether the bundle's path leads to another bundle."""
        self._asked.set()

    async def _live(self, receive: Receive, send: Send) -> None:
        await receive()
        watch = asyncio.create_task(self._watch())
        served = self.current.served
        log(logging.INFO, "started", bundle=served.short, name=served.model.manifest.name)
        await send({"type": "lifespan.startup.complete"})
        await receive()
        watch.cancel()
        self._pool.shutdown(wait=False, cancel_futures=True)
        log(logging.INFO, "stopped")
        await send({"type": "lifespan.shutdown.complete"})

    async def _watch(self) -> None:
        """Look for another bundle every `watch_s` seconds; after a failure twice as late each time, up to a minute."""
        wait = self._watch_s
        while True:
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._asked.wait(), wait or None)
            self._asked.clear()
            try:
                await self.reload()
                wait = self._watch_s
            except FieldrunError:  # it is in the log and in /health
                wait = min(2 * wait, max(_SLOWEST_RETRY_S, self._watch_s))

    async def _serve(self, scope: Scope, receive: Receive, send: Send) -> None:
        began, metrics = time.perf_counter(), self._metrics
        path = scope["path"].removeprefix(scope.get("root_path", "").rstrip("/")) or "/"
        endpoint = path if path in _ROUTES else "other"
        metrics.in_progress += 1
        served = self.current.served  # the request knows no other model, whatever is loaded meanwhile
        try:
            reply = await self._reply(scope, receive, path, served)
        except _Left:
            return
        except Exception as error:
            refused = error if isinstance(error, Refused) else _unexpected(error, endpoint)
            metrics.errors[type(refused.error).__name__] += 1
            value = {"bundle": served.short, "error": error_object(refused.error, refused.index)}
            reply = _Reply(status=refused.status, body=as_json(value), headers=refused.headers)
        finally:
            metrics.in_progress -= 1
        seconds = time.perf_counter() - began
        metrics.count(endpoint, reply.status, seconds)
        if self._access_log:
            log(logging.INFO, "request", method=scope["method"], endpoint=endpoint, status=reply.status,
                seconds=round(seconds, 6))  # fmt: skip
        headers = {"content-type": reply.kind, "content-length": str(len(reply.body)), **reply.headers}
        raw = [(name.encode("ascii"), value.encode("ascii")) for name, value in headers.items()]
        with contextlib.suppress(OSError):  # the client has left
            await send({"type": "http.response.start", "status": reply.status, "headers": raw})
            await send({"type": "http.response.body", "body": reply.body})

    async def _reply(self, scope: Scope, receive: Receive, path: str, served: Served) -> _Reply:
        method = _ROUTES.get(path)
        if method is None:
            raise Refused(404, UnknownName("path", path[:80], list(_ROUTES)))
        if scope["method"] != method and (scope["method"], method) != ("HEAD", "GET"):
            raise Refused(405, UsageError(f"{path} takes {method}, not {scope['method']}"), headers={"allow": method})
        if path in KEYS:
            return await self._answer(scope, receive, path, served)
        if path == "/reload":
            try:
                replaced = await self.reload()
            except FieldrunError as failed:
                raise Refused(500, failed) from failed
            return _Reply(status=200, body=as_json({"bundle": self.current.served.short, "reloaded": replaced}))
        if path == "/health":
            error = None if self.current.error is None else error_object(self.current.error)
            status = "ok" if error is None else "outdated"
            about = {"status": status, "fieldrun": __version__, "bundle": served.about(), "reload_error": error}
            return _Reply(status=200, body=as_json(about))
        if path == "/metrics":
            return _Reply(status=200, body=self._metrics.render(served).encode("utf-8"), kind=CONTENT_TYPE)
        if path == "/openapi.json":
            return _Reply(status=200, body=as_json(describe(served.model, self.limits)))
        page = resources.files(__package__).joinpath("page.html").read_bytes()
        headers = {"content-security-policy": _PAGE_RULES, "x-content-type-options": "nosniff"}
        return _Reply(status=200, body=page, kind="text/html; charset=utf-8", headers=headers)

    async def _answer(self, scope: Scope, receive: Receive, path: str, served: Served) -> _Reply:
        if self._metrics.in_progress > self.limits.requests:
            message = f"more than {self.limits.requests} requests at once; try again in a second"
            raise Refused(503, EngineError(message), headers={"retry-after": "1"})
        deadline = time.perf_counter() + self.limits.seconds
        body = await _read(scope, receive, self.limits, deadline)
        loop = asyncio.get_running_loop()
        future = loop.run_in_executor(self._pool, partial(answer, served, path, body, self.limits))
        await asyncio.wait({future}, timeout=deadline - time.perf_counter())
        if not future.done():
            future.cancel()  # takes it back if no thread has begun it; one that has begun ends unheard
            message = f"no answer within {self.limits.seconds:g} seconds; send fewer texts, or try again later"
            raise Refused(503, EngineError(message), headers={"retry-after": "1"})
        answered, texts, errors = future.result()
        self._metrics.texts += texts
        self._metrics.errors.update(type(error).__name__ for error in errors)
        return _Reply(status=200, body=answered)


def _unexpected(error: Exception, endpoint: str) -> Refused:
    log(logging.ERROR, "request failed", trace=error, endpoint=endpoint)
    message = f"an unexpected {type(error).__name__}; the log of the service has the details"
    return Refused(500, FieldrunError(message))


async def _read(scope: Scope, receive: Receive, limits: Limits, deadline: float) -> bytes:
    """Return the body of a request; raise `Refused` if it is not JSON, too large, or slower than `deadline`."""
    headers = dict(scope["headers"])
    kind = headers.get(b"content-type", b"").split(b";")[0].strip().lower()
    if kind != b"application/json":  # what a browser sends unasked, from a page of another site, never has this type
        raise Refused(415, UsageError("send the body as JSON, with the header Content-Type: application/json"))
    if headers.get(b"content-encoding", b"identity").lower() != b"identity":
        raise Refused(415, UsageError("send the body without Content-Encoding"))
    parts, size = [], 0
    while True:
        try:
            event = await asyncio.wait_for(receive(), max(0, deadline - time.perf_counter()))
        except asyncio.TimeoutError as error:
            message = f"the body did not arrive within {limits.seconds:g} seconds"
            raise Refused(408, UsageError(message), headers={"connection": "close"}) from error
        if event["type"] == "http.disconnect":
            raise _Left
        more, part = event.get("more_body"), event.get("body", b"")
        size += len(part)
        if size <= limits.body_bytes:
            parts.append(part)
            if not more:
                return b"".join(parts)
        elif not more or size > _DRAINED * limits.body_bytes:
            message = f"the body is larger than {limits.body_bytes:,} bytes; send fewer texts"
            raise Refused(413, UsageError(message), headers={"connection": "close"})
