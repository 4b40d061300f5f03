"""The compressor's losses and the heads against formulas and made-up data with a known answer."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from fieldrun.distill.compressor import (
    TaskHeads,
    graded_loss,
    make_heads,
    pair_input,
    similarity_loss,
    train_compressor,
)
from fieldrun.distill.heads import calibrate, finish_head, fit_pair_head, score, score_similarity
from fieldrun.distill.pool import Split, TaskData, TextPool, build_pool
from fieldrun.distill.recipe import CompressorRecipe, TaskRecipe, load_recipe
from fieldrun.errors import TrainingError
from fieldrun.formats.tensors import Array
from fieldrun.heads.head import pair_features

from .conftest import INTENTS, MOODS

RECIPE = CompressorRecipe(steps=120, batch=32, rows_per_task=32)


@pytest.fixture(scope="module")
def pool(data: Path, recipe: Path) -> TextPool:
    return build_pool(load_recipe(recipe), data)


@pytest.fixture(scope="module")
def raw(pool: TextPool) -> Array:
    return raw_of(pool)


def raw_of(pool: TextPool) -> Array:
    """A raw field in which a text's words of meaning are a direction each, in noise, off centre, scaled unevenly."""
    rng = np.random.default_rng(0)
    keys = " ".join([*MOODS.values(), *INTENTS.values()]).split()
    directions = rng.standard_normal((len(keys), 40))
    known = np.array([[key in text.split() for key in keys] for text in pool.texts], float)
    field = known @ directions + 0.1 * rng.standard_normal((len(pool.texts), 40))
    return (field * rng.uniform(0.1, 5, 40) + rng.uniform(-9, 9, 40)).astype(np.float16)


def test_similarity_loss_is_the_formula() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.standard_normal((7, 5)), rng.standard_normal((7, 9))
    a, b = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in (x, y))
    loss = similarity_loss(torch.from_numpy(x), torch.from_numpy(y))
    np.testing.assert_allclose(float(loss), np.mean((a @ a.T - b @ b.T) ** 2), rtol=1e-12)
    assert float(similarity_loss(torch.from_numpy(x), torch.from_numpy(3 * x))) < 1e-30


def test_graded_loss_is_the_formula() -> None:
    rng = np.random.default_rng(1)
    x, grade = rng.standard_normal((8, 5)), rng.random(4)
    cosine = [a @ b / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(x[0::2], x[1::2], strict=True)]
    loss = graded_loss(torch.from_numpy(x), torch.from_numpy(grade))
    np.testing.assert_allclose(float(loss), np.mean((cosine - grade) ** 2), rtol=1e-12)


def test_score_similarity_is_spearman_of_the_cosines() -> None:
    rng = np.random.default_rng(2)
    fields = rng.standard_normal((40, 256)).astype(np.float32)
    rows = np.arange(40).reshape(20, 2)
    for dim, name in ((256, "spearman"), (128, "spearman_128"), (64, "spearman_64")):
        a, b = fields[0::2, :dim].astype(float), fields[1::2, :dim].astype(float)
        cosine = (a * b).sum(1) / np.linalg.norm(a, axis=1) / np.linalg.norm(b, axis=1)
        for sign in (1, -1):
            split = Split(rows=rows + 500, labels=(sign * cosine).astype(np.float32))
            found = score_similarity(torch.from_numpy(fields), {500 + i: i for i in range(40)}, split)
            assert found["n"] == 20
            assert found[name] == sign
    assert set(found) == {"n", "spearman", "spearman_128", "spearman_64"}


def test_pair_input_is_the_reference() -> None:
    rng = np.random.default_rng(0)
    a, b = (rng.standard_normal((4, 6)).astype(np.float32) for _ in range(2))
    np.testing.assert_array_equal(pair_input(torch.from_numpy(a), torch.from_numpy(b)), pair_features(a, b))


def test_compressor_learns_the_tasks_and_normalises(pool: TextPool, raw: Array) -> None:
    steps: list[tuple[int, int]] = []
    compressed = train_compressor(pool, raw, RECIPE, 16, 0, lambda done, total: steps.append((done, total)))
    assert compressed.field.shape == (len(pool.texts), 16)
    assert compressed.field.dtype == np.float32
    np.testing.assert_allclose(compressed.field.mean(1), 0, atol=1e-5)
    np.testing.assert_allclose(compressed.field.std(1), 1, atol=1e-3)
    assert steps[-1] == (120, 120)
    first, last = compressed.curve[0], compressed.curve[-1]
    assert (first["step"], last["step"]) == (100, 120)
    assert set(last) == {"step", "loss", "reconstruction", "task", "geometry", "similarity"}
    assert last["similarity"] == 0, "no pair is graded"
    assert last["reconstruction"] < 0.8  # of a variance of 1
    field = torch.from_numpy(compressed.field)
    for task in pool.tasks[:2]:
        result = score(compressed.heads[task.name], field[task.held_out.rows], task.held_out.labels)
        assert result["accuracy"] > 0.8
    again = train_compressor(pool, raw, RECIPE, 16, 0)
    np.testing.assert_array_equal(again.field, compressed.field)
    assert not np.array_equal(train_compressor(pool, raw, RECIPE, 16, 1).field, compressed.field)


def test_compressor_learns_graded_similarity_also_in_a_prefix(graded: Path) -> None:
    task = TaskRecipe(name="alike", similarity=5, report="dev.tsv")
    pool = build_pool(replace(load_recipe("quick"), tasks=(task,)), graded)
    raw = raw_of(pool)
    (alike,) = pool.similarities
    unseen, found = alike.report, {}
    assert unseen is not None
    for weight in (0.0, 4.0):
        recipe = replace(RECIPE, similarity=weight, geometry=0, reconstruction=0.1, prefixes=(6,))
        compressed = train_compressor(pool, raw, recipe, 16, 0)
        for dim in (16, 6):
            a, b = (torch.from_numpy(compressed.field[unseen.rows[:, k], :dim]) for k in (0, 1))
            cosine = torch.nn.functional.cosine_similarity(a, b).numpy()
            found[weight, dim] = float(np.square(cosine - unseen.labels).mean())
    assert compressed.curve[-1]["similarity"] > 0
    assert found[4.0, 16] < 0.7 * found[0.0, 16], found
    assert found[4.0, 6] < 0.7 * found[0.0, 6], found
    assert len(compressed.heads) == 0


def test_compressor_never_sees_reserved_texts(pool: TextPool, raw: Array) -> None:
    changed = raw.copy()
    changed[pool.n_transfer :] = 7
    one = train_compressor(pool, raw, replace(RECIPE, steps=20), 8, 0)
    two = train_compressor(pool, changed, replace(RECIPE, steps=20), 8, 0)
    np.testing.assert_array_equal(one.field[: pool.n_transfer], two.field[: pool.n_transfer])
    assert one.curve == two.curve


def test_compressor_stops_at_a_loss_that_is_not_finite(pool: TextPool, raw: Array) -> None:
    with pytest.raises(TrainingError, match="compressor's loss is not finite"):
        train_compressor(pool, np.full_like(raw, np.nan), replace(RECIPE, steps=20), 8, 0)


def test_a_task_may_have_the_name_of_an_attribute(pool: TextPool) -> None:
    names = ("type", "half", "keys", "training", "forward")
    tasks = tuple(replace(pool.tasks[0], name=name) for name in names)
    heads = make_heads(replace(pool, tasks=tasks), 4)
    assert list(heads) == list(names)
    assert heads["type"].weight.shape == (3, 4)
    other = make_heads(replace(pool, tasks=tasks), 4)
    other.load_state_dict(heads.state_dict())
    assert torch.equal(other["keys"].weight, heads["keys"].weight)
    assert len(list(heads.parameters())) == 2 * len(names)
    assert isinstance(heads.train().cpu(), TaskHeads)


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.5])
def test_calibrate_finds_the_temperature_of_the_data(temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn((4000, 5), generator=generator)
    labels = torch.multinomial((logits / temperature).softmax(1), 1, generator=generator)[:, 0]
    assert calibrate(logits, labels) == pytest.approx(temperature, rel=0.1)


def test_calibrate_stays_in_its_range() -> None:
    logits = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    assert calibrate(logits, torch.tensor([0, 1])) == pytest.approx(0.3)
    assert calibrate(logits, torch.tensor([1, 0])) == pytest.approx(5.0)


def test_score_counts() -> None:
    head = torch.nn.Linear(2, 2)
    with torch.no_grad():
        head.weight.copy_(torch.eye(2))
        head.bias.zero_()
    result = score(head, torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 0.0]]), np.array([0, 1, 0, 1]))
    assert (result["n"], result["accuracy"]) == (4, 0.75)
    assert 0 < result["ci95"][0] < 0.75 < result["ci95"][1] < 1
    sure = 1 / (1 + math.exp(-1))  # of every answer
    assert result["ece"] == pytest.approx(abs(0.75 - sure), abs=1e-4)
    hot = score(head, torch.tensor([[1.0, 0.0]]), np.array([1]), temperature=0.1)
    assert hot["ece"] == pytest.approx(1 / (1 + math.exp(-10)), abs=1e-4)


def pairs(n: int) -> tuple[torch.Tensor, Split]:
    """Fields of `2 n` texts, and pairs that are "yes" when both are of the same kind."""
    rng = np.random.default_rng(n)
    kinds = rng.integers(0, 2, 2 * n)
    fields = rng.standard_normal((2, 12))[kinds] * 2 + 0.3 * rng.standard_normal((2 * n, 12))
    rows = np.arange(2 * n).reshape(n, 2)
    return torch.from_numpy(fields.astype(np.float32)), Split(
        rows=rows, labels=(kinds[0::2] == kinds[1::2]).astype(int)
    )


def test_pair_head_learns_whether_two_are_alike() -> None:
    fields, split = pairs(300)
    x, y = pair_input(fields[0::2], fields[1::2]), torch.from_numpy(split.labels)
    torch.manual_seed(5)
    head = fit_pair_head(x[:200], y[:200], x[200:250], y[200:250], 2)
    assert score(head, x[250:], split.labels[250:])["accuracy"] > 0.9


def test_finish_head_reports_what_it_was_not_fitted_on() -> None:
    fields, split = pairs(300)

    def part(start: int, stop: int) -> Split:
        return Split(rows=split.rows[start:stop] + 1000, labels=split.labels[start:stop])

    task = TaskData(
        name="same",
        kind="pair",
        labels=("no", "yes"),
        train=part(0, 200),
        held_out=part(200, 240),
        report=part(240, 300),
    )
    position = {1000 + i: i for i in range(600)}
    head, results = finish_head(task, torch.nn.Linear(48, 2), fields, position)
    assert (head.kind, head.weight.shape, head.bias.shape) == ("pair", (48, 2), (2,))
    head.validate(12)
    assert 0.3 <= head.temperature <= 5
    assert (results["held_out"]["n"], results["report"]["n"]) == (40, 60)
    assert results["report"]["accuracy"] > 0.9
    _, held_only = finish_head(replace(task, report=None), torch.nn.Linear(48, 2), fields, position)
    assert set(held_only) == {"held_out"}
