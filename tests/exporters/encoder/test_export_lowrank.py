"""A3 in an encoder's recipe: what the bundle holds and gives, what is proven of it, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fieldrun
from fieldrun.errors import ExportError, ParityError, RecipeError
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.storage import read_json
from fieldrun.formats.tensors import Array, read_tensors
from fieldrun_exporters.calibrate import CalibrationText, tokenize
from fieldrun_exporters.encoder import source as module
from fieldrun_exporters.encoder.activations import accumulate, fields, input_ranges
from fieldrun_exporters.encoder.lowrank import lowrank
from fieldrun_exporters.encoder.model import Encoder
from fieldrun_exporters.export import ExportReport
from fieldrun_exporters.precision import MAPS
from fieldrun_exporters.recipe import COMPONENTS, load_recipe
from fieldrun_exporters.student.passes import PassReport
from fieldrun_runtimes.engines.onnxruntime_engine import OnnxRuntimeEngine
from tests.exporters.encoder.bundled import bundled_field
from tests.toy import WORDS

Write = Callable[..., Path]
SMALLER = "\n[lowrank]\nqk = 0.75\nov = 0.75\nmlp = 0.75"
FLOAT: dict[str, Any] = {
    "passes": '["fold", "lowrank"]',
    "precision": SMALLER,
    "min_cosine": 0.9,
    "max_abs": 2.0,
}
INT8: dict[str, Any] = FLOAT | {
    "passes": '["fold", "lowrank", "int8"]',
    "precision": 'tables = "int8"\ndense = "int8"' + SMALLER,
}


@pytest.fixture(scope="module")
def many() -> list[str]:
    """Two hundred texts of the toy's words: some are held back."""
    rng = np.random.default_rng(11)
    return [" ".join(rng.choice(WORDS, size=2 + i % 14)) + f" {i}" for i in range(200)]


@pytest.fixture(scope="module")
def exported(
    encoder_folder: Path, many: list[str], encoder_recipe: Write, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, ExportReport]:
    root = tmp_path_factory.mktemp("lowrank")
    recipes = {"fp32": ("fp32", FLOAT), "int8": ("int8", INT8), "whole": ("fp32", {})}
    return {
        name: fieldrun.export(encoder_folder, root / name, recipe=encoder_recipe(kind, **changes), calibration=many)
        for name, (kind, changes) in recipes.items()
    }


@pytest.fixture(scope="module")
def expected(encoder_folder: Path, many: list[str]) -> Encoder:
    """The encoder under the study's A3, of the texts that the export may learn from."""
    encoder = Encoder.load(encoder_folder)
    learnt = tokenize(encoder, CalibrationText(many, 512).calibration, 32)
    return lowrank(encoder, accumulate(encoder, learnt), dict.fromkeys(COMPONENTS, 0.25))[0]


def test_the_bundle_holds_what_a3_makes_of_the_calibration_texts(
    exported: dict[str, ExportReport], expected: Encoder, encoder_folder: Path
) -> None:
    stored, old = read_tensors(exported["fp32"].path / "weights.safetensors"), expected.tensors
    scale = np.float32(expected.config.scale)
    assert expected.inner_sizes(1) == (6, 6, 36)
    for k in range(2):
        parts = [old[f"layer{k}.query.weight"] * scale, old[f"layer{k}.key.weight"], old[f"layer{k}.value.weight"]]
        np.testing.assert_array_equal(stored[f"layer{k}.qkv.weight"], np.concatenate(parts, axis=1))
        for name in ("attention.weight", "attention.bias", "up.weight", "up.bias", "down.weight", "down.bias"):
            np.testing.assert_array_equal(stored[f"layer{k}.{name}"], old[f"layer{k}.{name}"])
    report, whole = exported["fp32"], exported["whole"]
    dense = Encoder.load(encoder_folder).parameters(), expected.parameters()
    assert report.passes[1].name == "lowrank"
    assert report.passes[0].bytes_after == report.passes[1].bytes_before
    assert report.passes[1].bytes_before - report.passes[1].bytes_after == 4 * (dense[0] - dense[1])
    sizes = [(each.path / "weights.safetensors").stat().st_size for each in (whole, report, exported["int8"])]
    assert sizes[0] - sizes[1] >= 4 * (dense[0] - dense[1]) > 0
    assert sizes[2] < sizes[1] / 2
    manifest = read_json(report.path / "manifest.json")
    assert manifest["network"]["parameters"] == expected.parameters()
    assert "6 of a query and a key and 6 of a value per head, 36" in (report.path / "CARD.md").read_text("utf-8")


def test_the_bundle_gives_the_fields_of_its_stored_weights(
    exported: dict[str, ExportReport], expected: Encoder, many: list[str]
) -> None:
    stored = read_tensors(exported["fp32"].path / "weights.safetensors")
    with fieldrun.load(exported["fp32"].path) as model:
        ids = model.token_ids(many[:40])
        want = np.array([bundled_field(stored, expected.config, row) for row in ids])
        assert np.abs(model.field(many[:40]) - want).max() < 1e-5
        engine = OnnxRuntimeEngine(Bundle.load(exported["fp32"].path), 1)
        for bucket in engine.buckets:
            rows = [i for i, row in enumerate(ids) if len(row) <= bucket.length][:9]
            assert np.abs(engine.run_bucket([ids[i] for i in rows], bucket)[0] - want[rows]).max() < 1e-5
    with fieldrun.load(exported["int8"].path) as model:
        found = model.field(many[:40])
    assert 1e-5 < np.abs(found - want).max() < 0.3


def test_the_proof_is_against_the_encoder_as_it_came(
    exported: dict[str, ExportReport], encoder_folder: Path, expected: Encoder, many: list[str]
) -> None:
    encoder = Encoder.load(encoder_folder)
    proven = tokenize(encoder, CalibrationText(many, 512).proof, 32)
    before, after = fields(encoder, proven), fields(expected, proven)
    cosine = (before * after).sum(1) / np.linalg.norm(before, axis=1) / np.linalg.norm(after, axis=1)
    for kind in ("fp32", "int8"):
        proof = read_json(exported[kind].path / "report.json")["proof"]
        assert proof["parts"]["lowrank"]["mean_cosine"] == pytest.approx(float(cosine.mean()), abs=1e-6)
        assert proof["parts"]["lowrank"]["min_cosine"] == pytest.approx(float(cosine.min()), abs=1e-6)
        assert fieldrun.verify(exported[kind].path).passed
    assert exported["fp32"].proof["field"]["mean_cosine"] == pytest.approx(float(cosine.mean()), abs=1e-5)
    assert 0.9 < exported["int8"].proof["field"]["mean_cosine"] < cosine.mean() < 0.9999
    assert exported["fp32"].parity[0].max_abs == pytest.approx(float(np.abs(before - after).max()), rel=0.5)
    assert "parts" not in exported["whole"].proof


def test_int8_is_calibrated_on_the_smaller_encoder(
    exported: dict[str, ExportReport], expected: Encoder, many: list[str]
) -> None:
    learnt = tokenize(expected, CalibrationText(many, 512).calibration, 32)
    ranges = input_ranges(expected, learnt, 99.999)
    found = exported["int8"].passes[2].changed
    for name, value in ranges.items():
        assert found[name]["input_range"] == pytest.approx(value, rel=1e-5)
    assert exported["int8"].operators["optimised"]["MatMulIntegerToFloat"] == 8


def test_one_component_leaves_the_others(
    encoder_folder: Path, encoder_recipe: Write, many: list[str], tmp_path: Path
) -> None:
    recipe = encoder_recipe("fp32", **(FLOAT | {"precision": "[lowrank]\nmlp = 0.5"}))
    report = fieldrun.export(encoder_folder, tmp_path / "b", recipe=recipe, calibration=many)
    stored, old = read_tensors(tmp_path / "b" / "weights.safetensors"), Encoder.load(encoder_folder).tensors
    assert set(report.passes[1].changed) == {"layer0.mlp", "layer1.mlp"}
    np.testing.assert_array_equal(stored["layer1.attention.weight"], old["layer1.attention.weight"])
    assert stored["layer1.down.weight"].shape == (24, 32)
    assert read_json(tmp_path / "b" / "manifest.json")["recipe"]["lowrank"] == {"qk": None, "ov": None, "mlp": 0.5}


def test_the_learnt_texts_are_not_the_proven_ones(
    encoder_folder: Path, encoder_recipe: Write, many: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    seen: list[list[int]] = []

    def watch(encoder: Encoder, sequences: Any, *rest: Any) -> Any:
        seen.extend(map(list, sequences))
        return accumulate(encoder, sequences, *rest)

    monkeypatch.setattr(module, "accumulate", watch)
    fieldrun.export(encoder_folder, tmp_path / "b", recipe=encoder_recipe("fp32", **FLOAT), calibration=many)
    proven = tokenize(Encoder.load(encoder_folder), CalibrationText(many, 512).proof, 32)
    assert seen
    assert not {tuple(row) for row in seen} & {tuple(row) for row in proven}


def test_a_pass_that_does_nothing_is_seen(
    encoder_folder: Path, encoder_recipe: Write, many: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def nothing(encoder: Encoder, *_: Any, **__: Any) -> tuple[Encoder, PassReport]:
        return encoder, PassReport(name="lowrank", bytes_before=2, bytes_after=1)

    monkeypatch.setattr(module, "lowrank", nothing)
    recipe = encoder_recipe("fp32", **FLOAT)
    with pytest.raises(
        ExportError, match=r"layer 0 with the inner sizes \(6, 6, 36\), but the passes left \(8, 8, 48\)"
    ):
        fieldrun.export(encoder_folder, tmp_path / "b", recipe=recipe, calibration=many)
    assert list(tmp_path.iterdir()) == []


def test_a_pass_that_only_cuts_fails_its_gate(
    encoder_folder: Path,
    encoder_recipe: Write,
    many: list[str],
    exported: dict[str, ExportReport],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    """The gate that A3 passes, the same sizes without its mathematics do not."""

    def cut(A: Array, B: Array, R: Array, C: Array, rank: int) -> tuple[Array, Array]:
        return A[:, :rank], B[:, :rank]

    least = exported["fp32"].proof["field"]["min_cosine"] - 1e-4
    recipe = encoder_recipe("fp32", **(FLOAT | {"min_cosine": least}))
    fieldrun.export(encoder_folder, tmp_path / "b", recipe=recipe, calibration=many)
    monkeypatch.setattr("fieldrun_exporters.encoder.lowrank.best_product", cut)
    with pytest.raises(ParityError, match="min_cosine"):
        fieldrun.export(encoder_folder, tmp_path / "c", recipe=recipe, calibration=many)


def test_the_recipe_of_the_docs_is_one(tmp_path: Path) -> None:
    page = (Path(__file__).parents[3] / "docs" / "encoders.md").read_text("utf-8")
    (found,) = [part.split("```")[0] for part in page.split("```toml\n")[1:] if "[lowrank]" in part]
    (tmp_path / "small.toml").write_text(found, "utf-8")
    plan = load_recipe(tmp_path / "small.toml")
    assert plan.passes == ("fold", "lowrank", "int8", "palettize")
    assert plan.lowrank.wanted == ("qk", "ov", "mlp")
    plan.precision.check_imported("an encoder", MAPS, palette=True)


@pytest.mark.parametrize(
    ("lines", "words"),
    [
        ("qk = 1.0", "lowrank.qk must be the share of the inner size that is kept"),
        ("mlp = 0.0", "within 0..1"),
        ("ov = -0.2", "within 0..1"),
        ("ov = nan", "within 0..1"),
        ("mlp = 3", "within 0..1"),
        ('mlp = "half"', "within 0..1"),
        ("mlp = true", "within 0..1"),
        ("heads = 0.5", "unknown keys: heads"),
        ("qk = 0.5\nwidth = 8", "lowrank.width is for a student and lowrank.qk for an encoder"),
        ("qk = 0.5\ntexts = 999", "lowrank.texts is for a student"),
        ("hidden = 8", "lowrank.hidden is for a student; an encoder has qk, ov, mlp"),
        ("qk = 0.99", "a share of 0.99 keeps all 8 of layer 0"),
        ("", "list the pass 'lowrank' exactly when"),
    ],
)
def test_wrong_recipes_are_one_line(
    encoder_folder: Path, encoder_recipe: Write, many: list[str], tmp_path: Path, lines: str, words: str
) -> None:
    recipe = encoder_recipe("fp32", **(FLOAT | {"precision": f"[lowrank]\n{lines}"}))
    with pytest.raises(RecipeError) as caught:
        fieldrun.export(encoder_folder, tmp_path / "b", recipe=recipe, calibration=many)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []
