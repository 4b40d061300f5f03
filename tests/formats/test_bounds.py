"""The bounds against measured records, and every shipped recipe's kind."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from fieldrun.formats.bounds import LEAST_COSINE, WIDEST, least_cosine, recipe_kind, widest_tolerance
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.storage import parse_json, read_json
from fieldrun_exporters.recipe import load_recipe, recipe_names

RECORDS = Path(__file__).parents[2] / "benchmarks" / "records"
KINDS = {
    "cpu-fp32": "fp32",
    "cpu-int8": "int8",
    "cpu-small": "palette",
    "cpu-tiny": "palette",
    "encoder-fp32": "fp32",
    "encoder-int8": "int8",
    "jetson-orin-fp16": "fp16",
    "jetson-orin-int8": "int8",
    "jetson-thor": "int8",
    "raspberry-pi": "int8",
    "tensorrt-fp32": "fp32",
}


def test_every_shipped_recipe_has_its_kind() -> None:
    assert {name: recipe_kind(load_recipe(name).to_dict()) for name in recipe_names()} == KINDS


@pytest.mark.parametrize(
    ("recipe", "kind"),
    [
        ({}, "fp32"),
        ({"precision": {"default": "int8"}}, "int8"),
        ({"precision": {"tables": "int4"}}, "palette"),
        ({"precision": {"offset0": "palette64:20%+palette256x4", "dense": "int8"}}, "palette"),
        ({"precision": {"dense": "int8"}, "passes": ("fold", "lowrank", "int8")}, "lowrank"),
        ({"passes": ["prune-vocabulary", "fold"]}, "prune-vocabulary"),
    ],
)
def test_the_coarsest_part_is_the_kind(recipe: dict[str, object], kind: str) -> None:
    assert recipe_kind(recipe) == kind
    assert least_cosine(recipe) == LEAST_COSINE[kind]


def test_the_page_has_the_bounds() -> None:
    page = (RECORDS.parents[1] / "docs" / "recipe-files.md").read_text("utf-8").partition("| Least cosine |")[2]
    rows = [line.rpartition(" | ")[2].strip(" |") for line in page.splitlines()[2:8]]
    assert rows == [f"{least:g}" for least in LEAST_COSINE.values()]


def test_the_words_follow_the_neighbours_in_the_records() -> None:
    """Of what was measured, that differs which changes a third of the nearest neighbours, and nothing else does."""
    for name, rung in read_json(RECORDS / "ladder.json")["rungs"].items():
        field, first = rung["field"], name.split()[0]
        kind = KINDS.get(name) or ("lowrank" if first == "lowrank" else recipe_kind({"precision": {"tables": first}}))
        if first == "mixt2":
            kind = "palette"
        assert (field["min_cosine"] < LEAST_COSINE[kind]) == (field["rank_agreement"] < 2 / 3), name


def test_tolerances_that_were_measured_are_within_and_wider_ones_are_not() -> None:
    golden = parse_json(Bundle.load("reference").contents["golden.json"], "golden.json")
    fields = np.array(golden["fields"], np.float32)
    for name in recipe_names():
        recipe = load_recipe(name)
        if recipe.tensorrt is not None:
            widest = widest_tolerance(recipe.to_dict(), fields, student=True, gpu=True)
            assert recipe.tensorrt.golden_tolerance <= widest, name
    on_arm = [
        entry
        for processor in read_json(RECORDS / "arm-emulation.json")["processors"].values()
        for entry in processor["engines"].values()
    ]
    recipe_of_reference = load_recipe("cpu-small").to_dict()
    widest = widest_tolerance(recipe_of_reference, fields, student=True, gpu=False)
    assert max(entry["max_abs_field"] for entry in on_arm) < 1e-5 < widest
    encoder = load_recipe("encoder-int8").to_dict()
    sizes = np.array([[2.93, -0.4]])  # the largest number of gte-small's golden fields
    assert 4 * 0.114 < widest_tolerance(encoder, sizes, student=False, gpu=False) < 0.78
    assert widest_tolerance(encoder, sizes, student=True, gpu=False) == pytest.approx(2.93 * WIDEST["sums"])
    assert np.isclose(widest_tolerance(encoder, -sizes, student=True, gpu=True), 2.93 * WIDEST["int8"])
