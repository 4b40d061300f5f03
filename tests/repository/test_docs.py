"""The documentation builds without a broken link, and its commands and names exist."""

from __future__ import annotations

import ast
import importlib
import importlib.util
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

import fieldrun
from fieldrun.cli import main
from fieldrun.formats import limits
from fieldrun_exporters.recipe import recipe_names
from fieldrun_runtimes.engines import ENGINES

FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INLINE = re.compile(r"`(fieldrun [^`]+)`")
COMMAND = re.compile(r"(?:^|(?<!-u)[/\s$])fieldrun ([a-z]+[^|;#<>]*)")


def pages(repository: Path) -> list[Path]:
    found = [repository / "README.md", repository / "CONTRIBUTING.md", *(repository / "docs").glob("*.md")]
    assert len(found) > 25
    return found


def commands(text: str) -> Iterator[list[str]]:
    """Yield every call of fieldrun in a page, as words from its sub-command on."""
    lines = [
        line for language, block in FENCE.findall(text) if language in {"bash", "console", "ini"}
        for line in block.splitlines()
    ]  # fmt: skip
    for line in lines + INLINE.findall(re.sub(FENCE, "", text)):
        for found in COMMAND.findall(line):
            words = shlex.split(found)
            if words[0] not in ENGINES:  # `fieldrun native` is a subject of the tables
                yield words


def test_commands_are_found() -> None:
    block = (
        "```bash\nsudo env A=b /opt/bin/fieldrun build /b --target t\ncp fieldrun.service x\nfieldrun doctor # y\n```\n"
    )
    found = list(commands(f"{block}`fieldrun fit`\n"))
    assert found == [["build", "/b", "--target", "t"], ["doctor"], ["fit"]]


def test_commands_exist(repository: Path) -> None:
    """Every command of every page has that name and those options, and every recipe is one that is shipped."""
    shown = set()
    for page in pages(repository):
        for name, *words in commands(page.read_text("utf-8")):
            command = main.get_command(click.Context(main), name)
            assert command is not None, (page, name)
            while isinstance(command, click.Group) and words and not words[0].startswith("-"):
                command = command.get_command(click.Context(command), words.pop(0))
                assert command is not None, (page, name)
            options = {option for parameter in command.params for option in parameter.opts + parameter.secondary_opts}
            assert {word.partition("=")[0] for word in words if word.startswith("-")} <= options, (page, name, words)
            if "--recipe" in words:
                recipe = words[words.index("--recipe") + 1]
                assert recipe in {*recipe_names(), "R"} or recipe.endswith(".toml"), (page, words)
            shown.add(name)
    assert shown >= {name for name in main.list_commands(click.Context(main)) if name not in {"tasks"}}


def test_shell_and_python_parse(repository: Path) -> None:
    for page in pages(repository):
        for language, text in FENCE.findall(page.read_text("utf-8")):
            if language == "python":
                ast.parse(text, str(page))
            elif language == "bash":
                ended = subprocess.run(["bash", "-n"], input=text, capture_output=True, text=True, check=False)
                assert ended.returncode == 0, f"{page}: {text}\n{ended.stderr}"


def _exists(dotted: str) -> bool:
    parts = dotted.split(".")
    for stop in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:stop]))
        except ModuleNotFoundError:
            continue
        for part in parts[stop:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.slow
def test_names_exist(repository: Path) -> None:
    """Every module, class and function that a page names with its dots can be imported."""
    names = re.compile(r"`((?:fieldrun(?:_\w+)?|studies)(?:\.\w+)+)\b[^`/]*`|python -m (studies\.[\w.]+)")
    missing = {
        (page.name, name)
        for page in pages(repository)
        for found in names.findall(page.read_text("utf-8"))
        for name in found
        if name and not name.endswith((".service", ".socket")) and not _exists(name)
    }
    assert not missing


def test_paths_exist(repository: Path) -> None:
    paths = re.compile(r"`((?:benchmarks|docs|exporters|runtimes|sdk|tests)/[\w./-]+)`")
    for page in pages(repository):
        for path in paths.findall(page.read_text("utf-8")):
            assert (repository / path).exists(), (page, path)


def test_every_public_name_is_on_the_api_page(repository: Path) -> None:
    text = (repository / "docs" / "api.md").read_text("utf-8")
    shown = {line.rpartition(".")[2] for line in re.findall(r"^::: (\S+)", text, re.MULTILINE)}
    assert set(fieldrun.__all__) - {"FieldrunError", "__version__"} <= shown


def test_the_limits_of_a_bundle_are_on_the_page_of_formats(repository: Path) -> None:
    rows = re.findall(
        r"^\| `([A-Z_]+)` \| ([\d,]+) \|", (repository / "docs" / "formats.md").read_text("utf-8"), re.MULTILINE
    )
    constants = {name: getattr(limits, name) for name in limits.__all__ if name.isupper()}
    assert {name: int(value.replace(",", "")) for name, value in rows} == constants


@pytest.mark.slow
def test_the_site_builds_strictly(repository: Path, tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install '.[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    environment = os.environ | {"NO_MKDOCS_2_WARNING": "1"}
    ended = subprocess.run(command, cwd=repository, env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert "FieldModel" in (tmp_path / "api.html").read_text("utf-8")
    assert "--task" in (tmp_path / "cli.html").read_text("utf-8")
    for page in tmp_path.rglob("*.html"):
        fetched = re.findall(r'<(?:script|link|img)[^>]+(?:src|href)="(https?://[^"]+)"', page.read_text("utf-8"))
        assert not [url for url in fetched if "canonical" not in url], f"{page.name} fetches {fetched}"
