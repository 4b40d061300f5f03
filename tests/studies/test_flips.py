"""Flips between engines: planted ones are found with their margins, and the bound comes from the first half."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from fieldrun.errors import DatasetError, FieldrunError
from fieldrun.formats.bundle import TaskSpec
from fieldrun_benchmarks.harness.record import read_record
from studies.columns import markdown
from studies.flips import measure
from studies.flips.tables import BLOCKS

TASK = TaskSpec(name="t", kind="single", labels=("a", "b", "c"), start=1, temperature=0.5)


def test_a_planted_flip_is_found_with_its_margins() -> None:
    labels = measure.Labels(task=TASK)
    one = np.array([[9, 0, 1, 2], [9, 3, 3 + 2**-14, 0]], np.float32)  # the first column is of another task
    other = np.array([[0, 0, 1, 2], [0, 3 + 2**-13, 3, 0]], np.float32)
    labels.add({"one": one, "other": other}, [7, 8])
    (flip,) = labels.flips
    assert (flip["line"], flip["labels"]) == (8, {"one": "b", "other": "a"})
    assert flip["margins"] == {"one": 2**-14, "other": 2**-13}
    assert flip["score_margin"] == pytest.approx(2**-13 / 0.5 / 2 * (1 - np.exp(-6) / 2), rel=0.01)
    assert measure.bound_of([labels]) == 2 * 2**-13
    labels.add({"one": one, "other": one + np.float32(1)}, [9, 10])  # the second half, which gives no bound
    assert measure.bound_of([labels]) == 2 * 2**-13
    found = labels.summary(2**-13)
    assert (found["texts"], found["flips"], found["flips_beyond_bound"], found["largest_difference"]) == (4, 1, 0, 1)
    assert found["within_bound"] == 2
    assert labels.summary(2**-14)["flips_beyond_bound"] == 1


def test_differences_of_fields() -> None:
    fields = measure.Fields()
    base = np.zeros((2, 3), np.float32)
    fields.add({"a": base, "b": base + np.array([[0, 0, -2], [0, 0, 0]], np.float32)})
    fields.add({"a": base, "b": base})
    assert fields.summary() == [{"ways": ["a", "b"], "max": 2.0, "median": 0.0, "same_bits": 0.75}]


def test_the_record_and_its_table(toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measure, "_BLOCK", 4)
    lines = [
        b"a good film",
        b"",
        b"\xff",
        b"\x01",
        b"it is wet",
        b"my card",
        "caf\u00e9".encode(),
        b"rain",
        b"not read",
    ]
    (tmp_path / "texts").write_bytes(b"\n".join(lines))
    arguments = ["--data", str(tmp_path / "texts"), "--lines", "8", "--bundle", str(toy_bundle)]
    result = CliRunner().invoke(measure.main, [*arguments, "-o", str(tmp_path / "flips.json")], catch_exceptions=False)
    assert result.exit_code == 0
    record = read_record(tmp_path / "flips.json", "flips")
    assert (record["lines"], record["texts"]) == (8, 5)
    assert set(record["tasks"]) == {"mood", "intent", "same"}
    assert len(record["fields"]) == 6
    assert 0 < record["bound"] < 1e-3
    assert f"{record['bound']:.1e}" in markdown(BLOCKS["flips"](tmp_path))


def test_what_cannot_be_compared(toy_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "texts").write_bytes(b"\n\n")
    for name, error in (("none", DatasetError), ("texts", FieldrunError)):
        arguments = ["--data", str(tmp_path / name), "--bundle", str(toy_bundle), "-o", str(tmp_path / "r.json")]
        assert isinstance(CliRunner().invoke(measure.main, arguments).exception, error)
