"""The deployment pages: their containers, environments and wheelhouses fit together, systemd reads their units.

Nothing on these pages can be run here: it is for a board. `test_docs.py` checks their commands, as those of every page.
"""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest

PAGES = ("docs/deploy-jetson.md", "docs/deploy-raspberry-pi.md")
FENCE = re.compile(r"^```(\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
UNIT = re.compile(r"<!-- unit: (\S+) -->\n```ini\n(.*?)```", re.DOTALL)


@pytest.fixture(params=PAGES)
def page(request: pytest.FixtureRequest, repository: Path) -> str:
    path: Path = repository / request.param
    return path.read_text("utf-8")


def blocks(page: str, language: str) -> list[str]:
    return [text for found, text in FENCE.findall(page) if found == language]


def test_blocks_are_of_known_languages(page: str) -> None:
    assert {language for language, _ in FENCE.findall(page)} <= {"bash", "dockerfile", "ini", "python"}


def test_a_container_s_cache_is_its_user_s(page: str) -> None:
    """A new named volume takes owner and mode of the folder that it is mounted on; without one it is root's."""
    for text in blocks(page, "dockerfile"):
        caches = re.findall(r"^ENV FIELDRUN_CACHE=(\S+)$", text, re.MULTILINE)
        user = re.search(r"^USER (\S+)$", text, re.MULTILINE)
        assert user is not None
        made = re.findall(r"install --directory --owner (\S+) .*?(/\S+)$", text[: user.start()], re.MULTILINE)
        assert {(user[1], cache) for cache in caches} <= set(made)
    mounted = re.findall(r"--volume ([\w.]+):(/\S+?)(?::ro)?\s", page)
    assert {folder for _, folder in mounted} <= {*re.findall(r"^ENV FIELDRUN_CACHE=(\S+)$", page, re.MULTILINE)}


def test_an_environment_is_not_where_the_sources_are_unpacked(page: str) -> None:
    lines = [line for text in blocks(page, "bash") for line in text.splitlines()]
    sources = {f"~/{word.strip('/')}" for line in lines for word in re.findall(r"git archive --prefix (\S+)", line)}
    assert sources == {"~/fieldrun"}
    environments = {line.split()[-1] for line in lines if "-m venv" in line}
    assert environments
    assert not environments & sources


def requirements(line: str) -> dict[str, set[str]]:
    """The packages that a line of pip names, each with its extras."""
    words = [word for word in shlex.split(line, comments=True) if re.match(r"(fieldrun|cuda-bindings)\b", word)]
    found = [re.match(r"([\w-]+)(?:\[(.*?)\])?", word) for word in words]
    return {match[1]: set((match[2] or "").split(",")) - {""} for match in found if match is not None}


def test_a_wheelhouse_has_what_is_installed_from_it(page: str, repository: Path) -> None:
    lines = [line for text in blocks(page, "bash") for line in text.splitlines()]
    (made,) = (requirements(line) for line in lines if "pip download" in line)
    installed = [requirements(line) for line in lines if "--no-index" in line]
    assert installed
    for wanted in installed:
        assert set(wanted) <= set(made)
        assert all(extras <= made[name] for name, extras in wanted.items())
    if "'cuda-bindings<13'" in page:
        assert "cuda-bindings" in made, "what the driver of JetPack 6 needs"


def test_units(repository: Path, tmp_path: Path) -> None:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("systemd-analyze is not installed")
    pages = (*PAGES, "docs/serve.md")
    units = dict(pair for page in pages for pair in UNIT.findall((repository / page).read_text("utf-8")))
    assert set(units) == {"fieldrun-http.socket", "fieldrun-http.service", "fieldrun-http.service.d/gpu.conf"}
    for name, text in units.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        # systemd wants to see a program, and this machine has none in /opt
        (tmp_path / name).write_text(text.replace("/opt/fieldrun/bin/fieldrun", str(shutil.which("cat"))), "utf-8")
    command = ["systemd-analyze", "verify", "./fieldrun-http.socket", "./fieldrun-http.service"]
    ended = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stderr) == (0, "")
