"""The public names: each module lists them, each resolves, and they are typed for those who use them.

Ruff (RUF022) keeps every `__all__` sorted.
"""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

import fieldrun
from fieldrun.errors import _EXTRAS
from fieldrun.toml import parse_toml

PACKAGES = ("fieldrun", "fieldrun_benchmarks", "fieldrun_exporters", "fieldrun_runtimes")
FACE = {"answer", "bench", "build", "check", "compress", "distill", "doctor", "evaluate", "export", "fit", "fit_head"}
FACE |= {"import_encoder", "install", "label", "load", "report", "rollback", "verify"}
LAZY = ("click", "fieldrun_exporters", "fieldrun_runtimes", "onnx", "onnxruntime", "torch", "transformers")

CONSUMER = """
from pathlib import Path

import fieldrun
import numpy as np
from numpy.typing import NDArray


def label(path: Path, texts: list[str], pairs: list[tuple[str, str]]) -> list[str]:
    with fieldrun.load(path, engine="numpy", threads=1, overflow="error") as model:
        field: NDArray[np.float32] = model.field(texts)
        scores: NDArray[np.float32] = model.predict_proba(texts, "sst2")
        tasks: tuple[str, ...] = model.tasks
        labels: tuple[str, ...] = model.labels(tasks[0])
        print(field.shape, scores.shape, labels, model.engine)
        return model.predict(texts, "sst2") + model.predict(pairs, "rte")


def reject(texts: list[str], policy: str) -> list[str | None]:
    with fieldrun.load(unknown="reject") as model:
        wrong: list[str] = model.predict(texts, "sst2")  # type: ignore[assignment]
        every: dict[str, list[str | None]] = model.predict_all(texts)
        said: list[str | None] = [answer["label"] for answer in fieldrun.answer(model, texts)]
        print(wrong, every, said)
        count(model, texts)  # type: ignore[arg-type]
    either = fieldrun.load(unknown=policy)
    anything: fieldrun.FieldModel[str | None] = fieldrun.load(unknown="error")
    return either.predict(texts, "sst2") + anything.predict(texts, "sst2")


def count(model: fieldrun.FieldModel, texts: list[str]) -> dict[str, int]:
    labels: list[str] = model.predict(texts, "sst2")
    return {label: labels.count(label) for label in labels}


def check(checkpoint: Path, out: Path) -> bool:
    print(fieldrun.export(checkpoint, out, recipe="cpu-int8").to_dict())
    passed: bool = fieldrun.verify(out).passed
    return passed


def train(data: Path, teacher: Path, out: Path) -> int:
    checkpoint: fieldrun.Checkpoint = fieldrun.distill("quick", data, teacher, out, threads=2)
    ready: list[bool] = [engine["ready"] for engine in fieldrun.doctor(out).engines]
    lines: int = fieldrun.label(["a.txt"], "labels.jsonl", tasks=["sst2"], workers=2).lines
    accuracy: float = fieldrun.evaluate(fieldrun.load(), "dev.tsv", "sst2").accuracy
    print(ready, lines, accuracy)
    return checkpoint.parameters()


fieldrun.load(threads="one")  # type: ignore[call-overload]
fieldrun.load("reference", "numpy")  # type: ignore[call-overload]
fieldrun.load(speed="high")  # type: ignore[call-overload]
fieldrun.load().predict(["x"], k=2)  # type: ignore[call-arg]
"""


def _modules() -> list[str]:
    names = []
    for package in PACKAGES:
        names.append(package)
        walked = pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}.")
        names += [found.name for found in walked if not found.name.endswith("__main__")]
    return names


def test_every_module_lists_its_public_names() -> None:
    wrong = []
    for name in _modules():
        module = importlib.import_module(name)
        listed = getattr(module, "__all__", None)
        if listed is None:
            wrong.append(f"{name} has no __all__")
            continue
        if len(set(listed)) != len(listed):
            wrong.append(f"{name}.__all__ repeats a name")
        wrong += [f"{name}.{item} does not exist" for item in listed if not hasattr(module, item)]
    assert not wrong, "\n".join(wrong)


def test_the_face_has_the_promised_names() -> None:
    assert set(fieldrun.__all__) >= FACE
    assert set(dir(fieldrun)) >= set(fieldrun.__all__)


@pytest.mark.parametrize("name", fieldrun.__all__)
def test_every_name_of_the_face_resolves(name: str) -> None:
    value = getattr(fieldrun, name)
    assert name == "__version__" or value.__doc__


ORDERS = (
    "import fieldrun; fieldrun.distill, fieldrun.doctor; import fieldrun.distill.recipe, fieldrun.doctor.cpu",
    "import fieldrun.distill.recipe, fieldrun.doctor.cpu; import fieldrun",
    "from fieldrun import distill, doctor; import fieldrun.doctor.cpu; from fieldrun.distill import recipe",
)


@pytest.mark.parametrize("order", ORDERS)
def test_two_packages_are_functions_too(order: str) -> None:
    check = """
import sys
sys.modules["torch"] = None  # which takes seconds to import
assert fieldrun.distill.recipe.load_recipe("quick").name == "quick"
assert fieldrun.doctor.cpu.parse_cpuinfo("").model is None
assert fieldrun.doctor("nowhere").bundle["ready"] is False
try: fieldrun.distill("quick", "data", "teacher", "out")
except fieldrun.FieldrunError as error: print(error)
import inspect
assert next(iter(inspect.signature(fieldrun.distill).parameters)) == "recipe"
"""
    result = subprocess.run([sys.executable, "-c", order + check], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "pip install 'fieldrun[distill]'" in result.stdout


def test_a_missing_extra_is_named_with_its_command() -> None:
    """Of every function and class: it is there without the extras, or says which package to install."""
    script = """
import json, sys
for name in ("onnx", "onnxruntime", "torch", "transformers", "matplotlib", "jinja2", "cuda", "tensorrt"):
    sys.modules[name] = None
import fieldrun
said = {}
for name in fieldrun.__all__:
    try: getattr(fieldrun, name)
    except fieldrun.FieldrunError as error: said[name] = str(error)
try: fieldrun.distill("quick", "data", "teacher", "out")
except fieldrun.FieldrunError as error: said["distill"] = str(error)
print(json.dumps(said))
"""
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    said = json.loads(result.stdout)
    assert said["export"] == "this needs the package 'onnx': pip install 'fieldrun[export]'"
    assert said["distill"] == "this needs the package 'torch': pip install 'fieldrun[distill]'"
    assert set(said) <= {
        "ExportReport",
        "CompressReport",
        "export",
        "compress",
        "import_encoder",
        "bench",
        "report",
        "distill",
    }
    assert all(": pip install 'fieldrun[" in line for line in said.values())


def test_every_extra_that_is_named_has_the_package(repository: Path) -> None:
    extras = parse_toml((repository / "pyproject.toml").read_text("utf-8"), "pyproject.toml")["project"]
    for module, (package, extra) in _EXTRAS.items():
        listed = [re.split(r"[\[<>=;~ ]", each)[0] for each in extras["optional-dependencies"][extra]]
        assert (package or module) in listed, (module, extra)


def test_an_unknown_name_of_the_face_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        getattr(fieldrun, "no_such_name")  # noqa: B009


def test_the_face_imports_nothing_before_it_is_used() -> None:
    script = f"import sys, fieldrun; print([name for name in {LAZY} if name in sys.modules])"
    command = [sys.executable, "-c", script]
    assert subprocess.run(command, capture_output=True, check=True, text=True).stdout.strip() == "[]"


@pytest.mark.slow
def test_a_consumer_is_typed(tmp_path: Path) -> None:
    (tmp_path / "consumer.py").write_text(CONSUMER, "utf-8")
    command = [sys.executable, "-m", "mypy", "--strict", "--config-file=", "--cache-dir", "cache", "consumer.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stdout + result.stderr
