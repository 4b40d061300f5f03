"""The ladder of recipes, on the toy: every rung is exported, measured on the same rows, and compared with float32."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

import fieldrun
from fieldrun.formats.bundle import Bundle
from fieldrun_benchmarks.harness.record import read_record
from fieldrun_exporters.recipe import load_recipe
from studies.columns import markdown
from studies.ladder import measure as ladder
from studies.ladder.tables import BLOCKS
from tests.studies.test_measure import COLD, suite
from tests.toy import TASKS, WORDS

__all__ = ["suite"]


@pytest.mark.parametrize("name", [name for name in ladder.LADDER if not name.startswith("cpu-")])
def test_every_rung_is_a_recipe(tmp_path: Path, name: str) -> None:
    path = tmp_path / "rung.toml"
    rung = ladder.LADDER[name]
    path.write_text(ladder.recipe_text(rung))
    recipe = load_recipe(path)
    assert ("recover" in recipe.passes) == rung.tuned == name.endswith("tuned")
    assert recipe.precision.rules == rung.rules
    assert {site: getattr(recipe.lowrank, site) for site in recipe.lowrank.wanted} == rung.lowrank
    assert recipe.buckets == load_recipe("cpu-int8").buckets


def test_the_record_and_its_table(
    suite: Path, tmp_path: Path, toy_checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ladder, "_SPEED_TASKS", tuple(TASKS))
    monkeypatch.setattr(ladder, "cold_starts", lambda programs, runs: dict.fromkeys(programs, COLD))
    arguments = ["--data", suite, "--work", tmp_path / "work", "--checkpoint", toy_checkpoint, "--rounds", 3]
    record = tmp_path / "ladder.json"
    domain_texts = [f"good film {a} {b}\tgood" for a in WORDS[:12] for b in WORDS[:12]]
    (suite / "mood" / "train.tsv").write_text("\n".join(["text\tlabel", *domain_texts]) + "\n", "utf-8")
    options = [
        str(a) for a in (*arguments, "-o", record, "--only", "palette16", "--only", "palette4", "--domain", "mood")
    ]
    result = CliRunner().invoke(ladder.main, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rungs = read_record(record, "ladder")["rungs"]
    assert list(rungs) == ["fp32", "int8", "palette16", "palette4"]
    assert rungs["fp32"]["drop"]["mean"]["difference"] == 0
    for name, rung in rungs.items():
        bundle = Bundle.load(tmp_path / "work" / name.replace(" ", "-"))
        assert rung["bytes"] == bundle.total_bytes()
        assert rung["precision"] == ladder.LADDER[name].rules
        for task, entry in rung["tasks"].items():
            lost = rungs["fp32"]["tasks"][task]["accuracy"] - entry["accuracy"]
            assert rung["drop"]["tasks"][task]["difference"] == pytest.approx(lost, abs=1e-5)
        mean = np.mean([entry["accuracy"] for entry in rung["tasks"].values()])
        assert rung["mean_accuracy"] == pytest.approx(mean)
        assert set(rung["latency"]) == set(TASKS)
    assert rungs["int8"]["latency"]["mood"]["to_int8"] == 1
    domain = read_record(record, "ladder")["domains"]["mood"]
    assert domain["bytes"] < rungs["palette16"]["bytes"]
    assert domain["pruned"]["embedding"]["texts_cut_as_before"] == 1
    assert "mood's train texts" in markdown(BLOCKS["ladder-domains"](tmp_path))
    monkeypatch.setattr(fieldrun, "export", lambda *_, **__: pytest.fail("a bundle that is there was exported again"))
    assert CliRunner().invoke(ladder.main, options, catch_exceptions=False).exit_code == 0
    lines = markdown(BLOCKS["ladder"](tmp_path)).split("\n")
    shown = [line.split("|")[1].strip() for line in lines[2:6]]
    assert shown == ["`fp32`", "`int8`", "`palette16`", "`palette4`"]
