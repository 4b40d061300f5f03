"""Records carry their conditions; the pages show what the committed records say, and one figure of a thing."""

from __future__ import annotations

import platform
import re
import shutil
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from click.testing import CliRunner

from fieldrun.errors import FieldrunError, SchemaTooNew, UnknownName
from fieldrun.formats.bundle import REFERENCE_BUNDLE
from fieldrun.formats.storage import read_json, sha256_file, write_json
from fieldrun_benchmarks.harness.record import conditions, read_record, write_record
from studies import figures, tables
from studies.columns import Claim, Table
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


def test_every_page_shows_what_the_records_say(repository: Path) -> None:
    shown: set[str] = set()
    for page in tables.pages(repository):
        text = page.read_text("utf-8")
        shown |= {*tables.names(text)}
        assert tables.render(text, repository / "benchmarks" / "records") == text, page
    assert shown == set(tables.BLOCKS), "a block is on no page"


def test_the_summary_has_few_rows() -> None:
    table, _ = tables.BLOCKS["summary"](tables.RECORDS)
    assert not isinstance(table, str)
    assert len(table.rows) <= 8


def _shown(repository: Path) -> Iterator[tuple[str, Table]]:
    """Every table of every page, with where it is."""
    for page in tables.pages(repository):
        for name in tables.names(page.read_text("utf-8")):
            for part in tables.BLOCKS[name](tables.RECORDS):
                if isinstance(part, Table):
                    yield f"{name} in {page.name}", part


def test_an_artifact_has_one_accuracy_and_one_latency(repository: Path) -> None:
    """All tables of README and docs together: one figure for a quantity of one artifact on one set."""
    found: dict[Claim, dict[str, str]] = defaultdict(dict)
    for where, table in _shown(repository):
        for claim, figure in table.figures():
            found[claim][figure] = where
    shipped = sha256_file(REFERENCE_BUNDLE / "weights.safetensors")
    for claim in (("accuracy", shipped, "sst2, n = 872"), ("p50", "fieldrun native", "sst2/dev")):
        assert claim in found
    assert not {claim: figures for claim, figures in found.items() if len(figures) > 1}


def test_no_table_has_a_time_without_its_record(repository: Path) -> None:
    """Microseconds stand only in cells whose column says what they are about, so that the test above sees them."""
    micros = re.compile(r"\d us\b")
    for where, table in _shown(repository):
        for column in table.columns:
            assert column.claim or not any(micros.search(column.cell(row)) for row in table.rows), where
    for page in [repository / "README.md", *(repository / "docs").rglob("*.md")]:
        written = re.sub(r"<!-- table: .*?<!-- end -->", "", page.read_text("utf-8"), flags=re.DOTALL)
        assert not [line for line in written.splitlines() if line.startswith("|") and micros.search(line)], page


def test_every_figure_is_drawn_from_the_committed_record(repository: Path) -> None:
    for name in figures.FIGURES:
        (path,) = (repository / "docs").rglob(name)
        assert figures.is_drawn(path), f"{path} is of another record or code: python -m studies.figures"
        ElementTree.fromstring(path.read_text("utf-8"))


def test_a_drawing_of_another_record_is_caught_and_drawn_again(repository: Path, tmp_path: Path) -> None:
    arguments = ["--docs", str(tmp_path), "--records", str(repository / "benchmarks" / "records")]
    assert CliRunner().invoke(figures.main, [*arguments, "--check"]).exit_code == 1
    assert CliRunner().invoke(figures.main, arguments, catch_exceptions=False).exit_code == 0
    path = tmp_path / "accuracy-latency.svg"
    first = path.read_text("utf-8")
    assert "fieldrun, SST-2: " in first
    assert "prefers-color-scheme: dark" in first
    path.write_text(first.replace("fieldrun, SST-2", "fieldrun, SST-3"), "utf-8")
    assert CliRunner().invoke(figures.main, [*arguments, "--check"]).exit_code == 1
    assert CliRunner().invoke(figures.main, arguments).exit_code == 0
    assert path.read_text("utf-8") == first


def test_a_drawing_by_another_matplotlib_is_told_by_its_record(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "accuracy-latency.svg"
    path.write_text(figures.draw(path.name), "utf-8")
    monkeypatch.setattr("matplotlib.__version__", "0.1")
    assert figures.is_drawn(path)
    records = tmp_path / "records"
    shutil.copytree(repository / "benchmarks" / "records", records)
    with (records / "peers.json").open("a") as file:
        file.write("\n")
    assert not figures.is_drawn(path, records)


def test_the_command_checks_and_rewrites(repository: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("before\n<!-- table: cold-start -->\nstale\n<!-- end -->\nafter\n", "utf-8")
    arguments = [str(page), "--records", str(repository / "benchmarks" / "records")]
    assert CliRunner().invoke(tables.main, [*arguments, "--check"]).exit_code == 1
    assert "stale" in page.read_text("utf-8")
    assert CliRunner().invoke(tables.main, arguments).exit_code == 0
    assert "stale" not in page.read_text("utf-8")
    assert CliRunner().invoke(tables.main, [*arguments, "--check"]).exit_code == 0


def test_an_unknown_table_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UnknownName, match="'nothing'"):
        tables.render("<!-- table: nothing -->\n<!-- end -->", tmp_path)
