"""What a user gets: the built wheel in an environment that has the base dependencies and nothing else."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

pytestmark = pytest.mark.slow

HEAVY = ("onnx", "onnxruntime", "optimum", "safetensors", "torch", "transformers")

IMPORT_EVERYTHING = """
import importlib, json, pkgutil

names = []
for package in ("fieldrun", "fieldrun_runtimes"):
    module = importlib.import_module(package)
    names.append(package)
    extras = ("fieldrun.distill", "fieldrun.sklearn")
    names += [found.name for found in pkgutil.walk_packages(module.__path__, f"{package}.")
              if not found.name.startswith(extras) and not found.name.endswith("__main__")]
for name in names:
    importlib.import_module(name)
print(json.dumps(names))
"""

LOAD_AND_LOOK_ROUND = """
import json, os

before = dict(os.environ)
import fieldrun

with fieldrun.load(engine="onnxruntime") as model:
    label = model.predict(["a great film"], "sst2")
    engine = model.engine
changed = {name: value for name, value in os.environ.items() if before.get(name) != value}
print(json.dumps({"engine": engine, "changed": changed, "labels": len(label)}))
"""


def _run(*command: str | Path, home: Path, code: int = 0) -> str:
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


@pytest.fixture(scope="module")
def wheel(repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    _build("wheel", repository, folder)
    (built,) = folder.glob("*.whl")
    return built


def _build(target: str, repository: Path, folder: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", target, "--directory", str(folder)],
        cwd=repository,
        check=True,
        capture_output=True,
    )


@pytest.fixture(scope="module")
def bare(wheel: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment into which only the wheel and its base dependencies were installed."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([sys.executable, "-m", "venv", str(folder)], check=True, capture_output=True)
    programs = folder / "bin"
    constraints = repository / ".ci" / "constraints.txt"
    subprocess.run(
        [programs / "python", "-m", "pip", "install", "--quiet", "--constraint", constraints, wheel],
        check=True,
        capture_output=True,
    )
    return programs


def test_wheel_has_the_reference_bundle_and_no_checkpoint(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "fieldrun/data/reference/manifest.json" in names
    assert not [name for name in names if "checkpoint" in name.split("/")[0] or "/checkpoints/" in name]
    assert ("fieldrun_runtimes/native/native.so.1" in names) == (shutil.which("cc") is not None)
    roots = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert roots == {"fieldrun", "fieldrun_benchmarks", "fieldrun_exporters", "fieldrun_runtimes"}
    assert {f"{root}/py.typed" for root in roots} <= set(names)


def test_sdist_has_the_reference_checkpoint(repository: Path, tmp_path: Path) -> None:
    _build("sdist", repository, tmp_path)
    (built,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(built) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    checkpoint = {f"sdk/checkpoints/reference/{name}" for name in ("student.json", "student.safetensors")}
    assert (
        checkpoint
        | {"LICENSE", "README.md", "hatch_build.py", "pyproject.toml", "runtimes/fieldrun_runtimes/native/native.c"}
        <= names
    )


def test_nothing_heavy_is_installed(bare: Path, home: Path) -> None:
    script = f"import importlib.util; print([n for n in {HEAVY} if importlib.util.find_spec(n)])"
    assert _run(bare / "python", "-c", script, home=home).strip() == "[]"


def test_every_runtime_module_imports(bare: Path, home: Path) -> None:
    names = json.loads(_run(bare / "python", "-W", "error", "-c", IMPORT_EVERYTHING, home=home))
    assert {"fieldrun.formats.bundle", "fieldrun.cli", "fieldrun_runtimes.model"} <= set(names)


def test_every_command_has_help(bare: Path, home: Path) -> None:
    pending: list[tuple[str, ...]] = [()]
    seen = []
    while pending:
        command = pending.pop()
        text = _run(bare / "fieldrun", *command, "--help", home=home)
        assert text.startswith("Usage: fieldrun")
        seen.append(" ".join(command))
        pending += [(*command, name) for name in _subcommands(text)]
    assert {"doctor", "eval", "export", "info", "run", "verify"} <= set(seen)


def _subcommands(text: str) -> list[str]:
    """The names under "Commands:" in the help of a click group."""
    _, _, rest = text.partition("\nCommands:\n")
    listed, _, _ = rest.partition("\n\n")
    return re.findall(r"^  ([a-z][\w-]*)", listed, re.MULTILINE)


def test_subcommands_are_read_from_help() -> None:
    text = "Usage: fieldrun\n\nCommands:\n  doctor  What this\n          machine has.\n  dry-run  Try.\n"
    text += "\n  Example:\n    fieldrun\n  done\n"
    assert _subcommands(text) == ["doctor", "dry-run"]
    assert _subcommands("Usage: fieldrun run\n\nOptions:\n  --json\n") == []


def test_reference_runs_without_an_extra(bare: Path, home: Path) -> None:
    labels = _run(bare / "python", "-c", "import fieldrun; print(*fieldrun.load().labels('sst2'))", home=home).split()
    answer = _run(bare / "fieldrun", "run", "reference", "--task", "sst2", "a great film", home=home)
    assert any(label in answer for label in labels), answer
    engine = "native" if shutil.which("cc") else "numpy"
    assert _run(bare / "python", "-c", "import fieldrun; print(fieldrun.load().engine)", home=home).strip() == engine
    again = _run(
        bare / "fieldrun", "run", "reference", "--engine", "numpy", "--task", "sst2", "a great film", home=home
    )
    assert again == answer


def _interpreter(version: str) -> Path | None:
    """An interpreter of `version` that runs: on the path, else one of pyenv's."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    found = [shutil.which(f"python{version}"), *sorted(root.glob(f"{version}.*/bin/python{version}"))]
    for candidate in (str(path) for path in found if path):
        command = [candidate, "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False)  # pyenv's shims may refuse
        if ended.stdout.strip() == version:
            return Path(candidate)
    return None


def test_the_oldest_python_runs_every_engine(wheel: Path, repository: Path, home: Path, tmp_path: Path) -> None:
    """Python 3.10 is JetPack 6's, and there ONNX Runtime ends at 1.23: the constraints have what is installed."""
    python = _interpreter("3.10")
    if python is None:
        pytest.skip("no Python 3.10 on this machine")
    programs = tmp_path / "venv" / "bin"
    subprocess.run([python, "-m", "venv", tmp_path / "venv"], check=True, capture_output=True)
    constraints = repository / ".ci" / "constraints.txt"
    install: list[str | Path] = [
        programs / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-compile",
        "--constraint",
        constraints,
    ]
    for what in ([wheel], ["--no-deps", "onnxruntime"]):  # what it depends on is for its tools, and large
        subprocess.run([*install, *what], check=True, capture_output=True)
    assert len(json.loads(_run(programs / "python", "-W", "error", "-c", IMPORT_EVERYTHING, home=home))) > 20
    engines = ["numpy", "onnxruntime", *(["native"] if shutil.which("cc") else [])]
    for engine in engines:
        report = json.loads(_run(programs / "fieldrun", "verify", "--engine", engine, "--json", home=home))
        assert (report["passed"], report["engine"]) == (True, engine)
    facts = json.loads(_run(programs / "fieldrun", "doctor", "--json", home=home))
    assert facts["python"].startswith("3.10.")


def test_plain_text_needs_no_tokenizers(bare: Path, home: Path) -> None:
    script = "import fieldrun, sys; m = fieldrun.load(); m.predict_all([{!r}]); print('tokenizers' in sys.modules)"
    assert _run(bare / "python", "-c", script.format("a great film"), home=home).strip() == "False"
    assert _run(bare / "python", "-c", script.format("a great caf\u00e9"), home=home).strip() == "True"


def test_asking_for_a_missing_engine_says_what_to_install(bare: Path, home: Path) -> None:
    command = ("run", "reference", "--engine", "onnxruntime", "--task", "sst2", "a great film")
    assert _run(bare / "fieldrun", *command, home=home, code=3) == ""


def test_onnxruntime_stays_silent(home: Path) -> None:
    pytest.importorskip("onnxruntime")
    seen = json.loads(_run(sys.executable, "-c", LOAD_AND_LOOK_ROUND, home=home))
    assert seen == {"engine": "onnxruntime", "changed": {"ORT_DISABLE_TELEMETRY": "1"}, "labels": 1}
    assert list(home.rglob("*")) == []
