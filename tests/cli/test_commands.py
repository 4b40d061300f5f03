"""The command line without a bundle: stdin, stdout, help, and the commands that hand over to Python functions."""

from __future__ import annotations

import io
import json
import os
import shlex
import sys
import time
import warnings
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import click
import pytest
from click.testing import CliRunner, Result

import fieldrun
import fieldrun_benchmarks
from fieldrun.cli import group, inputs, main, output
from fieldrun.cli.progress import progress
from fieldrun.errors import DatasetError, InputTextError, ParityError, StorageError
from fieldrun_runtimes.verify import EngineReport, VerifyReport


def call(*arguments: str | Path, stdin: bytes | None = None, code: int = 0) -> Result:
    """Run `fieldrun` in this process; an exception that is not an exit is the test's."""
    result = CliRunner().invoke(main, [str(a) for a in arguments], input=stdin, catch_exceptions=False)
    assert result.exit_code == code, (result.stdout, result.stderr)
    return result


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_a_line_is_answered_before_the_next_one_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    reading, writing = os.pipe()
    with io.TextIOWrapper(io.BufferedReader(io.FileIO(reading))) as stdin, io.FileIO(writing, "w") as pipe:
        monkeypatch.setattr(sys, "stdin", stdin)
        batches: Iterator[inputs.Batch] = inputs.read_batches(())
        pipe.write(b"one\n")
        assert next(batches) == inputs.Batch(["one"], ["line 1"], [1])
        pipe.write(b"two\nthr")
        assert next(batches) == inputs.Batch(["two"], ["line 2"], [2])
        pipe.write(b"ee")
        pipe.close()
        assert next(batches) == inputs.Batch(["three"], ["line 3"], [3])
        assert next(batches, None) is None


def test_stdin_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    class Folder(io.BytesIO):
        def read1(self, size: int | None = -1) -> bytes:
            raise IsADirectoryError(21, "Is a directory")

    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=Folder(), isatty=lambda: False))
    with pytest.raises(InputTextError, match="cannot read stdin: Is a directory"):
        next(inputs.read_batches(()))
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(InputTextError, match="stdin is closed"):
        next(inputs.read_batches(()))


def test_a_terminal_is_told_what_is_waited_for(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "stdin", SimpleNamespace(buffer=io.BytesIO(b"x\n"), isatty=lambda: True))
    assert next(inputs.read_batches(())).texts == ["x"]
    assert "Ctrl-D" in capsys.readouterr().err


def test_verify_ends_with_the_code_of_a_parity_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def report(passed: bool) -> Any:
        entry = EngineReport(
            passed=passed,
            engine="onnxruntime",
            engine_version="1.2.3",
            provider="cuda",
            threads=1,
            texts=8,
            buckets=2,
            max_abs_field=0.5,
            max_abs_scores=0.25,
            min_cosine=0.98765,
            agreement=0.75,
            identified=1.0,
            quartile_abs_field=0.1,
            tolerance=1e-5,
            typical_tolerance=None,
            tokens_equal=True,
            by_bucket={"1x8": 0.5, "1x16": 0.1},
        )
        skipped = {"tensorrt": "no driver", "numpy": "another reason", "tensorrt-rtx": "no driver"}
        found = VerifyReport(
            passed=passed,
            path="b",
            manifest_sha256="ab",
            texts=8,
            files=3,
            max_abs_field=0.5,
            max_abs_scores=0.25,
            engines=(entry,),
            skipped=skipped,
        )
        return lambda *_, **__: found

    monkeypatch.setattr(fieldrun, "verify", report(True), raising=False)
    first, head, line, *skipped = call("verify", "--engine", "all").stdout.splitlines()
    assert first == "b: 3 files as exported, 8 golden texts"
    assert head.split()[:3] == ["engine", "version", "result"]
    assert line.split() == [
        "onnxruntime",
        "on",
        "cuda",
        "1.2.3",
        "passed",
        "5.0e-01",
        "2.5e-01",
        "1e-05",
        "0.98765",
        "75.0%",
        "2",
    ]
    assert skipped == ["skipped tensorrt, tensorrt-rtx: no driver", "skipped numpy: another reason"]
    monkeypatch.setattr(fieldrun, "verify", report(False), raising=False)
    result = call("verify", "bundle", "--json", code=ParityError.exit_code)
    assert lines(result) == [report(False)().to_dict()]
    assert "onnxruntime does not give its golden values" in result.stderr
    assert "a field is off by up to 0.5 and a score by 0.25, the limit is 1e-05" in result.stderr


def test_export_passes_the_calibration_texts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[Any] = []
    recipe_differs = False

    def export(checkpoint: str, out: Path, **settings: Any) -> Any:
        settings["progress"]("fold", 1, 2)
        seen.append((checkpoint, out, settings["recipe"], settings["calibration"]))
        about = {"path": out, "bytes": 200_000, "recipe": settings["recipe"]}
        said = {"summary": lambda: "close", "to_dict": lambda: {"recipe": settings["recipe"]}}
        return SimpleNamespace(**about, **said, proof={}, warnings=(), differs=recipe_differs)

    monkeypatch.setattr(fieldrun, "export", export, raising=False)
    (tmp_path / "a.txt").write_text("one\n\n two \n")
    (tmp_path / "b.tsv").write_text("text_a\ttext_b\tlabel\nx\ty\tz\n")
    out = tmp_path / "bundle"
    result = call("export", "reference", "-o", out, "--calibration", tmp_path / "a.txt")
    assert result.stdout == f"{out}: 0.2 MB, recipe cpu-int8\n  close\nnext: fieldrun verify {out}\n"
    call("export", "c", "-o", out, "--calibration", tmp_path / "b.tsv", "--recipe", "cpu-fp32")
    assert lines(call("export", "c", "-o", out, "--json")) == [{"recipe": "cpu-int8"}]
    assert seen == [
        ("reference", out, "cpu-int8", ["one", "two"]),
        ("c", out, "cpu-fp32", ["x", "y"]),
        ("c", out, "cpu-int8", None),
    ]
    recipe_differs = True
    assert "differs from its reference" in call("export", "c", "-o", out, code=ParityError.exit_code).stderr
    call("export", "c", "-o", out, "--json", code=ParityError.exit_code)


@pytest.mark.parametrize(
    ("data", "message"), [(b"\n \n", "has no texts"), (b"\xff", "not valid UTF-8"), (None, "exist")]
)
def test_export_refuses_broken_calibration_texts(tmp_path: Path, data: bytes | None, message: str) -> None:
    path = tmp_path / "texts.txt"
    if data is not None:
        path.write_bytes(data)
    assert message in call("export", "c", "-o", "out", "--calibration", path, code=4).stderr
    assert "cannot read" in call("export", "c", "-o", "out", "--calibration", tmp_path, code=4).stderr


def test_distill_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(util, "find_spec", lambda _: None)
    result = call("distill", "quick", "d", "--teacher", "t", "-o", "out", "--json", code=3)
    assert result.stderr == "fieldrun: error: this needs the package 'torch': pip install 'fieldrun[distill]'\n"
    assert lines(result)[0]["error"]["type"] == "MissingDependency"


def test_distill_hands_everything_over(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Any] = []

    def distill(recipe: str, data: Path, teacher: Path, out: Path, **settings: Any) -> Any:
        seen.append((recipe, data, teacher, out, settings["work"], settings["threads"]))
        return SimpleNamespace(name="tiny", parameters=lambda: 1_234_567, heads=[SimpleNamespace(name="mood")])

    monkeypatch.setattr(fieldrun, "distill", distill, raising=False)
    arguments = ("distill", "quick", "d", "--teacher", "t", "-o", "out")
    result = call(*arguments, "--work", "w", "--threads", "2")
    assert result.stdout == "out: tiny, 1.23 M parameters, tasks mood\nnext: fieldrun export out -o bundle\n"
    (value,) = lines(call(*arguments, "--json"))
    assert value == {"path": "out", "name": "tiny", "parameters": 1_234_567, "tasks": ["mood"]}
    assert seen == [("quick", Path("d"), Path("t"), Path("out"), *more) for more in ((Path("w"), 2), (None, None))]


def test_version() -> None:
    assert call("--version").stdout.startswith("fieldrun ")


def test_every_command_has_help_with_an_example() -> None:
    context = click.Context(main)
    for name in group.COMMANDS:
        text = call(name, "--help").stdout
        assert f"fieldrun {name}" in text.partition("Example")[2]
        assert "--json" in text
        command = main.get_command(context, name)
        assert command is not None
        assert not command.get_short_help_str(45).endswith("...")


def test_main_outside_a_process() -> None:
    with pytest.raises(DatasetError, match="has no texts"):
        main(["export", "c", "-o", "x", "--calibration", os.devnull], standalone_mode=False)


def test_one_line() -> None:
    assert output.one_line(" a\n\tb \x1b[31mred\udcff ") == "a b \\x1b[31mred\\udcff"
    assert output.one_line("0123456789", 6) == "012..."


def test_stdout_errors_are_storage_errors(monkeypatch: pytest.MonkeyPatch) -> None:
    class Full(io.StringIO):
        def flush(self) -> None:
            raise OSError(28, "No space left on device")

    monkeypatch.setattr(sys, "stdout", Full())
    with pytest.raises(StorageError, match="cannot write to stdout: No space left on device"):
        output.flush()


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, in seconds, that the progress sees."""
    now = [100.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


def test_a_log_gets_a_line_now_and_then(monkeypatch: pytest.MonkeyPatch, clock: list[float]) -> None:
    log = io.StringIO()
    monkeypatch.setattr(sys, "stderr", log)
    with progress() as step:
        for done in range(61):
            step("fold", done, 3600)
            clock[0] += 1
    assert log.getvalue().splitlines() == [
        f"fieldrun: fold {done}/3600, {left} left"
        for done, left in [(10, "59:50"), (20, "59:40"), (30, "59:30"), (40, "59:20"), (50, "59:10"), (60, "59:00")]
    ]


def test_a_terminal_without_rich_gets_a_line_that_is_drawn_again(
    monkeypatch: pytest.MonkeyPatch, clock: list[float]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setitem(sys.modules, "rich.console", None)
    with progress() as step:
        step("fold", 0, 2)
        clock[0] += 7200
        step("fold", 1, 2)
    drawn = terminal.getvalue().split("\r\x1b[K")
    assert drawn == ["", f"fold [{'#' * 15}{' ' * 15}] 1/2, 2:00:00 left", ""]


def test_progress_with_rich(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("rich")
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    with progress() as step:
        step("fold", 1, 2)
        step("fold", 2, 2)
    assert "fold" in terminal.getvalue()


@pytest.mark.parametrize("command", group.RESUMABLE)
def test_an_interrupted_command_says_how_to_continue(monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(fieldrun, command, interrupted, raising=False)
    arguments = {
        "label": ["label", "my texts.txt", "-o", "out"],
        "build": ["build", "bundle"],
        "compress": ["compress", "reference", "--max-size", "1MB", "-o", "out", "--data", f"a={_tsv()}"],
        "distill": ["distill", "quick", "data", "--teacher", "t", "-o", "out"],
    }[command]
    result = call(*arguments, code=130)
    assert result.stderr.strip() == f"fieldrun: interrupted; to continue: {shlex.join(['fieldrun', *arguments])}"


def _tsv() -> Path:
    return next(Path(fieldrun_benchmarks.__file__).parent.glob("data/*.tsv"))


def test_a_warning_of_ours_is_a_note(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "reference").mkdir()
    (tmp_path / "reference" / "manifest.json").touch()
    monkeypatch.chdir(tmp_path)
    with warnings.catch_warnings():
        warnings.simplefilter("default")
        result = call("tasks", "--json")
        warnings.warn("of another package", DeprecationWarning, stacklevel=1)
    assert result.stderr == "fieldrun: note: 'reference' is the shipped bundle; write ./reference for the folder here\n"
    assert "DeprecationWarning: of another package" in capsys.readouterr().err
