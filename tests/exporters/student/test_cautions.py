"""Warnings of an export: what runs slower or does nothing is said, with the reason, and what is fast says nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

import fieldrun
from fieldrun.cli import main
from fieldrun.formats.packing import expand
from fieldrun.formats.storage import read_json
from fieldrun.formats.tensors import read_tensors
from fieldrun_exporters.precision import Precision
from fieldrun_exporters.recipe import load_recipe
from fieldrun_exporters.student.cautions import cautions
from fieldrun_exporters.student.passes.fold import fold
from tests.exporters.student.test_palettize import RECIPE
from tests.toy import toy_checkpoint as make_toy


@pytest.mark.parametrize(
    ("passes", "precision", "reasons"),
    [
        ('["fold"]', "", []),
        ('["fold", "int8"]', 'tables = "int8"\ndense = "int8-weights"', []),
        ('["fold", "fp16"]', 'default = "fp16"', ["fp16 (table, mixer, hidden, output, pairs) is slower than int8"]),
        ('["fold", "palettize"]', 'tables = "palette16"', ["ONNX Runtime and NumPy expand it"]),
        ('["fold", "fp16", "palettize"]', 'tables = "int4"\nmixer = "fp16"', ["fp16 (mixer)", "the table is packed"]),
    ],
)
def test_what_is_slow_is_said(
    toy_checkpoint: Path, tmp_path: Path, passes: str, precision: str, reasons: list[str]
) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE.format(passes=passes, precision=precision))
    report = fieldrun.export(toy_checkpoint, tmp_path / "bundle", recipe=path)
    assert len(report.warnings) == len(reasons)
    for line, reason in zip(report.warnings, reasons, strict=True):
        assert reason in line
        assert "\n" not in line
    assert list(report.warnings) == read_json(report.path / "report.json")["warnings"]
    if "packed" in " ".join(report.warnings):
        table = expand(read_tensors(report.path / "weights.safetensors"))["table"]
        assert f"to {table.nbytes / 1e6:.1f} MB" in report.warnings[-1]


def test_a_gpu_recipe_says_nothing_of_its_halves(toy_checkpoint: Path, tmp_path: Path) -> None:
    assert not fieldrun.export(toy_checkpoint, tmp_path / "bundle", recipe="jetson-orin-fp16").warnings


def test_a_rule_for_a_layer_that_the_student_lacks_is_said(toy_checkpoint: Path, tmp_path: Path) -> None:
    deployed, _ = fold(make_toy(0, mixer_kernel=0, mixer_width=0, hidden=0, pairs=False))
    path = tmp_path / "mine.toml"
    path.write_text(RECIPE.format(passes='["fold", "int8"]', precision='mixer = "int8"\npairs = "fp32"'))
    said = cautions(deployed, load_recipe(path))
    assert [line.partition(":")[0] for line in said] == ["precision.mixer", "precision.pairs"]
    assert not cautions(fold(make_toy(0))[0], load_recipe(path))
    assert Precision({"dense": "int8"}).idle(()) == ()


def test_the_command_warns_on_stderr(toy_checkpoint: Path, tmp_path: Path) -> None:
    path, runner = tmp_path / "mine.toml", CliRunner()
    path.write_text(RECIPE.format(passes='["fold", "fp16"]', precision='default = "fp16"'))
    for extra in ([], ["--json"]):
        out = tmp_path / f"out{len(extra)}"
        result = runner.invoke(main, ["export", str(toy_checkpoint), "--recipe", str(path), "-o", str(out), *extra])
        assert result.exit_code == 0, result.output
        assert result.stderr.startswith("fieldrun: warning: fp16 (table, mixer, hidden, output, pairs) is slower")
        assert "slower" not in result.stdout or json.loads(result.stdout)["warnings"]
