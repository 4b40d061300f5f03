"""Load `fieldrun serve` with four clients while its bundle is switched three times: wrong and lost answers, and times.

    fieldrun export sdk/checkpoints/reference --recipe cpu-int8 -o build/other
    python -m studies.serve.measure reference build/other -o benchmarks/records/serve.json

The service listens on a Unix socket and answers with a symbolic link to a bundle. Each client is a process with one
connection. It sends questions in a random order, without a pause, and compares each answer with those that Python got
from the bundle that the answer names. An answer is wrong if a single number of it differs. It is lost if the request
fails, in any way, or has another status than 200. The link is switched at a quarter, half and three quarters of the
time: noticed by the service itself, told by SIGHUP, and told by `POST /reload`.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import multiprocessing
import random
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np

import fieldrun
from fieldrun.errors import FieldrunError
from fieldrun.formats.bundle import resolve_bundle
from fieldrun.formats.storage import read_json
from fieldrun_benchmarks.harness.percentiles import percentiles
from fieldrun_benchmarks.harness.record import write_record
from fieldrun_benchmarks.machine.sensors import process_memory
from fieldrun_exporters.calibrate import SHIPPED_TEXT

from ..suite import output_option, study

__all__ = ["Question", "Tally", "expected_answers", "main", "questions"]

_CLIENTS = 4
_PROGRAM = "from fieldrun.cli import main; main(prog_name='fieldrun')"
_PATIENCE_S = 20.0
_WAYS = ("watched", "SIGHUP", "POST /reload")


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """One request: its endpoint, and the task and texts in its body."""

    endpoint: str
    task: str
    texts: list[str]

    def body(self) -> bytes:
        """Return the JSON to send."""
        task = {} if self.endpoint == "/field" else {"task": self.task}
        return json.dumps({"texts": self.texts} | task).encode("utf-8")


@dataclass(slots=True, kw_only=True)
class Tally:
    """What one client has seen; `times` are the start and the length of each request in seconds."""

    by_bundle: Counter[str] = field(default_factory=Counter)
    times: list[tuple[float, float]] = field(default_factory=list)
    first_seen: dict[str, list[float]] = field(default_factory=dict)
    texts: int = 0
    wrong: int = 0
    lost: Counter[str] = field(default_factory=Counter)


def questions(texts: Sequence[str], task: str, seed: int = 0) -> list[Question]:
    """Return 100 questions about `texts`: 70 of one text, 20 of 16 texts, and 10 for the fields of four."""
    choose = random.Random(seed)
    shapes = [("/predict", 1)] * 70 + [("/scores", 16)] * 20 + [("/field", 4)] * 10
    return [Question(endpoint=endpoint, task=task, texts=choose.sample(texts, n)) for endpoint, n in shapes]


def expected_answers(bundle: str | Path, asked: Sequence[Question]) -> list[list[Any]]:
    """Return what the service must say of each text of each question: the labels and scores, or fields, of Python."""
    found: list[list[Any]] = []
    with fieldrun.load(bundle) as model:
        for question in asked:
            if question.endpoint == "/field":
                found.append(model.field(question.texts).tolist())
            elif question.endpoint == "/scores":
                found.append(model.predict_proba(question.texts, question.task).tolist())
            else:
                best = model.top_k(question.texts, question.task, k=1)
                found.append([[{"label": label, "score": score} for label, score in row] for row in best])
    return found


class _Connection(http.client.HTTPConnection):
    """A connection to a Unix socket."""

    def __init__(self, path: str) -> None:
        super().__init__("localhost", timeout=_PATIENCE_S)
        self._path = path

    def connect(self) -> None:
        """Connect."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)

    def ask(self, method: str, endpoint: str, body: bytes | None = None) -> tuple[int, bytes]:
        """Return status and body of an answer."""
        self.request(method, endpoint, body, {"Content-Type": "application/json"})
        answer = self.getresponse()
        return answer.status, answer.read()


def _client(
    path: str,
    asked: Sequence[Question],
    expected: Mapping[str, Sequence[Sequence[Any]]],
    until: float,
    seed: int,
    results: multiprocessing.Queue[Tally],
) -> None:
    """Ask until `until`, on the clock of `time.monotonic`, and put a `Tally`."""
    choose, tally, connection = random.Random(seed), Tally(), _Connection(path)
    bodies = [question.body() for question in asked]
    keys = {"/predict": "labels", "/scores": "scores", "/field": "field"}
    last = ""
    while time.monotonic() < until:
        i = choose.randrange(len(asked))
        start = time.monotonic()
        try:
            status, body = connection.ask("POST", asked[i].endpoint, bodies[i])
        except (OSError, http.client.HTTPException) as error:
            tally.lost[type(error).__name__] += 1
            connection.close()
            continue
        tally.times.append((start, time.monotonic() - start))
        if status != 200:
            tally.lost[f"status {status}"] += 1
            continue
        value = json.loads(body)
        rows = [row.get(keys[asked[i].endpoint]) for row in value["results"]]
        tally.wrong += rows != expected.get(value["bundle"], {i: None})[i]
        tally.by_bundle[value["bundle"]] += 1
        tally.texts += len(rows)
        if value["bundle"] != last:
            last = value["bundle"]
            tally.first_seen.setdefault(last, []).append(time.monotonic())
    connection.close()
    results.put(tally)


@contextlib.contextmanager
def _service(link: Path, path: Path, log: Path) -> Iterator[subprocess.Popen[bytes]]:
    """Run the service until the block ends, then stop it; `FieldrunError` if it does not start or stop well."""
    with log.open("wb") as errors:
        command = [sys.executable, "-c", _PROGRAM, "serve", str(link), "--uds", str(path)]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=errors)
    try:
        end = time.monotonic() + _PATIENCE_S
        while b'"started"' not in log.read_bytes():
            if process.poll() is not None or time.monotonic() > end:
                raise FieldrunError(f"the service did not start: {log.read_text('utf-8')[-300:]}")
            time.sleep(0.05)
        yield process
        process.terminate()
        if process.wait(_PATIENCE_S) != 0:
            raise FieldrunError(f"the service ended with exit code {process.returncode}")
    finally:
        process.kill()
        process.wait()


def _switch(link: Path, target: Path) -> None:
    """Lead `link` to `target` in one step."""
    new = link.with_name("new")
    new.symlink_to(target)
    new.replace(link)


def _tell(way: str, process: subprocess.Popen[bytes], path: Path) -> None:
    if way == "SIGHUP":
        process.send_signal(signal.SIGHUP)
    elif way != "watched":
        connection = _Connection(str(path))
        connection.ask("POST", "/reload")
        connection.close()


def _short(bundle: Path) -> str:
    return str(read_json(bundle / "manifest.json")["sha256"])[:12]


@study(__doc__)
@click.argument("bundle")
@click.argument("other")
@click.option("--seconds", type=click.FloatRange(min=4), default=60.0, show_default=True, help="How long to ask.")
@click.option("--task", default="sst2", show_default=True, help="A task of both bundles.")
@output_option
def main(bundle: str, other: str, seconds: float, task: str, output: Path) -> None:
    """Write a record of BUNDLE and OTHER taking turns."""
    folders = [resolve_bundle(path).resolve() for path in (bundle, other)]
    names = [_short(folder) for folder in folders]
    asked = questions([line for line in SHIPPED_TEXT.read_text("utf-8").splitlines() if line.strip()], task)
    expected = {name: expected_answers(folder, asked) for name, folder in zip(names, folders, strict=True)}
    if names[0] == names[1] or any(a == b for a, b in zip(*expected.values(), strict=True)):
        raise FieldrunError("the bundles give an answer that is equal; choose two that differ in every one")
    context = multiprocessing.get_context("spawn")
    results: multiprocessing.Queue[Tally] = context.Queue()
    switches: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as scratch:
        link, path, log = Path(scratch) / "current", Path(scratch) / "http.sock", Path(scratch) / "log"
        link.symlink_to(folders[0])
        with _service(link, path, log) as process:
            before = process_memory(process.pid)
            begin = time.monotonic() + 2  # the clients have started by then
            until = begin + seconds
            clients = [
                context.Process(target=_client, args=(str(path), asked, expected, until, seed, results))
                for seed in range(_CLIENTS)
            ]
            for client in clients:
                client.start()
            for number, way in enumerate(_WAYS, start=1):
                time.sleep(max(0.0, begin + number * seconds / (len(_WAYS) + 1) - time.monotonic()))
                switches.append({"how": way, "at": time.monotonic(), "to": names[number % 2]})
                _switch(link, folders[number % 2])
                _tell(way, process, path)
            tallies = [results.get(timeout=seconds + 4 * _PATIENCE_S) for _ in clients]
            for client in clients:
                client.join()
            after = process_memory(process.pid)
        stopped = b'"stopped"' in log.read_bytes()
    write_record(
        output,
        "serve",
        "python -m studies.serve.measure BUNDLE OTHER -o RECORD",
        _summary(tallies, switches, seconds) | {"memory": {"start": before, "end": after}, "stopped_well": stopped},
    )
    if sum(tally.wrong + tally.lost.total() for tally in tallies):
        raise FieldrunError(f"answers were wrong or lost; see {output}")


def _summary(tallies: Sequence[Tally], switches: Sequence[Mapping[str, Any]], seconds: float) -> dict[str, Any]:
    """Return the record's values. A switch's time is until each client has had an answer of the new bundle."""
    times = np.array([each for tally in tallies for each in tally.times])
    lost = sum((tally.lost for tally in tallies), Counter[str]())
    told = []
    for switch in switches:
        seen = [next(t for t in tally.first_seen[switch["to"]] if t > switch["at"]) for tally in tallies]
        near = times[(times[:, 0] > switch["at"] - 0.5) & (times[:, 0] < max(seen) + 0.5), 1]
        told.append(
            {
                "how": switch["how"],
                "to": switch["to"],
                "first_answer_s": round(min(seen) - switch["at"], 3),
                "every_client_s": round(max(seen) - switch["at"], 3),
                "slowest_ms": round(1e3 * float(near.max()), 1),
            }
        )
    return {
        "clients": len(tallies),
        "seconds": seconds,
        "requests": len(times) + sum(n for how, n in lost.items() if not how.startswith("status")),
        "wrong": sum(tally.wrong for tally in tallies),
        "lost": lost.total(),
        "lost_how": dict(lost),
        "by_bundle": dict(sum((tally.by_bundle for tally in tallies), Counter[str]())),
        "switches": told,
        "requests_per_s": round(len(times) / seconds),
        "texts_per_s": round(sum(tally.texts for tally in tallies) / seconds),
        "request": percentiles(1e6 * times[:, 1]),
    }


if __name__ == "__main__":
    main()
