"""Training the student: it learns, it can be killed, and it says when it cannot go on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fieldrun.distill.compressor import Compressed, TaskHeads, make_heads
from fieldrun.distill.pool import TextPool, build_pool
from fieldrun.distill.recipe import TaskRecipe, TrainingRecipe, load_recipe
from fieldrun.distill.state import load_state, save_state
from fieldrun.distill.student import Student
from fieldrun.distill.teacher import load_tokenizer, tokenize
from fieldrun.distill.training import arithmetic, fields_of, train_student
from fieldrun.errors import StorageError, TrainingError
from tests.toy import toy_config

RECIPE = TrainingRecipe(epochs=6, batch=64, max_tokens=24, dtype="float32", checkpoint_steps=7)
NATIVE = {"talk": ("mood",)}


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def pool(data: Path, recipe: Path) -> TextPool:
    return build_pool(load_recipe(recipe), data)


@pytest.fixture(scope="module")
def sequences(pool: TextPool, teacher: Path) -> Any:
    return tokenize(load_tokenizer(teacher), pool.texts)


def fresh(pool: TextPool) -> tuple[Student, TaskHeads, Compressed]:
    torch.manual_seed(0)
    field = torch.nn.functional.layer_norm(torch.randn((len(pool.texts), 32)), (32,)).numpy()
    compressed = Compressed(field=field, heads=make_heads(pool, 32), curve=[])
    return Student(toy_config(), dropout=0.1), make_heads(pool, 32), compressed


def train(
    pool: TextPool, sequences: Any, work: Path, progress: Any = None, **changes: Any
) -> tuple[dict[str, torch.Tensor], list[dict[str, float]]]:
    student, heads, compressed = fresh(pool)
    recipe = replace(RECIPE, **changes)
    curve = train_student(student, heads, pool, sequences, compressed, recipe, NATIVE, 5, work, progress)
    assert not student.training
    weights = {f"head.{name}": w for name, w in heads.state_dict().items()}
    return {**student.state_dict(), **weights}, curve


def same(one: dict[str, torch.Tensor], two: dict[str, torch.Tensor]) -> bool:
    return set(one) == set(two) and all(torch.equal(one[name], two[name]) for name in one)


def test_the_loss_falls_and_every_head_learns(pool: TextPool, sequences: Any, tmp_path: Path) -> None:
    steps: list[tuple[int, int]] = []
    weights, curve = train(pool, sequences, tmp_path, lambda *step: steps.append(step), epochs=20)
    total = steps[-1][1]
    assert steps == [(i + 1, total) for i in range(total)]
    assert curve[-1]["step"] == total
    assert curve[-1]["loss"] < 0.95 * curve[0]["loss"]  # the fields to learn are noise
    assert not torch.isnan(torch.cat([w.reshape(-1) for w in weights.values()])).any()
    assert float(weights["embedding.weight"][0].abs().sum()) == 0
    _, heads, _ = fresh(pool)
    for name in ("mood", "intent", "same"):
        assert not torch.equal(weights[f"head.{name}.weight"], heads[name].weight)


def test_without_pair_rows_pair_heads_are_left_alone(pool: TextPool, sequences: Any, tmp_path: Path) -> None:
    weights, _ = train(pool, sequences, tmp_path, epochs=1, pair_rows=0)
    _, heads, _ = fresh(pool)
    assert torch.equal(weights["head.same.weight"], heads["same"].weight)
    assert not torch.equal(weights["head.mood.weight"], heads["mood"].weight)


def test_graded_pairs_pull_the_fields_together(graded: Path, recipe: Path, teacher: Path, tmp_path: Path) -> None:
    tasks = (TaskRecipe(name="mood"), TaskRecipe(name="alike", similarity=5))
    pool = build_pool(replace(load_recipe(recipe), tasks=tasks), graded)
    sequences = tokenize(load_tokenizer(teacher), pool.texts)
    (alike,) = pool.similarities
    rows, found = alike.train.rows, {}
    target = torch.from_numpy(fresh(pool)[2].field)
    wanted = (cosine(target[rows[:, 0]], target[rows[:, 1]]) + alike.train.labels) / 2
    for weight in (0.0, 20.0):
        (tmp_path / str(weight)).mkdir()
        student, heads, compressed = fresh(pool)
        settings = replace(RECIPE, pairs=weight, geometry=0, regression=0, epochs=12)
        train_student(student, heads, pool, sequences, compressed, settings, {}, 5, tmp_path / str(weight))
        a, b = (fields_of(student, sequences, np.ascontiguousarray(rows[:, k]), 24) for k in (0, 1))
        found[weight] = float(np.square(cosine(a, b) - wanted).mean())
    assert found[20.0] < 0.5 * found[0.0], found


def cosine(a: torch.Tensor, b: torch.Tensor) -> Any:
    return torch.nn.functional.cosine_similarity(a, b).numpy()


@pytest.mark.parametrize("killed_at", [1, 7, 20, 41])
def test_a_killed_training_ends_with_the_same_weights(
    pool: TextPool, sequences: Any, tmp_path: Path, killed_at: int
) -> None:
    def die(done: int, total: int) -> None:
        if done == killed_at:
            raise Killed

    (tmp_path / "whole").mkdir()
    whole, curve = train(pool, sequences, tmp_path / "whole")
    (tmp_path / "killed").mkdir()
    with pytest.raises(Killed):
        train(pool, sequences, tmp_path / "killed", die)
    seen: list[int] = []
    resumed, resumed_curve = train(pool, sequences, tmp_path / "killed", lambda done, total: seen.append(done))
    assert seen[0] == killed_at // 7 * 7 + 1
    assert same(resumed, whole)
    assert resumed_curve == curve
    finished, _ = train(pool, sequences, tmp_path / "killed", lambda *_: pytest.fail("trained again"))
    assert same(finished, whole)


def test_bfloat16_trains_too(pool: TextPool, sequences: Any, tmp_path: Path) -> None:
    weights, curve = train(pool, sequences, tmp_path, epochs=2, dtype="bfloat16")
    assert np.isfinite(curve[-1]["loss"])
    assert all(w.dtype == torch.float32 for w in weights.values())


def test_pair_tasks_alone_train_the_field(pool: TextPool, sequences: Any, tmp_path: Path) -> None:
    weights, _ = train(replace(pool, tasks=pool.tasks[2:]), sequences, tmp_path, epochs=1)
    assert [name for name in weights if name.startswith("head.")] == ["head.same.weight", "head.same.bias"]


def test_a_loss_that_is_not_finite_stops_training(pool: TextPool, sequences: Any, tmp_path: Path) -> None:
    student, heads, compressed = fresh(pool)
    compressed.field[: pool.n_transfer] = np.nan
    with pytest.raises(TrainingError, match=r"not finite at step 0; lower training\.learning_rate"):
        train_student(student, heads, pool, sequences, compressed, RECIPE, NATIVE, 5, tmp_path)


def test_the_state_of_another_run_is_refused(pool: TextPool, sequences: Any, tmp_path: Path) -> None:
    train(pool, sequences, tmp_path, epochs=1)
    with pytest.raises(TrainingError, match="belongs to another run; choose another work folder"):
        train(pool, sequences, tmp_path, epochs=2)
    (tmp_path / "student.state").write_bytes(b"PK nonsense")
    with pytest.raises(TrainingError, match=r"student\.state is corrupt"):
        train(pool, sequences, tmp_path, epochs=1)


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), RuntimeError("file write failed")])
def test_a_full_disk_keeps_the_old_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    path = tmp_path / "x.state"
    save_state(path, {"step": 1})

    def full(value: object, file: Any) -> None:
        file.write(b"half")
        raise error

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StorageError, match=r"cannot write .*x\.state.*free space or choose another work folder"):
        save_state(path, {"step": 2})
    assert load_state(path) == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["x.state"]


def test_arithmetic(monkeypatch: pytest.MonkeyPatch) -> None:
    assert arithmetic("float32") == "float32"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert arithmetic("auto") == "bfloat16"
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(Path, "read_text", lambda *_: "flags : sse amx_bf16")
    assert arithmetic("auto") == "bfloat16"
    monkeypatch.setattr(Path, "read_text", lambda *_: "flags : sse")
    assert arithmetic("auto") == "float32"


def test_fields_do_not_depend_on_the_batch(pool: TextPool, sequences: Any) -> None:
    student, _, _ = fresh(pool)
    rows = np.arange(300)[::-1].copy()
    fields = fields_of(student, sequences, rows, 24)
    one = fields_of(student, sequences, rows[:1], 24)
    np.testing.assert_allclose(fields[:1], one, atol=1e-5)
    assert fields.shape == (300, 32)
