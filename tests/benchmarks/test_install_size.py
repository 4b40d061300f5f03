"""The disk that packages take, on planted metadata: markers, extras, what is not counted, what is missing."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

import fieldrun
from fieldrun.errors import FieldrunError
from fieldrun_benchmarks.machine import install_size as module
from fieldrun_benchmarks.machine.install_size import install_size


def _install(site: Path, name: str, size: int, *requires: str) -> None:
    info = site / f"{name}-1.0.dist-info"
    info.mkdir(parents=True)
    lines = ["Metadata-Version: 2.1", f"Name: {name}", "Version: 1.0", *(f"Requires-Dist: {r}" for r in requires)]
    (info / "METADATA").write_text("\n".join(lines) + "\n", "utf-8")
    (site / f"{name}.py").write_bytes(b"#" * size)
    (site / f"{name}.pyc").write_bytes(b"#" * 7)
    (info / "RECORD").write_text(f"{name}.py,,\n{name}.pyc,,\ngone.py,,\n", "utf-8")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(module, "_search_path", lambda python: [str(tmp_path)])
    return tmp_path


def test_everything_required_counts_once(site: Path) -> None:
    _install(site, "Top_Level", 100, "middle[fast]>=1", "elsewhere; sys_platform == 'nowhere'", "tests; extra == 'dev'")
    _install(site, "middle", 30, "bottom", "quick; extra == 'fast'", "slow; extra == 'slow'")
    _install(site, "bottom", 5, "top-level")
    _install(site, "quick", 1)
    _install(site, "unrelated", 1000)
    found = install_size(["top.level"])
    assert found == {"bytes": 136, "packages": {"bottom": 5, "middle": 30, "quick": 1, "top-level": 100}}


def test_extras_that_come_later_are_followed(site: Path) -> None:
    _install(site, "one", 1, "two", "three")
    _install(site, "two", 2, "four; extra == 'more'")
    _install(site, "three", 4, "two[more]")
    _install(site, "four", 8)
    assert install_size(["one"])["bytes"] == 15


def test_what_is_not_installed_is_named(site: Path) -> None:
    _install(site, "one", 1, "two>=3")
    with pytest.raises(FieldrunError, match=r"one requires two>=3, which is not installed in that environment"):
        install_size(["one"])


def test_fieldrun_has_the_size_of_its_packages(site: Path) -> None:
    _install(site, "fieldrun", 1)
    bundle = sum(path.stat().st_size for path in Path(fieldrun.__path__[0]).rglob("*.safetensors"))
    assert bundle < install_size(["fieldrun"])["bytes"] < 2 * bundle


def test_another_interpreter_is_asked(tmp_path: Path) -> None:
    link = tmp_path / "python"
    link.symlink_to(sys.executable)
    assert module._search_path(str(link))
    assert module._search_path(sys.executable) is sys.path
    with pytest.raises(FieldrunError, match="does not say where its packages are"):
        module._search_path(str(tmp_path / "none"))
