"""What is checked before an engine is loaded, and what a build does when disk, folder or a neighbour says no."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fieldrun
from fieldrun.bundle import Bundle
from fieldrun.errors import EngineError, EngineStale, StorageError, UsageError
from fieldrun.storage import read_json, sha256_bytes, write_json
from fieldrun_runtimes.tensorrt.build import build
from fieldrun_runtimes.tensorrt.cache import EngineCache, default_cache
from fieldrun_runtimes.tensorrt.device import require_gpu
from fieldrun_runtimes.tensorrt.key import EngineKey, keys_of
from fieldrun_runtimes.tensorrt.library import load_library
from tests.runtimes.tensorrt import doubles


def engines(root: Path) -> list[Path]:
    return sorted(root.glob("*/*/*.engine"))


def keys(bundle: Path) -> list[EngineKey]:
    """What this machine needs of every engine of a bundle."""
    return list(keys_of(Bundle.load(bundle), "tensorrt", load_library("tensorrt"), require_gpu()).values())


def refused(bundle: Path, kind: type[EngineError] = EngineError) -> str:
    """The one line of the refusal when the bundle is loaded and its first text encoded."""
    with pytest.raises(kind) as caught, fieldrun.load(bundle, engine="tensorrt") as model:
        model.field(["a good film"])
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 9
    assert f"fieldrun build {bundle} --target tensorrt" in message
    return message


@pytest.fixture
def built(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> doubles.Machine:
    machine = doubles.install(monkeypatch)
    build(tiny)
    machine.calls.clear()
    return machine


def test_a_second_build_keeps_what_is_valid(tiny: Path, built: doubles.Machine, cache: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in engines(cache)}
    report = build(tiny)
    assert all(engine.reused for engine in report.engines)
    assert not [call for call in built.calls if call.startswith("build")]
    assert {path: path.stat().st_mtime_ns for path in engines(cache)} == before
    assert oct(engines(cache)[0].parent.stat().st_mode & 0o777) == "0o700"


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("tensorrt", "10.7.0", "tensorrt 10.7.0, here 10.3.0"),
        ("device", "Orin", "device Orin, here Double GPU"),
        ("cuda", "12.6", "cuda 12.6, here 13.0"),
        ("jetpack", "36.4.0", "jetpack 36.4.0, here None"),
        ("machine", "0123456789abcdef", "machine 0123456789abcdef, here "),
        ("compute_capability", "8.7", "compute_capability 8.7, here 8.6"),
        ("target", "tensorrt-rtx", "target tensorrt-rtx, here tensorrt"),
        ("bucket", "2x8", "bucket 2x8, here "),
        ("weights_sha256", "cd", "weights_sha256 cd, here "),
        ("graph_sha256", "ab", "graph_sha256 ab, here "),
        ("options", {"tf32": True, "workspace_mib": 256}, "options "),
    ],
)
def test_a_stale_or_foreign_engine_names_both_sides(
    tiny: Path, built: doubles.Machine, cache: Path, field: str, value: Any, says: str
) -> None:
    for path in cache.glob("*/*/*.json"):
        sidecar = read_json(path)
        sidecar["key"][field] = value
        write_json(path, sidecar)
        path.chmod(0o600)
    message = refused(tiny, EngineStale)
    assert says in message
    assert "deserialize_cuda_engine" not in built.calls
    assert not any(engine.reused for engine in build(tiny).engines), "a build replaces what is stale"
    with fieldrun.load(tiny, engine="tensorrt") as model:
        model.field(["a good film"])


def test_another_gpu_or_tensorrt_makes_engines_stale(
    tiny: Path, built: doubles.Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubles.install(monkeypatch, version="10.16.2", gpu=b"Another GPU")
    message = refused(tiny, EngineStale)
    assert "tensorrt 10.3.0, here 10.16.2" in message
    assert "device Double GPU, here Another GPU" in message


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (truncate, "was cut or changed"),
        (flip, "was cut or changed"),
        (lambda path: path.write_bytes(b""), "was cut or changed"),
        (lambda path: path.with_suffix(".json").unlink(), "cannot be used"),
        (lambda path: path.with_suffix(".json").write_text("{"), "is not valid JSON"),
        (lambda path: path.with_suffix(".json").write_text("[]"), "no sidecar of schema 1"),
        (
            lambda path: path.with_suffix(".json").write_text('{"schema": 1, "engine": 3, "key": 4}'),
            "key of the engine",
        ),
        (lambda path: path.chmod(0o666), "can be written by one"),
        (lambda path: path.parent.chmod(0o777), "can be written by one"),
        (lambda path: path.unlink(), "cannot be used"),
    ],
)
def test_a_damaged_engine_is_refused_before_it_is_deserialized(
    tiny: Path, built: doubles.Machine, cache: Path, damage: Callable[[Path], object], says: str
) -> None:
    for path in engines(cache):
        damage(path)
    with pytest.raises(EngineError) as caught, fieldrun.load(tiny, engine="tensorrt") as model:
        model.field(["a good film"])
    assert says in str(caught.value)
    assert "deserialize_cuda_engine" not in built.calls


ABOUT: dict[str, Any] = {"bytes": 1, "seconds": 0.5, "layers": {"table": "int8"}}


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(min_size=1, max_size=64), at=st.integers(0, 63), bit=st.integers(0, 7))
def test_no_flipped_bit_passes(tiny: Path, built: doubles.Machine, cache: Path, data: bytes, at: int, bit: int) -> None:
    path = engines(cache)[0]
    store, key = EngineCache(cache), EngineCache(cache).entries()[0].key
    store.write(path.parent, key, data, ABOUT)
    assert store.read(path.parent, key, "") == data
    damaged = bytearray(data)
    damaged[at % len(data)] ^= 1 << bit
    path.write_bytes(bytes(damaged))
    with pytest.raises(EngineError, match="cut or changed"):
        store.read(path.parent, key, "")


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(at=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_sidecar_with_a_flipped_bit_is_refused_or_still_one(
    tiny: Path, built: doubles.Machine, cache: Path, at: float, bit: int
) -> None:
    path = engines(cache)[0]
    store, key = EngineCache(cache), keys(tiny)[0]
    store.write(path.parent, key, b"engine", ABOUT)
    sidecar = path.with_suffix(".json")
    text = bytearray(sidecar.read_bytes())
    text[int(at * len(text))] ^= 1 << bit
    sidecar.write_bytes(bytes(text))
    about = store.about(path.parent, key)
    if about is None:
        with pytest.raises(EngineError):
            store.read(path.parent, key, "")
    else:
        assert set(about) == set(ABOUT)
        assert [type(value) for value in about.values()] == [int, float, dict]
    json.dumps([entry.to_dict() for entry in store.entries()], allow_nan=False)


ABOUTS: list[Any] = [None, {}, "x", [1], {**ABOUT, "more": 1}, *({**ABOUT, name: None} for name in ABOUT)]
ABOUTS += [{**ABOUT, "layers": "x"}, {**ABOUT, "layers": []}, {**ABOUT, "layers": {"table": 8}}]
ABOUTS += [{**ABOUT, "seconds": float("nan")}, {**ABOUT, "seconds": True}, {**ABOUT, "seconds": "1"}]
DAMAGE = {"about": ABOUTS, "engine": [None, 3, [], {}, "x"], "key": [None, 3, {}]}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in DAMAGE.items() for value in values])
def test_a_damaged_sidecar_is_built_again(
    tiny: Path, built: doubles.Machine, cache: Path, name: str, value: Any
) -> None:
    path = engines(cache)[0]
    sidecar = read_json(path.with_suffix(".json"))
    sidecar[name] = value
    path.with_suffix(".json").write_text(json.dumps(sidecar))
    EngineCache(cache).entries()
    with pytest.raises(EngineError, match="fieldrun build"):
        fieldrun.load(tiny, engine="tensorrt")
    assert [engine.reused for engine in build(tiny).engines].count(False) == 1
    with fieldrun.load(tiny, engine="tensorrt") as model:
        model.field(["a good film"])


@pytest.mark.parametrize(
    ("field", "value"), [("graph", 3), ("device", []), ("machine", None), ("options", {"tf32": None}), ("options", 0)]
)
def test_a_key_of_wrong_types_is_none(tiny: Path, built: doubles.Machine, cache: Path, field: str, value: Any) -> None:
    entries = EngineCache(cache).entries()
    path = entries[0].path.with_suffix(".json")
    sidecar = read_json(path)
    sidecar["key"][field] = value
    path.write_text(json.dumps(sidecar))
    assert EngineCache(cache).entries() == entries[1:]


def test_an_engine_that_tensorrt_refuses_says_build_again(tiny: Path, built: doubles.Machine, cache: Path) -> None:
    for path in engines(cache):
        foreign = json.dumps({"version": "9", "graph": ""}).encode()
        path.write_bytes(foreign)
        sidecar = read_json(path.with_suffix(".json"))
        sidecar["engine"] = {"bytes": len(foreign), "sha256": sha256_bytes(foreign)}
        write_json(path.with_suffix(".json"), sidecar)
    assert "cannot open its own engine" in refused(tiny)


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
    with pytest.raises(StorageError, match=r"need about \d+ MB in .* and there are 0 MB"):
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
        patch.setattr("fieldrun.storage.os.fsync", full)
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


def test_only_rtx_builds_for_another_gpu(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doubles.install(monkeypatch)
    with pytest.raises(EngineError, match=r"builds for the GPU that it runs on, 8\.6, not for 8\.9"):
        build(tiny, compute_capability="8.9")
    doubles.install(monkeypatch, version="1.7.1", rtx=True, gpu=None)
    with pytest.raises(EngineError, match=r"builds for 8\.6, 8\.9, 12\.0, not for 8\.7"):
        build(tiny, target="tensorrt-rtx", compute_capability="8.7")
    with pytest.raises(EngineError, match="name one with --compute-capability"):
        build(tiny, target="tensorrt-rtx")


def test_engines_built_ahead_for_another_gpu_are_not_run_here(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doubles.install(monkeypatch, version="1.7.1", rtx=True, gpu=None)
    build(tiny, target="tensorrt-rtx", compute_capability="8.6")
    doubles.install(monkeypatch, version="1.7.1", rtx=True)
    with pytest.raises(EngineStale, match="device None, here Double GPU"):
        fieldrun.load(tiny, engine="tensorrt-rtx")


def test_list_and_clear(tiny: Path, built: doubles.Machine, cache: Path) -> None:
    (cache / "mine.txt").write_text("keep")
    store = EngineCache(cache)
    entries = store.entries()
    assert [entry.path for entry in entries] == engines(cache)
    assert {entry.key.target for entry in entries} == {"tensorrt"}
    count, size = store.clear()
    assert count == len(entries)
    assert size > sum(entry.bytes for entry in entries), "sidecars and the timing cache too"
    assert [path.name for path in cache.rglob("*")] == ["mine.txt"]
    assert store.clear() == (0, 0)


def test_what_others_keep_is_neither_listed_nor_deleted(tiny: Path, built: doubles.Machine, cache: Path) -> None:
    mine = engines(cache)
    folder = mine[0].parent
    foreign = {
        "models/tensorrt-llm/config.json": '{"architecture": "x"}',
        "models/tensorrt/foo.engine": "plan",
        "models/tensorrt/foo.json": "{}",
        "models/tensorrt/timing.cache": "measured by another program",
        "models/tensorrt-sm86/foo.engine": "plan",
        "llm-0123456789ab/tensorrt-llm/rank0.engine": "plan",
        "llm-0123456789ab/tensorrt-sm86.json": "{}",
        f"{folder.relative_to(cache)}/notes.json": '{"key": {}, "schema": 1}',
        f"{folder.relative_to(cache)}/notes.txt": "a",
    }
    for name, text in foreign.items():
        (cache / name).parent.mkdir(parents=True, exist_ok=True)
        (cache / name).write_text(text)
    shutil.copy(mine[0].with_suffix(".json"), cache / "models/tensorrt/foo.json")  # even with a sidecar of ours
    store = EngineCache(cache)
    assert [entry.path for entry in store.entries()] == mine
    assert store.clear()[0] == len(mine)
    left = {path.relative_to(cache).as_posix() for path in cache.rglob("*") if path.is_file()}
    assert left == set(foreign)


def test_damaged_pairs_are_deleted_where_engines_are_kept(tiny: Path, built: doubles.Machine, cache: Path) -> None:
    first, second, third, *_ = engines(cache)
    first.with_suffix(".json").write_text("{")
    second.with_suffix(".json").unlink()
    third.unlink()
    assert EngineCache(cache).clear()[0] == 5, "one of the six is not there"
    assert list(cache.rglob("*")) == []


def test_an_empty_name_is_not_the_current_folder() -> None:
    with pytest.raises(UsageError, match="the engine cache has an empty name"):
        EngineCache("")


def test_the_default_place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("FIELDRUN_CACHE", str(tmp_path))
    assert default_cache() == tmp_path
    monkeypatch.delenv("FIELDRUN_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache() == tmp_path / "fieldrun" / "engines"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_cache() == Path.home() / ".cache" / "fieldrun" / "engines"
