"""Every command is a thin shell: it parses, calls a public function, and prints. Options mean one thing each."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

import click
import pytest

import fieldrun.cli
from fieldrun.cli import group, main

FOLDER = Path(fieldrun.cli.__file__).parent
SUPPORT = {"options", "inputs", "output", "progress"}
"""What commands share: parsing and printing."""
COMMANDS = sorted({home.partition(":")[0] for home in group.COMMANDS.values()})
STANDARD = {"__future__", "collections", "contextlib", "pathlib", "shlex", "typing"}
MOST_LINES = 150


def imports(tree: ast.AST) -> set[str]:
    """The modules that are imported at run time, those of the command line with a point before their name."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add("." * node.level + (node.module or ""))
    return found


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_parses_calls_and_prints(name: str) -> None:
    text = (FOLDER / f"{name}.py").read_text("utf-8")
    allowed = STANDARD | {"click", "fieldrun", "fieldrun.errors"} | {f".{support}" for support in SUPPORT}
    if name == "export":
        allowed |= {"fieldrun_exporters.recipe"}  # the names of the recipes, for the help
    assert imports(ast.parse(text)) <= allowed
    assert len(text.splitlines()) <= MOST_LINES, "move the work into the function that the command calls"


def test_every_command_calls_a_public_function() -> None:
    used = {
        node.attr
        for name in COMMANDS
        for node in ast.walk(ast.parse((FOLDER / f"{name}.py").read_text("utf-8")))
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "fieldrun"
    }
    assert used <= set(fieldrun.__all__)


def options() -> dict[str, dict[str, click.Parameter]]:
    """Every option and argument, by its name and then by the command that has it."""
    found: dict[str, dict[str, click.Parameter]] = defaultdict(dict)
    context = click.Context(main)
    pending: list[tuple[str, click.Command]] = [(name, main.get_command(context, name)) for name in group.COMMANDS]  # type: ignore[misc]
    for name, command in pending:
        if isinstance(command, click.Group):
            pending += [(f"{name} {inner}", each) for inner, each in command.commands.items()]
        for parameter in command.params:
            found["/".join(parameter.opts)][name] = parameter
    return found


@pytest.mark.parametrize(
    "option",
    ["--json", "--force", "--seed", "--work", "--calibration", "--engine", "--provider", "--overflow", "bundle"],
)
def test_an_option_has_the_same_words_everywhere(option: str) -> None:
    commands = options()[option]
    assert len(commands) >= 2
    words = {getattr(parameter, "help", None) for parameter in commands.values()}
    assert len(words) == 1, words


def test_a_bundle_is_the_shipped_one_by_default() -> None:
    found = options()
    for parameter in (*found["bundle"].values(), *found["-b/--bundle"].values()):
        assert parameter.default == "reference"
    assert not found["bundle"].keys() & found["-b/--bundle"].keys(), "one way to name it"


def test_help_texts_are_sentences() -> None:
    for name, commands in options().items():
        for command, parameter in commands.items():
            if isinstance(parameter, click.Option):
                text = (parameter.help or "").partition("  [default")[0].rstrip()
                assert text[:1].isupper() or text.startswith(".npy"), f"{command} {name}: {text!r}"
                assert text.endswith("."), f"{command} {name}: {text!r}"
