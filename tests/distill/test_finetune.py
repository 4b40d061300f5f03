"""Fine-tuning the teacher: it learns every kind of task, can be killed, and leaves the frozen layers as they are."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from fieldrun.distill.finetune import finetune_teacher
from fieldrun.distill.pool import TextPool, build_pool
from fieldrun.distill.recipe import DistillRecipe, FinetuneRecipe, TaskRecipe, load_recipe
from fieldrun.distill.teacher import extract_raw_field, load_tokenizer, teacher_hashes, teacher_shape
from fieldrun.errors import TrainingError

PLAN = FinetuneRecipe(
    learning_rate=2e-3,
    head_learning_rate=5e-3,
    rows=16,
    tokens=600,
    max_tokens=24,
    frozen_layers=2,
    dtype="float32",
    checkpoint_steps=5,
)
TASKS = (
    TaskRecipe(name="mood", tune_rows=48),
    TaskRecipe(name="intent", tune_rows=48),
    TaskRecipe(name="same", tune_rows=48),
    TaskRecipe(name="alike", similarity=5, tune_rows=48),
)


class Killed(BaseException):
    """Stands for the end of the process."""


@pytest.fixture(scope="module")
def plan(recipe: Path) -> DistillRecipe:
    return replace(load_recipe(recipe), finetune=PLAN, tasks=TASKS, corpus=())


@pytest.fixture(scope="module")
def pool(plan: DistillRecipe, graded: Path) -> TextPool:
    return build_pool(plan, graded)


@pytest.fixture(scope="module")
def tuned(pool: TextPool, plan: DistillRecipe, teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The teacher after an uninterrupted run; read-only."""
    return finetune_teacher(pool, teacher, tmp_path_factory.mktemp("tuned") / "tuned", plan, "float32")


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def same(one: Path, two: Path) -> bool:
    a, b = weights(one), weights(two)
    return set(a) == set(b) and all(torch.equal(a[name], b[name]) for name in a)


def die_at(step: int) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        if done == step:
            raise Killed

    return progress


def noted_in(steps: list[tuple[int, int]]) -> Callable[[int, int], None]:
    def progress(done: int, total: int) -> None:
        steps.append((done, total))

    return progress


def test_the_tuned_folder_is_a_teacher(tuned: Path, teacher: Path, tmp_path: Path) -> None:
    assert teacher_shape(tuned) == teacher_shape(teacher)
    assert load_tokenizer(tuned).to_str() == load_tokenizer(teacher).to_str()
    before, after = teacher_hashes(teacher), teacher_hashes(tuned)
    assert {name for name in before if before[name] != after[name]} == {"model.safetensors"}
    texts = ["a good film", "bad rain"]
    fields = [extract_raw_field(texts, folder, tmp_path / f"{folder.name}.npy") for folder in (teacher, tuned)]
    assert fields[0].shape == fields[1].shape
    assert np.isfinite(fields[1]).all()
    assert not np.array_equal(fields[0], fields[1])
    assert {path.name for path in tuned.parent.iterdir()} == {"tuned", "tuned.state"}


def test_frozen_layers_keep_their_weights(tuned: Path, teacher: Path) -> None:
    before, after = weights(teacher), weights(tuned)
    assert set(before) == set(after)
    layers = {name: int(name.split(".")[2]) for name in before if name.startswith("encoder.layer.")}
    assert {*layers.values()} == {0, 1, 2, 3}
    for name, tensor in before.items():
        frozen = layers.get(name, 0) < PLAN.frozen_layers  # the embeddings and the pooler too
        # a bias of the keys adds the same to every score of a query: it has no gradient but noise
        assert torch.equal(tensor, after[name]) == frozen or name.endswith("key.bias"), name


def test_every_kind_of_task_is_learnt(pool: TextPool, plan: DistillRecipe, teacher: Path, tmp_path: Path) -> None:
    losses = []
    for name, rate in (("still", 1e-6), ("learning", 1.0)):
        settings = replace(
            PLAN, learning_rate=rate * PLAN.learning_rate, head_learning_rate=rate * PLAN.head_learning_rate
        )
        tasks = tuple(replace(task, tune=3) for task in TASKS)
        steps: list[tuple[int, int]] = []
        out = finetune_teacher(
            pool,
            teacher,
            tmp_path / name,
            replace(plan, finetune=settings, tasks=tasks),
            "float32",
            noted_in(steps),
        )
        total = steps[-1][1]
        assert steps == [(i + 1, total) for i in range(total)]
        (entry,) = json.loads((out / "curve.json").read_text("utf-8"))
        assert entry.pop("step") == total
        assert set(entry) == {"mood", "intent", "same", "alike"}
        losses.append(entry)
    still, learning = losses
    for task in ("mood", "intent", "alike"):
        assert learning[task] < 0.95 * still[task], (task, losses)


def test_a_task_that_is_not_tuned_on_is_left_out(
    pool: TextPool, plan: DistillRecipe, teacher: Path, tmp_path: Path
) -> None:
    tasks = (replace(TASKS[0], tune=0), replace(TASKS[1], tune=0), TASKS[2], replace(TASKS[3], tune=0))
    out = finetune_teacher(pool, teacher, tmp_path / "out", replace(plan, tasks=tasks), "float32")
    assert set(json.loads((out / "curve.json").read_text("utf-8"))[-1]) == {"step", "same"}


def test_only_train_texts_are_read(
    tuned: Path, pool: TextPool, plan: DistillRecipe, teacher: Path, tmp_path: Path
) -> None:
    others = tuple("never read" for _ in pool.texts[pool.n_labelled :])
    blind = replace(pool, texts=pool.texts[: pool.n_labelled] + others)
    assert same(finetune_teacher(blind, teacher, tmp_path / "out", plan, "float32"), tuned)


@pytest.mark.parametrize("killed_at", [1, 5, 8, "the end"])
def test_a_killed_run_ends_with_the_same_weights(
    tuned: Path, pool: TextPool, plan: DistillRecipe, teacher: Path, tmp_path: Path, killed_at: Any
) -> None:
    out = tmp_path / "out"
    total = json.loads((tuned / "curve.json").read_text("utf-8"))[-1]["step"]
    step = total if killed_at == "the end" else killed_at
    assert step <= total
    with pytest.raises(Killed):
        finetune_teacher(pool, teacher, out, plan, "float32", die_at(step))
    assert not out.exists()
    seen: list[int] = []
    finetune_teacher(pool, teacher, out, plan, "float32", lambda done, _: seen.append(done))
    assert seen == list(range(total + 1 if step == total else step // 5 * 5 + 1, total + 1))
    assert same(out, tuned)
    finetune_teacher(pool, teacher, out, plan, "float32", lambda *_: pytest.fail("tuned again"))


def test_the_state_of_another_run_is_refused(
    pool: TextPool, plan: DistillRecipe, teacher: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    with pytest.raises(Killed):
        finetune_teacher(pool, teacher, out, plan, "float32", die_at(5))
    others = (
        replace(plan, seed=plan.seed + 1),
        replace(plan, finetune=replace(PLAN, learning_rate=1e-3)),
        replace(plan, tasks=(replace(TASKS[0], tune_rows=40), *TASKS[1:])),
    )
    for other in others:
        with pytest.raises(TrainingError, match=r"out\.state belongs to another run; choose another work folder"):
            finetune_teacher(pool, teacher, out, other, "float32")
    (tmp_path / "out.state").write_bytes(b"PK nonsense")
    with pytest.raises(TrainingError, match=r"out\.state is corrupt"):
        finetune_teacher(pool, teacher, out, plan, "float32")
    assert not out.exists()


@pytest.mark.parametrize("layers", [4, 5])
def test_freezing_every_layer_is_refused(
    pool: TextPool, plan: DistillRecipe, teacher: Path, tmp_path: Path, layers: int
) -> None:
    settings = replace(plan, finetune=replace(PLAN, frozen_layers=layers))
    with pytest.raises(TrainingError, match=r"has 4 layers; lower finetune\.frozen_layers"):
        finetune_teacher(pool, teacher, tmp_path / "out", settings, "float32")
    assert list(tmp_path.iterdir()) == []


def test_a_loss_that_is_not_finite_stops_it(pool: TextPool, plan: DistillRecipe, teacher: Path, tmp_path: Path) -> None:
    shutil.copytree(teacher, tmp_path / "teacher")
    broken = weights(teacher)
    broken["encoder.layer.3.output.dense.weight"][0] = float("nan")
    save_file(broken, tmp_path / "teacher" / "model.safetensors", {"format": "pt"})
    with pytest.raises(TrainingError, match=r"not finite at step 0; lower finetune\.learning_rate"):
        finetune_teacher(pool, tmp_path / "teacher", tmp_path / "out", plan, "float32")
    assert not (tmp_path / "out").exists()


def test_bfloat16_keeps_float32_weights(pool: TextPool, plan: DistillRecipe, teacher: Path, tmp_path: Path) -> None:
    out = finetune_teacher(pool, teacher, tmp_path / "out", replace(plan, tasks=TASKS[:1]), "bfloat16")
    assert {tensor.dtype for tensor in weights(out).values()} == {torch.float32}
    assert not same(out, teacher)
