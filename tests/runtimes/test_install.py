"""Installing a bundle: proven beside its place, exchanged in one step, and taken back."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

import fieldrun
from fieldrun.errors import BundleError, IntegrityError, OutputExists, ParityError
from fieldrun.formats.bundle import MANIFEST, seal
from fieldrun.formats.storage import read_json, sha256_file, write_json

TEXTS = ["good film", "no rain"]


@pytest.fixture(scope="module")
def next_bundle(toy_bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy bundle with another head."""
    path = tmp_path_factory.mktemp("next") / "bundle"
    with fieldrun.load(toy_bundle, engine="numpy") as model:
        head = fieldrun.fit_head(
            model, ["good", "great", "bad", "wet"] * 8, ["yes", "yes", "no", "no"] * 8, name="fine"
        )
        model.attach(head)
        model.save(path)
    return path


def tasks_of(folder: Path) -> tuple[str, ...]:
    with fieldrun.load(folder, engine="numpy") as model:
        return model.tasks


def test_install_and_go_back(toy_bundle: Path, next_bundle: Path, tmp_path: Path) -> None:
    place = tmp_path / "new" / "bundle"
    first = fieldrun.install(toy_bundle, place, engine="numpy")
    assert (first.changed, first.previous, first.engine) == (True, None, "numpy")
    assert first.max_abs_field is not None
    again = fieldrun.install(toy_bundle, place, engine="numpy")
    assert (again.changed, again.sha256, again.engine) == (False, first.sha256, None)
    with fieldrun.load(place, engine="numpy") as running:
        expected = running.field(TEXTS)
        second = fieldrun.install(next_bundle, place, engine="numpy")
        np.testing.assert_array_equal(running.field(TEXTS), expected)
    assert second.previous == place.with_name("bundle.previous")
    assert "fine" in tasks_of(place)
    for expected_tasks in (False, True, False):
        report = fieldrun.rollback(place)
        assert report.changed
        assert ("fine" in tasks_of(place)) == expected_tasks
    assert sorted(path.name for path in place.parent.iterdir()) == ["bundle", "bundle.previous"]


def test_a_bundle_that_is_not_right_here_is_not_installed(toy_bundle: Path, next_bundle: Path, tmp_path: Path) -> None:
    place, wrong = tmp_path / "place", Path(shutil.copytree(next_bundle, tmp_path / "wrong"))
    golden = read_json(wrong / "golden.json")
    golden["fields"][0][0] += 0.5
    write_json(wrong / "golden.json", golden)
    manifest = read_json(wrong / MANIFEST)
    size = (wrong / "golden.json").stat().st_size
    manifest["files"]["golden.json"] = {"bytes": size, "sha256": sha256_file(wrong / "golden.json")}
    write_json(wrong / MANIFEST, seal(manifest))
    fieldrun.install(toy_bundle, place, engine="numpy")
    with pytest.raises(ParityError, match="was not changed"):
        fieldrun.install(wrong, place, engine="numpy")
    (wrong / "CARD.md").write_bytes(b"")
    with pytest.raises(IntegrityError):
        fieldrun.install(wrong, place, engine="numpy")
    assert tasks_of(place) == tasks_of(toy_bundle)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["place", "wrong"]


_KILLED = """
import os, shutil, sys
import fieldrun
from fieldrun.formats import storage

left = int(sys.argv[3])

def counted(call):
    def run(*arguments, **settings):
        global left
        if not left:
            os.kill(os.getpid(), 9)
        left -= 1
        return call(*arguments, **settings)
    return run

def publish(*arguments):
    for module, name in ((os, "rename"), (shutil, "copytree"), (shutil, "rmtree"), (storage, "_exchange")):
        setattr(module, name, counted(getattr(module, name)))
    found(*arguments)

found, storage._publish = storage._publish, publish
fieldrun.install(sys.argv[1], sys.argv[2], engine="numpy")
"""


def test_a_kill_at_any_moment_leaves_two_bundles_that_fit(toy_bundle: Path, next_bundle: Path, tmp_path: Path) -> None:
    with fieldrun.load(toy_bundle, engine="numpy") as model:
        model.attach(fieldrun.fit_head(model, ["good", "bad"] * 8, ["a", "b"] * 8, name="third"))
        third = model.save(tmp_path / "third")
    order = [tasks_of(bundle) for bundle in (toy_bundle, next_bundle, third)]
    for bundle in (toy_bundle, next_bundle):
        fieldrun.install(bundle, tmp_path / "before" / "place", engine="numpy")
    place, steps = tmp_path / "in" / "place", 0
    while True:  # killed before each step, until there are no more
        shutil.rmtree(place.parent, ignore_errors=True)
        shutil.copytree(tmp_path / "before", place.parent)
        command = [sys.executable, "-c", _KILLED, str(third), str(place), str(steps)]
        done = subprocess.run(command, capture_output=True, check=False)
        at, kept = tasks_of(place), tasks_of(place.with_name("place.previous"))
        assert (at, kept) in ((order[1], order[0]), (order[1], order[1]), (order[2], order[1])), steps
        if done.returncode == 0:
            break
        assert done.returncode == -9, done.stderr
        steps += 1
    assert sorted(path.name for path in place.parent.iterdir()) == ["place", "place.previous"]
    assert steps >= 4


def test_what_is_no_bundle_stays(toy_bundle: Path, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "link").symlink_to(toy_bundle)
    for place in ("folder", "link"):
        with pytest.raises(OutputExists):
            fieldrun.install(toy_bundle, tmp_path / place, engine="numpy")
    with pytest.raises(OutputExists):
        fieldrun.install(toy_bundle, "reference")
    with pytest.raises(BundleError, match="no earlier bundle"):
        fieldrun.rollback(tmp_path / "nothing")


def test_a_reader_never_meets_a_mixture(toy_bundle: Path, next_bundle: Path, tmp_path: Path) -> None:
    place, stop = tmp_path / "place", threading.Event()
    fieldrun.install(toy_bundle, place, engine="numpy")
    fieldrun.install(next_bundle, place, engine="numpy")
    found: list[Exception] = []

    def read() -> None:
        while not stop.is_set():
            try:
                tasks_of(place)
            except Exception as error:  # every one is a failure
                found.append(error)

    reader = threading.Thread(target=read)
    reader.start()
    for _ in range(40):
        fieldrun.rollback(place)
    stop.set()
    reader.join()
    assert not found


def test_the_command(toy_bundle: Path, next_bundle: Path, tmp_path: Path) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "fieldrun", "install", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)

    for bundle in (toy_bundle, next_bundle):
        assert run(str(bundle), "place", "--engine", "numpy").returncode == 0
    done = run("--rollback", "place")
    assert (done.returncode, done.stderr) == (0, "")
    assert "fine" not in tasks_of(tmp_path / "place")
    assert run("place").returncode == 2
    assert run("--rollback", "a", "b").returncode == 2
