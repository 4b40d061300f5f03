"""The command's server: a socket, uvicorn on it, and what signals do."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import socket
import stat
import sys
from collections.abc import Iterator
from pathlib import Path

from fieldrun.errors import FieldrunError, MissingDependency, OutputExists, StorageError, UsageError

from .application import Application
from .log import JsonLines, log

__all__ = ["run"]

_SOCKET_MODE = 0o660  # the owner and the group may connect


def run(
    application: Application,
    *,
    host: str = "127.0.0.1",
    port: int = 8000,
    uds: str | Path | None = None,
    fd: int | None = None,
) -> None:
    """Serve `application` until SIGTERM or Ctrl-C; requests that have begun are answered first.

    SIGHUP loads the bundle again. The log goes to stderr, one JSON object a line.

    Args:
        application: as `app` makes it.
        host, port: where to listen; port 0 takes a free one, which the log names.
        uds: listen on this Unix socket instead; its owner and group may connect.
        fd: use this open socket instead, as systemd passes it.

    Raises:
        MissingDependency: uvicorn is not installed.
        OutputExists: another service listens on `uds`, or a file that is no socket is there.
        StorageError: the address cannot be used.
        UsageError: `fd` is not a listening socket.
    """
    try:
        import uvicorn
    except ImportError as error:
        raise MissingDependency("uvicorn", "serve") from error
    seconds = application.limits.seconds
    with (
        _listening(host, port, uds, fd) as (listener, address),
        _log_to_stderr("fieldrun.serve", logging.INFO),
        _log_to_stderr("uvicorn", logging.WARNING),
    ):
        config = uvicorn.Config(
            application,
            log_config=None,
            log_level="warning",
            access_log=False,
            lifespan="on",
            ws="none",
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=int(seconds) + 1,
        )

        async def serve() -> None:
            asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, application.look)
            log(logging.INFO, "listening", address=address, pid=os.getpid())
            await uvicorn.Server(config).serve(sockets=[listener])

        # uvicorn raises the signal again once it has stopped; without a handler that would end the process before this
        # function could tidy up
        before = signal.signal(signal.SIGTERM, lambda *_: None)
        try:
            asyncio.run(serve())
        finally:
            signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _log_to_stderr(name: str, level: int) -> Iterator[None]:
    """Let the logger `name` write to stderr, one JSON object a line, and nowhere else."""
    logger, handler = logging.getLogger(name), logging.StreamHandler(sys.stderr)
    level_before, propagate_before = logger.level, logger.propagate
    handler.setFormatter(JsonLines())
    logger.addHandler(handler)
    logger.setLevel(level)
    logger.propagate = False
    try:
        yield
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level_before)
        logger.propagate = propagate_before


@contextlib.contextmanager
def _listening(host: str, port: int, uds: str | Path | None, fd: int | None) -> Iterator[tuple[socket.socket, str]]:
    """Yield a bound socket and its address in words; a Unix socket is removed in the end."""
    if fd is not None:
        try:
            listener = socket.socket(fileno=fd)
        except OSError as error:
            raise UsageError(f"file descriptor {fd} is not a socket: {error.strerror}") from error
        with listener:
            yield listener, f"fd:{fd}"
        return
    if uds is not None:
        path = Path(uds)
        with _bound_to_path(path) as listener:
            mine = path.stat().st_ino
            try:
                yield listener, f"unix:{path}"
            finally:
                with contextlib.suppress(OSError):
                    if path.stat().st_ino == mine:
                        path.unlink()
        return
    try:
        listener = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise StorageError(f"cannot listen on {host}:{port}: {reason}; choose another --host or --port") from error
    with listener:
        name = f"[{host}]" if ":" in host else host
        yield listener, f"http://{name}:{listener.getsockname()[1]}"


def _bound_to_path(path: Path) -> socket.socket:
    """Return a Unix socket bound to `path`, where a socket that nobody listens on any more is replaced."""
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        if os.path.lexists(path):
            if not stat.S_ISSOCK(path.lstat().st_mode):
                raise OutputExists(f"{path} is not a socket; choose another path for --uds")
            try:
                with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
                    probe.connect(str(path))
                raise OutputExists(f"another process listens on {path}; stop it, or choose another path for --uds")
            except ConnectionRefusedError:
                path.unlink()
        listener.bind(str(path))
        path.chmod(_SOCKET_MODE)
        listener.listen()
    except (OSError, FieldrunError) as error:
        listener.close()
        if isinstance(error, FieldrunError):
            raise
        raise StorageError(f"cannot listen on {path}: {error.strerror or error}; choose another --uds") from error
    return listener
