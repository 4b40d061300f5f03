"""Bulk labelling is measured on real runs of the command: what is killed goes on, and the record says what was seen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner

from fieldrun.errors import DatasetError
from fieldrun_benchmarks.harness.record import read_record
from studies.bulk import measure as bulk
from studies.bulk.tables import BLOCKS
from studies.columns import markdown


def test_the_record_and_its_table(toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bulk, "_KILL_AT", 0.05)
    words = ["it", "is", "wet", "my", "card", "good", "film"]
    texts = tmp_path / "texts.txt"
    texts.write_text("\n".join(f"{words[i % 7]} {words[i % 5]} {i}" for i in range(160_000)), "utf-8")
    arguments = [str(texts), "--lines", "150000", "--task", "intent", "--bundle", str(toy_bundle), "--repeats", "1"]
    result = CliRunner().invoke(bulk.main, [*arguments, "-o", str(tmp_path / "bulk.json")], catch_exceptions=False)
    assert result.exit_code == 0
    record = read_record(tmp_path / "bulk.json", "bulk")
    assert record["all_outputs_equal"]
    assert record["killed"]["lines_after"] == 150_000
    assert 0.05 * 150_000 <= record["killed"]["killed_at_line"] < 150_000
    assert set(record["runs"]) == {"1", "2"}
    shown = markdown(BLOCKS["bulk"](tmp_path))
    assert f"{record['runs']['2'][0]['lines_per_s']:,}" in shown
    assert "the bytes of the runs that were left alone" in shown


def test_lines_are_taken_in_order_without_the_empty_ones(tmp_path: Path) -> None:
    first, second = tmp_path / "a", tmp_path / "b"
    first.write_bytes(b"one\n\n  \ntwo\r\n")
    second.write_bytes(b"three\nfour")
    assert bulk.write_lines([first, second], 3, tmp_path / "out") == len(b"one\ntwo\nthree\n")
    assert (tmp_path / "out").read_bytes() == b"one\ntwo\nthree\n"
    with pytest.raises(DatasetError, match="have 4 lines that are not empty, not 9; give more files"):
        bulk.write_lines([first, second], 9, tmp_path / "out")
    with pytest.raises(DatasetError, match="cannot read "):
        bulk.write_lines([tmp_path / "none"], 9, tmp_path / "out")


def test_memory_is_compared_after_the_start() -> None:
    run = bulk.Run(seconds=2.0, memory_mib=[10, 50, 100, 100, 100, 100, 100, 100, 100, 110])
    assert run.summary(100) == {
        "seconds": 2.0,
        "lines_per_s": 50,
        "memory_mib": {"second_fifth": 100.0, "last_fifth": 105.0, "peak": 110},
    }
    assert "unavailable" in bulk.Run(seconds=1.0, memory_mib=[]).summary(1)["memory_mib"]


def test_memory_of_this_process_counts() -> None:
    value = bulk.tree_memory(os.getpid())
    assert value is not None
    assert value > 10
    assert bulk.tree_memory(2**22 + 1) is None


def test_a_run_that_fails_says_why(tmp_path: Path) -> None:
    (tmp_path / "t").write_text("a\n" * 2000, "utf-8")
    arguments = [
        str(tmp_path / "t"),
        "--lines",
        "1000",
        "--bundle",
        str(tmp_path / "none"),
        "-o",
        str(tmp_path / "r.json"),
    ]
    result = CliRunner().invoke(bulk.main, arguments)
    assert result.exit_code != 0
    assert "no bundle at" in str(result.exception)
