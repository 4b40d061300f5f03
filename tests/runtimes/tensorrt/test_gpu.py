"""On a machine with a GPU: every GPU engine that is installed gives the golden fields, and a record of its speed.

An engine that is not installed, or whose builder has no code for this GPU, skips; its record has the very words of the
refusal. Whatever else an engine says is a failure of ours.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import pytest

import fieldrun
from fieldrun.errors import EngineError, MissingDependency
from fieldrun_benchmarks.harness.record import read_record, write_record
from studies.gpu import measure

pytestmark = pytest.mark.gpu

WAYS = [("tensorrt", None), ("tensorrt-rtx", None), ("onnxruntime", "cuda"), ("onnxruntime", "cuda-graph")]


REFUSALS = re.compile(
    r"builds for .*, not for |no NVIDIA driver on this machine|the NVIDIA driver shows no GPU"
    r"|this onnxruntime \S+ has no CUDA provider"
)


def is_refusal(error: EngineError | MissingDependency) -> bool:
    """Whether the engine cannot be had on this machine at all: it is not installed, or has no code for its GPU."""
    return isinstance(error, MissingDependency) or REFUSALS.search(str(error)) is not None


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("gpu") / "bundle"
    return fieldrun.export("reference", out, recipe="jetson-orin-int8").path


@pytest.mark.parametrize(("engine", "provider"), WAYS)
def test_golden_fields_and_speed(bundle: Path, tmp_path: Path, engine: str, provider: str | None) -> None:
    folder = Path(os.environ.get("FIELDRUN_RECORDS", tmp_path))
    path = folder / f"gpu-{engine}{f'-{provider}' if provider else ''}.json"
    try:
        values = measure(bundle, engine, provider)
    except (EngineError, MissingDependency) as error:
        refused = {"type": type(error).__name__, "message": str(error).replace(str(bundle), "BUNDLE")}
        write_record(path, "gpu", "make test-gpu", {"engine": engine, "provider": provider, "refused": refused})
        if not is_refusal(error):
            raise
        pytest.skip(f"{engine} {provider or ''}: {error}")
    assert values["verify"]["passed"], values["verify"]
    write_record(path, "gpu", "make test-gpu", values)
    assert read_record(path, "gpu")["gpu"]["name"]
