"""`fieldrun serve` as a process: its socket, its signals, its log."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from fieldrun.errors import MissingDependency, OutputExists, StorageError, UsageError
from fieldrun.serve import app, run
from tests.serve.conftest import switch

COMMAND = [sys.executable, "-c", "from fieldrun.cli import main; main(prog_name='fieldrun')", "serve"]


class _UnixConnection(http.client.HTTPConnection):
    def __init__(self, path: Path) -> None:
        super().__init__("localhost", timeout=20)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(20)
        self.sock.connect(str(self._path))


def ask(path: Path, method: str, endpoint: str, value: object = None) -> tuple[int, Any]:
    connection = _UnixConnection(path)
    body = None if value is None else json.dumps(value)
    connection.request(method, endpoint, body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    found = answer.status, json.loads(answer.read())
    connection.close()
    return found


@contextmanager
def serving(*arguments: str) -> Iterator[subprocess.Popen[str]]:
    """Run the command until it listens; the process is ended in the end, whatever happened."""
    process = subprocess.Popen([*COMMAND, *arguments], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if json.loads(line)["event"] == "started":
                break
        yield process
    finally:
        process.kill()
        process.wait()
        if process.stderr is not None:
            process.stderr.close()


@pytest.mark.slow
def test_a_service_on_a_unix_socket(link: Path, other_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as abandoned:
        abandoned.bind(str(path))  # what a killed service leaves behind
    with serving(str(link), "--uds", str(path), "--watch", "0") as process:
        assert path.stat().st_mode & 0o777 == 0o660
        status, found = ask(path, "POST", "/predict", {"text": "good", "task": "mood"})
        assert status == 200
        first = found["bundle"]

        switch(link, other_bundle)
        process.send_signal(signal.SIGHUP)
        end = time.monotonic() + 10
        while ask(path, "GET", "/health")[1]["bundle"]["sha256"].startswith(first):
            assert time.monotonic() < end

        # a request whose body is still on its way when the service is told to stop
        slow = _UnixConnection(path)
        body = json.dumps({"text": "good"}).encode()
        slow.putrequest("POST", "/field")
        slow.putheader("Content-Type", "application/json")
        slow.putheader("Content-Length", str(len(body)))
        slow.endheaders(body[:5])
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        assert process.poll() is None
        slow.send(body[5:])
        assert slow.getresponse().status == 200
        slow.close()
        assert process.wait(10) == 0
        assert process.stderr is not None
        events = [json.loads(line) for line in process.stderr]
    assert [event["event"] for event in events] == ["reloaded", "stopped"]
    assert all(event["time"].endswith("Z") and event["level"] == "info" for event in events)
    assert not path.exists()


@pytest.mark.slow
def test_a_service_on_a_socket_that_it_was_given(toy_bundle: Path, tmp_path: Path) -> None:
    path = tmp_path / "http.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()
        os.set_inheritable(listener.fileno(), True)
        command = [*COMMAND, str(toy_bundle), "--fd", str(listener.fileno())]
        process = subprocess.Popen(command, pass_fds=[listener.fileno()], stderr=subprocess.PIPE)
        try:
            assert ask(path, "GET", "/health")[1]["status"] == "ok"
            process.send_signal(signal.SIGTERM)
            assert process.wait(10) == 0
            assert path.exists(), "the socket belongs to whoever made it"
        finally:
            process.kill()
            process.communicate()


def test_an_address_that_cannot_be_used(toy_bundle: Path, tmp_path: Path) -> None:
    application = app(toy_bundle)
    (tmp_path / "file").write_text("mine", "utf-8")
    with pytest.raises(OutputExists, match="is not a socket"):
        run(application, uds=tmp_path / "file")
    with pytest.raises(StorageError, match="cannot listen on"):
        run(application, uds=tmp_path / ("x" * 200))
    with pytest.raises(StorageError, match="cannot listen on"):
        run(application, uds=tmp_path / "nowhere" / "http.sock")
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(tmp_path / "taken"))
        other.listen()
        with pytest.raises(OutputExists, match="another process listens"):
            run(application, uds=tmp_path / "taken")
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        with pytest.raises(StorageError, match="choose another --host or --port"):
            run(application, port=other.getsockname()[1])
    with pytest.raises(StorageError, match="cannot listen on"):
        run(application, host="no.such.host.invalid")
    with (tmp_path / "file").open() as file, pytest.raises(UsageError, match="is not a socket"):
        run(application, fd=file.fileno())


def test_the_command_needs_its_extra(toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(MissingDependency, match=r"fieldrun\[serve\]"):
        run(app(toy_bundle))


def test_a_server_runs_in_this_process(toy_bundle: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """In the main thread, as signals need it; a helper ends it."""
    said: list[int] = []

    def stop() -> None:
        lines: list[str] = []
        end = time.monotonic() + 10
        try:
            while len(lines) < 2 and time.monotonic() < end:
                time.sleep(0.02)
                lines += capfd.readouterr().err.splitlines()
            address = json.loads(lines[0])["address"]
            connection = http.client.HTTPConnection(address.removeprefix("http://"), timeout=10)
            connection.request("GET", "/health")
            said.append(connection.getresponse().status)
            connection.close()
        finally:
            os.kill(os.getpid(), signal.SIGTERM)

    before = signal.getsignal(signal.SIGTERM)
    helper = threading.Thread(target=stop)
    helper.start()
    run(app(toy_bundle), port=0)
    helper.join()
    assert said == [200]
    assert signal.getsignal(signal.SIGTERM) is before
