"""What is checked before an engine is loaded, and what `fieldrun cache` lists and deletes."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import fieldrun
from fieldrun.errors import EngineError, EngineStale, UsageError
from fieldrun.formats.storage import read_json, sha256_bytes, write_json
from fieldrun_runtimes.tensorrt.build import build
from fieldrun_runtimes.tensorrt.cache import EngineCache, default_cache
from tests.runtimes.tensorrt import doubles
from tests.runtimes.tensorrt.conftest import ABOUT, engines, flip, keys


def refused(bundle: Path, kind: type[EngineError] = EngineError) -> str:
    """The one line of the refusal when the bundle is loaded and its first text encoded."""
    with pytest.raises(kind) as caught, fieldrun.load(bundle, engine="tensorrt") as model:
        model.field(["a good film"])
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == 9
    assert f"fieldrun build {bundle} --target tensorrt" in message
    return message


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
