"""The sharded teacher field: the same numbers as the raw field, in files that a kill at any moment leaves whole."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer

from fieldrun.distill import shards as module
from fieldrun.distill import teacher as teacher_module
from fieldrun.distill.shards import Projection, extract_shards, read_shards
from fieldrun.distill.teacher import extract_raw_field
from fieldrun.errors import TrainingError

TEXTS = ["a good film", "transfer", "x9", *(f"remember {'the rain and ' * (n % 7)}work {n}" for n in range(15))]
SETTING: dict[str, Any] = {"tokens_per_batch": 32, "dtype": "float32"}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SHARD_TEXTS", 4)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("layers", [1, 3, (0, 2)])
def test_shards_are_the_raw_field_in_pieces(teacher: Path, tmp_path: Path, layers: Any) -> None:
    whole = extract_raw_field(TEXTS, teacher, tmp_path / "raw.npy", layers=layers, tokens_per_batch=1)
    shards = extract_shards(TEXTS, teacher, tmp_path / "shards", layers=layers, dtype="float32", tokens_per_batch=1)
    assert [len(shard) for shard in shards] == [4, 4, 4, 4, 2]
    assert all(shard.dtype == np.float16 and not shard.flags.writeable for shard in shards)
    np.testing.assert_array_equal(np.concatenate(shards), whole)
    batched = extract_shards(TEXTS, teacher, tmp_path / "batched", layers=layers, **SETTING)
    np.testing.assert_allclose(np.concatenate(batched), whole, rtol=2e-3, atol=1e-3)
    assert names(tmp_path / "shards") == [*(f"{i:05d}.npy" for i in range(5)), "shards.json"]


def test_a_projection_is_stored_in_place_of_the_raw_field(teacher: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    projection = Projection(
        centre=rng.standard_normal(32).astype(np.float32), basis=rng.standard_normal((32, 5)).astype(np.float32)
    )
    raw = np.concatenate(extract_shards(TEXTS, teacher, tmp_path / "raw", **SETTING))
    projected = extract_shards(TEXTS, teacher, tmp_path / "projected", projection=projection, **SETTING)
    expected = (raw.astype(np.float64) - projection.centre) @ projection.basis
    np.testing.assert_allclose(np.concatenate(projected), expected, rtol=5e-3, atol=2e-2)
    other = Projection(centre=projection.centre, basis=2 * projection.basis)
    with pytest.raises(TrainingError, match="different projection"):
        extract_shards(TEXTS, teacher, tmp_path / "projected", projection=other, **SETTING)
    with pytest.raises(TrainingError, match=r"takes 32 numbers, the teacher in .* gives 64; fit it again"):
        extract_shards(TEXTS, teacher, tmp_path / "two", layers=2, projection=projection, **SETTING)
    assert not (tmp_path / "two").exists()


def test_a_call_may_stop_early_and_a_later_one_goes_on(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[int, int]] = []
    few = extract_shards(TEXTS, teacher, tmp_path, stop=5, progress=lambda *step: seen.append(step), **SETTING)
    assert [len(shard) for shard in few] == [4, 4]
    assert seen == sorted(seen)
    assert seen[-1] == (8, 8)
    first = (tmp_path / "00000.npy").stat().st_mtime_ns
    assert len(extract_shards(TEXTS, teacher, tmp_path, **SETTING)) == 5
    assert (tmp_path / "00000.npy").stat().st_mtime_ns == first
    monkeypatch.setattr(teacher_module, "load_teacher", lambda *_: pytest.fail("the teacher was loaded"))
    assert len(extract_shards(TEXTS, teacher, tmp_path, **SETTING)) == 5
    (tmp_path / "00001.npy").unlink()  # as long as a shard is missing, those after it do not count
    assert len(read_shards(tmp_path)) == 1


KILLED = """
import os, signal, sys
from pathlib import Path
from fieldrun.distill import shards
from tests.distill.test_shards import SETTING, TEXTS

shards.SHARD_TEXTS = 4
die = lambda *_: os.kill(os.getpid(), signal.SIGKILL)
if sys.argv[3] == "in a batch":
    progress = lambda done, total: done > 5 and die()
else:
    rename, progress = os.replace, None
    os.replace = lambda old, new: die() if str(new).endswith("00001.npy") else rename(old, new)
shards.extract_shards(TEXTS, Path(sys.argv[1]), Path(sys.argv[2]), progress=progress, **SETTING)
"""


@pytest.mark.parametrize("when", ["in a batch", "before a rename"])
def test_a_kill_leaves_whole_shards_and_the_next_call_goes_on(
    teacher: Path, tmp_path: Path, when: str, repository: Path
) -> None:
    whole = np.concatenate(extract_shards(TEXTS, teacher, tmp_path / "whole", **SETTING))
    out = tmp_path / "killed"
    done = subprocess.run([sys.executable, "-c", KILLED, str(teacher), str(out), when], cwd=repository, check=False)
    assert done.returncode == -signal.SIGKILL
    assert len(read_shards(out)) == 1
    left = [name for name in names(out) if name.startswith(".")]
    assert len(left) == (when == "before a rename")
    (out / ".shards.json.killed").write_text("{", "utf-8")
    first = (out / "00000.npy").stat().st_mtime_ns
    np.testing.assert_array_equal(np.concatenate(extract_shards(TEXTS, teacher, out, **SETTING)), whole)
    assert (out / "00000.npy").stat().st_mtime_ns == first
    assert names(out) == names(tmp_path / "whole")


@pytest.mark.parametrize("damage", ["cut", "empty", "other shape", "other type"])
def test_a_damaged_shard_is_thrown_away(teacher: Path, tmp_path: Path, damage: str) -> None:
    whole = np.concatenate(extract_shards(TEXTS, teacher, tmp_path, **SETTING))
    path = tmp_path / "00002.npy"
    if damage == "cut":
        path.write_bytes(path.read_bytes()[:-1])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "other shape":
        np.save(path, np.zeros((3, 32), np.float16))
    else:
        np.save(path, np.zeros((4, 32), np.float32))
    assert len(read_shards(tmp_path)) == 2
    np.testing.assert_array_equal(np.concatenate(extract_shards(TEXTS, teacher, tmp_path, **SETTING)), whole)


def test_shards_of_something_else_are_refused_by_name(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "shards"
    extract_shards(TEXTS, teacher, out, **SETTING)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    tokenizer = Tokenizer.from_file(str(other / "tokenizer.json"))
    tokenizer.add_tokens(["sunshine"])
    tokenizer.save(str(other / "tokenizer.json"))
    cases: list[tuple[list[str], Path, dict[str, Any], str]] = [
        (TEXTS[::-1], teacher, {}, "texts"),
        (TEXTS, other, {}, "teacher"),
        (TEXTS, teacher, {"layers": (1,)}, "layers"),
        (TEXTS, teacher, {"layers": 2}, "layers, width"),
        (TEXTS, teacher, {"max_tokens": 16}, "max_tokens"),
        (TEXTS, teacher, {"dtype": "bfloat16"}, "dtype"),
        (TEXTS[1:], other, {}, "texts, teacher"),
    ]
    for texts, folder, changes, name in cases:
        with pytest.raises(TrainingError, match=rf"shards of something else \(different {name}\); delete it"):
            extract_shards(texts, folder, out, **{**SETTING, **changes})
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    (out / "shards.json").unlink()
    with pytest.raises(TrainingError, match=r"has shards but no shards\.json"):
        extract_shards(TEXTS, teacher, out, **SETTING)
    with pytest.raises(TrainingError, match=r"has no shards\.json; extract"):
        read_shards(out)


def test_auto_is_what_the_machine_has(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = np.concatenate(extract_shards(TEXTS, teacher, tmp_path / "exact", **SETTING))
    monkeypatch.setattr(module, "arithmetic", lambda dtype: {"auto": "bfloat16"}[dtype])
    rough = np.concatenate(extract_shards(TEXTS, teacher, tmp_path / "rough"))
    assert json.loads((tmp_path / "rough" / "shards.json").read_text("utf-8"))["dtype"] == "bfloat16"
    assert 0 < np.abs(rough.astype(np.float32) - exact).max() < 0.1 * np.abs(exact).max()


def test_a_batch_has_the_tokens_it_may_have(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shapes: list[tuple[int, int]] = []
    load = teacher_module.load_teacher

    def watched(folder: Path, dtype: Any) -> Any:
        model = load(folder, dtype)
        model.register_forward_pre_hook(
            lambda _, args, given: shapes.append(given["input_ids"].shape), with_kwargs=True
        )
        return model

    monkeypatch.setattr(teacher_module, "load_teacher", watched)
    monkeypatch.setattr(module, "SHARD_TEXTS", 1000)
    extract_shards(TEXTS * 3, teacher, tmp_path, tokens_per_batch=60, dtype="float32")
    assert sum(rows for rows, _ in shapes) == len(TEXTS) * 3
    assert all(rows * length <= 60 or rows == 1 for rows, length in shapes)
    assert [length for _, length in shapes] == sorted(length for _, length in shapes)
    assert len(shapes) < len(TEXTS)
