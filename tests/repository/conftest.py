"""The built wheels, and a user without caches who runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from fieldrun.formats.storage import locked_folder


def run_as_user(*command: str | Path, home: Path, code: int = 0) -> str:
    """Run `command` as a user without caches or continuous integration would, and return its standard output."""
    hidden = {"CI", "ORT_DISABLE_TELEMETRY", "PYTHONPATH", "PYTHONHOME", "PYTHONWARNINGS"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    environment |= {"HOME": str(home), "XDG_CACHE_HOME": str(home / ".cache"), "PYTHONDONTWRITEBYTECODE": "1"}
    environment |= {name: str(home / name.lower()) for name in ("XDG_CONFIG_HOME", "XDG_DATA_HOME", "XDG_STATE_HOME")}
    result = subprocess.run(
        [str(part) for part in command],
        cwd=home,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        check=False,
    )
    assert result.returncode == code, f"{command}\n{result.stdout}\n{result.stderr}"
    return result.stdout


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture(scope="session")
def wheels(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the two wheels: fieldrun and its reference checkpoint."""
    folder = tmp_path_factory.mktemp("wheels")
    command = [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)]
    with locked_folder(repository):  # the native engine is compiled into the clone
        for project in (repository, repository / "sdk" / "checkpoints"):
            subprocess.run(command, cwd=project, check=True, capture_output=True)
    return folder


@pytest.fixture(scope="session")
def wheel(wheels: Path) -> Path:
    (built,) = wheels.glob("fieldrun-*.whl")
    return built
