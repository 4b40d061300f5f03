"""`fieldrun build`, `fieldrun cache` and `--engine tensorrt` on the command line, over the doubles."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from fieldrun.cli import main
from fieldrun_benchmarks.harness.record import read_record
from tests.runtimes.tensorrt import doubles


def call(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == code, (result.stdout, result.stderr)
    return result


def test_build_run_list_clear(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doubles.install(monkeypatch)
    value = json.loads(call("build", tiny, "--json").stdout)
    assert [engine["bucket"] for engine in value["engines"]] == ["1x8", "1x24", "4x8", "4x24", "pairs 1", "pairs 4"]
    assert not any(engine["reused"] for engine in value["engines"])
    text = call("build", tiny).stdout
    assert "kept" in text
    assert "compute capability 8.6" in text
    arguments = ("--task", "mood", "--json", "a good film")
    answer = json.loads(call("run", "-b", tiny, "--engine", "tensorrt", *arguments).stdout)
    plain = json.loads(call("run", "-b", tiny, "--engine", "numpy", *arguments).stdout)
    assert answer["label"] == plain["label"]
    assert json.loads(call("verify", tiny, "--engine", "tensorrt", "--json").stdout)["passed"]
    listed = json.loads(call("cache", "list", "--json").stdout)
    assert (listed["root"], len(listed["engines"])) == (str(cache), 6)
    assert "Double GPU" in call("cache", "list").stdout
    assert json.loads(call("cache", "clear", "--json").stdout)["engines"] == 6
    assert "0 engines" in call("cache", "list").stdout
    call("run", "-b", tiny, "--engine", "tensorrt", *arguments, code=9)


def test_engines_elsewhere_are_found_with_the_variable_that_build_names(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubles.install(monkeypatch)
    monkeypatch.chdir(tmp_path)
    said = call("build", tiny, "--cache", "my engines").stderr
    (line,) = [line for line in said.splitlines() if "FIELDRUN_CACHE" in line]
    variable, _, value = shlex.split(line)[-1].partition("=")
    assert variable == "FIELDRUN_CACHE"
    run = ("run", "-b", tiny, "--engine", "tensorrt", "--task", "mood", "a good film")
    call(*run, code=9)
    monkeypatch.setenv("FIELDRUN_CACHE", value)
    call(*run)
    assert "FIELDRUN_CACHE" not in call("build", tiny, "--cache", value).stderr
    assert "FIELDRUN_CACHE" not in call("build", tiny).stderr


@pytest.mark.parametrize("capability", ["86", "8..6", "8.6.0", "", "sm86", "8.x", "\u0668.6"])
def test_a_compute_capability_is_two_numbers(tiny: Path, cache: Path, capability: str) -> None:
    said = call("build", tiny, "--target", "tensorrt-rtx", "--compute-capability", capability, code=2).stderr
    assert "a compute capability is two numbers with a point, as in 8.6, not " in said
    assert not cache.exists()


def test_an_empty_cache_is_refused(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doubles.install(monkeypatch)
    for command in (("build", tiny), ("cache", "list"), ("cache", "clear")):
        assert "the engine cache has an empty name" in call(*command, "--cache", "", code=2).stderr


def test_errors_are_one_line_and_a_code(tiny: Path, toy_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doubles.install(monkeypatch, gpu=None)
    error = json.loads(call("build", tiny, "--json", code=9).stdout)["error"]
    assert error["type"] == "EngineError"
    assert error["message"].startswith("no NVIDIA driver on this machine")
    doubles.install(monkeypatch)
    assert "no TensorRT graphs" in call("build", toy_bundle, code=9).stderr
    assert len(call("build", toy_bundle, code=9).stderr.splitlines()) == 1
    call("run", "-b", tiny, "--engine", "numpy", "--provider", "cuda", "--task", "mood", "x", code=2)


def test_a_record_has_the_gpu_and_the_engines_that_ran(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    doubles.install(monkeypatch)
    call("build", tiny)
    call("verify", tiny, "--engine", "tensorrt", "--record", tmp_path / "records")
    (path,) = (tmp_path / "records").iterdir()
    assert path.name == "verify-toy-tiny-tensorrt.json"
    record = read_record(path, "verify")
    assert (record["engine"], record["engine_version"], record["provider"]) == ("tensorrt", "10.3.0", None)
    assert record["gpu"] == {"name": "Double GPU", "compute_capability": "8.6", "cuda": "13.0"}
    assert [engine["bucket"] for engine in record["engines"]] == ["1x8", "1x24", "4x8", "4x24", "pairs 1", "pairs 4"]
    assert {"bytes", "sha256", "seconds", "layers"} <= set(record["engines"][0])
    assert set(record["by_bucket"]) == {"1x8", "1x24", "4x8", "4x24"}
    assert str(tmp_path) not in path.read_text("utf-8")
