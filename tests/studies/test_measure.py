"""The measuring command, on the toy bundle instead of the shipped one: every record is written and makes sense."""

from __future__ import annotations

import importlib
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

import fieldrun
from fieldrun.errors import DatasetError
from fieldrun_benchmarks.harness.record import read_record
from studies.student import measure
from studies.suite import report_sets
from studies.tables import ROOT
from tests.toy import PAIR_TASK, TASKS


@pytest.fixture
def suite(tmp_path: Path) -> Path:
    data = tmp_path / "data"
    for task, labels in TASKS.items():
        (data / task).mkdir(parents=True)
        rows = [f"good film {word}\t{label}" for word in ("card", "cash", "rain", "work") for label in labels]
        (data / task / "dev.tsv").write_text("\n".join(["text\tlabel", *rows]) + "\n", "utf-8")
    (data / PAIR_TASK).mkdir()
    pairs = ["it is wet\train\tyes", "good\tbad\tno"] * 6
    (data / PAIR_TASK / "test.tsv").write_text("\n".join(["text_a\ttext_b\tlabel", *pairs]) + "\n", "utf-8")
    (data / "stsb").mkdir()
    graded = ["it is wet\train\t4.0", "good\tbad\t0.5", "my card\tmy cash\t3.0", "good film\tgreat film\t5"]
    (data / "stsb" / "dev.tsv").write_text("\n".join(["text_a\ttext_b\tlabel", *graded]) + "\n", "utf-8")
    return data


def test_every_record_is_written(
    suite: Path, tmp_path: Path, toy_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = fieldrun.export

    # the toy has fewer blocks than cpu-small names
    def export(_: str, out: Path, recipe: str) -> None:
        shipped(toy_checkpoint, out, recipe=recipe.replace("cpu-small", "cpu-int8"))

    monkeypatch.setattr(fieldrun, "export", export)
    monkeypatch.setattr(measure, "_PREFIXES", (32, 8))
    monkeypatch.setattr(measure, "_OUT_OF_SCOPE", ("intent", "other"))
    monkeypatch.setattr(measure, "cold_starts", lambda programs: dict.fromkeys(programs, COLD))
    out = tmp_path / "records"
    result = CliRunner().invoke(measure.main, ["--data", str(suite), "-o", str(out)], catch_exceptions=False)
    assert result.exit_code == 0
    accuracy = read_record(out / "accuracy-cpu-small.json", "accuracy")
    assert set(accuracy["tasks"]) == {*TASKS, PAIR_TASK}
    for entry in accuracy["tasks"].values():
        assert entry["ci95"][0] <= entry["accuracy"] <= entry["ci95"][1]
        assert entry["n"] in (8, 12, 16)
        assert 0 <= entry["calibration_error"] <= 1
    assert set(accuracy["similarity"]["spearman"]) == {"32", "8"}
    assert accuracy["rejection"]["out_of_scope"] == 4
    assert all(0 <= area <= 1 for area in accuracy["rejection"]["auroc"].values())
    cold = read_record(out / "cold-start.json", "cold-start")
    assert cold["programs"]["auto"]["ratio_to_imports"] == 1.0


@pytest.mark.parametrize("name", sorted(path.parent.name for path in ROOT.glob("benchmarks/studies/*/measure.py")))
def test_every_study_says_how_it_is_run(name: str) -> None:
    command = importlib.import_module(f"studies.{name}.measure").main
    said = CliRunner().invoke(command, ["--help"], catch_exceptions=False).output
    assert f"python -m studies.{name}.measure" in said.partition("Usage: ")[2].split("\n", 1)[1]
    for option in (parameter for parameter in command.params if isinstance(parameter, click.Option)):
        text = (option.help or "").partition("  [default")[0]
        assert text[:1].isupper(), option.name
        assert text.endswith("."), option.name


def test_a_missing_report_file_is_named(suite: Path, toy_bundle: Path) -> None:
    shutil.rmtree(suite / PAIR_TASK)
    with pytest.raises(DatasetError, match=f"{PAIR_TASK} has neither"):
        report_sets(toy_bundle, suite)


COLD = {"wall_s": 0.5, "peak_rss_mib": 40.0}
