"""Label files of many lines: several processes, answers in the order of the lines, little memory, resumable.

The parent reads batches of lines and hands them to workers, at most `_AHEAD` per worker at a time, so that reading
waits for answering. It writes the answers in order to `OUT.partial` and, once they are on the disk, the position in
input and output to `OUT.resume`. An interrupted run continues from there: output behind that position is cut off, so no
line is lost or written twice. The position includes the sha256 of all input read so far, so changed input is noticed.
`OUT.partial` is locked while it is written. Workers end when their parent does, even if it is killed.
"""

from __future__ import annotations

import collections
import contextlib
import hashlib
import json
import multiprocessing
import os
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, replace
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, BinaryIO

from fieldrun.errors import (
    BundleError,
    DatasetError,
    EngineError,
    InputTextError,
    OutputExists,
    StorageError,
    TextTooLong,
    UsageError,
)
from fieldrun.evaluation.tables import START, UTF_16, Columns, is_table, no_text, open_table
from fieldrun.formats.bundle import MANIFEST
from fieldrun.formats.progress import Progress, silent
from fieldrun.formats.storage import read_json, sha256_bytes, write_json

from .answers import answer, check_on_error, choose_tasks, parse_line
from .model import load

__all__ = ["LabelReport", "label"]

_BATCH_BYTES = 32 << 10  # of text: a few hundred lines
_BLOCK_BYTES = 1 << 20
_AHEAD = 3  # batches per worker
_NOTE_S = 1.0  # between two notes of the position


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelReport:
    """What `label` did: the lines that were read, and those of an earlier run among them (`resumed_at`).

    `cut` texts were too long and lost `dropped` tokens; `errors` lines could not be answered. `seconds` are of this
    run.
    """

    path: Path
    lines: int
    resumed_at: int
    cut: int
    dropped: int
    errors: int
    seconds: float

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return asdict(self) | {"path": str(self.path), "seconds": round(self.seconds, 3)}


@dataclass(frozen=True, slots=True, kw_only=True)
class _Position:
    """How far input and output have come: `digest` is the sha256 of all input before `offset` of file `file`."""

    file: int = 0
    offset: int = 0
    in_file: int = 0
    digest: str = ""
    lines: int = 0
    cut: int = 0
    dropped: int = 0
    errors: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """An input file: the one whose bytes are read, the one that the caller named, and whether it holds `Row`s."""

    path: Path
    given: Path
    rows: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class _Job:
    """What a worker needs."""

    bundle: str
    manifest: str
    tasks: tuple[str, ...]
    paired: bool
    top: int | None
    on_error: str
    settings: dict[str, Any]


def label(
    files: Sequence[str | Path] | str | Path,
    out: str | Path,
    *,
    tasks: Sequence[str] = (),
    bundle: str | Path = "reference",
    workers: int = 1,
    top: int | None = None,
    on_error: str = "report",
    text_column: str | None = None,
    text_b_column: str | None = None,
    force: bool = False,
    engine: str = "auto",
    provider: str | None = None,
    threads: int = 1,
    overflow: str = "truncate",
    unknown: str = "answer",
    progress: Progress = silent,
) -> LabelReport:
    """Label every text of `files` and write the file `out`, an `Answer` as JSON for each text and task.

    An interrupted run is resumed by the same call.

    Args:
        files: UTF-8 files with one text per line, or `a<TAB>b` for pair tasks; or tables with named columns, see
            `fieldrun.evaluation.tables`: `.csv`, `.jsonl` and `.parquet` files, and `.tsv` files with a header.
        out: the file to write; it appears when all lines are labelled.
        tasks: the tasks to answer, all of one kind; by default every task for single texts.
        bundle: a bundle folder, or `"reference"`.
        workers: processes, each with a model of its own; with 1, this process does the
            work. With more, a script calls `label` under `if __name__ == "__main__":`, as multiprocessing asks for.
        top: the number of labels in `scores`; all by default.
        on_error: what a line that cannot be answered does: `"report"` writes one `Failed` in its place, with the name
            of its file, `"skip"` leaves it out, `"fail"` raises its error.
        text_column, text_b_column: the columns of the texts in tables; `text`, or `text_a` and `text_b`, by default.
        force: replace `out` if it exists, and what an interrupted run with other files or settings left.
        engine, provider, threads, overflow, unknown: of every worker, as for `fieldrun.load`.
        progress: called with ("label", bytes read, bytes in total).

    Raises:
        OutputExists: `out` exists, another run is writing it, or another run left it unfinished.
        DatasetError: a file cannot be read.
        InputTextError, TextTooLong: with `"fail"`, a line cannot be answered. The message names it; the lines before it
            are kept.
        EngineError: a worker was killed.
        StorageError: the output cannot be written.
    """
    began = time.perf_counter()
    named = [files] if isinstance(files, str | os.PathLike) else files
    given, out = [Path(path) for path in named], Path(out)
    check_on_error(on_error)
    if workers < 1 or not given:
        raise UsageError("label needs at least one file and one worker")
    _check_free(out, force)
    settings: dict[str, Any] = {"engine": engine, "provider": provider, "threads": threads}
    settings |= {"overflow": overflow, "unknown": unknown}
    tasks = [tasks] if isinstance(tasks, str) else tasks
    with load(bundle, **settings) as model:
        paired = any(model.kind(task) == "pair" for task in tasks)
        chosen = choose_tasks(model, tasks, paired=paired)
        paired = model.kind(chosen[0]) == "pair"
        manifest = sha256_bytes(model._bundle.contents[MANIFEST])
        place = str(model.path)
    job = _Job(
        bundle=place, manifest=manifest, tasks=chosen, paired=paired, top=top, on_error=on_error, settings=settings
    )
    key = {"manifest_sha256": manifest, "tasks": list(chosen), "top": top, "overflow": overflow, "on_error": on_error}
    key |= {"unknown": unknown}
    output = _Output(out, key | {"sources": [path.name for path in given]}, force)
    columns = Columns(text=text_column, text_b=text_b_column)
    with contextlib.ExitStack() as stack:
        sources = [_source(path, columns, job, out, stack) for path in given]
        try:
            with output:
                start = output.resume(sources)
                reached = _label(job, sources, start, output, workers, progress)
                output.finish(reached.lines)
        except OSError as error:
            why = error.strerror or error
            raise StorageError(f"cannot write {out}: {why}; free space, then run the same command again") from error
    if not reached.lines:
        raise InputTextError("the files are empty; give one text per line")
    return LabelReport(
        path=out,
        lines=reached.lines,
        resumed_at=start.lines,
        cut=reached.cut,
        dropped=reached.dropped,
        errors=reached.errors,
        seconds=time.perf_counter() - began,
    )


def _source(path: Path, columns: Columns, job: _Job, out: Path, stack: contextlib.ExitStack) -> _Source:
    """Return a file of lines as it is, and a table as a temporary file of JSON lines, the same ones in every run."""
    if not is_table(path, columns):
        start = _start(path)
        why = "is UTF-16; convert the file to UTF-8" if start[:2] in UTF_16 else no_text(start)
        if why is not None:
            raise DatasetError(f"{path} {why}")
        return _Source(path=path, given=path)
    try:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent)))
    except OSError as error:
        raise StorageError(f"cannot write beside {out}: {error.strerror}; choose another folder") from error
    try:
        with path.open("rb") as file, (folder / "rows").open("w", encoding="ascii") as made:
            table = open_table(file, path, columns, labelled=False)
            if (table.kind == "pair") != job.paired:
                wanted, there = ("pairs", "single texts") if job.paired else ("single texts", "pairs")
                raise DatasetError(f"{path}, line 1: {job.tasks[0]} takes {wanted}, and the file has {there}")
            for row in table.rows:
                made.write(json.dumps([row.line, row.text, row.error, table.unit]) + "\n")
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror or error}; check the path") from error
    return _Source(path=folder / "rows", given=path, rows=True)


def _label(
    job: _Job, sources: Sequence[_Source], start: _Position, output: _Output, workers: int, progress: Progress
) -> _Position:
    """Label all lines behind `start`; return the position at the end of the input."""
    sizes = [_size(source.path) for source in sources]
    batches = _batches(sources, start)
    waiting: collections.deque[tuple[_Position, int, Future[tuple[bytes, int, int, int]]]] = collections.deque()
    reached, noted = start, time.monotonic()
    pool: Executor = _InProcess(job)
    if workers > 1:
        context = multiprocessing.get_context("spawn")  # a fork of a process that has threads may hang
        pool = ProcessPoolExecutor(workers, mp_context=context, initializer=_open, initargs=(job,))
    try:
        while True:
            while len(waiting) < _AHEAD * workers and (batch := next(batches, None)) is not None:
                behind, lines = batch
                source, first = sources[behind.file], behind.in_file - len(lines) + 1
                arguments = (source.given.name, first, lines, source.rows)
                waiting.append((behind, len(lines), pool.submit(_answer, *arguments)))
            if not waiting:
                return reached
            behind, count, future = waiting.popleft()
            answers, cut, dropped, errors = future.result()
            output.write(answers)
            reached = replace(
                behind,
                lines=reached.lines + count,
                cut=reached.cut + cut,
                dropped=reached.dropped + dropped,
                errors=reached.errors + errors,
            )
            progress("label", sum(sizes[: reached.file]) + reached.offset, sum(sizes))
            if time.monotonic() - noted > _NOTE_S:
                output.note(reached)
                noted = time.monotonic()
    except BrokenProcessPool as error:
        raise EngineError("a worker was killed (out of memory?); run the same command to continue") from error
    finally:
        output.note(reached)
        pool.shutdown(wait=True, cancel_futures=True)


def _batches(sources: Sequence[_Source], start: _Position) -> Iterator[tuple[_Position, list[bytes]]]:
    """Yield the lines behind `start` in batches, each with the input position behind it."""
    digest = hashlib.sha256()
    for number, source in enumerate(sources):
        try:
            with source.path.open("rb") as file:
                if number < start.file:
                    _read_over(file, _size(source.path), digest)
                    continue
                in_file = 0
                if number == start.file:
                    _read_over(file, start.offset, digest)
                    if start.digest and digest.hexdigest() != start.digest:
                        raise OutputExists(
                            f"{source.given} has changed since it was partly labelled; add --force to start over"
                        )
                    in_file = start.in_file
                while lines := file.readlines(_BATCH_BYTES):
                    for line in lines:
                        digest.update(line)
                    in_file += len(lines)
                    at = file.tell()
                    yield _Position(file=number, offset=at, in_file=in_file, digest=digest.hexdigest()), lines
        except OSError as error:
            raise DatasetError(f"cannot read {source.given}: {error.strerror}; check the path") from error


def _read_over(file: BinaryIO, count: int, digest: Any) -> None:
    while count > 0 and (block := file.read(min(count, _BLOCK_BYTES))):
        digest.update(block)
        count -= len(block)


def _start(path: Path) -> bytes:
    try:
        if not path.is_file():
            return b""  # what is read from a pipe is gone
        with path.open("rb") as file:
            return file.read(START)
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}; check the path") from error


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}; check the path") from error


def _check_free(out: Path, force: bool) -> None:
    if os.path.lexists(out) and not force:
        raise OutputExists(f"{out} exists; choose another name or add --force")


class _Output:
    """The output while it is written, `OUT.partial`, and the note of the position, `OUT.resume`."""

    def __init__(self, out: Path, key: dict[str, Any], force: bool) -> None:
        self._out, self._key, self._force = out, key, force
        self._partial, self._note = (out.with_name(out.name + end) for end in (".partial", ".resume"))

    def __enter__(self) -> _Output:
        """Open the partial file and lock it against every other run until this process ends."""
        import fcntl

        while True:
            file = self._partial.open("ab")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._partial.exists() and os.path.samestat(self._partial.stat(), os.fstat(file.fileno())):
                    break  # else another run finished it between opening and locking
            except BlockingIOError as error:
                file.close()
                message = f"another run is writing {self._partial}; wait for it or choose another name"
                raise OutputExists(message) from error
            file.close()
        self._file: BinaryIO = file
        file.seek(0, os.SEEK_END)
        try:
            _check_free(self._out, self._force)  # another run may have made it since
        except OutputExists:
            if not file.tell():
                self._partial.unlink()
            file.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def resume(self, sources: Sequence[_Source]) -> _Position:
        """Return the position to continue from, and cut the output off there."""
        start, length = self._read_note()
        if self._force and start.digest and self._changed(sources, start):
            start, length = _Position(), 0
        self._file.truncate(length)
        self._file.seek(length)
        self.note(start)  # from here on the run can be interrupted at any time
        return start

    def _changed(self, sources: Sequence[_Source], start: _Position) -> bool:
        try:
            next(_batches(sources, start), None)
        except OutputExists:
            return True
        return False

    def _read_note(self) -> tuple[_Position, int]:
        if not self._note.exists():
            if self._file.tell() and not self._force:
                raise OutputExists(f"{self._partial} has no {self._note.name} beside it; add --force to start over")
            return _Position(), 0
        try:
            found = read_json(self._note)
            start = _Position(**{name: found[name] for name in _Position.__slots__})
            same, length = found["key"] == self._key, int(found["bytes"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            if self._force:
                return _Position(), 0
            raise OutputExists(f"{self._note} is corrupt; add --force to start over") from error
        if same and self._file.tell() >= length:
            return start, length
        if self._force or (not same and not start.lines):
            return _Position(), 0
        why = "is shorter than its note says" if same else "belongs to other files, tasks or another bundle"
        raise OutputExists(f"{self._partial} {why}; add --force to start over")

    def write(self, answers: bytes) -> None:
        self._file.write(answers)

    def note(self, position: _Position) -> None:
        """Put the output on the disk, then note its position: in this order, so that the note is never ahead."""
        self._file.flush()
        os.fsync(self._file.fileno())
        write_json(self._note, asdict(position) | {"key": self._key, "bytes": self._file.tell()})

    def finish(self, lines: int) -> None:
        """Rename the partial file to the output, or delete it if there is no line."""
        if lines:
            self._partial.replace(self._out)
        else:
            self._partial.unlink()
        self._note.unlink()


_worker: list[Any] = []  # of the process that answers: its job and its model


class _InProcess(Executor):
    """Answers in this process, at once."""

    def __init__(self, job: _Job) -> None:
        _worker[:] = [job, load(job.bundle, **job.settings)]

    def submit(self, call: Callable[..., Any], /, *arguments: Any, **settings: Any) -> Future[Any]:
        future: Future[Any] = Future()
        try:
            future.set_result(call(*arguments, **settings))
        except (InputTextError, TextTooLong) as error:
            future.set_exception(error)
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        del wait, cancel_futures
        _worker.clear()


def _open(job: _Job) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which ends the workers
    if parent := multiprocessing.parent_process():
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
    model = load(job.bundle, **job.settings)
    if sha256_bytes(model._bundle.contents[MANIFEST]) != job.manifest:
        raise BundleError(f"{job.bundle} was replaced while the workers started; run the same command again")
    _worker[:] = [job, model]


def _end_with(parent: BaseProcess) -> None:
    """End this process when its parent has ended: a killed parent cannot end its workers, which would wait forever."""
    parent.join()
    os._exit(1)


def _answer(name: str, first: int, lines: list[bytes], rows: bool) -> tuple[bytes, int, int, int]:
    """Return the JSON lines of a batch, how many texts lost how many tokens, and how many could not be answered."""
    job, model = _worker
    numbers, names = [], []
    texts: list[Any] = []
    for i, line in enumerate(lines):
        number, text, wrong, unit = json.loads(line) if rows else (first + i, None, None, "line")
        where = f"{name}, {unit} {number}"
        numbers.append(number)
        names.append(where)
        try:
            if wrong is not None:
                raise InputTextError(f"{where}: {wrong}")
            if not rows:
                text = parse_line(line.removesuffix(b"\n").removesuffix(b"\r"), where, paired=job.paired)
        except InputTextError as error:
            if job.on_error == "fail":
                raise
            text = error
        texts.append(tuple(text) if isinstance(text, list) else text)
    out, cut, dropped, answered = [], 0, 0, 0
    settings = {"top": job.top, "on_error": job.on_error, "lines": numbers, "names": names}
    for found in answer(model, texts, job.tasks, **settings):
        if "error" in found:
            out.append(json.dumps({"file": name, **found}))
            continue
        out.append(json.dumps(found, allow_nan=False))
        if found["task"] == job.tasks[0]:  # the same tokens in every task
            answered += 1
            cut += found["dropped"] > 0
            dropped += found["dropped"]
    return "".join(f"{line}\n" for line in out).encode("ascii"), cut, dropped, len(texts) - answered
