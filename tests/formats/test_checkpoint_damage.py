"""A changed byte, a wrong tensor or a setting that makes no sense is refused in one line; a pickle is never loaded."""

from __future__ import annotations

import functools
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldrun.errors import CheckpointError, SchemaTooNew
from fieldrun.formats import checkpoint as module
from fieldrun.formats.storage import read_json, sha256_file
from fieldrun.formats.tensors import Array, read_tensors, write_tensors
from fieldrun.heads.trained import Checkpoint

FILES = (
    "student.safetensors",
    "tokenizer.json",
    "training.json",
    "CARD.md",
    "heads/mood.json",
    "heads/mood.safetensors",
)


@pytest.fixture
def folder(toy_checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of the toy checkpoint, to be damaged."""
    return Path(shutil.copytree(toy_checkpoint, tmp_path / "checkpoint"))


def edit(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = read_json(path)
    change(value)
    path.write_text(json.dumps(value))


def rehash(folder: Path) -> None:
    """Make `student.json` agree with the files, so that only what they hold is wrong."""
    files = read_json(folder / "student.json")["files"]
    for name, entry in files.items():
        entry |= {"bytes": (folder / name).stat().st_size, "sha256": sha256_file(folder / name)}
    edit(folder / "student.json", lambda about: about.update(files=files))


def replace_tensors(folder: Path, name: str, change: Callable[[dict[str, Array]], object]) -> None:
    tensors = {key: tensor.copy() for key, tensor in read_tensors(folder / name).items()}
    change(tensors)
    (folder / name).unlink()  # the old file may be mapped
    (folder / name).write_bytes(write_tensors(tensors))
    rehash(folder)


def refused(folder: Path, kind: type[CheckpointError] | type[SchemaTooNew] = CheckpointError) -> str:
    with pytest.raises(kind) as caught:
        Checkpoint.load(folder)
    message = str(caught.value)
    assert "\n" not in message
    assert caught.value.exit_code == (5 if kind is CheckpointError else 6)
    return message


@pytest.mark.parametrize("name", ["student.json", *FILES])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    assert name in refused(folder)


@pytest.mark.parametrize("name", FILES)
def test_a_truncated_or_flipped_file_is_named(folder: Path, name: str) -> None:
    whole = (folder / name).read_bytes()
    flipped = bytearray(whole)
    flipped[len(whole) // 2] ^= 1
    for damaged in (whole[:-1], b"", bytes(flipped), whole + b"\n"):
        (folder / name).write_bytes(damaged)
        assert name in refused(folder)


def test_swapped_files_are_seen(folder: Path) -> None:
    a, b = folder / "heads" / "mood.safetensors", folder / "heads" / "intent.safetensors"
    a_bytes = a.read_bytes()
    a.write_bytes(b.read_bytes())
    b.write_bytes(a_bytes)
    assert "intent.safetensors" in refused(folder) or "mood.safetensors" in refused(folder)
    rehash(folder)
    assert "'weight' has shape" in refused(folder)


@pytest.mark.parametrize(
    "change",
    [
        lambda about: about.update(colour="red"),
        lambda about: about.pop("licence"),
        lambda about: about.update(schema=0),
        lambda about: about.update(schema="1"),
        lambda about: about.update(files=[]),
        lambda about: about.update(provenance=3),
        lambda about: about.update(heads="mood"),
        lambda about: about.update(heads=[*about["heads"], "../mood"]),
        lambda about: about.update(heads=about["heads"] * 2),
        lambda about: about.update(student=[]),
        lambda about: about["student"].update(width="wide"),
        lambda about: about["student"].update(ngram_buckets=61.0),
        lambda about: about["student"].update(width=17),
        lambda about: about["student"].update(mean=1),
        lambda about: about["student"].update(mean=False),
        lambda about: about["student"].update(ngrams=[[0]]),
        lambda about: about["student"].update(mixer_kernel=3),
        lambda about: about["student"].pop("mixer_kernel"),
        lambda about: about["files"].update({"extra.bin": about["files"]["tokenizer.json"]}),
        lambda about: about["files"].pop("tokenizer.json"),
        lambda about: about["files"].update({"tokenizer.json": {"bytes": 1}}),
        lambda about: about["files"].update({"tokenizer.json": None}),
        *(
            functools.partial(dict.update, files={name: {"bytes": 1, "sha256": ""}})
            for name in ("../x", "/etc/passwd", "heads/../../x", "C:x", "a\\b", "./x", "")
        ),
    ],
)
def test_a_student_json_that_makes_no_sense_is_refused(folder: Path, change: Any) -> None:
    edit(folder / "student.json", change)
    refused(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"null"])
def test_a_student_json_that_is_not_one_is_refused(folder: Path, content: bytes) -> None:
    (folder / "student.json").write_bytes(content)
    assert "student.json" in refused(folder)


def test_a_newer_schema_asks_for_an_upgrade(folder: Path) -> None:
    edit(folder / "student.json", lambda about: about.update(schema=module.SCHEMA + 1, more="keys"))
    assert "pip install --upgrade fieldrun" in refused(folder, SchemaTooNew)


def test_a_link_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside.json"
    shutil.move(folder / "tokenizer.json", outside)
    (folder / "tokenizer.json").symlink_to(outside)
    assert "tokenizer.json is a link to a file outside the folder" in refused(folder)
    shutil.move(folder / "heads", tmp_path / "heads")
    (folder / "tokenizer.json").unlink()
    shutil.move(outside, folder / "tokenizer.json")
    (folder / "heads").symlink_to(tmp_path / "heads")
    assert "link to a file outside the folder" in refused(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("pool.weight"), "lacks the tensor 'pool.weight'"),
        (lambda tensors: tensors.update(more=np.zeros(1, "f4")), "unknown tensor 'more'"),
        (lambda tensors: tensors.update({"hidden.bias": np.zeros(2, "f4")}), "expected (24,)"),
        (lambda tensors: tensors["embedding"].__setitem__((3, 3), np.nan), "NaN or infinity"),
        (lambda tensors: tensors.update({"hidden.bias": np.zeros(24, "i8")}), "expected a float"),
        (lambda tensors: tensors["pool.weight"].__setitem__(0, -0.5), "'pool.weight' holds a negative number"),
    ],
)
def test_wrong_tensors_with_right_hashes_are_named(folder: Path, change: Any, message: str) -> None:
    replace_tensors(folder, "student.safetensors", change)
    assert message in refused(folder)


def test_wrong_heads_with_right_hashes_are_named(folder: Path) -> None:
    replace_tensors(folder, "heads/mood.safetensors", lambda tensors: tensors["bias"].__setitem__(0, np.inf))
    assert "head 'mood': tensor 'bias' holds NaN" in refused(folder)
    replace_tensors(folder, "heads/mood.safetensors", lambda tensors: tensors.pop("bias"))
    assert "exactly the tensors" in refused(folder)


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("heads/mood.json", lambda head: head.update(name="same"), "describes the head 'same'"),
        ("heads/mood.json", lambda head: head.update(colour=1), "unknown keys: colour"),
        ("heads/mood.json", lambda head: head.update(weight=[1.0]), "exactly the tensors"),
        ("heads/mood.json", lambda head: head.update(labels=["bad", None]), "list of strings"),
        ("heads/mood.json", lambda head: head.update(labels=7), "wrong type"),
        ("heads/mood.json", lambda head: head.update(temperature=float("nan")), "temperature"),
        ("tokenizer.json", lambda t: t["model"]["vocab"].update(zebra=9999), "token id 9999"),
        ("tokenizer.json", lambda t: t.update(added_tokens=[{"id": 500, "content": "x"}]), "token id 500"),
        ("tokenizer.json", lambda t: t["model"]["vocab"].update(zebra="x"), "not a tokenizer"),
        ("tokenizer.json", lambda t: t["model"].update(vocab={}), "not a tokenizer"),
        ("tokenizer.json", lambda t: t["model"].update(vocab=[["a", 1.0]]), "not a tokenizer"),
        ("tokenizer.json", lambda t: t.clear(), "not a tokenizer"),
    ],
)
def test_wrong_json_with_right_hashes_is_named(folder: Path, name: str, change: Any, message: str) -> None:
    edit(folder / name, change)
    rehash(folder)
    assert message in refused(folder)


@pytest.mark.parametrize("name", ["tokenizer.json", "training.json", "heads/mood.json"])
@pytest.mark.parametrize("content", [b"[]", b"\xff", b"{", b"3"])
def test_other_json_with_right_hashes_is_refused(folder: Path, name: str, content: bytes) -> None:
    (folder / name).write_bytes(content)
    rehash(folder)
    refused(folder)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a pickle was loaded",)


@pytest.mark.parametrize("name", ["student.safetensors", "heads/mood.safetensors", "tokenizer.json", "training.json"])
def test_a_pickle_is_refused_and_never_loaded(folder: Path, name: str) -> None:
    (folder / name).write_bytes(pickle.dumps(Bomb()))
    refused(folder)
    rehash(folder)
    refused(folder)


def test_an_unreadable_file_is_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("fieldrun.formats.integrity.read_bytes", denied)
    assert "Permission denied" in refused(folder)
