"""What a build does when a neighbour, a folder, a disk or TensorRT itself says no."""

from __future__ import annotations

import errno
import fcntl
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fieldrun
from fieldrun.errors import EngineError, StorageError
from fieldrun.formats.bundle import Bundle
from fieldrun_runtimes.model import FieldModel
from fieldrun_runtimes.tensorrt.build import build
from fieldrun_runtimes.tensorrt.cache import EngineCache
from tests.runtimes.tensorrt import doubles
from tests.runtimes.tensorrt.conftest import ABOUT, engines, flip, keys


def test_two_builders_at_once_build_each_engine_once(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = doubles.install(monkeypatch)
    phases: list[str] = []
    holding, waiting = threading.Event(), threading.Event()

    def first(phase: str, done: int, total: int) -> None:
        if phase == "engines" and done == 1:
            holding.set()
            assert waiting.wait(30)

    def second(phase: str, done: int, total: int) -> None:
        phases.append(phase)
        if phase == "waiting for another build":
            waiting.set()

    one = threading.Thread(target=lambda: build(tiny, progress=first))
    one.start()
    assert holding.wait(30)
    report = build(tiny, progress=second)
    one.join()
    assert phases[0] == "waiting for another build"
    assert all(engine.reused for engine in report.engines)
    assert len([call for call in machine.calls if call.startswith("build")]) == len(report.engines)


HOLDER = """
import sys
from pathlib import Path
from fieldrun_runtimes.tensorrt.cache import EngineCache

folder = Path(sys.argv[1])
with EngineCache().lock(folder, lambda: None):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_another_process_is_waited_for_and_one_that_was_killed_is_not(
    tiny: Path, built: doubles.Machine, cache: Path
) -> None:
    (folder,) = {path.parent for path in engines(cache)}
    with subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(folder)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"held\n"
        phases = []

        def progress(phase: str, done: int, total: int) -> None:
            phases.append(phase)
            if phase == "waiting for another build":
                other.kill()  # the system takes its lock back

        assert all(engine.reused for engine in build(tiny, progress=progress).engines)
    assert phases[:2] == ["waiting for another build", "engines"]
    assert other.returncode == -signal.SIGKILL


def test_a_cache_is_not_cleared_while_a_build_runs(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doubles.install(monkeypatch)
    said = []

    def progress(phase: str, done: int, total: int) -> None:
        if done == 1:
            with pytest.raises(StorageError, match=r"a build is running in .*; clear the cache") as e:
                EngineCache(cache).clear()
            said.append(str(e.value))

    build(tiny, progress=progress)
    assert len(said) == 1
    with fieldrun.load(tiny, engine="tensorrt") as model:
        model.field(["a good film"])


def test_a_running_build_keeps_every_other_folder_too(tiny: Path, built: doubles.Machine, cache: Path) -> None:
    (folder,) = {path.parent for path in engines(cache)}
    other = folder.with_name("tensorrt-sm99")
    store, before = EngineCache(cache), engines(cache)
    with store.lock(other, lambda: None), pytest.raises(StorageError, match="tensorrt-sm99"):
        store.clear()
    assert engines(cache) == before


def test_who_waited_while_the_cache_was_cleared_holds_the_new_lock(cache: Path) -> None:
    """A lock on the deleted file would let a third builder in."""
    store, folder = EngineCache(cache), cache / "a-0123456789ab" / "tensorrt-sm86"
    folder.mkdir(parents=True)
    first = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT)
    fcntl.flock(first, fcntl.LOCK_EX)

    def cleared() -> None:
        shutil.rmtree(cache)
        os.close(first)

    with store.lock(folder, cleared):
        third = os.open(folder / ".lock", os.O_RDWR)
        with pytest.raises(BlockingIOError):
            fcntl.flock(third, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.close(third)


def test_a_disk_without_locks_is_one_line(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = doubles.install(monkeypatch)

    def no_locks(handle: int, operation: int) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    with monkeypatch.context() as patch:
        patch.setattr(fcntl, "flock", no_locks)
        with pytest.raises(StorageError, match=r"cannot lock the engine cache .*: No locks available; .*--cache"):
            build(tiny)
    assert not [call for call in machine.calls if call.startswith("build")]
    (lock,) = cache.glob("*/*/.lock")
    lock.unlink()
    lock.symlink_to(cache / "nowhere")
    with pytest.raises(StorageError, match="cannot lock"):
        build(tiny)


def test_what_a_killed_build_left_is_deleted_by_the_next(tiny: Path, built: doubles.Machine, cache: Path) -> None:
    folder = engines(cache)[0].parent
    left = [folder / name for name in (".trt-b1-l8.engine.ab12_x9z", ".trt-b1-l8.json.k", ".timing.cache.0")]
    kept = [folder / name for name in (".mine", ".engine.d", "x.engine.old")]
    for path in (*left, *kept):
        path.write_bytes(b"x" * 1000)
    build(tiny)
    assert [path.exists() for path in left] == [False] * 3
    left[0].write_bytes(b"x")
    EngineCache(cache).clear()
    assert sorted(path for path in cache.rglob("*") if path.is_file()) == sorted(kept)


def test_a_read_only_cache_is_refused_before_anything_is_built(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = doubles.install(monkeypatch)
    (tmp_path / "file").write_text("")
    for taken in (tmp_path / "file", tmp_path / "file" / "engines"):
        with pytest.raises(StorageError, match=r"a file is where the engine cache .*--cache") as caught:
            build(tiny, cache=taken)
        assert caught.value.exit_code == 11
    with pytest.raises(StorageError, match=r"cannot write the engine cache .*: .*; give another one with --cache"):
        build(tiny, cache="/proc/self/engines")  # nobody can make a folder there, root included
    assert machine.calls == []

    def read_only(**keywords: Any) -> None:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    monkeypatch.setattr("tempfile.TemporaryFile", read_only)
    with pytest.raises(StorageError, match="Read-only file system"):
        build(tiny)
    assert machine.calls == []


def test_too_little_room_is_seen_first(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = doubles.install(monkeypatch)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 9, 1))
    with pytest.raises(StorageError, match=r"need about \d+ MB in .* and 0 MB are free"):
        build(tiny)
    assert machine.calls == []


def test_a_full_disk_is_no_matter_when_nothing_is_to_be_built(
    tiny: Path, built: doubles.Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: shutil._ntuple_diskusage(10, 10, 0))
    assert all(engine.reused for engine in build(tiny).engines)


def test_a_umask_that_lets_others_write_does_not_matter(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doubles.install(monkeypatch)
    before = os.umask(0)
    try:
        build(tiny)
    finally:
        os.umask(before)
    with fieldrun.load(tiny, engine="tensorrt") as model:
        model.field(["a good film"])


def test_a_full_disk_leaves_nothing_half_written(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doubles.install(monkeypatch)

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr("fieldrun.formats.storage.os.fsync", full)
        with pytest.raises(StorageError, match="No space left on device; free space"):
            build(tiny)
    assert [path.name for path in cache.rglob("*") if path.is_file()] == [".lock"]
    assert build(tiny).engines


def test_a_file_that_the_system_lets_grow_no_further_leaves_the_old_engine(
    tiny: Path, built: doubles.Machine, cache: Path
) -> None:
    """The system's own refusal of a write half way, by a limit on the size of files: no disk has to be filled."""
    path = engines(cache)[0]
    store, key, before = EngineCache(cache), EngineCache(cache).entries()[0].key, path.read_bytes()
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (65536, hard))
    try:
        with pytest.raises(StorageError, match="File too large"):
            store.write(path.parent, key, bytes(1 << 20), ABOUT)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == before
    assert not [other for other in cache.rglob(".*") if other.name != ".lock"]
    assert store.read(path.parent, key, "") == before


def test_an_engine_whose_sidecar_had_no_room_is_not_loaded(
    tiny: Path, built: doubles.Machine, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = engines(cache)[0]
    store, key = EngineCache(cache), EngineCache(cache).entries()[0].key

    def full(path: Path, value: object) -> None:
        raise StorageError(f"cannot write {path}: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fieldrun_runtimes.tensorrt.cache.write_json", full)
        with pytest.raises(StorageError, match="No space left"):
            store.write(path.parent, key, b"another engine", ABOUT)
    with pytest.raises(EngineError, match="was cut or changed"):
        store.read(path.parent, key, "")
    assert not all(engine.reused for engine in build(tiny).engines), "the next build mends it"


def test_what_is_parsed_is_what_was_loaded(tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder is emptied before the first graph is parsed."""
    machine = doubles.install(monkeypatch)
    bundle = Path(shutil.copytree(tiny, tmp_path / "bundle"))
    opened = Bundle.load(bundle)
    shutil.rmtree(bundle)
    report = build(opened)
    built = [call.removeprefix("build ") for call in machine.calls if call.startswith("build")]
    assert [f"{name}.onnx" for name in built] == [f"{engine.graph}" for engine in report.engines]
    with fieldrun.load(tiny, engine="numpy") as plain, FieldModel(opened, engine="tensorrt") as model:
        texts = ["a good film", "no rain"]
        np.testing.assert_allclose(model.field(texts), plain.field(texts), rtol=0, atol=1e-4)


def test_a_parser_that_refuses_is_quoted(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = doubles.install(monkeypatch)
    machine.parser_error = "Assertion failed: an operator of tomorrow"
    with pytest.raises(EngineError, match=r"refuses trt-b1-l8\.onnx: Assertion failed: an operator of tomorrow"):
        build(tiny)
    assert engines(cache) == []


MEASURED = b"measured by 10.3.0"


def timings(machine: doubles.Machine) -> list[int]:
    """The sizes of the timing caches that the builder was given, in turn."""
    return [int(call.split()[1]) for call in machine.calls if call.startswith("timing")]


def test_the_timing_cache_goes_from_build_to_build(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    machine = doubles.install(monkeypatch)
    build(tiny)
    assert timings(machine) == [0, *[len(MEASURED)] * 5]
    (timing,) = cache.glob("*/*/timing-*.cache")
    store, key = EngineCache(cache), keys(tiny)[0]
    assert store.timing(timing.parent, key) == MEASURED
    timing.chmod(0o666)
    assert store.timing(timing.parent, key) == b"", "one that others can write is not used"
    timing.chmod(0o600)
    flip(timing)
    assert store.timing(timing.parent, key) == b"", "one that was changed is not used"


def test_each_builder_has_a_timing_cache_of_its_own(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doubles.install(monkeypatch)
    build(tiny)
    newer = doubles.install(monkeypatch, version="10.16.2")
    build(tiny)
    assert timings(newer)[0] == 0
    another = doubles.install(monkeypatch, gpu=b"Another GPU")
    build(tiny)
    assert timings(another)[0] == 0
    assert len(list(cache.glob("*/*/timing-*.cache"))) == 3
    (cache / "a-0123456789ab/tensorrt-sm86").mkdir(parents=True)
    (cache / "a-0123456789ab/tensorrt-sm86/timing.cache").write_bytes(b"as the first versions named it")
    EngineCache(cache).clear()
    assert list(cache.rglob("*")) == []


@pytest.mark.parametrize("data", [b"no timing cache", b"measured by 9.1.0"])
def test_a_timing_cache_that_tensorrt_does_not_take_is_started_afresh(
    tiny: Path, built: doubles.Machine, cache: Path, data: bytes
) -> None:
    folder, key = engines(cache)[0].parent, keys(tiny)[0]
    EngineCache(cache).write_timing(folder, key, data)
    for path in engines(cache):
        path.unlink()
    build(tiny)
    assert timings(built) == [len(data), 0, *[len(MEASURED)] * 5]
    assert EngineCache(cache).timing(folder, key) == MEASURED


def test_a_builder_that_takes_no_timing_cache_builds_without(
    tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubles.install(monkeypatch).takes_timings = False
    assert len(build(tiny).engines) == 6
    assert list(cache.glob("*/*/timing*")) == []
