"""A tiny bundle with TensorRT graphs: every layer int8, two batches, two lengths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

import fieldrun
from fieldrun_runtimes.tensorrt import device
from tests.exporters.conftest import ALL_INT8

RECIPE = f"""
schema = 1
name = "tiny"
passes = ["fold", "int8"]
[precision]
{ALL_INT8}
[buckets]
batches = [1, 4]
lengths = [8, 24]
[parity]
min_cosine = 0.98
max_abs = 0.5
[tensorrt]
golden_tolerance = 0.01
"""


@pytest.fixture(scope="session")
def tiny(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy exported with TensorRT graphs; treat it as read-only."""
    folder = tmp_path_factory.mktemp("tiny")
    (folder / "tiny.toml").write_text(RECIPE, "utf-8")
    texts = ["a good film", "who wrote it ?", "the card did not work", "what is rain", "it was very wet to day"]
    texts += [f"{text} and {other}" for text in texts for other in texts[:4]]
    return fieldrun.export(toy_checkpoint, folder / "bundle", recipe=folder / "tiny.toml", calibration=texts).path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An engine cache of the test's own, and a driver that is looked for afresh before and after."""
    root = tmp_path / "engines"
    monkeypatch.setenv("FIELDRUN_CACHE", str(root))
    device.find_gpu.cache_clear()
    yield root
    device.find_gpu.cache_clear()
