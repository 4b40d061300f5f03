"""Settings that every test shares."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

import pytest
from hypothesis import settings

os.environ["HF_HUB_OFFLINE"] = "1"  # a test that asks for a download fails instead of waiting for one
for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):  # read when torch and NumPy are imported, which is later
    os.environ.setdefault(name, "1")

settings.register_profile("fieldrun", deadline=None, derandomize=True)
settings.load_profile("fieldrun")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if _has_gpu():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no NVIDIA GPU with a driver on this machine"))


def _has_gpu() -> bool:
    try:
        return bool(ctypes.CDLL("libcuda.so.1").cuInit(0) == 0)
    except (OSError, AttributeError):
        return False


@pytest.fixture
def unmeasured() -> dict[str, str]:
    """The environment of a program that forks while its threads are busy: this one's, without coverage.

    Coverage holds a lock of its own while it notes a line. If a thread holds it at the fork, the child waits for ever.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_PROCESS_")}


@pytest.fixture(scope="session")
def repository() -> Path:
    """The root of the checkout."""
    return Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def toy_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a tiny checkpoint with random weights; treat it as read-only."""
    from tests import toy

    path = tmp_path_factory.mktemp("toy") / "checkpoint"
    toy.toy_checkpoint().save(path)
    return path


@pytest.fixture(scope="session")
def toy_bundle(toy_checkpoint: Path) -> Path:
    """The toy checkpoint exported with `cpu-int8`; treat it as read-only and copy it to change it."""
    import fieldrun

    path = toy_checkpoint.parent / "bundle"
    fieldrun.export(toy_checkpoint, path, recipe="cpu-int8")
    return path
