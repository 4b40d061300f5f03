"""From a data folder to a checkpoint: whole runs, runs that are killed, and runs that cannot start."""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from tokenizers import Tokenizer

import fieldrun
from fieldrun.cli import main
from fieldrun.distill import distill, pipeline
from fieldrun.distill.recipe import load_recipe
from fieldrun.errors import (
    CheckpointError,
    DatasetError,
    FieldrunError,
    OutputExists,
    RecipeError,
    StorageError,
    TrainingError,
    UnknownName,
    UsageError,
)
from fieldrun.evaluation.dataset import read_tsv
from fieldrun.formats.storage import sha256_file
from fieldrun.heads.trained import Checkpoint
from tests.portable import unportable

DYING = """
import os, signal, sys
import fieldrun

where, recipe, data, teacher, out = sys.argv[1:]
phase, step = where.split(":")

def watch(*now):
    if now[0] == phase and now[1] >= int(step):
        os.kill(os.getpid(), signal.SIGKILL)

fieldrun.distill(recipe, data, teacher, out, threads=1, progress=watch)
"""


def contents(checkpoint: Path) -> dict[str, Any]:
    """Everything in a checkpoint but the seconds that it took."""
    found: dict[str, Any] = {
        path.relative_to(checkpoint).as_posix(): path.read_bytes() for path in checkpoint.rglob("*") if path.is_file()
    }
    record = json.loads(found.pop("training.json"))
    assert record.pop("seconds").keys() == {"raw field", "compressor", "student"}
    about = json.loads(found.pop("student.json"))
    del about["files"]["training.json"]
    return found | {"record": record, "about": about}


def test_the_checkpoint_loads_and_has_learnt(trained: Path, data: Path) -> None:
    checkpoint = Checkpoint.load(trained)
    assert checkpoint.name == "tiny"
    assert [(h.name, h.kind, h.labels) for h in checkpoint.heads] == [
        ("intent", "single", ("card", "cash", "transfer")),
        ("mood", "single", ("bad", "good")),
        ("same", "pair", ("no", "yes")),
    ]
    for task, least in (("mood", 0.75), ("intent", 0.5)):  # by chance a half and a third
        results = checkpoint.record["results"][task]
        assert results["student"]["report"]["n"] == len(read_tsv(data / task / "test.tsv"))
        assert results["student"]["report"]["accuracy"] > least
        assert results["compressed_field"]["accuracy"] > least


def test_the_record_says_where_everything_came_from(trained: Path, recipe: Path, data: Path, teacher: Path) -> None:
    checkpoint = Checkpoint.load(trained)
    record, provenance = checkpoint.record, checkpoint.provenance
    assert record["recipe"] == json.loads(json.dumps(load_recipe(recipe).to_dict()))
    files = {path.relative_to(data).as_posix(): sha256_file(path) for path in data.rglob("*") if path.is_file()}
    assert provenance["data"]["sha256"] == files
    assert provenance["teacher"]["sha256"] == {
        name: sha256_file(teacher / name) for name in ("config.json", "model.safetensors", "tokenizer.json")
    }
    assert (provenance["teacher"]["name"], provenance["teacher"]["finetuned"]) == (teacher.name, False)
    assert record["machine"]["libraries"] == {
        name: version(name) for name in ("torch", "transformers", "tokenizers", "numpy")
    }
    assert record["curves"]["student"][-1]["loss"] < record["curves"]["student"][0]["loss"]
    assert record["curves"]["compressor"][-1]["step"] == 80
    assert record["texts"]["corpus"]["talk"][1] - record["texts"]["corpus"]["talk"][0] == 40
    assert provenance["results"]["mood"] == record["results"]["mood"]["student"]
    assert str(data) not in json.dumps([record, provenance])


def test_the_checkpoint_becomes_a_bundle_with_the_same_accuracy(trained: Path, data: Path, tmp_path: Path) -> None:
    fieldrun.export(trained, tmp_path / "bundle")
    assert fieldrun.verify(tmp_path / "bundle").passed
    test = read_tsv(data / "intent" / "test.tsv")
    with fieldrun.load(tmp_path / "bundle") as model:
        predicted = model.predict(list(test.texts), "intent")
    hits = np.mean([a == b for a, b in zip(predicted, test.labels, strict=True)])
    expected = Checkpoint.load(trained).record["results"]["intent"]["student"]["report"]["accuracy"]
    assert hits == pytest.approx(expected, abs=0.04)


@pytest.mark.slow
def test_killed_and_resumed_by_the_same_command(
    trained: Path, recipe: Path, data: Path, teacher: Path, tmp_path: Path
) -> None:
    out, work = tmp_path / "checkpoint", tmp_path / "checkpoint.work"
    script: list[str | Path] = [sys.executable, "-c", DYING, "student:12", recipe, data, teacher, out]
    child = subprocess.run(script, capture_output=True, text=True, check=False)
    assert child.returncode == -signal.SIGKILL, child.stderr
    assert not out.exists()
    assert torch.load(work / "student.state", weights_only=True)["step"] == 10
    command = ["distill", str(recipe), str(data), "--teacher", str(teacher), "-o", str(out), "--json"]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["tasks"] == ["intent", "mood", "same"]
    whole_work = trained.with_name("checkpoint.work")
    assert (work / "raw_field.npy").read_bytes() == (whole_work / "raw_field.npy").read_bytes()
    assert unportable(whole_work) == unportable(trained) == []
    assert contents(out) == contents(trained)


def test_another_seed_gives_other_weights_and_progress_is_told(
    trained: Path, recipe: Path, data: Path, teacher: Path, tmp_path: Path
) -> None:
    phases: list[tuple[str, int, int]] = []
    other = tmp_path / "other.toml"
    other.write_text(recipe.read_text("utf-8").replace("seed = 3", "seed = 4"), "utf-8")
    distill(other, data, teacher, tmp_path / "other", progress=lambda *step: phases.append(step))
    assert list(dict.fromkeys(phase for phase, _, _ in phases)) == [
        "read",
        "raw field",
        "compressor",
        "student",
        "heads",
    ]
    assert all(0 <= done <= total for _, done, total in phases)
    assert (tmp_path / "other" / "student.safetensors").read_bytes() != (trained / "student.safetensors").read_bytes()


def test_a_finished_run_is_not_done_again(
    trained: Path, recipe: Path, data: Path, teacher: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained.with_name("checkpoint.work"), tmp_path / "work")
    distill(recipe, data, teacher, tmp_path / "again", work=tmp_path / "work")
    assert contents(tmp_path / "again") == contents(trained)


def test_a_work_folder_of_another_run_is_refused(
    trained: Path, recipe: Path, data: Path, teacher: Path, tmp_path: Path
) -> None:
    work = trained.with_name("checkpoint.work")
    other = tmp_path / "other.toml"
    other.write_text(recipe.read_text("utf-8").replace("epochs = 20", "epochs = 21"), "utf-8")
    with pytest.raises(TrainingError, match=r"belongs to another run \(different recipe\); choose another work folder"):
        distill(other, data, teacher, tmp_path / "out", work=work)
    changed = tmp_path / "data"
    shutil.copytree(data, changed)
    with (changed / "mood" / "train.tsv").open("a", encoding="utf-8") as file:
        file.write("one more\tgood\n")
    with pytest.raises(TrainingError, match=r"\(different data\)"):
        distill(recipe, changed, teacher, tmp_path / "out", work=work)
    damaged = tmp_path / "work"
    damaged.mkdir()
    (damaged / "run.json").write_text("{", "utf-8")
    with pytest.raises(TrainingError, match=r"run\.json is corrupt; delete"):
        distill(recipe, data, teacher, tmp_path / "out", work=damaged)
    assert not (tmp_path / "out").exists()


TUNED = """
[finetune]
learning_rate = 1e-3
frozen_layers = 1
tokens = 600
dtype = "float32"
[[tasks]]
name = "mood"
report = "test.tsv"
phrases = true
augment = 1
tune_rows = 64
[[tasks]]
name = "same"
report = "dev.tsv"
tune = 0
[[tasks]]
name = "alike"
report = "dev.tsv"
similarity = 5
"""


def test_a_tuned_teacher_and_graded_pairs(recipe: Path, graded: Path, teacher: Path, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    other = tmp_path / "tuned.toml"
    phases: list[str] = []
    other.write_text(recipe.read_text("utf-8").replace("epochs = 20", "epochs = 3") + TUNED, "utf-8")

    def watch(phase: str, done: int, total: int) -> None:
        phases.append(phase)
        if phase == "student":
            raise Killed

    with pytest.raises(Killed):
        distill(other, graded, teacher, tmp_path / "out", progress=watch)
    assert list(dict.fromkeys(phases)) == ["read", "fine-tuning", "raw field", "compressor", "student"]
    phases.clear()
    distill(other, graded, teacher, tmp_path / "out", progress=lambda phase, *_: phases.append(phase))
    assert "fine-tuning" not in phases, "what is finished is not done again"
    checkpoint = Checkpoint.load(tmp_path / "out")
    assert [head.name for head in checkpoint.heads] == ["mood", "same"]
    source = checkpoint.provenance["teacher"]
    assert (source["name"], source["finetuned"]) == (teacher.name, True)
    assert source["sha256"]["model.safetensors"] == sha256_file(teacher / "model.safetensors")
    assert set(checkpoint.record["seconds"]) == {"fine-tuning", "raw field", "compressor", "student"}
    results = checkpoint.record["results"]
    found = results["alike"]["student"]["report"]
    assert found["n"] == len(read_tsv(graded / "alike" / "dev.tsv"))
    assert -1 <= found["spearman"] <= 1
    assert -1 <= results["alike"]["compressed_field"]["spearman_64"] <= 1
    assert 0 <= results["mood"]["student"]["report"]["ece"] <= 1
    card = (tmp_path / "out" / "CARD.md").read_text("utf-8")
    assert "fine-tuned on the tasks" in card
    assert "Spearman's correlation" in card


def without(folder: Path, tmp_path: Path, name: str) -> Path:
    shutil.copytree(folder, tmp_path / "copy")
    (tmp_path / "copy" / name).unlink()
    return tmp_path / "copy"


def test_a_run_that_cannot_start_leaves_nothing(recipe: Path, data: Path, teacher: Path, tmp_path: Path) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    file = tmp_path / "file"
    file.write_text("", "utf-8")
    broken = tmp_path / "broken.toml"
    broken.write_text("schema = 1\ncolour = 'red'\n", "utf-8")
    empty = tmp_path / "empty"
    empty.mkdir()
    before = sorted(tmp_path.rglob("*"))
    out = tmp_path / "out"
    cases: list[tuple[type[FieldrunError], str, tuple[Any, ...]]] = [
        (OutputExists, "taken exists; choose another folder", (recipe, data, teacher, taken)),
        (UnknownName, "unknown recipe 'best'", ("best", data, teacher, out)),
        (RecipeError, "unknown keys: colour", (broken, data, teacher, out)),
        (RecipeError, r"training on \[pool\] is not built yet", ("open", data, teacher, out)),
        (TrainingError, r"no data folder at .*; give a folder with", (recipe, empty / "x", teacher, out)),
        (TrainingError, r"lacks config\.json, model\.safetensors, ", (recipe, data, empty, out)),
        (TrainingError, "cannot use the work folder", (recipe, data, teacher, out, file)),
        (UsageError, "threads must be a positive integer", (recipe, data, teacher, out, None, 0)),
    ]  # fmt: skip
    for error, message, arguments in cases:
        with pytest.raises(error, match=message) as caught:
            pipeline.run(*arguments)
        assert "\n" not in str(caught.value)
        assert sorted(tmp_path.rglob("*")) == before


def test_data_that_cannot_be_trained_on(recipe: Path, data: Path, teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    with pytest.raises(DatasetError, match="has no task; add"):
        distill(recipe, tmp_path / "data", teacher, tmp_path / "out")
    with pytest.raises(DatasetError, match=r"corpus .*talk\.txt does not exist"):
        distill(recipe, without(data, tmp_path, "corpus/talk.txt"), teacher, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def change_tokenizer(folder: Path, change: Any) -> None:
    path = folder / "tokenizer.json"
    value = json.loads(path.read_text("utf-8"))
    change(value)
    path.write_text(json.dumps(value), "utf-8")
    Tokenizer.from_file(str(path))


@pytest.mark.parametrize("what", ["pad", "frame"])
def test_a_tokenizer_of_another_kind_is_refused(
    recipe: Path, data: Path, teacher: Path, tmp_path: Path, what: str
) -> None:
    def change(value: dict[str, Any]) -> None:
        if what == "pad":
            vocab = value["model"]["vocab"]
            vocab["[PAD]"], vocab["[UNK]"] = vocab["[UNK]"], vocab["[PAD]"]
        else:
            value["post_processor"] = None

    folder = tmp_path / "teacher"
    shutil.copytree(teacher, folder)
    change_tokenizer(folder, change)
    with pytest.raises(TrainingError, match=r"must have \[PAD\] as id 0 and add \[CLS\] and \[SEP\]; use an encoder"):
        distill(recipe, data, folder, tmp_path / "out")


def test_a_teacher_with_a_vocabulary_too_large_for_the_hash(
    recipe: Path, data: Path, teacher: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(teacher, folder)
    change_tokenizer(folder, lambda value: value["model"]["vocab"].update({"zebra": 90_000}))
    with pytest.raises(RecipeError, match="overflows the 32-bit n-gram hash"):
        distill(recipe, data, folder, tmp_path / "out")


@contextmanager
def disk_of(n_bytes: int) -> Iterator[None]:
    """No file can grow beyond `n_bytes`; Python is told so by EFBIG, as by ENOSPC of a full disk."""
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    old = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (n_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
        signal.signal(signal.SIGXFSZ, old)


@pytest.mark.skipif(not hasattr(os, "posix_fallocate"), reason="this system finds a full disk out later")
def test_no_room_for_the_raw_field(trained: Path, recipe: Path, data: Path, teacher: Path, tmp_path: Path) -> None:
    with disk_of(20_000), pytest.raises(TrainingError, match=r"cannot use the work folder .*free space"):
        distill(recipe, data, teacher, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    distill(recipe, data, teacher, tmp_path / "out")  # once there is room, the same call gives the same bytes
    assert contents(tmp_path / "out") == contents(trained)


def test_no_room_for_the_state(
    trained: Path, recipe: Path, data: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained.with_name("checkpoint.work"), tmp_path / "work")
    for name in ("compressed.pt", "student.state"):
        (tmp_path / "work" / name).unlink()
    with disk_of(100_000), pytest.raises(StorageError, match=r"cannot write .*compressed\.pt"):
        distill(recipe, data, teacher, tmp_path / "out", work=tmp_path / "work")
    assert {p.name for p in (tmp_path / "work").iterdir()} == {
        "raw_field.npy", "raw_field.npy.json", "run.json", "seconds.json",
    }  # fmt: skip
    assert not (tmp_path / "out").exists()


def test_no_room_for_the_checkpoint(
    trained: Path, recipe: Path, data: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(trained.with_name("checkpoint.work"), tmp_path / "work")
    monkeypatch.setattr(pipeline, "_machine", lambda _: {"padding": "x" * 100_000})
    with disk_of(50_000), pytest.raises(StorageError, match=r"cannot write .*out"):
        distill(recipe, data, teacher, tmp_path / "out", work=tmp_path / "work")
    assert [p.name for p in tmp_path.iterdir()] == ["work"]


def test_a_weight_that_is_not_finite_is_not_saved(
    trained: Path, recipe: Path, data: Path, teacher: Path, tmp_path: Path
) -> None:
    shutil.copytree(trained.with_name("checkpoint.work"), tmp_path / "work")
    path = tmp_path / "work" / "student.state"
    state = torch.load(path, weights_only=True)
    state["student"]["field.bias"][0] = float("nan")
    torch.save(state, path)
    with pytest.raises(CheckpointError, match=r"'field\.bias' holds NaN"):
        distill(recipe, data, teacher, tmp_path / "out", work=tmp_path / "work")
    assert not (tmp_path / "out").exists()


def test_the_command_line_gives_one_line_and_the_exit_code(recipe: Path, data: Path, tmp_path: Path) -> None:
    arguments = ["distill", str(recipe), str(data), "--teacher", str(tmp_path), "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(main, arguments, catch_exceptions=False)
    assert result.exit_code == TrainingError.exit_code
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("fieldrun: error: the teacher folder")


def test_a_layer_count_of_the_recipe_is_spread_over_the_teacher(
    recipe: Path, data: Path, teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Enough(Exception):
        pass

    def enough(*_: Any) -> None:
        raise Enough

    monkeypatch.setattr(pipeline, "train_compressor", enough)
    for layers, expected in (("3", [0, 2, 4]), ("1", [4]), ("[1, 4]", [1, 4])):
        other = tmp_path / "other.toml"
        other.write_text(recipe.read_text("utf-8").replace("[teacher]", f"[teacher]\nlayers = {layers}"), "utf-8")
        with pytest.raises(Enough):
            distill(other, data, teacher, tmp_path / "out", work=tmp_path / layers)
        assert json.loads((tmp_path / layers / "raw_field.npy.json").read_text("utf-8"))["layers"] == expected


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no GPU")
def test_a_run_on_a_gpu_is_killed_and_resumed(recipe: Path, data: Path, teacher: Path, tmp_path: Path) -> None:
    class Killed(BaseException):
        pass

    def die(phase: str, done: int, total: int) -> None:
        if phase == "student" and done >= 12:
            raise Killed

    with pytest.raises(Killed):
        distill(recipe, data, teacher, tmp_path / "out", progress=die)
    record = distill(recipe, data, teacher, tmp_path / "out").record
    assert record["machine"]["gpu"] == torch.cuda.get_device_name()
    assert record["results"]["mood"]["student"]["report"]["accuracy"] > 0.75
