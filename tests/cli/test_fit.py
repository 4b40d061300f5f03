"""`fieldrun fit`: TSV files in, a bundle with one more task out, from the command line alone."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import fieldrun
from fieldrun.cli import main
from fieldrun.formats.bundle import REFERENCE_BUNDLE

TRAIN = [("a good film", "film"), ("the film was great", "film"), ("a card", "money"), ("transfer my cash", "money")]
MORE = [("the rain is wet", "weather"), ("will it rain", "weather")]


def call(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == code, (result.stdout, result.stderr)
    return result


def tsv(path: Path, rows: list[Any], header: str = "text\tlabel") -> Path:
    path.write_text("\n".join([header, *("\t".join(row) for row in rows)]) + "\n", "utf-8")
    return path


@pytest.fixture
def train(tmp_path: Path) -> Path:
    return tsv(tmp_path / "train.tsv", TRAIN)


def test_a_bundle_learns_a_task(toy_bundle: Path, train: Path, tmp_path: Path) -> None:
    out, dev = tmp_path / "out", tsv(tmp_path / "dev.tsv", [("a great film", "film"), ("my card", "money")])
    result = call("fit", "-b", toy_bundle, train, "--name", "topic", "--dev", dev, "-o", out, "--engine", "numpy")
    said = result.stdout.splitlines()
    assert said[0] == f"{out}: topic, 2 labels from 4 texts"
    assert said[1].startswith("held-out accuracy ")
    assert "penalty strength" in said[1]
    assert said[2].startswith("dev accuracy 100.00% (95 % interval 34.24% to 100.00%, n = 2)")
    assert said[3].startswith("dev calibration error ")
    assert said[4] == f"next: fieldrun run -b {out} --task topic"
    assert "topic" in call("tasks", out).stdout
    call("verify", out, "--engine", "numpy")
    answer = json.loads(call("run", "-b", out, "--task", "topic", "--json", "a good film").stdout)
    assert set(answer["scores"]) == {"film", "money"}
    about = json.loads(call("info", out, "--json").stdout)["provenance"]["heads"]["topic"]
    assert (about["n"], about["labels"]) == (4, {"film": 2, "money": 2})


def test_several_files_and_a_new_label_later(toy_bundle: Path, train: Path, tmp_path: Path) -> None:
    out, more = tmp_path / "out", tsv(tmp_path / "more.tsv", MORE)
    call("fit", "-b", toy_bundle, train, "--name", "topic", "-o", out)
    again = ("fit", "-b", out, train, more, "--name", "topic", "-o", out, "--json")
    assert "add --force" in call(*again, code=2).stderr
    value = json.loads(call(*again, "--force").stdout)
    assert value["labels"] == {"film": 2, "money": 2, "weather": 2}
    assert (value["path"], value["task"], value["n"], value["dev"]) == (str(out), "topic", 6, None)
    assert set(value) == {
        *("path", "task", "n", "labels", "copies", "conflicting", "strength", "cv", "warnings"),
        *("temperature", "dev", "dropped"),
    }
    assert value["cv"]["n"] == 6
    with fieldrun.load(out, engine="numpy") as model:
        assert model.tasks == ("mood", "intent", "same", "topic")
        assert model.labels("topic") == ("film", "money", "weather")
    assert "task 'topic' already; add --force" in call(*again[:6], "topic", "-o", tmp_path / "new", code=2).stderr


def test_pairs_and_one_example_a_label(toy_bundle: Path, tmp_path: Path) -> None:
    rows = [("it rains", "it is wet", "yes"), ("a film", "a card", "no")]
    pairs = tsv(tmp_path / "pairs.tsv", rows, "text_a\ttext_b\tlabel")
    result = call("fit", "-b", toy_bundle, pairs, "--name", "rain", "-o", tmp_path / "out")
    assert result.stdout.startswith(f"{tmp_path / 'out'}: rain, 2 labels from 2 pairs\n")
    assert "a default: with one row per label none can be held out" in result.stdout
    call("run", "-b", tmp_path / "out", "--task", "rain", "--pair", "rain", "wet")
    mixed = tsv(tmp_path / "single.tsv", TRAIN)
    refused = call("fit", "-b", toy_bundle, pairs, mixed, "--name", "x", "-o", tmp_path / "new", code=4)
    assert "single.tsv, line 1" in refused.stderr
    assert "has pairs; train them as two tasks" in refused.stderr


def test_what_is_refused_leaves_nothing(toy_bundle: Path, train: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    one = tsv(tmp_path / "one.tsv", TRAIN[:2])
    strange = tsv(tmp_path / "strange.tsv", [("a film", "nothing known")])
    control = tsv(tmp_path / "control.tsv", [("a film", "x"), ("\x01", "y")])
    for arguments, code, message in [
        ((one, "--name", "topic"), 2, "at least two labels, and all 2 are 'film'"),
        ((train, "--name", "mood"), 2, "a task 'mood' already; choose another name"),
        ((train, "--name", "my task"), 2, "must be letters, digits"),
        ((train, "--name", "topic", "--dev", strange), 4, "strange.tsv, line 2: the task 'topic' has no label"),
        ((tmp_path / "none.tsv", "--name", "topic"), 4, "does not exist"),
        ((control, "--name", "topic"), 2, "control.tsv: text 1"),
    ]:
        assert message in call("fit", "-b", toy_bundle, *arguments, "-o", out, "--engine", "numpy", code=code).stderr
        assert not out.exists()
    assert "TRAIN" in call("fit", "-b", toy_bundle, "--name", "topic", "-o", out, code=2).stderr


def test_the_shipped_bundle_is_not_written_to(
    toy_bundle: Path, train: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = {path: path.stat().st_mtime_ns for path in REFERENCE_BUNDLE.iterdir()}
    monkeypatch.chdir(tmp_path)
    for out in (REFERENCE_BUNDLE, "reference"):
        refused = call("fit", "-b", toy_bundle, train, "--name", "topic", "-o", out, "--force", code=2)
        assert "save to a folder of your own" in refused.stderr
    assert {path: path.stat().st_mtime_ns for path in REFERENCE_BUNDLE.iterdir()} == before
    shutil.copytree(toy_bundle, tmp_path / "mine")
    assert "exists; choose another folder or add --force" in (
        call("fit", "-b", toy_bundle, train, "--name", "topic", "-o", "mine", code=2).stderr
    )


def test_copies_are_said_and_change_nothing(toy_bundle: Path, tmp_path: Path) -> None:
    once, often = tsv(tmp_path / "once.tsv", TRAIN), tsv(tmp_path / "often.tsv", [*TRAIN, ("A  GOOD film", "film")] * 5)
    dev = tsv(tmp_path / "dev.tsv", [(" a CARD", "money"), ("my rain", "film"), ("my rain", "money")])
    settings = ("-b", toy_bundle, "--name", "topic", "--json", "--dev", dev)
    first = json.loads(call("fit", once, *settings, "-o", tmp_path / "a").stdout)
    result = call("fit", often, *settings, "-o", tmp_path / "b")
    second = json.loads(result.stdout)
    assert second["cv"] == first["cv"]
    assert (second["n"], second["copies"], second["in_dev"], second["dev"]["n"]) == (4, 21, 1, 2)
    for said in ("21 rows repeat another row; copies weigh once", "1 rows of the dev file", "2 rows have a text"):
        assert said in result.stderr
    about = json.loads(call("info", tmp_path / "b", "--json").stdout)["provenance"]["heads"]["topic"]
    assert (about["copies"], about["in_dev"]) == (21, 1)
    weighed = call("fit", often, *settings, "-o", tmp_path / "c", "--weigh-copies")
    assert json.loads(weighed.stdout)["n"] == 25
    same = call("fit", once, "-b", toy_bundle, "--name", "topic", "--dev", often, "-o", tmp_path / "d", code=4)
    assert "often.tsv: every row has a text that is in the training files; give other rows" in same.stderr
    assert not (tmp_path / "d").exists()


def test_labels_of_one_row_and_labels_nearly_equal(toy_bundle: Path, tmp_path: Path) -> None:
    rows = [*[(f"a film of {i}", "other") for i in range(8)], ("a card", "refund"), ("my cash", "Other ")]
    train = tsv(tmp_path / "train.tsv", rows)
    settings = ("-b", toy_bundle, "--name", "topic")
    result = call("fit", train, *settings, "-o", tmp_path / "a")
    assert "balanced 100.00%" in result.stdout
    assert "never held out, so that no accuracy covers them: 'Other ', 'refund'" in result.stderr
    assert "the labels 'Other ', 'other' differ only in case" in result.stderr
    joined = call("fit", train, *settings, "-o", tmp_path / "b", "--join-labels", "--json")
    assert json.loads(joined.stdout)["labels"] == {"other": 9, "refund": 1}
    dev = tsv(tmp_path / "dev.tsv", [("a film", "OTHER")])
    refused = call("eval", tmp_path / "b", "--task", "topic", "--data", dev, code=4)
    assert "has no label 'OTHER', but 'other'; correct it or join such labels" in refused.stderr
    found = call("eval", tmp_path / "b", "--task", "topic", "--data", dev, "--join-labels", "--json")
    value = json.loads(found.stdout)
    assert (value["accuracy"], value["balanced_accuracy"]) == (1.0, 1.0)
    assert "no rows, so that no accuracy covers them: 'refund'" in found.stderr
