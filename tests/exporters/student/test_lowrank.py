"""Low rank: features without worth go unnoticed, the fit is least squares, and nothing is pretended."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fieldrun
from fieldrun.errors import ExportError, RecipeError
from fieldrun.formats.bundle import Network
from fieldrun_exporters.parity import field_errors
from fieldrun_exporters.recipe import LowRank, load_recipe
from fieldrun_exporters.student.deployed import Deployed
from fieldrun_exporters.student.passes import lowrank as module
from fieldrun_exporters.student.passes.fold import fold
from fieldrun_exporters.student.passes.lowrank import lowrank, refit, select
from fieldrun_exporters.student.simulate import outputs
from tests.exporters.student.test_drop import sequences
from tests.exporters.student.test_palettize import RECIPE
from tests.toy import toy_checkpoint

TEXTS = sequences(1, 300)
SIZES = {"width": 16, "mixer": 20, "hidden": 24}


def with_dead_features() -> Deployed:
    """The toy, in which the last quarter of every site's features never says anything."""
    checkpoint = toy_checkpoint(0)
    tensors = {name: tensor.copy() for name, tensor in checkpoint.tensors.items()}
    tensors["window.weight"][:, :, 12:] = 0
    tensors["window.bias"][12:] = 0
    tensors["ngram"][:, 12:] = 0
    tensors["mixer.weight"][:, 15:] = 0
    tensors["hidden.weight"][:, 18:] = 0
    tensors["hidden.bias"][18:] = 0
    return fold(dataclasses.replace(checkpoint, tensors=tensors))[0]


@pytest.mark.parametrize(
    "plan", [{"width": 12}, {"mixer": 15}, {"hidden": 18}, {"width": 12, "mixer": 15, "hidden": 18}]
)
def test_features_that_say_nothing_go_unnoticed(plan: dict[str, int]) -> None:
    folded = with_dead_features()
    result, report = lowrank(folded, TEXTS, LowRank(**plan))
    unseen = sequences(9, 50)
    np.testing.assert_allclose(outputs(result, unseen), outputs(folded, unseen), atol=2e-2, rtol=2e-2)
    net = result.network
    assert {"width": net.width, "mixer": net.mixer_width, "hidden": net.hidden} == SIZES | plan
    assert report.bytes_after == result.nbytes() < folded.nbytes()
    for site, kept in plan.items():
        facts = report.changed[site]
        assert (facts["features_before"], facts["features_after"]) == (SIZES[site], kept)
        assert facts["worth_kept"] == pytest.approx(1)
        assert facts["output_error"] < 0.02


def test_the_fit_is_nearer_than_the_selection_alone() -> None:
    folded = fold(toy_checkpoint(0))[0]
    result, report = lowrank(folded, TEXTS, LowRank(width=12, mixer=14, hidden=18))
    for facts in report.changed.values():
        assert facts["output_error"] < facts["output_error_selected"]
    assert result.tensors["table"].shape == (len(folded.tensors["table"]), 12)
    assert result.tensors["mixer.weight"].shape == (24, 14)
    assert result.tensors["score.weight"].shape == (14, 1)
    assert result.tensors["hidden.weight"].shape == (28, 18)


@given(st.integers(0, 50))
def test_refit_is_the_minimum(seed: int) -> None:
    rng = np.random.default_rng(seed)
    x, y, start = rng.standard_normal((40, 6)), rng.standard_normal((40, 3)), rng.standard_normal((6, 3))
    ridge = module._RIDGE * np.square(x).sum() / 6

    def loss(weight: np.ndarray) -> float:
        return float(np.square(x @ weight - y).sum() + ridge * np.square(weight - start).sum())

    best = refit(x, y, start)
    for _ in range(5):
        assert loss(best) <= loss(best + 1e-3 * rng.standard_normal(best.shape)) + 1e-12


def test_a_share_keeps_the_fewest_that_reach_it() -> None:
    worth = np.array([1.0, 5, 3, 1])
    assert select(worth, 2).tolist() == [1, 2]
    assert select(worth, 0.5).tolist() == [1]
    assert select(worth, 0.51).tolist() == [1, 2]
    assert select(worth, 0.85).tolist() == [0, 1, 2]


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        ({"width": 16}, "lowrank.width keeps 16 features, the student has 16; give fewer"),
        ({"hidden": 99}, "lowrank.hidden keeps 99 features, the student has 24"),
        ({"mixer": 0.9999999}, "keeps all 20 features; give less"),
    ],
)
def test_ranks_above_the_full_one_are_refused(plan: dict[str, float], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        lowrank(fold(toy_checkpoint(0))[0], TEXTS, LowRank(**plan))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [0, -1, 1.0, 1.5, True, "half"])
def test_values_that_make_no_sense_are_refused(value: object) -> None:
    with pytest.raises(RecipeError, match=r"lowrank\.width must be a number of features"):
        LowRank(width=value)  # type: ignore[arg-type]
    with pytest.raises(RecipeError, match=r"lowrank\.texts must be an integer of at least"):
        LowRank(texts=3)


def test_a_site_that_is_not_there_and_too_few_texts_are_refused() -> None:
    plain = fold(toy_checkpoint(0, mixer_kernel=0, mixer_width=0, hidden=0))[0]
    for site in SIZES:
        with pytest.raises(RecipeError, match=f"lowrank.{site}: the student has no layer there"):
            lowrank(plain, TEXTS, LowRank(**{site: 4}))
    with pytest.raises(RecipeError, match=r"lowrank\.qk is for an encoder; a student has width, mixer, hidden"):
        lowrank(plain, TEXTS, LowRank(qk=0.5))
    with pytest.raises(ExportError, match="20 texts are too few to tell what a feature is worth"):
        lowrank(plain, TEXTS[:20], LowRank(width=4))
    with pytest.raises(ExportError, match="nothing became smaller"):
        lowrank(plain, TEXTS, LowRank())


LOW = RECIPE.replace("{precision}", 'tables = "palette64"\ndense = "int8-weights"')


def test_every_engine_runs_the_smaller_student(toy_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        LOW.replace("{passes}", '["fold", "lowrank", "int8", "palettize"]')
        + "\n[lowrank]\nwidth = 13\nmixer = 17\nhidden = 0.95\ntexts = 512\n"
    )
    report = fieldrun.export(toy_checkpoint, tmp_path / "bundle", recipe=path)
    assert next(iter(report.proof["parts"])) == "lowrank"
    assert report.proof["parts"]["lowrank"]["mean_cosine"] < 1
    texts = ["it was a great film", "no", "what is my card for"]
    fields = {}
    for engine in ("native", "numpy", "onnxruntime"):
        assert fieldrun.verify(report.path, engine=engine).passed
        with fieldrun.load(report.path, engine=engine) as model:
            fields[engine] = model.field(texts)
            assert isinstance(model.manifest.network, Network)
            assert model.manifest.network.width == 13
    for found in fields.values():
        np.testing.assert_allclose(found, fields["native"], atol=1e-5)
    assert field_errors(fields["native"], fields["numpy"])["mean_cosine"] > 0.999


@pytest.mark.parametrize(
    ("passes", "extra", "message"),
    [
        ('["fold", "int8", "palettize"]', "[lowrank]\nwidth = 8", r"\[lowrank\] and passes conflict"),
        ('["fold", "lowrank", "int8", "palettize"]', "", r"\[lowrank\] and passes conflict"),
        (
            '["fold", "int8", "lowrank", "palettize"]',
            "[lowrank]\nwidth = 8",
            "be in the order .*, lowrank",
        ),
        ('["fold", "lowrank", "int8", "palettize"]', "[lowrank]\nheight = 8", "unknown keys: height"),
    ],
)
def test_wrong_recipes_are_refused(tmp_path: Path, passes: str, extra: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(LOW.replace("{passes}", passes) + "\n" + extra + "\n")
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)
