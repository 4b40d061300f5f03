"""What leads up to an emulated run (which `make test-arm` does), and what the committed record of one must say."""

from __future__ import annotations

import json
import os
import platform
from pathlib import Path

import pytest
from click.testing import CliRunner

from fieldrun.errors import FieldrunError, UnknownName
from fieldrun_benchmarks.harness.record import read_record
from hatch_build import LIBRARY, SOURCE, NativeBuildHook
from studies.arm.tables import BLOCKS
from studies.columns import markdown
from tests.arm.__main__ import _passed, main
from tests.arm.packages import call, emulator, guest_python, made


def test_a_step_is_done_once_and_again_when_it_changes_or_was_cut_off(tmp_path: Path) -> None:
    done: list[str] = []

    def make(to: Path) -> None:
        (to / "file").write_text("x")
        done.append("made")

    def cut_off(to: Path) -> None:
        (to / "half").touch()
        raise KeyboardInterrupt

    folder = tmp_path / "step"
    with pytest.raises(KeyboardInterrupt):
        made(folder, "one", cut_off)
    assert not folder.exists()
    for key in ("one", "one", "two"):
        assert (made(folder, key, make) / "file").read_text() == "x"
    assert done == ["made", "made"]
    assert not (folder / "half").exists()


def test_a_program_that_fails_or_is_not_there_is_one_line() -> None:
    assert call(["echo", "x"], needs="") == "x\n"
    with pytest.raises(FieldrunError, match=r"sh ended with exit code 3: why; it needs a thing$"):
        call(["sh", "-c", "echo first >&2; echo why >&2; exit 3"], needs="it needs a thing")
    with pytest.raises(FieldrunError, match="cannot run no-such-program: No such file or directory; it needs a thing"):
        call(["no-such-program"], needs="it needs a thing")


def test_a_wide_tolerance_of_a_bundle_does_not_pass_a_processor() -> None:
    result = {"passed": True, "labels": 8, "labels_equal": 8, "max_abs_field": 9e-6, "max_abs_scores": 1e-6}
    assert _passed(result)
    for worse in ({"max_abs_field": 2e-5}, {"max_abs_scores": 2e-5}, {"labels_equal": 7}, {"passed": False}):
        assert not _passed(result | worse)


def test_without_apt_the_run_says_what_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(FieldrunError, match=r"cannot run apt-get: .*needs a Debian machine"):
        emulator(tmp_path / "cache")


def test_the_interpreter_is_the_versioned_one(tmp_path: Path) -> None:
    (tmp_path / "usr/bin").mkdir(parents=True)
    for name in ("python3", "python3.11", "python3.11-config", "python3.11.cmake.x"):
        (tmp_path / "usr/bin" / name).touch()
    assert guest_python(tmp_path).name == "python3.11"


def test_an_arm_machine_is_not_emulated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    result = CliRunner().invoke(main, ["--recipe", "no-such-recipe"])
    assert result.exit_code == FieldrunError.exit_code
    assert "run `fieldrun verify` on it" in result.stderr


def test_the_record_has_every_processor_and_engine_within_the_tolerance(repository: Path) -> None:
    record = read_record(repository / "benchmarks" / "records" / "arm-emulation.json", "arm-emulation")
    assert record["emulated"] is True
    assert "no speed" in record["says"]
    assert record["guest"]["machine"] == "aarch64"
    assert set(record["processors"]) == {"cortex-a76", "cortex-a72"}
    for processor in record["processors"].values():
        assert set(processor["recipes"]) == {"raspberry-pi"}
        for engines in (processor["engines"], *processor["recipes"].values()):
            assert set(engines) == {"native", "numpy", "onnxruntime"}
            for result in engines.values():
                assert result["passed"]
                assert result["tokens_equal"]
                assert result["labels_equal"] == result["labels"] > 0
                assert 0 < result["max_abs_field"] <= 1e-5


def test_the_table_has_a_row_for_every_bundle_and_engine(repository: Path, tmp_path: Path) -> None:
    value = json.loads((repository / "benchmarks" / "records" / "arm-emulation.json").read_text("utf-8"))
    for processor in value["processors"].values():
        processor["recipes"] = {"some-recipe": dict(processor["engines"])}
    (tmp_path / "arm-emulation.json").write_text(json.dumps(value), "utf-8")
    rows = [row for row in markdown(BLOCKS["arm-emulation"](tmp_path)).splitlines() if row.startswith("| cortex-")]
    assert [row.split(" | ")[1] for row in rows] == 2 * (3 * ["`reference`"] + 3 * ["recipe `some-recipe`"])


def test_the_recipe_is_exported_before_anything_is_fetched(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["--recipe", "no-such-recipe", "--cache", str(tmp_path / "cache")])
    assert result.exit_code == UnknownName.exit_code
    assert "raspberry-pi" in result.stderr
    assert not (tmp_path / "cache").exists()


@pytest.mark.parametrize("compiler", ["cc-of-another-machine", "", "no-such-compiler"])
def test_the_installation_takes_the_compiler_that_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiler: str
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    for name in ("cc", "cc-of-another-machine"):  # write their name to where the library goes
        (programs / name).write_text(f'#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done\necho {name} > "$2"\n')
        (programs / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{programs}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("CC", compiler)
    monkeypatch.setenv("_PYTHON_HOST_PLATFORM", "linux-aarch64")
    (tmp_path / SOURCE).parent.mkdir(parents=True)
    data: dict[str, object] = {"artifacts": []}
    hook = NativeBuildHook(str(tmp_path), {}, None, None, "", "wheel")  # type: ignore[arg-type]
    hook.initialize("standard", data)
    library = tmp_path / LIBRARY
    if compiler == "no-such-compiler":
        assert not library.exists()
        assert data == {"artifacts": []}
    else:
        assert library.read_text() == f"{compiler or 'cc'}\n"
        assert data["tag"] == "py3-none-linux_aarch64"
