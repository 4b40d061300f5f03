"""A package that is missing and one that is broken: each is one error, and says which of the two it is."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner

import fieldrun
from fieldrun.cli import main
from fieldrun.errors import EngineError, MissingDependency
from fieldrun_runtimes.engines.onnxruntime_engine import import_onnxruntime
from fieldrun_runtimes.tensorrt.cuda import load_runtime

GLIBC = "libfoo.so: version GLIBC_2.34 not found"


def not_ascii(bundle: Path) -> None:
    with fieldrun.load(bundle, engine="numpy") as model:
        model.field(["a good film"])  # which takes no tokenizer
        model.field(["caf\u00e9"])


WAYS: dict[str, tuple[str, str, Callable[[Path], object]]] = {
    "onnxruntime": ("onnxruntime", "onnxruntime", lambda _: import_onnxruntime()),
    "cuda": ("cuda-bindings", "cuda/bindings/runtime", lambda _: load_runtime()),
    "tokenizers": ("tokenizers", "tokenizers", not_ascii),
}


def plant(folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, source: str) -> None:
    """Put a module of `source` before the real one."""
    file = (folder / name).with_suffix(".py")
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(source)
    root = name.split("/")[0]
    for loaded in [loaded for loaded in sys.modules if loaded == root or loaded.startswith(f"{root}.bindings")]:
        monkeypatch.delitem(sys.modules, loaded)
    monkeypatch.syspath_prepend(folder)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("source", "words"),
    [
        (f"raise ImportError({GLIBC!r})", GLIBC),
        ("import a_part_of_it_that_is_not_there", "No module named 'a_part_of_it_that_is_not_there'"),
        ("raise AttributeError('two\\nlines')", "two lines"),
        ("raise OSError", "OSError"),
    ],
)
def test_a_broken_package_is_not_called_missing(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: str, source: str, words: str
) -> None:
    package, name, use = WAYS[way]
    plant(tmp_path, monkeypatch, name, source)
    with pytest.raises(EngineError) as caught:
        use(toy_bundle)
    assert str(caught.value) == f"{package} is installed and cannot be imported: {words}; install it again"


@pytest.mark.parametrize("way", WAYS)
def test_a_missing_package_is_named_with_its_command(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch, way: str
) -> None:
    package, _, use = WAYS[way]
    monkeypatch.setitem(sys.modules, "cuda.bindings" if way == "cuda" else way, None)
    with pytest.raises(MissingDependency, match=f"'{package}': pip install"):
        use(toy_bundle)


def test_the_command_line_says_it_in_one_line(
    toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(tmp_path, monkeypatch, "tokenizers", f"raise ImportError({GLIBC!r})")
    command = ["run", "-b", str(toy_bundle), "--engine", "numpy", "--task", "mood", "caf\u00e9"]
    result = CliRunner().invoke(main, command, catch_exceptions=False)
    assert (result.exit_code, result.stdout) == (9, "")
    assert len(result.stderr.splitlines()) == 1
    assert GLIBC in result.stderr
