"""The public names: each module lists them, each resolves, and they are typed for those who use them.

Ruff (RUF022) keeps every `__all__` sorted.
"""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from pathlib import Path

import pytest

import fieldrun

PACKAGES = ("fieldrun", "fieldrun_benchmarks", "fieldrun_exporters", "fieldrun_runtimes")
FACE = {"export", "load", "verify"}
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


def check(checkpoint: Path, out: Path) -> bool:
    print(fieldrun.export(checkpoint, out, recipe="cpu-int8").to_dict())
    passed: bool = fieldrun.verify(out).passed
    return passed


fieldrun.load(threads="one")  # type: ignore[arg-type]
fieldrun.load("reference", "numpy")  # type: ignore[call-arg]
fieldrun.load(speed="high")  # type: ignore[call-arg]
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
