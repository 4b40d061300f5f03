"""Palettes in an encoder's recipe: what is stored, that the graph decodes it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fieldrun
from fieldrun.errors import ExportError, RecipeError
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.packing import code_bits, expand
from fieldrun.formats.tensors import Array, read_tensors
from fieldrun_exporters.encoder import source as module
from fieldrun_exporters.encoder.activations import input_squares
from fieldrun_exporters.encoder.deployed import DeployedEncoder, fold_encoder, palettize_encoder
from fieldrun_exporters.encoder.model import Encoder, forward
from fieldrun_exporters.export import ExportReport
from fieldrun_exporters.precision import MAPS, Palette, Precision
from fieldrun_exporters.student.passes import PassReport
from fieldrun_exporters.student.passes.palettize import cluster
from fieldrun_runtimes.engines.onnxruntime_engine import OnnxRuntimeEngine
from tests.exporters.encoder.bundled import bundled_field, matrix
from tests.toy_encoder import toy_encoder

Write = Callable[..., Path]


def recipe_of(precision: str, *passes: str) -> dict[str, Any]:
    listed = ", ".join(f'"{name}"' for name in ("fold", *passes))
    return {"passes": f"[{listed}]", "precision": precision, "min_cosine": 0.5, "max_abs": 5.0}


RECIPES = {
    "both": recipe_of('tables = "palette64"\ndense = "palette16"', "palettize"),
    "runs": recipe_of('tables = "palette256x4"\ndense = "palette32"\nup = "palette256x2"', "palettize"),
    "odd": recipe_of(
        'tables = "palette100"\nqkv = "palette4"\nattention = "palette8x2"\nup = "palette128"\ndown = "palette2x8"',
        "palettize",
    ),
    "linear": recipe_of('default = "int4"', "palettize"),
    "mixed": recipe_of('tables = "palette32"\ndense = "int8"\ndown = "palette64"', "int8", "palettize"),
    "all": recipe_of(
        'tables = "int8"\ndense = "palette32"\n[lowrank]\nqk = 0.75\nmlp = 0.75', "lowrank", "int8", "palettize"
    ),
}
FLOAT_INPUTS = ("both", "runs", "odd", "linear", "all")


@pytest.fixture(scope="module")
def exported(
    encoder_folder: Path, texts: list[str], encoder_recipe: Write, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ExportReport]:
    root = tmp_path_factory.mktemp("palettes")
    recipes = {"whole": {}, **RECIPES}
    return {
        name: fieldrun.export(encoder_folder, root / name, recipe=encoder_recipe("fp32", **changes), calibration=texts)
        for name, changes in recipes.items()
    }


@pytest.mark.parametrize("name", FLOAT_INPUTS)
def test_the_graphs_decode_what_is_stored(
    exported: dict[str, ExportReport], encoder_folder: Path, texts: list[str], name: str
) -> None:
    config, stored = Encoder.load(encoder_folder).config, read_tensors(exported[name].path / "weights.safetensors")
    with fieldrun.load(exported[name].path) as model:
        ids = model.token_ids(texts[:25])
        want = np.array([bundled_field(stored, config, row) for row in ids])
        assert np.abs(model.field(texts[:25]) - want).max() < 2e-5
        engine = OnnxRuntimeEngine(Bundle.load(exported[name].path), 1)
        for bucket in engine.buckets:
            rows = [i for i, row in enumerate(ids) if len(row) <= bucket.length][:9]
            assert np.abs(engine.run_bucket([ids[i] for i in rows], bucket)[0] - want[rows]).max() < 2e-5
    assert np.abs(want).max() > 0.1
    assert fieldrun.verify(exported[name].path).passed


def test_a_palette_stands_beside_int8(exported: dict[str, ExportReport]) -> None:
    report = exported["mixed"]
    stored = read_tensors(report.path / "weights.safetensors")
    assert stored["layer0.qkv.weight"].dtype == np.int8
    assert {"table.codes.0", "layer1.down.weight.codes.0"} <= set(stored)
    assert not {"table", "layer1.down.weight"} & set(stored)
    assert report.operators["optimised"]["MatMulIntegerToFloat"] == 6
    assert [each.name for each in report.passes] == ["fold", "int8", "palettize"]
    assert report.passes[2].bytes_before == report.passes[1].bytes_after
    assert fieldrun.verify(report.path).passed
    assert report.proof["field"]["mean_cosine"] > 0.98


def test_the_bytes_are_those_of_the_codes(exported: dict[str, ExportReport], encoder_folder: Path) -> None:
    old = Encoder.load(encoder_folder).tensors
    stored = read_tensors(exported["both"].path / "weights.safetensors")
    assert stored["layer1.up.weight.codes.0"].nbytes == old["layer1.up.weight"].size // 2
    assert stored["table.codes.0"].nbytes == old["embeddings.word"].size * 6 // 8
    assert stored["table.scale"].dtype == stored["layer1.up.weight_scale"].dtype == np.float16
    files = {name: (report.path / "weights.safetensors").stat().st_size for name, report in exported.items()}
    report = exported["both"].passes[1]
    spared = files["whole"] - files["both"]
    assert spared < report.bytes_before - report.bytes_after < spared + 8000  # names in the file's header are longer
    assert sum(facts["bytes_before"] - facts["bytes_after"] for facts in report.changed.values()) == pytest.approx(
        report.bytes_before - report.bytes_after, abs=200
    )
    assert report.changed["layer1.up"]["bits"] == 4
    for part in ("table", *(f"layer1.{name}" for name in MAPS)):
        name = part if part == "table" else f"{part}.weight"
        book = stored[f"{name}.codebook.0"]
        assert (len(book), code_bits(len(book))) == ((64, 6) if part == "table" else (16, 4))


def test_the_values_are_near_the_matrix(exported: dict[str, ExportReport], encoder_folder: Path) -> None:
    old, stored = Encoder.load(encoder_folder).tensors, read_tensors(exported["both"].path / "weights.safetensors")
    changed = exported["both"].passes[1].changed
    for part, wanted in (("table", "embeddings.word"), ("layer0.down", "layer0.down.weight")):
        found = matrix(stored, part if part == "table" else f"{part}.weight")
        error = float(np.linalg.norm(found - old[wanted]) / np.linalg.norm(old[wanted]))
        assert changed[part]["relative_error"] == pytest.approx(error, rel=1e-3)
        assert error < (0.05 if part == "table" else 0.15)


def even(folded: DeployedEncoder) -> dict[str, Array]:
    """Inputs that all count alike."""
    return {name: np.ones(len(folded.tensors[f"{name}.weight"])) for name in folded.dense()}


def test_a_map_takes_one_scale_where_that_is_nearer() -> None:
    folded, _ = fold_encoder(toy_encoder(layers=1))
    rng = np.random.default_rng(3)
    weight = (rng.choice(np.linspace(-127, 127, 16).round(), (32, 16)) / 100).astype(np.float32)
    few = replace(folded, tensors=dict(folded.tensors) | {"layer0.down.weight": weight})
    only = Precision({"down": "palette16"})
    found, report = palettize_encoder(few, few, only, even(folded))
    scale = found.tensors["layer0.down.weight_scale"]
    error = float(np.linalg.norm(found.tensors["layer0.down.weight"] * scale - weight) / np.linalg.norm(weight))
    alone = cluster(np.ascontiguousarray(weight.T), Palette(entries=16)).values().T
    assert len(np.unique(scale)) == 1
    assert error < 0.005 < 0.01 < np.linalg.norm(alone - weight) / np.linalg.norm(weight)
    assert report.changed["layer0.down"]["relative_error"] == pytest.approx(error, rel=1e-3)
    own, _ = palettize_encoder(folded, folded, only, even(folded))
    assert len(np.unique(own.tensors["layer0.down.weight_scale"])) > 1


def test_an_error_counts_by_the_input_it_meets() -> None:
    """One large input alone: its weights are said exactly by one scale for all, all others better by their own."""
    folded, _ = fold_encoder(toy_encoder(layers=1))
    rng = np.random.default_rng(5)
    weight = (rng.standard_normal((32, 16)) * np.geomspace(0.05, 1, 16)).astype(np.float32)
    mixed = replace(folded, tensors=dict(folded.tensors) | {"layer0.down.weight": weight})
    rows = np.ascontiguousarray(weight.T)
    each, flat = (cluster(x, Palette(entries=16)).values().reshape(rows.shape) for x in (rows, rows.reshape(1, -1)))
    lost = [np.square(found - rows).sum(0) for found in (each, flat)]
    place = int((lost[0] - lost[1]).argmax())
    assert lost[0].sum() < lost[1].sum()
    assert lost[0][place] > lost[1][place]
    squares = even(folded)
    for large, wanted in ((1.0, each), (1e6, flat)):
        squares["layer0.down"][place] = large
        found, _ = palettize_encoder(mixed, mixed, Precision({"down": "palette16"}), squares)
        values = found.tensors["layer0.down.weight"] * found.tensors["layer0.down.weight_scale"]
        np.testing.assert_allclose(values.T, wanted, rtol=1e-5, atol=1e-7)


def test_squares_are_of_the_inputs_of_the_maps(encoder_folder: Path) -> None:
    encoder = Encoder.load(encoder_folder)
    seen: dict[str, list[Array]] = {}
    sequences = [[2, 5, 6, 3], [2, 7, 3], [2, 8, 9, 10, 11, 3]]
    for row in sequences:
        forward(encoder, np.array([row]), hook=lambda name, x: seen.setdefault(name, []).append(x))
    found = input_squares(encoder, sequences)
    assert set(found) == {f"layer{k}.{name}" for k in range(2) for name in MAPS}
    for name, squares in found.items():
        want = np.square(np.concatenate(seen[name.replace("qkv", "query")])).mean(0)
        np.testing.assert_allclose(squares, want, rtol=1e-4)


def test_decoding_is_done_when_a_graph_is_opened_but_for_the_words(exported: dict[str, ExportReport]) -> None:
    operators = exported["both"].operators
    assert operators["graph"]["Mod"] == 9
    assert operators["optimised"]["Mod"] == 1
    assert operators["optimised"]["Gather"] == exported["whole"].operators["optimised"]["Gather"] + 4


def test_same_inputs_same_bytes(
    exported: dict[str, ExportReport], encoder_folder: Path, texts: list[str], encoder_recipe: Write, tmp_path: Path
) -> None:
    recipe = encoder_recipe("fp32", **RECIPES["runs"])
    fieldrun.export(encoder_folder, tmp_path / "b", recipe=recipe, calibration=texts)
    files = [(folder / "weights.safetensors").read_bytes() for folder in (tmp_path / "b", exported["runs"].path)]
    assert files[0] == files[1]


@pytest.fixture
def refused(encoder_folder: Path, tmp_path: Path, texts: list[str], encoder_recipe: Write) -> Callable[..., str]:
    """Export with changes of the recipe, expect an error of one line, and see that nothing was written."""

    def call(kind: type[Exception], changes: dict[str, Any]) -> str:
        recipe = encoder_recipe("fp32", **changes)
        with pytest.raises(kind) as caught:
            fieldrun.export(encoder_folder, tmp_path / "out", recipe=recipe, calibration=texts)
        assert list(tmp_path.iterdir()) == []
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return call


def test_a_pass_that_does_nothing_is_seen(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def nothing(deployed: DeployedEncoder, *_: Any) -> tuple[DeployedEncoder, PassReport]:
        return deployed, PassReport(name="palettize", bytes_before=2, bytes_after=1)

    monkeypatch.setattr(module, "palettize_encoder", nothing)
    assert "wants 'table' in palette64, but the passes left it in fp32" in refused(ExportError, RECIPES["both"])


def test_a_palette_that_nobody_asked_for_is_seen(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    def more(deployed: DeployedEncoder, folded: DeployedEncoder, *_: Any) -> tuple[DeployedEncoder, PassReport]:
        return palettize_encoder(deployed, folded, Precision({"default": "palette16"}), even(folded))

    monkeypatch.setattr(module, "palettize_encoder", more)
    changes = recipe_of('down = "palette16"', "palettize")
    assert "wants 'table' in fp32, but the passes left it in a palette" in refused(ExportError, changes)


def test_codes_that_open_to_something_else_are_seen(encoder_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(packed: dict[str, Array]) -> dict[str, Array]:
        return {name: tensor[::-1] for name, tensor in expand(packed).items()}

    monkeypatch.setattr("fieldrun_exporters.encoder.deployed.expand", wrong)
    folded, _ = fold_encoder(Encoder.load(encoder_folder))
    with pytest.raises(ExportError, match="unpacking 'table' gives other numbers"):
        palettize_encoder(folded, folded, Precision({"tables": "palette16"}), {})


@pytest.mark.parametrize(
    ("precision", "passes", "words"),
    [
        ('dense = "palette1"', ["palettize"], "2 to 256 entries"),
        ('dense = "palette0"', ["palettize"], "2 to 256 entries"),
        ('dense = "palette512"', ["palettize"], "2 to 256 entries"),
        ('up = "palette16x3"', ["palettize"], "2 to 256 entries of 1, 2, 4, 8 numbers"),
        ('dense = "palette16"', ["int8"], "conflict"),
        ('dense = "palette16"', [], "list the pass 'palettize'"),
        ('tables = "palette64:20%+palette16"', ["palettize"], "table of an encoder is one of fp32, int8 or palette<K>"),
        ('qkv = "palette64:20%+palette16"', ["palettize"], "qkv of an encoder is one of"),
        ('query = "palette16"', ["palettize"], "unknown part 'query'"),
        ('offset0 = "palette16"', ["palettize"], "an encoder has no such part"),
    ],
)
def test_wrong_recipes_are_one_line(refused: Callable[..., str], precision: str, passes: list[str], words: str) -> None:
    assert words in refused(RecipeError, recipe_of(precision, *passes))
