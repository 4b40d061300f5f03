"""Who may import whom: the "May import" column of the layout, read from the syntax trees.

A layer is told from the module's name. Inside `fieldrun`, `distill` is the training code, the package itself, `cli` and
`doctor` are the face, and every other module is a contract: the strictest layer is the default.
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
}
NOT_CONTRACTS = {"__main__", "cli", "distill", "doctor"}
STANDARD = sys.stdlib_module_names | {"tomllib"}  # tomllib is missing from Python 3.10's own list


@dataclass(frozen=True, kw_only=True)
class Layer:
    """What a layer may import, at any time or only when a function runs (or a type checker looks)."""

    anytime: frozenset[str]
    lazily: frozenset[str] = frozenset()


def _layer(anytime: str, lazily: str = "") -> Layer:
    return Layer(anytime=frozenset(anytime.split()), lazily=frozenset(lazily.split()))


LAYERS = {
    "contract": _layer("contract numpy tokenizers tomli"),
    "face": _layer("contract face numpy tokenizers click", "distill exporters runtimes benchmarks rich"),
    "distill": _layer("contract distill numpy tokenizers tomli torch transformers", "rich"),
    "exporters": _layer("contract exporters numpy tokenizers tomli onnx", "onnxruntime rich torch"),
    "runtimes": _layer("contract runtimes numpy tokenizers", "cuda onnxruntime"),
    "benchmarks": _layer(
        "contract benchmarks numpy tokenizers click", "jinja2 markupsafe matplotlib mlperf_loadgen packaging rich"
    ),
    "demo": _layer("contract benchmarks demo face numpy tokenizers click", "rich"),
    "measure": _layer("contract benchmarks face runtimes numpy tokenizers click"),
    "study": _layer("contract benchmarks study face distill exporters numpy tokenizers click torch"),
}


@dataclass(frozen=True, kw_only=True)
class Import:
    target: str
    line: int
    lazy: bool


def layer_of(module: str, contracts: frozenset[str]) -> str:
    """The layer of one of our modules or of a name inside one; the root of the name for any other package."""
    root, *rest = module.split(".")
    if root == "fieldrun":
        if not rest:
            return "face"
        if rest[0] in contracts or rest[0] == "__version__":
            return "contract"
        return "distill" if rest[0] == "distill" else "face"
    if module in tuple(f"fieldrun_benchmarks.{name}" for name in ("demo", "fit_heads", "peers")):
        return "demo"
    if module in (
        "fieldrun_benchmarks.gpu",
        "fieldrun_benchmarks.measure",
        "fieldrun_benchmarks.our_subjects",
    ):  # they time the engines one by one
        return "measure"
    if module in (
        "fieldrun_benchmarks.an1",
        "fieldrun_benchmarks.encoder_methods",
        "fieldrun_benchmarks.encoder_tasks",
        "fieldrun_benchmarks.ladder",
        "fieldrun_benchmarks.rank_order",
        "fieldrun_benchmarks.search_record",
        "fieldrun_benchmarks.tensorrt_build",
        "fieldrun_benchmarks.trials",
    ):  # they train or export, so they need what that does
        return "study"
    return root.removeprefix("fieldrun_")


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


def violations(
    source: str, module: str, *, is_package: bool = False, contracts: frozenset[str] = frozenset()
) -> list[str]:
    """One line for each import in `source` that the layer of `module` may not do."""
    own = layer_of(module, contracts)
    rules = LAYERS[own]
    lines = []
    for found in imports(source, module, is_package=is_package):
        target = layer_of(found.target, contracts)
        if target in STANDARD or target in rules.anytime or (found.lazy and target in rules.lazily):
            continue
        when = " at module level" if target in rules.lazily else ""
        lines.append(f"{module}:{found.line}: {own} may not import {found.target} ({target}){when}")
    return lines


def _modules() -> Iterator[tuple[str, Path]]:
    for package, folder in PACKAGES.items():
        for path in sorted(folder.rglob("*.py")):
            parts = [package, *path.relative_to(folder).with_suffix("").parts]
            yield ".".join(parts[:-1] if parts[-1] == "__init__" else parts), path


def _contracts() -> frozenset[str]:
    folder = PACKAGES["fieldrun"]
    names = {path.stem for path in folder.glob("*.py")} | {path.parent.name for path in folder.glob("*/__init__.py")}
    return frozenset(names - NOT_CONTRACTS - {"__init__"})


def test_every_module_keeps_its_layer() -> None:
    contracts = _contracts()
    found = [
        line
        for module, path in _modules()
        for line in violations(
            path.read_text("utf-8"), module, is_package=path.name == "__init__.py", contracts=contracts
        )
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize("package", PACKAGES)
def test_every_package_is_read_and_typed(package: str) -> None:
    assert any(module == package for module, _ in _modules())
    assert (PACKAGES[package] / "py.typed").is_file()


PLANTED_CONTRACTS = frozenset({"bundle", "errors", "reference"})


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fieldrun.bundle", "import fieldrun"),
        ("fieldrun.bundle", "from fieldrun import load"),
        ("fieldrun.bundle", "from . import load"),
        ("fieldrun.bundle", "from .cli import main"),
        ("fieldrun.bundle", "def f():\n    from .distill import train"),
        ("fieldrun.bundle", "def f():\n    import fieldrun_runtimes"),
        ("fieldrun.bundle", "import click"),
        ("fieldrun.cli.run", "from fieldrun_runtimes.model import FieldModel"),
        ("fieldrun.cli.run", "try:\n    import fieldrun_exporters\nexcept ImportError:\n    pass"),
        ("fieldrun.cli.run", "class C:\n    import fieldrun_benchmarks"),
        ("fieldrun.cli.run", "import fieldrun.distill"),
        ("fieldrun.cli.run", "def f():\n    import torch"),
        ("fieldrun.doctor", "def f():\n    import onnxruntime"),
        ("fieldrun.doctor", "if not TYPE_CHECKING:\n    import fieldrun_runtimes"),
        ("fieldrun.doctor", "if TYPE_CHECKING:\n    pass\nelse:\n    import fieldrun_runtimes"),
        ("fieldrun.distill.teacher", "import fieldrun_exporters"),
        ("fieldrun.distill.teacher", "import onnx"),
        ("fieldrun_exporters.graph", "def f():\n    from fieldrun_runtimes.model import FieldModel"),
        ("fieldrun_exporters.graph", "import torch"),
        ("fieldrun_exporters.graph", "import onnxruntime"),
        ("fieldrun_exporters.graph", "from fieldrun import load"),
        ("fieldrun_runtimes.model", "import fieldrun_exporters.graph"),
        ("fieldrun_runtimes.model", "if TYPE_CHECKING:\n    from fieldrun_exporters import graph"),
        ("fieldrun_runtimes.model", "import onnxruntime as ort"),
        ("fieldrun_runtimes.model", "def f():\n    import onnx"),
        ("fieldrun_runtimes.model", "def f():\n    importlib.import_module('torch')"),
        ("fieldrun_runtimes.model", "def f():\n    from transformers import AutoTokenizer"),
        ("fieldrun_runtimes.model", "import fieldrun"),
        ("fieldrun_benchmarks.record", "import fieldrun"),
        ("fieldrun_benchmarks.record", "def f():\n    import fieldrun_runtimes"),
        ("fieldrun_benchmarks.demo", "def f():\n    import fieldrun_runtimes"),
    ],
)
def test_a_bad_import_is_caught(module: str, source: str) -> None:
    assert len(violations(source, module, contracts=PLANTED_CONTRACTS)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("fieldrun.bundle", "import json\nfrom .errors import BundleError\nfrom . import errors, __version__"),
        ("fieldrun.cli.run", "import click\nfrom .. import errors, load\nfrom .output import echo"),
        ("fieldrun.cli.run", "def f():\n    from fieldrun_runtimes import model\n    import fieldrun.distill"),
        ("fieldrun.cli.run", "if TYPE_CHECKING:\n    from fieldrun_runtimes.model import FieldModel"),
        ("fieldrun.distill.teacher", "import torch\nfrom transformers import AutoModel\nfrom .. import errors"),
        ("fieldrun_exporters.graph", "import onnx\nfrom fieldrun.bundle import Bundle\nfrom .passes import fold"),
        ("fieldrun_runtimes.model", "from fieldrun import bundle\ndef f():\n    import onnxruntime"),
        ("fieldrun_benchmarks.demo", "import fieldrun\nfrom . import record"),
    ],
)
def test_a_good_import_passes(module: str, source: str) -> None:
    assert violations(source, module, contracts=PLANTED_CONTRACTS) == []


def test_a_package_resolves_relative_imports_from_itself() -> None:
    found = imports("from .model import FieldModel\nfrom .. import x", "fieldrun_runtimes.engines", is_package=True)
    assert [item.target for item in found] == ["fieldrun_runtimes.engines.model.FieldModel", "fieldrun_runtimes.x"]
