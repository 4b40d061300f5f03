"""A tiny bundle with TensorRT graphs (every layer int8, two batches, two lengths), and its engines in a cache."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fieldrun
from fieldrun.formats.bundle import Bundle
from fieldrun_runtimes.tensorrt import device
from fieldrun_runtimes.tensorrt.build import build
from fieldrun_runtimes.tensorrt.key import EngineKey, keys_of
from fieldrun_runtimes.tensorrt.library import load_library
from tests.exporters.conftest import ALL_INT8
from tests.runtimes.tensorrt import doubles

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


ABOUT: dict[str, Any] = {"bytes": 1, "seconds": 0.5, "layers": {"table": "int8"}}


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


@pytest.fixture
def built(tiny: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> doubles.Machine:
    """A machine on which every engine is built; its calls are forgotten."""
    machine = doubles.install(monkeypatch)
    build(tiny)
    machine.calls.clear()
    return machine


def engines(root: Path) -> list[Path]:
    """The engines of a cache."""
    return sorted(root.glob("*/*/*.engine"))


def keys(bundle: Path) -> list[EngineKey]:
    """What this machine needs of every engine of a bundle."""
    return list(keys_of(Bundle.load(bundle), "tensorrt", load_library("tensorrt"), device.require_gpu()).values())


def flip(path: Path) -> None:
    """Change a bit in the middle of a file."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))
