"""Recovery: tuned codebooks bring the fields of unseen texts nearer, codes stay, and no gain is claimed without one."""

from __future__ import annotations

import dataclasses
import sys
from pathlib import Path

import numpy as np
import pytest

import fieldrun
from fieldrun.errors import ExportError, MissingDependency, RecipeError
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.tensors import read_tensors
from fieldrun.student.windows import pad_ids
from fieldrun_exporters.parity import field_errors
from fieldrun_exporters.precision import Precision
from fieldrun_exporters.recipe import LowRank, Recover, load_recipe
from fieldrun_exporters.student.passes.int8 import int8
from fieldrun_exporters.student.passes.lowrank import lowrank
from fieldrun_exporters.student.passes.palettize import palettize
from fieldrun_exporters.student.passes.recover import TorchStudent, recover
from fieldrun_exporters.student.simulate import outputs
from tests.exporters.student.test_drop import sequences
from tests.exporters.student.test_palettize import RECIPE, made
from tests.exporters.student.test_passes import FOLDED, SHAPES
from tests.toy import WORDS

torch = pytest.importorskip("torch")
PLAN = Recover(steps=60, batch=32, learning_rate=1.0, texts=600)
RULES = {"tables": "palette4", "offset0": "palette16x4", "hidden": "palette4"}


@pytest.mark.parametrize("index", range(len(SHAPES)))
def test_the_torch_form_is_the_numpy_form(index: int) -> None:
    rules = {"tables": "palette16x2", "offset0": "palette16:40%+palette4x2", "ngrams": "int8", "output": "palette16"}
    deployed = made(index, rules if FOLDED[index].blocks.keys() >= {"ngrams"} else {"tables": "palette16x2"})
    ids = [s for s in sequences(5) if len(s) == 7] + [list(range(1, 8))]
    with torch.no_grad():
        field = TorchStudent(torch, deployed).output(pad_ids(ids)).numpy()
    np.testing.assert_allclose(field, outputs(deployed, ids), atol=1e-5)


def test_unseen_texts_come_nearer() -> None:
    folded, deployed = FOLDED[0], made(0, RULES)
    steps: list[tuple[str, int, int]] = []
    result, report = recover(deployed, folded, sequences(1, 600), PLAN, lambda *step: steps.append(step))
    assert steps[-1] == ("recover", 60, 60)
    unseen, dim = sequences(2, 200), folded.network.field_dim
    expected = outputs(folded, unseen)[:, :dim]
    before, after = (field_errors(expected, outputs(form, unseen)[:, :dim]) for form in (deployed, result))
    assert 1 - after["mean_cosine"] < 0.9 * (1 - before["mean_cosine"])
    facts = report.changed["field"]
    assert facts["after"]["mean_cosine"] > facts["before"]["mean_cosine"]
    assert 0 < facts["recovered"] < 1
    assert report.bytes_after == report.bytes_before == deployed.nbytes()
    assert result.packed.keys() == deployed.packed.keys()
    for name, tensor in deployed.packed.items():
        same = np.array_equal(tensor, result.packed[name])
        assert same == (not name.startswith("table.codebook.")), name
    again, _ = recover(deployed, folded, sequences(1, 600), PLAN)
    for name, tensor in result.packed.items():
        np.testing.assert_array_equal(tensor, again.packed[name])


def test_what_cannot_be_recovered_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    deployed = made(0, RULES)
    int8_alone = Precision({"tables": "int8"})
    only_pairs = made(0, {"tables": "int8", "pairs": "palette16"})
    assert [name for name in only_pairs.packed if ".codebook." in name] == ["pairs.weight.codebook.0"]
    for nothing in (FOLDED[0], int8(FOLDED[0], int8_alone, {})[0], only_pairs):
        with pytest.raises(ExportError, match="there is nothing to tune: no part that makes the field is a palette"):
            recover(nothing, FOLDED[0], sequences(1, 600), PLAN)
    with pytest.raises(ExportError, match=r"3\d\d different texts are too few; give at least 400"):
        recover(deployed, FOLDED[0], sequences(1, 399), PLAN)
    with pytest.raises(ExportError, match="the fields are no nearer"):
        recover(deployed, FOLDED[0], sequences(1, 600), dataclasses.replace(PLAN, steps=1, learning_rate=1e-6))
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingDependency, match=r"pip install 'fieldrun\[distill\]'"):
        recover(deployed, FOLDED[0], sequences(1, 600), PLAN)


@pytest.mark.parametrize("rules", [{}, {"tables": "int8"}, {"tables": "palette16", "mixer": "int8-weights"}])
def test_a_smaller_shape_is_tuned(rules: dict[str, str]) -> None:
    folded = FOLDED[0]
    shaped, _ = lowrank(folded, sequences(3, 400), LowRank(width=12, hidden=16))
    deployed, precision = shaped, Precision(rules)
    if "int8" in precision.wants(rules):
        deployed, _ = int8(deployed, precision, {})
    if "palettize" in precision.wants(rules):
        deployed, _ = palettize(deployed, shaped, precision)
    kept = {name: tensor.copy() for name, tensor in deployed.tensors.items()}
    result, report = recover(deployed, folded, sequences(1, 3000), dataclasses.replace(PLAN, learning_rate=0.1))
    unseen = sequences(2, 200)
    wanted = outputs(folded, unseen)
    before, after = (np.square(outputs(form, unseen) - wanted).mean(0) for form in (deployed, result))
    dim = folded.network.field_dim
    assert after[:dim].mean() < 0.97 * before[:dim].mean()
    assert after[dim:].mean() < before[dim:].mean(), "the logits come along"
    assert report.changed["field"]["recovered"] > 0.03
    for name, tensor in deployed.tensors.items():
        np.testing.assert_array_equal(tensor, kept[name])
        floats = name in ("hidden.weight", "output.weight", "hidden.bias", "output.bias", "mixer.weight")
        if rules.get("mixer") and name == "mixer.weight":
            floats = False
        if not (name == "table" and "palette16" in rules.values()):
            assert np.array_equal(tensor, result.tensors[name]) == (not floats), name
    assert result.nbytes() == deployed.nbytes()


def test_an_export_of_a_smaller_shape_with_recovery_verifies(toy_checkpoint: Path, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(WORDS, size=1 + i % 20)) for i in range(3000)]
    body = RECIPE.replace("0.7", "0.01").replace("= 4.0", "= 99").replace("= 0.5", "= 0.01")
    shape = "[lowrank]\nhidden = 12\n"
    path, plain = tmp_path / "mine.toml", tmp_path / "plain.toml"
    plain.write_text(body.format(passes='["fold", "lowrank"]', precision="") + shape)
    tuned = shape + "[recover]\nsteps = 100\nbatch = 32\nlearning_rate = 0.1\ntexts = 3000\n"
    path.write_text(body.format(passes='["fold", "lowrank", "recover"]', precision="") + tuned)
    without, report = (
        fieldrun.export(toy_checkpoint, tmp_path / each.stem, recipe=each, calibration=texts) for each in (plain, path)
    )
    before, after = (each.proof["field"]["mean_cosine"] for each in (without, report))
    assert after > before
    assert list(report.proof["parts"]) == ["lowrank"], "tuned layers belong to the shape and are no losses of their own"
    assert report.proof["parts"]["lowrank"]["mean_cosine"] == pytest.approx(after, abs=1e-5)
    for engine in ("native", "numpy", "onnxruntime"):
        assert fieldrun.verify(report.path, engine=engine).passed


def test_an_export_with_recovery_verifies(toy_checkpoint: Path, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    text = RECIPE.format(passes='["fold", "palettize", "recover"]', precision='tables = "palette4"')
    path.write_text(text + "[recover]\nsteps = 40\nbatch = 32\nlearning_rate = 1.0\ntexts = 600\n")
    report = fieldrun.export(toy_checkpoint, tmp_path / "bundle", recipe=path)
    assert [p.name for p in report.passes] == ["fold", "palettize", "recover"]
    for engine in ("native", "numpy", "onnxruntime"):
        assert fieldrun.verify(report.path, engine=engine).passed
    plain = tmp_path / "plain.toml"
    plain.write_text(RECIPE.format(passes='["fold", "palettize"]', precision='tables = "palette4"'))
    without = fieldrun.export(toy_checkpoint, tmp_path / "without", recipe=plain)
    assert report.proof["field"]["mean_cosine"] > without.proof["field"]["mean_cosine"]
    weights = [read_tensors(Bundle.load(p.path).path / "weights.safetensors") for p in (report, without)]
    np.testing.assert_array_equal(weights[0]["table.codes.1"], weights[1]["table.codes.1"])
    assert not np.array_equal(weights[0]["table.codebook.1"], weights[1]["table.codebook.1"])


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("steps = 9", "steps = 0", "recover.steps must be an integer of at least 1"),
        ("steps = 9", "texts = 511", "recover.texts must be an integer of at least 512"),
        ("steps = 9", "learning_rate = 0", "recover.learning_rate must be within"),
        ("steps = 9", "epochs = 2", "unknown keys: epochs"),
        ('"palettize", "recover"', '"recover", "palettize"', "be in the order .*, recover"),
    ],
)
def test_a_recovery_that_makes_no_sense_is_refused(tmp_path: Path, old: str, new: str, message: str) -> None:
    path = tmp_path / "mine.toml"
    text = RECIPE.format(passes='["fold", "palettize", "recover"]', precision='tables = "palette4"')
    path.write_text((text + "[recover]\nsteps = 9\n").replace(old, new))
    with pytest.raises(RecipeError, match=message):
        load_recipe(path)
