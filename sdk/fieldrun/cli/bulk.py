"""Label files of many lines: several processes, output in the order of the input, constant memory, resumable.

The parent reads batches of lines and hands them out; at most `_AHEAD` a worker are on their way, so that reading waits
for answering. It writes the answers in order to `OUT.partial` and, once they are on the disk, notes in `OUT.resume` how
far input and output have come. A run that was ended goes on from that note: what the output holds beyond it is cut
off, so no line is lost or doubled. The note holds the sha256 of all input read so far; other input begins anew only
when told to. `OUT.partial` is locked while it is written, and workers end with their parent, also when it is killed.
"""

from __future__ import annotations

import collections
import hashlib
import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, BinaryIO

from fieldrun.errors import DatasetError, EngineError, InputTextError, OutputExists, StorageError
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.storage import read_json, sha256_file, write_json

from .inputs import BATCH, record_of
from .options import open_model
from .output import Progress

__all__ = ["Labelled", "label_files"]

_BATCH_BYTES = 32 << 10  # of text: some hundred lines
_BLOCK_BYTES = 1 << 20
_AHEAD = 3  # batches a worker
_NOTE_S = 1.0  # between two notes


@dataclass(slots=True, kw_only=True)
class Labelled:
    """What a run did: lines in the output, those of an earlier run among them, tokens cut off, seconds of this run."""

    lines: int = 0
    resumed_at: int = 0
    cut: int = 0
    dropped: int = 0
    seconds: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    """Lines of one file, and the input position behind them."""

    name: str
    first: int
    lines: list[bytes]
    file: int
    offset: int
    in_file: int
    digest: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Setup:
    """What a worker needs."""

    bundle: str
    tasks: tuple[str, ...]
    paired: bool
    top: int | None
    runtime: tuple[str, int, str]


def label_files(
    bundle: str,
    wanted: Sequence[str],
    sources: Sequence[Path],
    output: Path,
    *,
    workers: int,
    restart: bool = False,
    top: int | None = None,
    runtime: tuple[str, int, str] = ("auto", 1, "truncate"),
    progress: Progress = lambda *_: None,
) -> Labelled:
    """Label every line of `sources` into `output`, one JSON object per line and task.

    Args:
        bundle: a bundle folder or "reference".
        wanted: tasks, or "all".
        sources: UTF-8 files of one text a line, or `a<TAB>b` for pair tasks.
        output: the file to make; it appears when all is done.
        workers: processes, each with a model of its own over the same mapped weights.
        restart: begin anew where an earlier run was ended.
        top: keep so many labels in `scores`.
        runtime: engine, threads and overflow of every worker.
        progress: is told ("label", bytes read, bytes in all).

    Raises:
        OutputExists: `output` is there, is being written, or is half made of other input or settings.
        DatasetError: a file cannot be read.
        InputTextError, TextTooLong: a line cannot be answered; it is named, and all before its batch is kept.
        EngineError: a worker was ended from outside.
        StorageError: the output cannot be written.
    """
    from .answers import choose_tasks

    began = time.perf_counter()
    _check_free(output)
    engine, threads, overflow = runtime
    with open_model(bundle, engine, threads, overflow) as model:
        paired = all(model.kind(task) == "pair" for task in wanted if task in model.tasks) and "all" not in wanted
        tasks = tuple(choose_tasks(model, wanted, paired=paired))
    manifest = sha256_file(Bundle.load(bundle).path / "manifest.json")
    setup = _Setup(bundle=bundle, tasks=tasks, paired=paired, top=top, runtime=runtime)
    key = {"manifest_sha256": manifest, "tasks": list(tasks), "top": top, "overflow": overflow}
    key |= {"sources": [path.name for path in sources]}
    total = sum(_size(path) for path in sources)
    note_path, partial = (output.with_name(output.name + end) for end in (".resume", ".partial"))
    try:
        with _owned(partial, output) as out:
            state = _resume(note_path, out, key, restart)
            done = Labelled(lines=state["lines"], resumed_at=state["lines"], cut=state["cut"], dropped=state["dropped"])
            _keep(out, note_path, key, state)  # from here on an end at any moment can be gone on from
            _label(
                setup,
                sources,
                state,
                out,
                workers,
                done,
                keep=lambda reached: _keep(out, note_path, key, reached),
                progress=lambda read: progress("label", read, total),
            )
            if done.lines:
                partial.replace(output)
            else:
                partial.unlink()
            note_path.unlink()
        if not done.lines:
            raise InputTextError("the files have no line; give one text a line")
    except OSError as error:
        raise StorageError(
            f"cannot write {output}: {error.strerror or error}; free space, then run it again"
        ) from error
    done.seconds = time.perf_counter() - began
    return done


def _label(
    setup: _Setup,
    sources: Sequence[Path],
    state: dict[str, Any],
    out: BinaryIO,
    workers: int,
    done: Labelled,
    keep: Callable[[dict[str, Any]], None],
    progress: Callable[[int], None],
) -> None:
    context = multiprocessing.get_context("spawn")  # a fork of a process that has threads may hang
    batches = _batches(sources, state)
    waiting: collections.deque[tuple[_Batch, Future[tuple[bytes, int, int]]]] = collections.deque()
    kept = time.monotonic()
    behind = state
    pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_open, initargs=(setup,))
    try:
        while True:
            while len(waiting) < _AHEAD * workers and (batch := next(batches, None)) is not None:
                waiting.append((batch, pool.submit(_answer, batch.name, batch.first, batch.lines)))
            if not waiting:
                break
            batch, future = waiting.popleft()
            lines, cut, dropped = future.result()
            out.write(lines)
            done.lines += len(batch.lines)
            done.cut += cut
            done.dropped += dropped
            behind = {"file": batch.file, "offset": batch.offset, "in_file": batch.in_file, "digest": batch.digest}
            behind |= {"lines": done.lines, "cut": done.cut, "dropped": done.dropped}
            progress(batch.offset + sum(_size(path) for path in sources[: batch.file]))
            if time.monotonic() - kept > _NOTE_S:
                keep(behind)
                kept = time.monotonic()
    except BrokenProcessPool as error:
        raise EngineError("a worker was ended from outside (out of memory?); run the same command to go on") from error
    finally:
        keep(behind)
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(sources: Sequence[Path], state: dict[str, Any]) -> Iterator[_Batch]:
    """Yield the lines behind the position of `state`, and with each batch the position behind it."""
    digest = hashlib.sha256()
    for number, path in enumerate(sources):
        try:
            with path.open("rb") as file:
                if number < state["file"]:
                    _skip(file, _size(path), digest)
                    continue
                in_file = 0
                if number == state["file"]:
                    _skip(file, state["offset"], digest)
                    if state["digest"] and digest.hexdigest() != state["digest"]:
                        raise OutputExists(f"{path} has changed where it was already labelled; add --restart")
                    in_file = state["in_file"]
                while lines := file.readlines(_BATCH_BYTES):
                    for line in lines:
                        digest.update(line)
                    first, in_file = in_file + 1, in_file + len(lines)
                    yield _Batch(
                        name=path.name,
                        first=first,
                        lines=lines,
                        file=number,
                        offset=file.tell(),
                        in_file=in_file,
                        digest=digest.hexdigest(),
                    )
        except OSError as error:
            raise DatasetError(f"cannot read {path}: {error.strerror}; check the path") from error


def _skip(file: BinaryIO, count: int, digest: Any) -> None:
    while count > 0 and (block := file.read(min(count, _BLOCK_BYTES))):
        digest.update(block)
        count -= len(block)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}; check the path") from error


def _check_free(output: Path) -> None:
    if os.path.lexists(output):
        raise OutputExists(f"{output} exists; choose another name or delete it")


@contextmanager
def _owned(partial: Path, output: Path) -> Iterator[BinaryIO]:
    """Open `partial` to add to it, locked against every other run until it is closed or this process ends."""
    import fcntl

    while True:
        with partial.open("ab") as out:
            try:
                fcntl.flock(out, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise OutputExists(f"another run is writing {partial}; wait for it or choose another name") from error
            if not partial.exists() or not os.path.samestat(partial.stat(), os.fstat(out.fileno())):
                continue  # another run ended and took the file away before it was locked here
            out.seek(0, os.SEEK_END)
            if not out.tell() and os.path.lexists(output):
                partial.unlink()
            _check_free(output)  # another run may have made it since
            yield out
            return


def _resume(note: Path, out: BinaryIO, key: dict[str, Any], restart: bool) -> dict[str, Any]:
    """Return the position to go on from, and cut the output to what is known to be whole there."""
    start = {"file": 0, "offset": 0, "in_file": 0, "digest": "", "lines": 0, "cut": 0, "dropped": 0}
    if restart or not note.exists():
        if out.tell() and not restart:
            raise OutputExists(f"{out.name} has no note beside it to go on from; add --restart or delete it")
        note.unlink(missing_ok=True)
        _cut(out, 0)
        return start
    try:
        found = read_json(note)
        state = {name: found[name] for name in start}
        same, length = found["key"] == key, int(found["bytes"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputExists(f"{note} cannot be read; add --restart to begin anew") from error
    if not same and state["lines"]:
        raise OutputExists(f"{note} is of other files, tasks or another bundle; add --restart to begin anew")
    if out.tell() < length:
        raise OutputExists(f"{out.name} is shorter than its note says; add --restart to begin anew")
    _cut(out, length)
    return state if same else start


def _cut(out: BinaryIO, length: int) -> None:
    out.truncate(length)
    out.seek(length)


def _keep(out: BinaryIO, note: Path, key: dict[str, Any], state: dict[str, Any]) -> None:
    """Put the output on the disk, then note how far it has come: in this order, so that the note is never ahead."""
    out.flush()
    os.fsync(out.fileno())
    write_json(note, state | {"key": key, "bytes": out.tell()})


_worker: list[Any] = []  # of a worker's process: its setup and its model


def _open(setup: _Setup) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the workers
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    engine, threads, overflow = setup.runtime
    model = open_model(setup.bundle, engine, threads, overflow)
    _worker[:] = [setup, model, {task: model.labels(task) for task in setup.tasks}]


def _end_with(parent: BaseProcess) -> None:
    """End this process when its parent has ended: one that was killed ends no worker, and a worker waits for ever."""
    parent.join()
    os._exit(1)


def _answer(name: str, first: int, lines: list[bytes]) -> tuple[bytes, int, int]:
    """Return the JSON lines of a batch, and how many texts lost how many tokens."""
    from .answers import answer, json_objects

    setup, model, labels = _worker
    out, cut, dropped = [], 0, 0
    where = f"{name}, line"
    records = [
        record_of(f"{where} {first + i}", line.removesuffix(b"\n").removesuffix(b"\r"), setup.paired)
        for i, line in enumerate(lines)
    ]
    for start in range(0, len(records), BATCH):
        for answers in answer(model, records[start : start + BATCH], setup.tasks):
            out += [json.dumps(value, allow_nan=False) for value in json_objects(answers, labels, setup.top)]
            cut += int((answers.dropped > 0).sum())
            dropped += int(answers.dropped.sum())
    return ("\n".join(out) + "\n").encode("ascii"), cut, dropped
