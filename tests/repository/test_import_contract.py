"""Who may import whom: the table of the folders, read from the syntax trees. There are no exceptions.

A module belongs to the longest row that its name starts with. What stands under "lazily" may be imported by a function
that needs it (or for a type checker), never when the module is loaded.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = {
    "fieldrun": ROOT / "sdk" / "fieldrun",
    "fieldrun_exporters": ROOT / "exporters" / "fieldrun_exporters",
    "fieldrun_runtimes": ROOT / "runtimes" / "fieldrun_runtimes",
    "fieldrun_benchmarks": ROOT / "benchmarks" / "fieldrun_benchmarks",
    "studies": ROOT / "benchmarks" / "studies",
}
STANDARD = sys.stdlib_module_names | {"tomllib"}  # tomllib is missing from Python 3.10's own list

LOW = "fieldrun._version " + " ".join(
    f"fieldrun.{name}" for name in ("errors", "toml", "formats", "student", "evaluation", "heads")
)
PARTS = "fieldrun_runtimes fieldrun_exporters fieldrun_benchmarks"
TABLE = """
| folder | may import | lazily |
| fieldrun._version | | |
| fieldrun.errors | | |
| fieldrun.toml | fieldrun.errors | tomli |
| fieldrun.formats | fieldrun.errors fieldrun.toml numpy | |
| fieldrun.student | fieldrun.errors fieldrun.formats numpy | |
| fieldrun.evaluation | fieldrun.errors fieldrun.formats fieldrun.student numpy | pyarrow |
| fieldrun.heads | fieldrun.errors fieldrun.formats fieldrun.student fieldrun.evaluation numpy | |
| fieldrun_runtimes | LOW numpy tokenizers | cuda onnxruntime typing_extensions |
| fieldrun_exporters | LOW numpy tokenizers onnx | matplotlib onnxruntime torch |
| fieldrun_benchmarks | LOW numpy tokenizers click | jinja2 markupsafe matplotlib mlperf_loadgen packaging |
| fieldrun_benchmarks.subjects | LOW fieldrun_benchmarks fieldrun fieldrun_runtimes numpy tokenizers | |
| fieldrun.distill | LOW fieldrun_runtimes numpy tokenizers torch transformers | |
| fieldrun.doctor | LOW fieldrun_runtimes | |
| fieldrun.ray | LOW fieldrun fieldrun_runtimes numpy | |
| fieldrun.sklearn | LOW fieldrun fieldrun_runtimes numpy sklearn | |
| fieldrun.serve | LOW fieldrun_runtimes | uvicorn |
| fieldrun | LOW | PARTS fieldrun.distill fieldrun.doctor |
| fieldrun.__main__ | fieldrun.cli | |
| fieldrun._pyinstaller | PyInstaller | |
| fieldrun.cli | LOW fieldrun numpy click | PARTS fieldrun.distill fieldrun.doctor fieldrun.serve rich |
| studies | LOW PARTS fieldrun fieldrun.distill fieldrun.doctor numpy tokenizers click torch | matplotlib |
"""


@dataclass(frozen=True, kw_only=True)
class Row:
    """What a folder may import, at any time or only when a function runs (or a type checker looks)."""

    anytime: frozenset[str]
    lazily: frozenset[str]


def _rows(table: str) -> dict[str, Row]:
    rows = {}
    for line in table.strip().splitlines()[1:]:
        folder, anytime, lazily = (cell.strip() for cell in line.strip("|").split("|"))
        words = [cell.replace("LOW", LOW).replace("PARTS", PARTS).split() for cell in (anytime, lazily)]
        rows[folder] = Row(anytime=frozenset({*words[0], folder}), lazily=frozenset(words[1]))
    return rows


ROWS = _rows(TABLE)


@dataclass(frozen=True, kw_only=True)
class Import:
    target: str
    line: int
    lazy: bool


def row_of(module: str) -> str:
    """The row of one of our modules, or of a name inside one; the root of the name for any other package."""
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        if ".".join(parts[:length]) in ROWS:
            return ".".join(parts[:length])
    return parts[0]


def imports(source: str, module: str, *, is_package: bool = False) -> list[Import]:
    """Every import in `source`, relative ones resolved, `import_module("literal")` counted."""
    found: list[Import] = []

    def visit(node: ast.AST, lazy: bool) -> None:
        for target in _targets(node, module, is_package):
            found.append(Import(target=target, line=getattr(node, "lineno", 0), lazy=lazy))
        inner = lazy or isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
        if isinstance(node, ast.If) and ast.unparse(node.test) in {"TYPE_CHECKING", "typing.TYPE_CHECKING"}:
            for statement in node.body:
                visit(statement, True)
            for statement in node.orelse:
                visit(statement, inner)
            return
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(ast.parse(source), False)
    return found


def _targets(node: ast.AST, module: str, is_package: bool) -> Iterator[str]:
    if isinstance(node, ast.Import):
        yield from (alias.name for alias in node.names)
    elif isinstance(node, ast.ImportFrom):
        base = module.split(".") if is_package else module.split(".")[:-1]
        origin = base[: len(base) - node.level + 1] if node.level else []
        origin += [node.module] if node.module else []
        yield from (".".join([*origin, alias.name]) for alias in node.names)
    elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
        name, argument = ast.unparse(node.func), node.args[0].value
        if name in {"import_module", "importlib.import_module", "__import__"} and isinstance(argument, str):
            yield argument if not argument.startswith(".") else f"{module.split('.')[0]}{argument}"


def violations(source: str, module: str, *, is_package: bool = False) -> list[str]:
    """One line for each import in `source` that the row of `module` does not have."""
    own = row_of(module)
    lines = []
    for found in imports(source, module, is_package=is_package):
        target = row_of(found.target)
        if target in STANDARD or target in ROWS[own].anytime or (found.lazy and target in ROWS[own].lazily):
            continue
        when = " at module level" if target in ROWS[own].lazily else ""
        lines.append(f"{module}:{found.line}: {own} may not import {found.target} ({target}){when}")
    return lines


def _modules() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def test_every_module_keeps_to_its_row() -> None:
    found = [
        line
        for module, path in _modules()
        for line in violations(path.read_text("utf-8"), module, is_package=path.name == "__init__.py")
    ]
    assert not found, "\n".join(found)


def test_only_proofs_import_the_oracle() -> None:
    users = {
        module
        for module, path in _modules()
        for found in imports(path.read_text("utf-8"), module, is_package=path.name == "__init__.py")
        if found.target.startswith("fieldrun.student.oracle") and not module.startswith(("studies", "fieldrun.student"))
    }
    assert users == {"fieldrun_exporters.parity", "fieldrun_exporters.student.source"}


def test_no_module_imports_itself_round_a_circle() -> None:
    files = dict(_modules())
    graph = {
        module: {
            name
            for found in imports(path.read_text("utf-8"), module, is_package=path.name == "__init__.py")
            if not found.lazy and (name := _module_of(found.target, files)) not in (None, module)
        }
        for module, path in files.items()
    }
    done: set[str] = set()

    def visit(module: str, way: tuple[str, ...]) -> None:
        assert module not in way, " -> ".join([*way[way.index(module) :], module])
        if module not in done:
            for target in sorted(graph[module]):
                visit(target, (*way, module))
            done.add(module)

    for module in graph:
        visit(module, ())


def _module_of(target: str, files: dict[str, Path]) -> str | None:
    return next((name for name in (target, target.rpartition(".")[0]) if name in files), None)


@pytest.mark.parametrize("package", [name for name in PACKAGES if name != "studies"])
def test_every_package_is_read_and_typed(package: str) -> None:
    assert any(module == package for module, _ in _modules())
    assert (PACKAGES[package] / "py.typed").is_file()


@pytest.mark.parametrize("folder", ROWS)
def test_every_row_is_a_folder_or_a_module_that_exists(folder: str) -> None:
    assert any(module == folder for module, _ in _modules())


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fieldrun.formats.bundle", "import fieldrun"),
        ("fieldrun.formats.bundle", "from fieldrun import load"),
        ("fieldrun.formats.bundle", "from .. import load"),
        ("fieldrun.formats.bundle", "from ..cli import main"),
        ("fieldrun.formats.bundle", "from ..heads.head import Head"),
        ("fieldrun.formats.bundle", "if TYPE_CHECKING:\n    from ..student.config import StudentConfig"),
        ("fieldrun.formats.bundle", "def f():\n    from ..distill import train"),
        ("fieldrun.formats.bundle", "def f():\n    import fieldrun_runtimes"),
        ("fieldrun.formats.bundle", "import click"),
        ("fieldrun.evaluation.metrics", "from ..heads.fit import fit_head"),
        ("fieldrun.cli.label", "from fieldrun_runtimes.model import FieldModel"),
        ("fieldrun.cli.label", "try:\n    import fieldrun_exporters\nexcept ImportError:\n    pass"),
        ("fieldrun.cli.label", "class C:\n    import fieldrun_benchmarks"),
        ("fieldrun.cli.label", "import fieldrun.distill"),
        ("fieldrun.cli.label", "def f():\n    import torch"),
        ("fieldrun.doctor", "def f():\n    import onnxruntime"),
        ("fieldrun.doctor", "if not TYPE_CHECKING:\n    import fieldrun_exporters"),
        ("fieldrun.distill.teacher", "import fieldrun_exporters"),
        ("fieldrun.distill.teacher", "import onnx"),
        ("fieldrun_exporters.builder", "def f():\n    from fieldrun_runtimes.model import FieldModel"),
        ("fieldrun_exporters.builder", "import torch"),
        ("fieldrun_exporters.builder", "import onnxruntime"),
        ("fieldrun_exporters.builder", "from fieldrun import load"),
        ("fieldrun_runtimes.model", "import fieldrun_exporters.builder"),
        ("fieldrun_runtimes.model", "if TYPE_CHECKING:\n    from fieldrun_exporters import builder"),
        ("fieldrun_runtimes.model", "import onnxruntime as ort"),
        ("fieldrun_runtimes.model", "def f():\n    import onnx"),
        ("fieldrun_runtimes.model", "def f():\n    importlib.import_module('torch')"),
        ("fieldrun_runtimes.model", "def f():\n    from transformers import AutoTokenizer"),
        ("fieldrun_runtimes.model", "import fieldrun"),
        ("fieldrun_benchmarks.harness.record", "import fieldrun"),
        ("fieldrun_benchmarks.harness.record", "def f():\n    import studies"),
        ("fieldrun_benchmarks.harness.bench", "def f():\n    from ..subjects.null import NullSubject"),
    ],
)
def test_a_bad_import_is_caught(module: str, source: str) -> None:
    assert len(violations(source, module)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fieldrun.formats.bundle", "import json\nfrom ..errors import BundleError\nfrom . import storage"),
        ("fieldrun.cli.label", "import click\nfrom .. import errors, load\nfrom .output import echo"),
        ("fieldrun.cli.label", "def f():\n    from fieldrun_runtimes import model\n    import fieldrun.distill"),
        ("fieldrun.cli.label", "if TYPE_CHECKING:\n    from fieldrun_runtimes.model import FieldModel"),
        ("fieldrun.distill.teacher", "import torch\nfrom transformers import AutoModel\nfrom .. import errors"),
        ("fieldrun_exporters.builder", "import onnx\nfrom fieldrun.formats.bundle import Bundle\nfrom . import recipe"),
        ("fieldrun_runtimes.model", "from fieldrun.formats import bundle\ndef f():\n    import onnxruntime"),
        ("studies.ladder.measure", "import fieldrun\nfrom fieldrun_exporters import recipe\nfrom ..paired import mean"),
    ],
)
def test_a_good_import_passes(module: str, source: str) -> None:
    assert violations(source, module) == []


def test_a_package_resolves_relative_imports_from_itself() -> None:
    found = imports("from .model import FieldModel\nfrom .. import x", "fieldrun_runtimes.engines", is_package=True)
    assert [item.target for item in found] == ["fieldrun_runtimes.engines.model.FieldModel", "fieldrun_runtimes.x"]
