"""What a user gets: the built wheels in an environment that has the base dependencies and nothing else.

It has Python 3.10, our oldest, where the machine has one. The tests run in the order of this file: the last ones add
ONNX Runtime to the environment.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from hatchling.builders.sdist import SdistBuilder

from tests.repository.conftest import run_as_user

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

HELP_OF_EVERYTHING = """
import json

import click
from click.testing import CliRunner
from fieldrun.cli import main

said, pending = {}, [((), main)]
while pending:
    names, command = pending.pop()
    result = CliRunner().invoke(main, [*names, "--help"], prog_name="fieldrun", catch_exceptions=False)
    assert result.exit_code == 0, names
    said[" ".join(names)] = result.output
    if isinstance(command, click.Group):
        context = click.Context(command)
        pending += [((*names, name), command.get_command(context, name)) for name in command.list_commands(context)]
print(json.dumps(said))
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


def _oldest_python() -> str:
    """Python 3.10, on the path or of pyenv, or else the one that runs the tests."""
    root = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    for candidate in (shutil.which("python3.10"), *sorted(root.glob("3.10.*/bin/python3.10"))):
        if candidate is not None:
            command = [str(candidate), "-c", "import sys, venv; print('%d.%d' % sys.version_info[:2])"]
            ended = subprocess.run(command, capture_output=True, text=True, check=False)  # pyenv's shims may refuse
            if ended.stdout.strip() == "3.10":
                return str(candidate)
    return sys.executable


@pytest.fixture(scope="module")
def bare(wheels: Path, repository: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment into which only the wheels and their base dependencies were installed."""
    folder = tmp_path_factory.mktemp("bare") / "venv"
    subprocess.run([_oldest_python(), "-m", "venv", "--without-pip", str(folder)], check=True, capture_output=True)
    _install(folder / "bin", repository, *sorted(wheels.glob("*.whl")))
    return folder / "bin"


def _install(programs: Path, repository: Path, *what: str | Path) -> None:
    options = ["--quiet", "--no-compile", "--disable-pip-version-check"]
    constraints = repository / ".ci" / "constraints.txt"
    pip: list[str | Path] = [sys.executable, "-m", "pip", "--python", programs / "python", "install", *options]
    subprocess.run([*pip, "--constraint", constraints, *what], check=True, capture_output=True)


def test_wheel_has_the_reference_bundle_and_no_checkpoint(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()
    assert "fieldrun/data/reference/manifest.json" in names
    assert not [name for name in names if "checkpoint" in name.split("/")[0] or "/checkpoints/" in name]
    assert ("fieldrun_runtimes/native/native.so.1" in names) == (shutil.which("cc") is not None)
    roots = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert roots == {"fieldrun", "fieldrun_benchmarks", "fieldrun_exporters", "fieldrun_runtimes"}
    assert {f"{root}/py.typed" for root in roots} <= set(names)


def test_sdist_has_the_reference_checkpoint(repository: Path) -> None:
    names = {Path(file.relative_path).as_posix() for file in SdistBuilder(str(repository)).recurse_included_files()}
    checkpoint = {f"sdk/checkpoints/reference/{name}" for name in ("student.json", "student.safetensors")}
    others = {"LICENSE", "README.md", "hatch_build.py", "pyproject.toml", "sdk/checkpoints/pyproject.toml"}
    assert checkpoint | others | {"runtimes/fieldrun_runtimes/native/native.c"} <= names


def test_nothing_heavy_is_installed(bare: Path, home: Path) -> None:
    script = f"import importlib.util; print([n for n in {HEAVY} if importlib.util.find_spec(n)])"
    assert run_as_user(bare / "python", "-c", script, home=home).strip() == "[]"


def test_every_runtime_module_imports(bare: Path, home: Path) -> None:
    names = json.loads(run_as_user(bare / "python", "-W", "error", "-c", IMPORT_EVERYTHING, home=home))
    assert {"fieldrun.formats.bundle", "fieldrun.cli", "fieldrun_runtimes.model"} <= set(names)


def test_every_command_has_help(bare: Path, home: Path) -> None:
    said = json.loads(run_as_user(bare / "python", "-c", HELP_OF_EVERYTHING, home=home))
    assert {"doctor", "eval", "export", "info", "label", "run", "verify", "cache list"} <= set(said)
    assert all(text.startswith(f"Usage: fieldrun {name}") for name, text in said.items())
    assert run_as_user(bare / "fieldrun", "--help", home=home).startswith("Usage: fieldrun")


def test_reference_runs_without_an_extra(bare: Path, home: Path) -> None:
    labels = run_as_user(
        bare / "python", "-c", "import fieldrun; print(*fieldrun.load().labels('sst2'))", home=home
    ).split()
    answer = run_as_user(bare / "fieldrun", "run", "--task", "sst2", "a great film", home=home)
    assert any(label in answer for label in labels), answer
    engine = "native" if shutil.which("cc") else "numpy"
    assert (
        run_as_user(bare / "python", "-c", "import fieldrun; print(fieldrun.load().engine)", home=home).strip()
        == engine
    )
    module = (bare / "python", "-m", "fieldrun")
    assert run_as_user(*module, "run", "--engine", "numpy", "--task", "sst2", "a great film", home=home) == answer


def test_the_reference_checkpoint_is_in_its_wheel(bare: Path, home: Path) -> None:
    script = "from fieldrun.formats.checkpoint import read_checkpoint, resolve_checkpoint as found\n"
    script += "print(found('reference')); print(read_checkpoint('reference').name)"
    folder, name = run_as_user(bare / "python", "-c", script, home=home).split()
    assert (Path(folder).parts[-2:], name) == (("fieldrun_reference", "checkpoint"), "reference")


def test_plain_text_needs_no_tokenizers(bare: Path, home: Path) -> None:
    script = "import fieldrun, sys; m = fieldrun.load(); m.predict_all([{!r}]); print('tokenizers' in sys.modules)"
    assert run_as_user(bare / "python", "-c", script.format("a great film"), home=home).strip() == "False"
    assert run_as_user(bare / "python", "-c", script.format("a great caf\u00e9"), home=home).strip() == "True"


def test_what_is_missing_is_named_with_its_command(bare: Path, home: Path) -> None:
    command = ("run", "--engine", "onnxruntime", "--task", "sst2", "a great film")
    assert run_as_user(bare / "fieldrun", *command, home=home, code=3) == ""
    said = json.loads(run_as_user(bare / "fieldrun", "export", "reference", "-o", "out", "--json", home=home, code=3))
    assert said["error"]["message"] == "this needs the package 'onnx': pip install 'fieldrun[export]'"


def test_every_engine_runs_on_the_oldest_python(bare: Path, repository: Path, home: Path) -> None:
    """Python 3.10 is JetPack 6's, and there ONNX Runtime ends at 1.23: the constraints have what is installed."""
    _install(bare, repository, "--no-deps", "onnxruntime")  # what it depends on is for its tools, and large
    engines = ["numpy", "onnxruntime", *(["native"] if shutil.which("cc") else [])]
    for engine in engines:
        report = json.loads(run_as_user(bare / "fieldrun", "verify", "--engine", engine, "--json", home=home))
        assert (report["passed"], [ran["engine"] for ran in report["engines"]]) == (True, [engine])


def test_onnxruntime_stays_silent(home: Path) -> None:
    pytest.importorskip("onnxruntime")
    seen = json.loads(run_as_user(sys.executable, "-c", LOAD_AND_LOOK_ROUND, home=home))
    assert seen == {"engine": "onnxruntime", "changed": {"ORT_DISABLE_TELEMETRY": "1"}, "labels": 1}
    assert list(home.rglob("*")) == []
