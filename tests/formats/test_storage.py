"""Everything is written whole or not at all: full disks, interrupts, taken and impossible places."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldrun.errors import FieldrunError, OutputExists, StorageError
from fieldrun.formats import storage
from fieldrun.formats.storage import (
    is_folder,
    new_folder,
    read_json,
    sha256_bytes,
    sha256_file,
    write_bytes,
    write_json,
)


def full_disk(*_: Any, **__: Any) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def interrupt(*_: Any, **__: Any) -> None:
    raise KeyboardInterrupt


def test_a_new_folder_appears_whole(tmp_path: Path) -> None:
    target = tmp_path / "a" / "b"
    with new_folder(target) as folder:
        assert not target.exists()
        assert folder.parent == target.parent, "a rename must not cross file systems"
        (folder / "sub").mkdir()
        write_json(folder / "sub" / "x.json", {"x": 1})
    assert read_json(target / "sub" / "x.json") == {"x": 1}
    assert [path.name for path in target.parent.iterdir()] == ["b"]


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit, StorageError])
def test_a_failing_block_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def work() -> None:
        with new_folder(tmp_path / "out") as folder:
            write_bytes(folder / "half", b"half")
            raise error("in the middle")

    with pytest.raises(error):
        work()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_exists_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").write_text("mine")
    with pytest.raises(OutputExists, match="choose another folder") as caught, new_folder(tmp_path / "out"):
        pytest.fail("the block must not run")
    assert caught.value.exit_code == 2
    assert (tmp_path / "out" / "mine").read_text() == "mine"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_broken_link_and_a_file_count_as_existing(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "file").write_text("x")
    for name in ("link", "file"):
        with pytest.raises(OutputExists), new_folder(tmp_path / name):
            pytest.fail("the block must not run")


def test_a_folder_made_meanwhile_is_left_alone(tmp_path: Path) -> None:
    out = tmp_path / "out"

    def work() -> None:
        with new_folder(out) as folder:
            write_bytes(folder / "ours", b"ours")
            out.mkdir()
            (out / "theirs").write_text("theirs")

    with pytest.raises(OutputExists, match="meanwhile"):
        work()
    assert [path.name for path in tmp_path.rglob("*")] == ["out", "theirs"]


@pytest.mark.parametrize("place", ["file/out", "file/deeper/out", "x" * 300, "/dev/full/out"])
def test_an_impossible_place_is_a_storage_error(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("a file, not a folder")
    for write in (lambda path: new_folder(path).__enter__(), lambda path: write_bytes(path, b"")):
        with pytest.raises(StorageError, match="choose a writable place") as caught:
            write(tmp_path / place)
        assert caught.value.exit_code == 11
        assert "\n" not in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


@pytest.mark.parametrize("call", ["fsync", "rename"])
def test_a_full_disk_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    monkeypatch.setattr(os, call, full_disk)
    with pytest.raises(StorageError, match="No space left on device"), new_folder(tmp_path / "out") as folder:
        (folder / "data").write_bytes(b"data")
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_within_the_block_is_a_storage_error(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match="No space left"), new_folder(tmp_path / "out"):
        full_disk()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["fsync", "replace", "chmod"])
def test_a_failing_write_keeps_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    path = tmp_path / "file"
    write_bytes(path, b"old")
    for failure, error in ((full_disk, StorageError), (interrupt, KeyboardInterrupt)):
        with monkeypatch.context() as patch:
            patch.setattr(os, call, failure)
            with pytest.raises(error):
                write_bytes(path, b"new")
        assert path.read_bytes() == b"old"
        assert [found.name for found in tmp_path.iterdir()] == ["file"]


def test_a_real_full_device_is_a_storage_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    name = tmp_path / "scratch"
    name.touch()
    monkeypatch.setattr(tempfile, "mkstemp", lambda **_: (os.open(full, os.O_WRONLY), str(name)))
    with pytest.raises(StorageError, match="No space left on device"):
        write_bytes(tmp_path / "out", b"x" * 100_000)
    assert list(tmp_path.iterdir()) == []


def test_written_files_have_the_usual_permissions(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        write_bytes(tmp_path / "file", b"")
        with new_folder(tmp_path / "folder"):
            pass
    finally:
        os.umask(mask)
    assert stat.S_IMODE((tmp_path / "file").stat().st_mode) == 0o644
    assert stat.S_IMODE((tmp_path / "folder").stat().st_mode) == 0o755


def test_a_reader_sees_the_old_file_or_the_new_one(tmp_path: Path) -> None:
    path, seen, done = tmp_path / "file", set(), threading.Event()
    write_bytes(path, b"0" * 50_000)

    def read() -> None:
        while not done.is_set():
            seen.add(path.read_bytes())

    thread = threading.Thread(target=read)
    thread.start()
    for digit in b"123456789":
        write_bytes(path, bytes([digit]) * 50_000)
    done.set()
    thread.join()
    assert all(len(content) == 50_000 and len(set(content)) == 1 for content in seen)


@given(st.binary(max_size=3000))
def test_sha256(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "hashed"
    write_bytes(path, data)
    assert sha256_bytes(data) == sha256_file(path) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("content", [b"", b"{", b"\xff", b"[" * 100_000, b"9" * 5000])
def test_what_is_not_json_names_the_file(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "some.json").write_bytes(content)
    with pytest.raises(ValueError, match=r"some\.json is not valid JSON"):
        read_json(tmp_path / "some.json")


def test_json_keeps_text_and_refuses_nan(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"é": "日本", "n": 1.5})
    assert "日本" in (tmp_path / "x.json").read_text("utf-8")
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "y.json", {"n": float("nan")})
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]


def test_is_folder_never_fails(tmp_path: Path) -> None:
    assert is_folder(tmp_path)
    assert not any(is_folder(Path(name)) for name in ("x" * 5000, "a\0b", str(tmp_path / "none")))


def test_every_error_is_a_fieldrun_error() -> None:
    assert issubclass(StorageError, FieldrunError)
    assert issubclass(OutputExists, FieldrunError)


def test_what_a_killed_process_left_is_deleted_and_what_a_living_one_writes_is_not(tmp_path: Path) -> None:
    abandoned = tmp_path / ".out.partial-gone"
    abandoned.mkdir()
    (abandoned / "half").write_bytes(b"x")
    with new_folder(tmp_path / "out") as first:
        assert not abandoned.exists()
        with new_folder(tmp_path / "out") as second:
            assert first.is_dir()
            assert second != first
        (tmp_path / "out").rmdir()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


@pytest.mark.parametrize("in_one_step", [True, False])
def test_a_folder_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, in_one_step: bool) -> None:
    if not in_one_step:
        monkeypatch.setattr(storage, "_exchange", lambda one, other: False)
    out = tmp_path / "out"
    for text in ("first", "second", "third"):
        with new_folder(out, replace=True) as folder:
            (folder / text).write_text(text)
            assert out.exists() == (text != "first")
        assert [path.name for path in out.iterdir()] == [text]
    with pytest.raises(StorageError, match="No such file"), new_folder(out, replace=True) as folder:
        (folder / "missing").unlink()
    assert [path.name for path in out.iterdir()] == ["third"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_a_folder_that_cannot_be_replaced_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "old").write_text("old")
    rename = os.rename
    calls: list[str] = []

    def failing(source: Any, target: Any) -> None:
        calls.append(str(target))
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(storage, "_exchange", lambda one, other: False)
    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(StorageError, match="Input/output error"), new_folder(out, replace=True) as folder:
        (folder / "new").write_text("new")
    assert [path.name for path in out.iterdir()] == ["old"]
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
