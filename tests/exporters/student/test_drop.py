"""What an export proves: the NumPy form is what the engines run, the worst part is named, accuracy is guarded."""

from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import fieldrun
from fieldrun.cli import main
from fieldrun.errors import DatasetError, ExportError, UnknownName, UsageError
from fieldrun.evaluation.dataset import Dataset, read_tsv
from fieldrun.formats.storage import read_json
from fieldrun.heads.head import head_logits
from fieldrun.heads.trained import Checkpoint
from fieldrun.student.oracle import forward
from fieldrun.student.windows import pad_ids
from fieldrun_exporters.calibrate import CalibrationText, choose_texts, tokenize
from fieldrun_exporters.parity import field_errors
from fieldrun_exporters.recipe import load_recipe
from fieldrun_exporters.student.drop import check_drop
from fieldrun_exporters.student.passes.fold import fold
from fieldrun_exporters.student.simulate import outputs, tensor_errors
from fieldrun_exporters.student.source import run_passes
from tests.exporters.student.test_palettize import RECIPE, made
from tests.exporters.student.test_passes import CHECKPOINTS, FOLDED, SHAPES

ROUGH = ('["fold", "palettize"]', 'tables = "palette2"\nhidden = "palette64"')


def sequences(seed: int, count: int = 40) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, CHECKPOINTS[0].config.vocab_size, 1 + i % 20).tolist() for i in range(count)]


@pytest.mark.parametrize("index", range(len(SHAPES)))
def test_the_numpy_form_is_the_reference(index: int) -> None:
    checkpoint, ids = CHECKPOINTS[index], sequences(index)
    field = np.concatenate([forward(checkpoint.config, checkpoint.tensors, pad_ids([s]), float64=True) for s in ids])
    singles = [head_logits(head, field) for head in checkpoint.heads if head.kind == "single"]
    np.testing.assert_allclose(outputs(FOLDED[index], ids), np.concatenate([field, *singles], axis=1), atol=2e-5)


@pytest.mark.parametrize("precision", ["int8", "palette"])
def test_the_numpy_form_is_what_engines_run(toy_checkpoint: Path, tmp_path: Path, precision: str) -> None:
    rules = {
        "int8": ('["fold", "int8"]', 'tables = "int8"\ndense = "int8"'),
        "palette": ('["fold", "int8", "palettize"]', 'tables = "palette16x2"\ndense = "int8-weights"\nhidden = "int4"'),
    }[precision]
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE.format(passes=rules[0], precision=rules[1]))
    report = fieldrun.export(toy_checkpoint, tmp_path / "bundle", recipe=path)
    source = Checkpoint.load(toy_checkpoint)
    ids = tokenize(source, choose_texts(None, 512), 24)
    _, _, deployed, _ = run_passes(source, load_recipe(path), CalibrationText(None, 512), lambda *_: None)
    with fieldrun.load(report.path, engine="numpy") as model:
        encoding = model.forward(choose_texts(None, 512)[:40])
    found = outputs(deployed, ids[:40])
    difference = np.abs(found - np.concatenate([encoding.field, encoding.logits], axis=1)).max(1)
    assert np.median(difference) < 1e-5  # a sum on the edge of an int8 step may be rounded the other way
    assert report.to_dict()["proof"] == read_json(report.path / "report.json")["proof"]
    parts = report.proof["parts"]
    assert list(parts) == ["offset-1", "offset0", "offset2", "ngrams", "mixer", "hidden", "output"]
    for part in parts.values():
        assert 0.6 < part["min_cosine"] <= part["p1_cosine"] <= part["mean_cosine"] + 1e-6
    assert 0.6 < report.proof["field"]["mean_cosine"] < 1


def test_the_worst_part_stands_out() -> None:
    deployed = made(0, {"tables": "palette256", "offset0": "palette2"})
    errors = tensor_errors(FOLDED[0], deployed, sequences(3))
    assert min(errors, key=lambda name: errors[name]["mean_cosine"]) == "offset0"
    assert not tensor_errors(FOLDED[0], FOLDED[0], sequences(3))


def test_errors_of_fields() -> None:
    x = np.random.default_rng(0).standard_normal((30, 8)).astype(np.float32)
    same = field_errors(x, 3 * x)
    assert same == pytest.approx({"mean_cosine": 1, "p1_cosine": 1, "min_cosine": 1, "rank_agreement": 1})
    assert field_errors(x, -x)["min_cosine"] == pytest.approx(-1)
    assert field_errors(x, np.random.default_rng(1).standard_normal((30, 8)))["rank_agreement"] < 0.5


@pytest.fixture
def rows(toy_checkpoint: Path, tmp_path: Path, texts: list[str]) -> dict[str, Dataset]:
    """Rows that the float student labels right, all of them: what a recipe loses is what it changes."""
    source = Checkpoint.load(toy_checkpoint)
    logits = outputs(fold(source)[0], tokenize(source, texts, 24))[:, source.config.field_dim :]
    mood, intent = logits[:, :2].argmax(1), logits[:, 2:6].argmax(1)
    names: dict[str, tuple[str, ...]] = {head.name: head.labels for head in source.heads}
    files = {
        "mood": [f"{text}\t{names['mood'][k]}" for text, k in zip(texts, mood, strict=True)],
        "intent": [f"{text}\t{names['intent'][k]}" for text, k in zip(texts, intent, strict=True)],
        "same": [f"{a}\t{b}\tyes" for a, b in pairwise(texts)],
    }
    for name, lines in files.items():
        header = "text_a\ttext_b\tlabel" if name == "same" else "text\tlabel"
        (tmp_path / f"{name}.tsv").write_text("\n".join([header, *lines]) + "\n")
    return {name: read_tsv(tmp_path / f"{name}.tsv") for name in files}


def recipe(tmp_path: Path, passes: str, precision: str) -> Path:
    path = tmp_path / "gated.toml"
    path.write_text(
        RECIPE.format(passes=passes, precision=precision)
        .replace("min_cosine = 0.7", "min_cosine = 0.01")
        .replace("max_abs = 4.0", "max_abs = 99")
        .replace("min_top1 = 0.5", "min_top1 = 0.01")
    )
    return path


def test_accuracy_is_measured_on_what_is_given(toy_checkpoint: Path, tmp_path: Path, rows: dict[str, Dataset]) -> None:
    path = recipe(tmp_path, *ROUGH)
    report = fieldrun.export(toy_checkpoint, tmp_path / "bundle", recipe=path, data=rows)
    found = report.proof["accuracy"]
    assert list(found["tasks"]) == ["mood", "intent", "same"]
    assert found["tasks"]["mood"]["fp32"] == found["tasks"]["intent"]["fp32"] == 1
    with fieldrun.load(report.path) as model:
        for name, data in rows.items():
            predicted = model.predict(data.texts, name)
            accuracy = np.mean([p == label for p, label in zip(predicted, data.labels, strict=True)])
            task = found["tasks"][name]
            assert task["accuracy"] == pytest.approx(accuracy, abs=1e-5)
            assert task["drop"] == pytest.approx(100 * (task["fp32"] - task["accuracy"]), abs=2e-3)
            assert task["ci95"][0] <= task["drop"] <= task["ci95"][1]
            assert task["sha256"] == data.sha256
    assert found["mean_drop"] == pytest.approx(np.mean([task["drop"] for task in found["tasks"].values()]), abs=2e-3)


def test_too_large_a_drop_writes_nothing_and_names_the_part(
    toy_checkpoint: Path, tmp_path: Path, rows: dict[str, Dataset]
) -> None:
    del rows["same"]
    path = recipe(tmp_path, *ROUGH)
    with pytest.raises(ExportError, match=r"the limit is 0.1; nothing was written. 'ngrams|'offset") as caught:
        fieldrun.export(toy_checkpoint, tmp_path / "bundle", recipe=path, data=rows, max_drop=0.1)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "bundle").exists()
    fieldrun.export(toy_checkpoint, tmp_path / "bundle", recipe=path, data=rows, max_drop=100)
    with pytest.raises(ExportError, match="by nan points"):
        check_drop({"mean_drop": float("nan")}, 1.0, {})


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"max_drop": 1.0}, UsageError, "on `data`"),
        ({"data": "mood", "max_drop": -1.0}, UsageError, "0 or more"),
        ({"data": "mood", "max_drop": float("nan")}, UsageError, "0 or more"),
        ({"data": "mood", "max_drop": "much"}, UsageError, "not 'much'"),
    ],
)
def test_a_limit_that_makes_no_sense_is_refused(
    toy_checkpoint: Path, tmp_path: Path, rows: dict[str, Dataset], change: dict[str, Any], error: Any, message: str
) -> None:
    if "data" in change:
        change = change | {"data": {change["data"]: rows[change["data"]]}}
    with pytest.raises(error, match=message):
        fieldrun.export(toy_checkpoint, tmp_path / "bundle", recipe=recipe(tmp_path, *ROUGH), **change)


def test_rows_that_do_not_fit_are_refused(toy_checkpoint: Path, tmp_path: Path, rows: dict[str, Dataset]) -> None:
    out = tmp_path / "bundle"
    with pytest.raises(UnknownName, match="unknown task 'weather'"):
        fieldrun.export(toy_checkpoint, out, data={"weather": rows["mood"]})
    with pytest.raises(DatasetError, match="holds pair texts, and the task 'mood' takes single texts"):
        fieldrun.export(toy_checkpoint, out, data={"mood": rows["same"]})
    with pytest.raises(DatasetError, match=r"intent.tsv, line 2: the task 'mood' has no label"):
        fieldrun.export(toy_checkpoint, out, data={"mood": rows["intent"]})


def test_the_command_says_what_it_cost(toy_checkpoint: Path, tmp_path: Path, rows: dict[str, Dataset]) -> None:
    path, runner = recipe(tmp_path, *ROUGH), CliRunner()
    data = ["--data", f"mood={rows['mood'].path}", "--data", f"same={rows['same'].path}"]
    arguments = ["export", str(toy_checkpoint), "--recipe", str(path), *data]
    result = runner.invoke(main, [*arguments, "-o", str(tmp_path / "one")])
    assert (result.exit_code, (tmp_path / "one").exists()) == (8, True), result.output
    assert "one differs from its reference" in result.output
    assert "  mood: " in result.output
    assert " points (" in result.output
    assert "  mean: " in result.output
    result = runner.invoke(main, [*arguments, "--json", "-o", str(tmp_path / "two")])
    assert set(json.loads(result.stdout)["proof"]) == {"parts", "field", "accuracy"}
    result = runner.invoke(main, [*arguments, "--max-drop", "0", "-o", str(tmp_path / "three")])
    assert (result.exit_code, (tmp_path / "three").exists()) == (8, False)
    twice = [*data, "--data", f"mood={rows['intent'].path}"]
    for command, wrong, message in (
        ("export", ["--max-drop", "1"], "give --data TASK=FILE"),
        ("export", ["--data", "mood"], "write TASK=FILE"),
        ("export", twice, "--data names the task 'mood' twice"),
    ):
        result = runner.invoke(main, [command, str(toy_checkpoint), "-o", str(tmp_path / "four"), *wrong])
        assert result.exit_code == 2
        assert message in result.output
