"""On a machine with a GPU: every GPU engine that is installed gives the golden fields, and a record of its speed.

An engine that is not installed, or whose builder refuses this GPU, skips with the very words of the refusal.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest

import fieldrun
from fieldrun.errors import EngineError, MissingDependency
from fieldrun_benchmarks.gpu import measure
from fieldrun_benchmarks.record import read_record, write_record

pytestmark = pytest.mark.gpu

WAYS = [("tensorrt", None), ("tensorrt-rtx", None), ("onnxruntime", "cuda"), ("onnxruntime", "cuda-graph")]


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu") / "bundle"
    return fieldrun.export("reference", out, recipe="jetson-orin-int8").path


@pytest.mark.parametrize(("engine", "provider"), WAYS)
def test_golden_fields_and_speed(bundle: Path, tmp_path: Path, engine: str, provider: str | None) -> None:
    try:
        values = measure(bundle, engine, provider)
    except (EngineError, MissingDependency) as error:
        pytest.skip(f"{engine} {provider or ''}: {error}")
    assert values["verify"]["passed"], values["verify"]
    folder = Path(os.environ.get("FIELDRUN_RECORDS", tmp_path))
    path = folder / f"gpu-{engine}{f'-{provider}' if provider else ''}.json"
    write_record(path, "gpu", "make test-gpu", values)
    assert read_record(path, "gpu")["gpu"]["name"]
