"""The records of builds and of GPU runs, over the doubles, and the table that is rendered from the first."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import fieldrun
from fieldrun.errors import EngineError, MissingDependency
from fieldrun_benchmarks.harness.record import write_record
from studies.gpu import measure
from studies.tables import render
from studies.tensorrt_build.measure import measure_recipe
from tests.runtimes.tensorrt import doubles
from tests.runtimes.tensorrt.conftest import RECIPE
from tests.runtimes.tensorrt.test_gpu import is_refusal


def test_a_gpu_record_names_the_gpu_and_has_every_bucket(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doubles.install(monkeypatch)
    values = measure(tiny, "tensorrt", calls=20)
    assert values["gpu"] == {"name": "Double GPU", "compute_capability": "8.6", "cuda": "13.0", "jetpack": None}
    assert values["verify"]["passed"]
    assert [(b["batch"], b["length"]) for b in values["buckets"]] == [(1, 8), (1, 24), (4, 8), (4, 24)]
    for bucket in values["buckets"]:
        low, high = bucket["ci95_us"]
        assert 0 < low <= bucket["p50_us"] <= high
        assert bucket["calls"] == 20
    assert str(tiny) not in str(values), "no path of this machine"


def test_a_build_record_becomes_a_table(toy_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doubles.install(monkeypatch, version="1.7.1", rtx=True, gpu=None)
    (tmp_path / "tiny.toml").write_text(RECIPE.replace("0.98", "0.9"), "utf-8")
    entry = measure_recipe(toy_checkpoint, str(tmp_path / "tiny.toml"), tmp_path, ("8.6", "12.0"))
    assert set(entry["engines"]) == {"8.6", "12.0"}
    assert [engine["bucket"] for engine in entry["engines"]["8.6"]][-1] == "pairs 4"
    for engines in entry["engines"].values():
        for engine in engines:
            engine["layers"] = {"pairs": "fp32"} if engine["bucket"].startswith("pairs") else {"table": "int8"}
    write_record(tmp_path / "tensorrt-build.json", "tensorrt-build", "c", {"recipes": {"tiny": entry}})
    page = render("<!-- table: tensorrt-build -->\n<!-- end -->", tmp_path)
    assert "| `tiny` | 12.0 | 6 | 0.0 - 0.0 | 0.0 | int8 | - | - | - | fp32 |" in page
    assert "TensorRT-RTX 1.7.1, no GPU" in page


def refusal_of(call: Callable[[], object]) -> EngineError | MissingDependency:
    try:
        call()
    except (EngineError, MissingDependency) as error:
        return error
    pytest.fail("nothing was refused")


def test_only_an_engine_that_cannot_be_had_is_skipped_on_a_gpu(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    doubles.install(monkeypatch, gpu=None)
    assert is_refusal(refusal_of(lambda: measure(tiny, "tensorrt")))
    machine = doubles.install(monkeypatch, version="1.7.1", rtx=True)
    build = functools.partial(fieldrun.build, tiny, target="tensorrt-rtx")
    assert is_refusal(refusal_of(lambda: build(compute_capability="8.7")))
    machine.parser_error = "an operator of tomorrow"
    assert not is_refusal(refusal_of(build))
    doubles.install(monkeypatch)
    assert not is_refusal(refusal_of(lambda: fieldrun.load(tiny, engine="tensorrt"))), "no engine was built"
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    monkeypatch.setitem(sys.modules, "tensorrt_bindings", None)
    assert is_refusal(refusal_of(lambda: measure(tiny, "tensorrt")))
