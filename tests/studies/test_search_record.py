"""The record of a search: its rows are of train files, and what it calls beaten is."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fieldrun.errors import DatasetError, FieldrunError
from fieldrun.evaluation.dataset import read_tsv
from fieldrun.formats.bundle import REFERENCE_BUNDLE, Bundle
from fieldrun_benchmarks.harness.record import read_record
from studies.commands import run
from studies.search.measure import beaten, main, write_rows


def point(size: int, error: float) -> dict[str, Any]:
    return {"bytes": size, "field_error": error}


def test_a_point_is_beaten_by_a_nearer_one_that_is_no_larger() -> None:
    front = [point(10, 0.4), point(20, 0.2), point(30, 0.1)]
    uniform = [point(30, 0.15), point(29, 0.15), point(20, 0.2), point(9, 0.9), point(19, 0.41)]
    assert beaten(front, uniform) == [2, None, None, None, 0]


def test_the_committed_record_is_whole_and_says_what_is_beaten(repository: Path) -> None:
    record = read_record(repository / "benchmarks" / "records" / "search.json", "search")
    report = record["report"]
    assert beaten(report["front"], report["uniform"]) == record["beaten"]
    assert record["exported_again"]["same_files"]
    assert report["bytes"] <= 16e6
    assert sum(record["seconds"].values()) < 20 * 60
    assert record["budgets_noted_at_the_kill"] >= 1
    for point, number in zip(report["uniform"], record["beaten"], strict=True):
        if number is None:  # then nothing of its size was found that is nearer, and it stands on the front itself
            assert any(p["precision"] == point["precision"] for p in report["front"])
    beaten_levels = {
        p["precision"]["offset0"] for p, n in zip(report["uniform"], record["beaten"], strict=True) if n is not None
    }
    assert {"palette16", "palette64x2", "palette256x4"} <= beaten_levels


def test_rows_are_drawn_from_the_train_files(tmp_path: Path) -> None:
    data = tmp_path / "data"
    for task in Bundle.load(REFERENCE_BUNDLE).manifest.tasks:
        (data / task.name).mkdir(parents=True)
        pair, label = task.kind == "pair", task.labels[0]
        header = "text_a\ttext_b\tlabel" if pair else "text\tlabel"
        # a line separator of Unicode within a text does not end a row
        lines = [f"text {i}\u2028on\t{'other' + chr(9) if pair else ''}{label}" for i in range(30)]
        (data / task.name / "train.tsv").write_text("\n".join([header, *lines]) + "\n", "utf-8")
    first = write_rows(data, tmp_path, 10, 0)
    kept = {task: path.read_bytes() for task, path in first.items()}
    for name, path in first.items():
        whole, drawn = read_tsv(data / name / "train.tsv"), read_tsv(path)
        assert len(drawn) == 10
        assert set(drawn.texts) < set(whole.texts)
    assert {task: path.read_bytes() for task, path in write_rows(data, tmp_path, 10, 0).items()} == kept
    assert {task: path.read_bytes() for task, path in write_rows(data, tmp_path, 10, 1).items()} != kept
    (data / "sst2" / "train.tsv").unlink()
    with pytest.raises(DatasetError):
        write_rows(data, tmp_path, 10, 0)


def test_a_command_is_killed_on_the_way_or_told_why_not(tmp_path: Path) -> None:
    seen: list[int] = []
    assert run(["info", "reference"], kill_when=lambda: bool(seen), watch=seen.append) < 60
    with pytest.raises(FieldrunError, match="info ended before it was killed"):
        run(["info", "reference"], kill_when=lambda: False)
    with pytest.raises(FieldrunError, match=r"exit code \d: .*is not a bundle"):
        run(["info", str(tmp_path)])


def test_a_folder_that_is_there_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(
        main, ["--data", str(tmp_path), "--work", str(tmp_path), "-o", str(tmp_path / "r.json")]
    )
    assert result.exit_code == 2
    assert "exists; give a new folder" in result.output
    result = CliRunner().invoke(main, ["--data", str(tmp_path), "--work", str(tmp_path / "w"), "-o", "r.json"])
    assert result.exit_code == 1
    assert "train.tsv" in result.output
