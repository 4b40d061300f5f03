"""Recipes: the shipped ones are whole, and a file that is not a recipe says which key is wrong."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from fieldrun.errors import RecipeError, UnknownName
from fieldrun.formats.storage import write_json
from fieldrun_exporters.recipe import load_recipe, recipe_names

MINIMAL = """schema = 1
passes = ["fold"]
[buckets]
batches = [1]
lengths = [16]
[parity]
min_cosine = 0.9
max_abs = 0.1
"""


def test_the_shipped_recipes(tmp_path: Path) -> None:
    names = {"cpu-fp32", "cpu-int8", "cpu-small", "cpu-tiny", "jetson-orin-fp16", "jetson-orin-int8", "jetson-thor"}
    assert {*names, "raspberry-pi"} <= set(recipe_names())
    for name in recipe_names():
        recipe = load_recipe(name)
        assert recipe.name == name
        assert recipe.buckets.batches[0] == 1
        write_json(tmp_path / "recipe.json", recipe.to_dict())  # it goes into the manifest
    assert load_recipe("cpu-int8").precision.of("ngrams") == "int8"
    assert load_recipe("cpu-fp32").precision.of("offset0") == "fp32"


def test_raspberry_pi_has_the_numbers_of_cpu_int8() -> None:
    own, other = load_recipe("raspberry-pi"), load_recipe("cpu-int8")
    assert (own.passes, own.precision, own.calibration) == (other.passes, other.precision, other.calibration)
    assert own.parity == other.parity
    assert set(own.buckets.lengths) < set(other.buckets.lengths)


def test_a_recipe_of_ones_own(tmp_path: Path, write_recipe: Callable[..., Path]) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(MINIMAL.replace("batches = [1]", "batches = [8, 1, 8]"))
    recipe = load_recipe(str(path))
    assert (recipe.name, recipe.passes, recipe.buckets.batches) == ("mine", ("fold",), (1, 8))
    assert (recipe.precision.of("tables"), recipe.calibration.texts) == ("fp32", 512)
    path.write_text('name = "edge"\n' + MINIMAL)
    assert load_recipe(path).name == "edge"
    assert load_recipe(write_recipe()).passes == ("fold", "int8")


@pytest.mark.parametrize("name", ["cpu-int4", "", "../recipes/cpu-int8", "CPU-INT8"])
def test_an_unknown_recipe_lists_the_known_ones(name: str) -> None:
    with pytest.raises(
        UnknownName, match=r"known: cpu-fp32, cpu-int8, cpu-small, cpu-tiny, .*or the path of a \.toml file"
    ) as caught:
        load_recipe(name)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("schema = 1", "schema = 2", "schema 2; this fieldrun reads schema 1"),
        ("schema = 1", "", "schema None"),
        ("schema = 1", "schema = 1\ncolour = 3", "unknown keys: colour"),
        ("schema = 1", "schema = 1\nname = 3", "name must be a string"),
        ("schema = 1", "schema =", "is not valid TOML"),
        ("max_abs = 0.1", "max_abs = 0.1\nmax_gap = 1", "unknown keys: max_gap"),
        ("max_abs = 0.1", "", "incomplete"),
        ("max_abs = 0.1", "max_abs = 0", "max_abs must be a positive, finite number"),
        ("max_abs = 0.1", 'max_abs = "small"', "max_abs must be a positive, finite number"),
        ("max_abs = 0.1", "max_abs = nan", "max_abs must be a positive, finite number"),
        ("max_abs = 0.1", "max_abs = inf", "max_abs must be a positive, finite number, not inf"),
        ("max_abs = 0.1", f"max_abs = {'9' * 400}", r"finite number, not 9{30}\.\.\. \(400 characters\)"),
        ("max_abs = 0.1", f"max_abs = {'9' * 5000}", "is not valid TOML"),
        ("max_abs = 0.1", "max_abs = 0.1\nmin_top1 = true", "min_top1 must be a positive, finite number"),
        ("max_abs = 0.1", "max_abs = 1\n[precision]\nwidth = 1", "unknown part 'width'"),
        ("max_abs = 0.1", 'max_abs = 1\n[precision]\ntables = "int2"', "or palette<K>, not 'int2'"),
        (
            "max_abs = 0.1",
            'max_abs = 1\n[precision]\ntables = "int8-weights"',
            "int4 or palette<K>, not 'int8-weights'",
        ),
        ("max_abs = 0.1", 'max_abs = 1\n[precision]\nhidden = "fp16"', "list the pass 'fp16' exactly when"),
        ("max_abs = 0.1", 'max_abs = 1\n[precision]\ntables = "int8"', "precision and passes conflict"),
        ("max_abs = 0.1", "max_abs = 1\n[calibration]\npercentile = 50", "within 90..100"),
        ("max_abs = 0.1", "max_abs = 1\n[calibration]\ntexts = 15", "at least 16"),
        ('["fold"]', '["fold", "int8"]', "precision and passes conflict"),
        (
            '["fold"]',
            '["fold", "prune"]',
            "unknown pass 'prune'; known: prune-vocabulary, fold, lowrank, int8, fp16, palettize, recover",
        ),
        ('["fold"]', '["int8"]', "contain 'fold'"),
        ('["fold"]', '["fold", "fold"]', "distinct"),
        ('["fold"]', "[]", "not empty"),
        ('["fold"]', '"fold"', "list of names"),
        ("batches = [1]", "batches = [4]", "must contain 1"),
        ("batches = [1]", "batches = []", "list of positive integers"),
        ("batches = [1]", "batches = [1, 0]", "list of positive integers"),
        ("batches = [1]", "batches = [true]", "list of positive integers"),
        ("batches = [1]", "batches = 1", "list of positive integers"),
        ("batches = [1]", "", "incomplete"),
        ("lengths = [16]", "lengths = [2]", "at least 3"),
        ("lengths = [16]", "lengths = [16.5]", "list of positive integers"),
        ("lengths = [16]", "lengths = [8, 99999999999999999999]", "lengths must be at most 65,536 each, not 9{20}"),
        ("batches = [1]", "batches = [1, 5000]", "batches must be at most 4,096 each, not 5000"),
        ('["fold"]', '["fold", "recover"]', "list 'palettize' or 'lowrank' before it"),
        ("[buckets]", "buckets = 3\n[other]", "must be an object"),
    ],
)
def test_a_recipe_that_makes_no_sense_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "odd.toml"
    assert MINIMAL.count(old) == 1
    path.write_text(MINIMAL.replace(old, new))
    with pytest.raises(RecipeError, match=message) as caught:
        load_recipe(path)
    assert caught.value.exit_code == 7
    assert "\n" not in str(caught.value)


def test_a_recipe_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "bytes.toml").write_bytes(b"\xff\xfe")
    (tmp_path / "folder.toml").mkdir()
    for name, message in (("none", "does not exist"), ("bytes", "cannot read"), ("folder", "cannot read")):
        with pytest.raises(RecipeError, match=message):
            load_recipe(tmp_path / f"{name}.toml")
