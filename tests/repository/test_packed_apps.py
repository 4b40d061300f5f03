"""An app that brings fieldrun along answers as an installed one: pip's --target, zipapp, shiv and PyInstaller.

Every app is in a folder whose name has a colon and a percent sign, which no search path and no format string may take
apart.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import venv
import zipapp
from pathlib import Path

import numpy as np
import pytest

import fieldrun
from fieldrun_runtimes.engines.native_engine import is_compiled
from tests.repository.conftest import run_as_user

pytestmark = pytest.mark.slow

ENGINES = ["numpy", *(["native"] if is_compiled() else [])]
TEXTS = ["a gripping film", "two hours i will not get back", "a caf\u00e9 without a single good cake"]
BARE = (sys.executable, "-I", "-S")  # the standard library, and nothing that is installed
LIB = """
import sys
from pathlib import Path

sys.path.insert(0, str(Path(sys.argv[0]).resolve().parent / "lib"))
"""
APP = """
import json
import sys

import fieldrun


def main():
    engine, *texts = sys.argv[1:]
    with fieldrun.load(engine=engine) as model:
        print(json.dumps([str(model.path), model.engine, model.predict_proba(texts, "sst2").tolist()]))


if __name__ == "__main__":
    main()
"""


@pytest.fixture(scope="module")
def odd(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("odd") / "wo:rk 100%d"
    folder.mkdir()
    return folder


@pytest.fixture(scope="module")
def lib(odd: Path, wheel: Path, repository: Path) -> Path:
    """What `pip install --target` makes of the wheel and of the packages that it needs to answer."""
    options = ["--quiet", "--disable-pip-version-check", "--no-deps", "--target", str(odd / "lib")]
    constraints = str(repository / ".ci" / "constraints.txt")
    packages = ["numpy", "tokenizers", "click"]
    command = [sys.executable, "-m", "pip", "install", *options, "--constraint", constraints, str(wheel), *packages]
    subprocess.run(command, check=True, capture_output=True)
    return odd / "lib"


def assert_answers(*command: str | Path, home: Path, inside: Path | None = None) -> None:
    """Run the app with every engine, and compare with the scores of this process."""
    for engine in ENGINES:
        path, name, found = json.loads(run_as_user(*command, engine, *TEXTS, home=home))
        assert name == engine
        assert inside is None or Path(path).is_relative_to(inside)
        with fieldrun.load(engine=engine) as model:
            np.testing.assert_allclose(found, model.predict_proba(TEXTS, "sst2"), rtol=0, atol=1e-5)


def test_a_target_folder(lib: Path, home: Path) -> None:
    app = lib.parent / "app.py"
    app.write_text(LIB + APP, "utf-8")
    assert_answers(*BARE, app, home=home, inside=lib)
    program = f"import sys; sys.path.insert(0, {str(lib)!r}); from fieldrun.cli import main; main()"
    answer = run_as_user(*BARE, "-c", program, "run", "--task", "sst2", TEXTS[0], home=home)
    assert answer.startswith("positive")


def test_a_zipapp_beside_its_packages(lib: Path, odd: Path, home: Path) -> None:
    source = odd / "source"
    source.mkdir()
    (source / "__main__.py").write_text(LIB + APP, "utf-8")
    zipapp.create_archive(source, odd / "app.pyz")
    assert_answers(*BARE, odd / "app.pyz", home=home, inside=lib)


def test_inside_a_zip_file_the_shipped_bundle_is_missed_by_name(lib: Path, wheel: Path, home: Path) -> None:
    """A wheel is a zip file. A bundle in a folder is answered from, by an engine that needs no library."""
    program = f"import sys; sys.path[:0] = [{str(wheel)!r}, {str(lib)!r}]\nimport fieldrun\n"
    bundle = lib / "fieldrun" / "data" / "reference"
    load = f"model = fieldrun.load({str(bundle)!r}); print(model.engine, *model.predict(sys.argv[1:], 'sst2'))"
    assert run_as_user(*BARE, "-c", program + load, TEXTS[0], home=home).split() == ["numpy", "positive"]
    refused = "try: fieldrun.load()\nexcept fieldrun.FieldrunError as error: print(error)"
    said = run_as_user(*BARE, "-c", program + refused, home=home)
    assert f"the shipped bundle is not at {wheel}/fieldrun/data/reference: fieldrun is in a zip file" in said


@pytest.fixture(scope="module")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bin folder of an environment with PyInstaller, shiv and the wheel."""
    folder = tmp_path_factory.mktemp("tools") / "venv"
    venv.create(folder, with_pip=True)
    command: list[str | Path] = [
        folder / "bin" / "python",
        "-m",
        "pip",
        "install",
        "--quiet",
        "pyinstaller>=6",
        "shiv",
        wheel,
    ]
    subprocess.run(command, check=True, capture_output=True)
    return folder / "bin"


@pytest.mark.study
@pytest.mark.parametrize("form", ["--onedir", "--onefile"])
def test_pyinstaller(form: str, programs: Path, odd: Path, home: Path) -> None:
    work = odd / form
    work.mkdir()
    (work / "app.py").write_text(APP, "utf-8")
    subprocess.run([programs / "pyinstaller", form, "app.py"], cwd=work, check=True, capture_output=True)
    made = Path(shutil.move(work / "dist", odd / f"moved{form}"))
    shutil.rmtree(work)
    app = made / "app" if form == "--onefile" else made / "app" / "app"
    assert_answers(app, home=home, inside=None if form == "--onefile" else made)


@pytest.mark.study
def test_pyinstaller_leaves_the_exporter_out_and_says_so(programs: Path, odd: Path, home: Path) -> None:
    (odd / "tool.py").write_text("from fieldrun.cli import main\n\nmain()\n", "utf-8")
    subprocess.run([programs / "pyinstaller", "tool.py"], cwd=odd, check=True, capture_output=True)
    tool = odd / "dist" / "tool" / "tool"
    assert run_as_user(tool, "run", "--task", "sst2", TEXTS[0], home=home).startswith("positive")
    assert json.loads(run_as_user(tool, "verify", "--json", home=home))["passed"]
    said = json.loads(run_as_user(tool, "export", "reference", "-o", "out", "--json", home=home, code=3))
    assert "--collect-all fieldrun_exporters" in said["error"]["message"]


@pytest.mark.study
def test_shiv(programs: Path, wheel: Path, odd: Path, home: Path) -> None:
    source = odd / "shiv"
    source.mkdir()
    (source / "app.py").write_text(APP, "utf-8")
    command: list[str | Path] = [
        programs / "shiv",
        "-o",
        odd / "one.pyz",
        "-e",
        "app:main",
        "--site-packages",
        source,
        wheel,
    ]
    subprocess.run(command, check=True, capture_output=True)
    assert_answers(*BARE, odd / "one.pyz", home=home, inside=home)
