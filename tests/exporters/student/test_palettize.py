"""Palettes: as near as the literature's figures, exact when opened, negative where padding is, and never pretended."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings

import fieldrun
from fieldrun.errors import ExportError, IntegrityError, RecipeError
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.packing import expand
from fieldrun.formats.tensors import Array, read_tensors
from fieldrun_exporters.precision import Palette, Precision
from fieldrun_exporters.student.deployed import Deployed
from fieldrun_exporters.student.passes import palettize as module
from fieldrun_exporters.student.passes.fold import fold
from fieldrun_exporters.student.passes.fp16 import fp16
from fieldrun_exporters.student.passes.int8 import int8
from fieldrun_exporters.student.passes.palettize import cluster, kmeans, lloyd, palettize
from tests.exporters import conftest
from tests.exporters.student.test_passes import FOLDED, IDS, SHAPES, deployed_y
from tests.toy import toy_checkpoint

PALETTES = ("int4", "palette16", "palette8x2", "palette16x4", "palette256", "palette16:30%+palette4x4")


def decibels(before: Array, after: Array) -> float:
    return float(10 * np.log10(np.square(before).mean() / np.square(before - after).mean()))


@pytest.mark.parametrize(("entries", "published"), [(16, 20.2), (32, 26.0), (64, 31.7)])
def test_gaussian_weights_keep_the_published_signal(entries: int, published: float) -> None:
    values = np.random.default_rng(0).standard_normal(400_000).astype(np.float32)
    centroids = lloyd(values, entries)
    assert (np.diff(centroids) > 0).all()
    nearest = centroids[np.abs(values[:20_000, None] - centroids).argmin(1)]
    assert abs(decibels(values[:20_000], nearest) - published) < 0.25


def test_runs_of_four_are_worth_more_than_single_numbers_of_two_bits() -> None:
    rows = np.random.default_rng(1).standard_normal((4000, 32)).astype(np.float32)
    single, runs = (cluster(rows, palette) for palette in (Palette(entries=4), Palette(entries=256, dims=4)))
    assert single.packed().nbytes == runs.packed().nbytes
    assert decibels(rows, runs.values()) > decibels(rows, single.values())


def test_kmeans_finds_what_is_there() -> None:
    rng = np.random.default_rng(2)
    truth = np.array([[0, 0], [9, 0], [0, 9], [9, 9]], np.float32)
    found = kmeans(truth[rng.integers(0, 4, 400)] + 0.1 * rng.standard_normal((400, 2)).astype(np.float32), 4, rng)
    assert np.abs(found[:, None] - truth).sum(-1).min(0).max() < 0.2


@pytest.mark.parametrize("value", PALETTES[:-1])
def test_scales_follow_their_rows(value: str) -> None:
    palette = Palette.of(value)
    assert palette is not None
    rows = np.random.default_rng(3).standard_normal((500, 24)).astype(np.float32)
    sizes = 10 ** np.random.default_rng(4).uniform(-2, 2, 500).astype(np.float32)
    plain, scaled = cluster(rows, palette).values(), cluster(rows * sizes[:, None], palette).values()
    assert decibels(rows, scaled / sizes[:, None]) > decibels(rows, plain) - 1
    assert not cluster(np.zeros((3, 24), np.float32), palette).values().any()


def made(index: int, rules: dict[str, str]) -> Deployed:
    """The toy with palettes, by the passes that the rules need."""
    folded, precision = FOLDED[index], Precision(rules)
    deployed = folded
    if "int8" in precision.wants((*folded.blocks, *folded.dense())):
        deployed, _ = int8(folded, precision, dict.fromkeys((*folded.dense(), "mean"), 4.0))
    return palettize(deployed, folded, precision)[0]


@pytest.mark.parametrize("value", PALETTES)
@pytest.mark.parametrize("index", range(len(SHAPES)))
@settings(max_examples=10, deadline=None)
@given(ids=IDS)
def test_padding_stays_negative(index: int, value: str, ids: list[int]) -> None:
    deployed = made(index, {"tables": value})
    left, right = deployed.network.margins
    for t in range(len(ids), len(ids) + max(left, right) + 3):
        assert deployed_y(deployed, ids, t).max() < 0


def test_what_is_stored_opens_to_what_was_made() -> None:
    deployed = made(0, {"tables": "palette16", "ngrams": "int8", "dense": "palette8", "output": "fp32"})
    stored = deployed.stored()
    assert {name for name in stored if name.startswith("table.")} == {
        *(f"table.{kind}.{i}" for kind in ("codes", "codebook") for i in range(3)),
        *("table.rows.3", "table.width", "table.scale"),
    }
    assert stored["table.scale"].dtype == np.float16
    assert deployed.nbytes() == sum(tensor.nbytes for tensor in stored.values()) < FOLDED[0].nbytes() / 2
    opened = expand(stored)
    assert set(opened) == set(deployed.tensors)
    for name, tensor in deployed.tensors.items():
        np.testing.assert_array_equal(opened[name], tensor)
    assert {layer: deployed.precision(layer) for layer in deployed.dense()} == {
        "mixer": "int8-weights",
        "hidden": "int8-weights",
        "output": "fp32",
        "pairs": "fp32",
    }
    assert len(np.unique(deployed.tensors["hidden.weight"])) <= 8


def test_a_split_gives_its_better_palette_to_the_rows_that_are_used_most() -> None:
    folded = FOLDED[0]
    assert folded.usage is not None
    deployed = made(0, {"tables": "int8", "offset0": "palette64:25%+palette2"})
    start, stop = folded.blocks["offset0"]
    rows = stop - start
    number = list(folded.blocks).index("offset0")
    often = np.unpackbits(deployed.packed[f"table.often.{number}"], count=rows, bitorder="little").astype(bool)
    most = np.argsort(-folded.usage[start:stop], kind="stable")[: rows // 4]
    padding = 0
    assert set(np.flatnonzero(often)) == {*most.tolist(), padding}
    before, after = folded.tensors["table"][start:stop], deployed.tensors["table"][start:stop].astype(np.float32)
    after *= deployed.tensors["table.scale"][start:stop, None]
    assert decibels(before[often], after[often]) > decibels(before[~often], after[~often]) + 10
    for own in (often, ~often):
        assert len(np.unique(deployed.tensors["table"][start:stop][own])) <= 64
    opened = expand(deployed.stored())
    np.testing.assert_array_equal(opened["table"], deployed.tensors["table"])
    stored = sum(t.nbytes for name, t in deployed.packed.items() if f".{number}" in name)
    codes = often.sum() * 2 * 6 + (~often).sum() * 2 * 1  # 16 numbers a row: two groups of eight codes
    assert stored == codes + 64 + 2 + -(-rows // 8)


def test_a_split_without_counts_is_refused() -> None:
    folded = dataclasses.replace(FOLDED[0], usage=None)
    with pytest.raises(ExportError, match=r"needs to know how often rows are used, .* distill it again"):
        palettize(folded, folded, Precision({"tables": "palette64:25%+palette4"}))


def test_what_is_used_more_counts_more_for_a_codebook() -> None:
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.standard_normal((400, 8)), rng.uniform(-3, 3, (400, 8))]).astype(np.float32)
    usage = np.repeat([10_000, 0], 400)
    palette = Palette(entries=8, dims=1)
    plain, used = cluster(rows, palette), cluster(rows, palette, usage=usage)
    assert decibels(rows[:400], used.values()[:400]) > decibels(rows[:400], plain.values()[:400])
    assert decibels(rows[400:], used.values()[400:]) < decibels(rows[400:], plain.values()[400:])


def test_the_report_says_what_became_of_each_part() -> None:
    folded = FOLDED[0]
    rules = {"tables": "palette64x2", "hidden": "int4"}
    _, report = palettize(folded, folded, Precision(rules))
    assert set(report.changed) == {*folded.blocks, "hidden"}
    for name, facts in report.changed.items():
        assert facts["bytes_after"] < facts["bytes_before"] / 3
        assert 0 < facts["relative_error"] < 0.5
        assert facts["bits"] == (4 if name == "hidden" else 3)


def test_a_pass_that_does_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    folded = FOLDED[0]
    with pytest.raises(ExportError, match="palettize: nothing became smaller"):
        palettize(folded, folded, Precision({"tables": "int8"}))
    with pytest.raises(ExportError, match="fp16: nothing became smaller"):
        fp16(folded, Precision())
    monkeypatch.setattr(module, "unpack_codes", lambda packed, codebook, width: np.zeros((len(packed), width), np.int8))
    with pytest.raises(ExportError, match="unpacking 'table' gives other numbers"):
        palettize(folded, folded, Precision({"tables": "palette16"}))


def test_weights_beyond_float16_are_refused() -> None:
    huge = dict(FOLDED[0].tensors) | {"hidden.weight": np.full_like(FOLDED[0].tensors["hidden.weight"], 1e9)}
    folded = dataclasses.replace(FOLDED[0], tensors=huge)
    with pytest.raises(ExportError, match="'hidden' needs a scale beyond float16"):
        palettize(folded, folded, Precision({"hidden": "palette16"}))
    with pytest.raises(ExportError, match=r"'hidden' has a weight of 1e\+09, beyond float16"):
        fp16(folded, Precision({"hidden": "fp16"}))


RECIPE = (
    conftest.RECIPE.replace("{lengths}", "[8, 24]")
    .replace("{min_cosine}", "0.7")
    .replace("{max_abs}", "4.0\nmin_top1 = 0.5")
)


@pytest.mark.parametrize(
    ("passes", "precision"),
    [
        ('["fold", "palettize"]', 'tables = "palette16"\ndense = "int4"'),
        ('["fold", "int8", "palettize"]', 'tables = "palette64x2"\nngrams = "int8"\n"offset-1" = "palette8"'),
        ('["fold", "palettize"]', 'default = "palette128"'),
        ('["fold", "palettize"]', 'tables = "palette256x4"\nhidden = "palette32"\noutput = "palette8x2"'),
        ('["fold", "fp16"]', 'default = "fp16"'),
        ('["fold", "fp16", "palettize"]', 'tables = "int4"\nhidden = "fp16"'),
        ('["fold", "palettize"]', 'default = "palette32"\ntables = "palette64:20%+palette64x2"'),
    ],
)
def test_every_engine_opens_what_was_exported(
    toy_checkpoint: Path, tmp_path: Path, passes: str, precision: str
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE.replace("min_top1 = 0.5", "min_top1 = 0.2").format(passes=passes, precision=precision))
    report = fieldrun.export(toy_checkpoint, tmp_path / "bundle", recipe=path)
    assert [p.name for p in report.passes] == eval(passes)
    texts = ["it was a great film", "no", "what is my card for"]
    found = {}
    for engine in ("native", "numpy", "onnxruntime"):
        assert fieldrun.verify(report.path, engine=engine).passed
        with fieldrun.load(report.path, engine=engine) as model:
            found[engine] = model.forward(texts)
    for engine in ("numpy", "onnxruntime"):
        np.testing.assert_allclose(found[engine].field, found["native"].field, atol=1e-5)
        np.testing.assert_allclose(found[engine].logits, found["native"].logits, atol=1e-5)
    again = fieldrun.export(toy_checkpoint, tmp_path / "again", recipe=path)
    assert Bundle.load(again.path).manifest.files == Bundle.load(report.path).manifest.files


def test_damaged_codes_are_found_before_they_are_used(toy_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE.format(passes='["fold", "palettize"]', precision='tables = "palette16"'))
    bundle = fieldrun.export(toy_checkpoint, tmp_path / "bundle", recipe=path).path
    data = bytearray((bundle / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (bundle / "weights.safetensors").write_bytes(data)
    with pytest.raises(IntegrityError, match=r"weights.safetensors"):
        fieldrun.load(bundle)


def test_a_packed_bundle_is_smaller_on_disk(toy_checkpoint: Path, tmp_path: Path) -> None:
    sizes = {}
    for name, passes, precision in (
        ("int8", '["fold", "int8"]', 'tables = "int8"'),
        ("palette", '["fold", "palettize"]', 'tables = "palette16x2"'),
    ):
        path = tmp_path / f"{name}.toml"
        path.write_text(RECIPE.format(passes=passes, precision=precision))
        bundle = fieldrun.export(toy_checkpoint, tmp_path / name, recipe=path).path
        table = [t for k, t in read_tensors(bundle / "weights.safetensors").items() if k.startswith("table")]
        sizes[name] = sum(t.nbytes for t in table)
    assert sizes["palette"] < sizes["int8"] / 2


def test_rules_go_from_the_part_to_its_kind_to_the_default() -> None:
    precision = Precision({"default": "int8", "tables": "palette16", "offset-1": "int8", "output": "fp32"})
    assert precision.of("offset-1") == "int8"
    assert precision.of("offset0") == precision.of("ngrams") == "palette16"
    assert precision.of("hidden") == "int8"
    assert precision.of("output") == precision.of("pairs") == "fp32"
    assert Precision({"output": "fp32", "pairs": "int8"}).of("pairs") == "int8"
    assert Precision({}).of("mixer") == "fp32"
    assert precision == Precision(precision.rules) != Precision({})
    assert precision.wants(("hidden", "offset0")) == {"int8", "palettize"}


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"tables": 4}, "precision.tables must be a string"),
        ({"embedding": "int8"}, "unknown part 'embedding'; known: default, tables, dense"),
        ({"offset00": "int8"}, "unknown part 'offset00'"),
        ({"tables": "int8-weights"}, "must be one of fp32, fp16, int8, int4 or palette<K>"),
        ({"default": "int8-weights"}, "precision.default must be one of"),
        ({"hidden": "int2"}, "must be one of fp32, fp16, int8, int8-weights, int4 or palette<K>"),
        ({"tables": "palette0"}, "a palette has 2 to 256 entries"),
        ({"tables": "palette257"}, "a palette has 2 to 256 entries"),
        ({"tables": "palette16x3"}, "of 1, 2, 4, 8 numbers"),
        ({"tables": "palette"}, "must be one of"),
        ({"tables": "palette16+palette4"}, "a split is two palettes and the share of rows"),
        ({"tables": "palette16:0%+palette4"}, "a split is two palettes and the share of rows"),
        ({"tables": "palette16:100%+palette4"}, "a split is two palettes and the share of rows"),
        ({"tables": "int8:20%+palette4"}, "a split is two palettes and the share of rows"),
        ({"tables": "palette300:20%+palette4"}, "a palette has 2 to 256 entries"),
        ({"hidden": "palette16:20%+palette4"}, "precision.hidden: only blocks of the table"),
        ({"default": "palette16:20%+palette4"}, "precision.default: only blocks of the table"),
    ],
)
def test_rules_that_make_no_sense_are_refused(rules: dict[str, Any], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        Precision(rules)


@pytest.mark.parametrize(
    ("rules", "message"),
    [
        ({"offset5": "int8"}, r"the student has no such block; it has offset-1, offset0, offset2, ngrams"),
        ({"tables": "int8", "ngrams": "fp32"}, "precision.ngrams is fp32 and precision.offset-1 int8"),
        ({"tables": "fp16", "offset0": "palette16"}, "precision.offset-1 is fp16 and precision.offset0 palette16"),
        ({"tables": "fp16", "offset0": "fp32"}, "either all blocks of a table are"),
    ],
)
def test_rules_that_do_not_fit_the_student_are_refused(rules: dict[str, str], message: str) -> None:
    folded = fold(toy_checkpoint(0))[0]
    with pytest.raises(RecipeError, match=message):
        Precision(rules).check_parts(folded.blocks)


def test_a_recipe_with_the_wrong_passes_is_refused(
    toy_checkpoint: Path, tmp_path: Path, write_recipe: Callable[..., Path]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE.format(passes='["fold"]', precision='tables = "palette16"'))
    with pytest.raises(RecipeError, match="list the pass 'palettize' exactly when"):
        fieldrun.export(toy_checkpoint, tmp_path / "bundle", recipe=path)
    assert not (tmp_path / "bundle").exists()
