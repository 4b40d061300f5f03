"""Records carry their conditions; the README shows what the committed records say."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from fieldrun.errors import FieldrunError, SchemaTooNew
from fieldrun.formats.storage import read_json, write_json
from fieldrun_benchmarks.harness.record import conditions, read_record, write_record
from studies.tables import main, render
from tests.doctor import test_doctor


def test_a_record_carries_kind_command_conditions_and_values(tmp_path: Path) -> None:
    path = tmp_path / "new" / "one.json"
    write_record(path, "speed", "measure it", {"p50_us": 3.5})
    record = read_record(path, "speed")
    assert record["command"] == "measure it"
    assert record["p50_us"] == 3.5
    assert record["conditions"].keys() == conditions().keys()
    assert record["conditions"]["packages"]["numpy"]


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"kind": "other"}, FieldrunError, "not a record of kind 'speed', but of 'other'"),
        ({"schema": 99}, SchemaTooNew, "schema 99"),
        ({"schema": 99, "kind": "a new name"}, SchemaTooNew, "schema 99"),
    ],
)
def test_other_records_are_refused(
    tmp_path: Path, change: dict[str, object], error: type[Exception], words: str
) -> None:
    path = tmp_path / "one.json"
    write_record(path, "speed", "c", {})
    write_json(path, read_json(path) | change)
    with pytest.raises(error, match=words):
        read_record(path, "speed")


def test_what_is_no_record_is_refused(tmp_path: Path) -> None:
    write_json(tmp_path / "one.json", {"kind": "speed"})
    with pytest.raises(FieldrunError, match="is not a record: it has no schema or no kind"):
        read_record(tmp_path / "one.json", "speed")


@pytest.mark.parametrize(
    ("cpuinfo", "processor"),
    [
        (test_doctor.X86, "Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz"),
        (test_doctor.ORIN, "ARM implementer 0x41 part 0xd42"),
        (test_doctor.PI5, "Raspberry Pi 5 Model B Rev 1.0, ARM implementer 0x41 part 0xd0b"),
        (test_doctor.PI3, "Raspberry Pi 3 Model B Rev 1.2, ARM implementer 0x41 part 0xd03"),
        (test_doctor.RK3588, "ARM implementer 0x41 part 0xd05, ARM implementer 0x41 part 0xd0b"),
        ("", platform.processor() or platform.machine()),
    ],
)
def test_the_processor_of_a_board_is_named(cpuinfo: str, processor: str, monkeypatch: pytest.MonkeyPatch) -> None:
    read = Path.read_text

    def planted(self: Path, *arguments: Any, **more: Any) -> str:
        return cpuinfo if str(self) == "/proc/cpuinfo" else read(self, *arguments, **more)

    monkeypatch.setattr(Path, "read_text", planted)
    assert conditions()["processor"] == processor


def test_a_missing_record_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FieldrunError, match="measure again"):
        read_record(tmp_path / "none.json", "speed")


@pytest.mark.parametrize(
    ("page", "tables"),
    [
        ("README.md", 4),
        ("docs/peers.md", 2),
        ("docs/student.md", 1),
        ("docs/own-labels.md", 1),
        ("docs/how-we-measure.md", 1),
        ("docs/recipes.md", 5),
        ("docs/methods-on-transformers.md", 5),
        ("docs/deploy-raspberry-pi.md", 1),
        ("docs/tensorrt.md", 1),
    ],
)
def test_a_page_shows_what_the_records_say(repository: Path, page: str, tables: int) -> None:
    text = (repository / page).read_text("utf-8")
    assert text.count("<!-- table: ") == tables
    assert render(text, repository / "benchmarks" / "records") == text


def test_the_command_checks_and_rewrites(repository: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: cold-start -->\nstale\n<!-- end -->\nafter\n", "utf-8")
    arguments = [str(page), str(repository / "benchmarks" / "records")]
    assert CliRunner().invoke(main, [*arguments, "--check"]).exit_code == 1
    assert "stale" in page.read_text("utf-8")
    assert CliRunner().invoke(main, arguments).exit_code == 0
    assert "stale" not in page.read_text("utf-8")
    assert CliRunner().invoke(main, [*arguments, "--check"]).exit_code == 0


def test_an_unknown_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FieldrunError, match="unknown table 'nothing'"):
        render("<!-- table: nothing -->\n<!-- end -->", tmp_path)


def test_the_page_on_own_labels_shows_what_its_record_says(repository: Path) -> None:
    record = read_record(repository / "benchmarks" / "records" / "own-labels-banking77.json", "own-labels")
    page = (repository / "docs" / "own-labels.md").read_text("utf-8")
    low, high = (100 * x for x in record["ci95"])
    seconds = round(sum(record["seconds"][phase] for phase in ("raw field", "compressor", "student")))
    row = f"| {record['n']:,} | {100 * record['accuracy']:.1f} ({low:.1f} - {high:.1f}) | {seconds} |"
    assert row in page
