"""The checkpoint folder: what is saved is loaded, and a failing save leaves nothing."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fieldrun.errors import CheckpointError, OutputExists, StorageError
from fieldrun.formats import checkpoint as module
from fieldrun.formats.checkpoint import resolve_checkpoint
from fieldrun.formats.storage import write_json
from fieldrun.heads.trained import Checkpoint
from tests import toy


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    saved = toy.toy_checkpoint(3)
    saved = dataclasses.replace(saved, record={"seconds": {"all": 1.0}}, provenance={"note": "x"})
    saved.save(tmp_path / "c", dtype="float32")
    loaded = Checkpoint.load(tmp_path / "c")
    assert (loaded.name, loaded.config, loaded.licence) == (saved.name, saved.config, saved.licence)
    assert (loaded.record, loaded.provenance, loaded.tokenizer) == (saved.record, saved.provenance, saved.tokenizer)
    assert {name: t.tobytes() for name, t in loaded.tensors.items()} == {
        n: t.tobytes() for n, t in saved.tensors.items()
    }
    for a, b in zip(loaded.heads, saved.heads, strict=True):
        assert (a.name, a.kind, a.labels, a.temperature, a.about) == (b.name, b.kind, b.labels, b.temperature, b.about)
        np.testing.assert_array_equal(a.weight, b.weight)
    assert loaded.parameters() == sum(t.size for t in saved.tensors.values()) + sum(
        head.weight.size + head.bias.size for head in saved.heads
    )


def test_float16_is_the_default_and_rounds_once(tmp_path: Path, toy_checkpoint: Path) -> None:
    loaded = Checkpoint.load(toy_checkpoint)
    for name, tensor in toy.toy_checkpoint().tensors.items():
        assert loaded.tensors[name].dtype == np.float32
        np.testing.assert_array_equal(loaded.tensors[name], tensor.astype(np.float16).astype(np.float32))
    loaded.save(tmp_path / "again")
    for path in toy_checkpoint.rglob("*.*"):
        assert (tmp_path / "again" / path.relative_to(toy_checkpoint)).read_bytes() == path.read_bytes()


def test_a_value_beyond_float16_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    checkpoint = toy.toy_checkpoint()
    tensors = dict(checkpoint.tensors) | {"hidden.bias": np.full(24, 1e5, np.float32)}
    with pytest.raises(CheckpointError, match=r"student as float16: tensor 'hidden\.bias' holds NaN or infinity"):
        dataclasses.replace(checkpoint, tensors=tensors).save(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []
    dataclasses.replace(checkpoint, tensors=tensors).save(tmp_path / "c", dtype="float32")


def test_a_negative_pooling_weight_is_neither_saved_nor_used(tmp_path: Path) -> None:
    checkpoint = toy.toy_checkpoint()
    weight = checkpoint.tensors["pool.weight"].copy()
    weight[3] = -1e-3
    negative = dataclasses.replace(checkpoint, tensors=dict(checkpoint.tensors) | {"pool.weight": weight})
    for use in (negative.validate, lambda: negative.save(tmp_path / "c")):
        with pytest.raises(CheckpointError, match=r"'pool\.weight' holds a negative number") as caught:
            use()
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
    dataclasses.replace(negative, tensors=dict(negative.tensors) | {"pool.weight": 0 * weight}).validate()
    toy.toy_checkpoint(mean=False).validate()


def test_save_keeps_what_is_there(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(OutputExists):
        toy.toy_checkpoint().save(tmp_path / "file")
    with pytest.raises(StorageError):
        toy.toy_checkpoint().save(tmp_path / "file" / "c")
    assert (tmp_path / "file").read_text() == "mine"


def test_two_heads_of_one_name_cannot_be_saved(tmp_path: Path) -> None:
    checkpoint = toy.toy_checkpoint()
    with pytest.raises(CheckpointError, match="same name"):
        dataclasses.replace(checkpoint, heads=checkpoint.heads[:1] * 2).save(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", ["nowhere", "x" * 5000, "a\0b"])
def test_no_checkpoint_there(path: str) -> None:
    with pytest.raises(CheckpointError, match="fieldrun distill"):
        Checkpoint.load(path)


def test_reference_is_the_one_of_the_repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "REFERENCE_CHECKPOINT", tmp_path / "none")
    with pytest.raises(CheckpointError, match=r"run 'make wheels', then 'pip install dist/"):
        resolve_checkpoint("reference")
    installed = tmp_path / "installed" / "fieldrun_reference"
    (installed / "checkpoint").mkdir(parents=True)
    (installed / "__init__.py").touch()
    monkeypatch.syspath_prepend(installed.parent)
    assert resolve_checkpoint("reference") == installed / "checkpoint"
    (tmp_path / "none").mkdir()
    assert resolve_checkpoint("reference") == tmp_path / "none"
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "student.json").touch()
    with pytest.warns(UserWarning, match="is the shipped checkpoint"):
        assert resolve_checkpoint("reference") == tmp_path / "none"
    assert resolve_checkpoint("./reference") == Path("reference")


def test_a_full_disk_leaves_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: Any) -> None:
        if path.name == "mood.json":
            raise OSError(errno.ENOSPC, "No space left on device")
        write_json(path, value)

    monkeypatch.setattr(module, "write_json", full)
    with pytest.raises(StorageError, match="No space left"):
        toy.toy_checkpoint().save(tmp_path / "c")
    assert list(tmp_path.iterdir()) == []
