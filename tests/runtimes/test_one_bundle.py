"""A model answers from the bundle that was loaded, whatever happens to its folder, its link or the current folder."""

from __future__ import annotations

import shutil
import subprocess
import sys
import threading
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fieldrun
from fieldrun.cli import main
from fieldrun.errors import IntegrityError
from fieldrun.formats.bundle import REFERENCE_BUNDLE, Bundle
from fieldrun.formats.tensors import Array
from fieldrun.heads.head import Head
from fieldrun.serve.current import Current
from fieldrun_benchmarks.harness.subject import Subject, SubjectSpec, parse_subject
from fieldrun_benchmarks.subjects.bundle import BundleSubject
from fieldrun_benchmarks.subjects.tokenizer import TokenizerSubject
from fieldrun_runtimes.engines.native_engine import is_compiled
from tests import toy

ENGINES = ("numpy", "onnxruntime", *(("native",) if is_compiled() else ()))
TEXTS = ["good", "the film was bad", "how do I transfer all my cash to the card of one who did " * 3]
PAIRS = [("good", "bad"), ("the film", "a film")]


@pytest.fixture(scope="module")
def other_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with the files of `toy_bundle` and other weights."""
    path = tmp_path_factory.mktemp("other")
    toy.toy_checkpoint(seed=7).save(path / "checkpoint")
    return Path(fieldrun.export(path / "checkpoint", path / "bundle", recipe="cpu-int8").path)


def answers(model: fieldrun.FieldModel) -> list[Array]:
    """Alone, in a batch and in pairs, so that every kind of graph is opened."""
    alone = [model.field([text])[0] for text in TEXTS]
    return [np.stack(alone), model.field(TEXTS * 40), model.predict_proba(PAIRS, "same")]


def assert_same(found: list[Array], expected: list[Array]) -> None:
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("engine", ENGINES)
def test_a_link_that_is_switched_changes_nothing(
    engine: str, toy_bundle: Path, other_bundle: Path, tmp_path: Path
) -> None:
    with fieldrun.load(toy_bundle, engine=engine) as model:
        expected = answers(model)
    old, link = Path(shutil.copytree(toy_bundle, tmp_path / "old")), tmp_path / "current"
    link.symlink_to("old")
    with fieldrun.load(link, engine=engine) as model:
        model.field(TEXTS[:1])
        (tmp_path / "next").symlink_to(other_bundle)
        (tmp_path / "next").replace(link)
        shutil.rmtree(old)
        assert_same(answers(model), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_the_current_folder_may_change(
    engine: str, toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(toy_bundle.parent)
    with fieldrun.load(toy_bundle.name, engine=engine) as model:
        monkeypatch.chdir(tmp_path)
        shutil.copyfile(toy_bundle / "golden.json", "weights.safetensors")  # which no graph may pick up
        answers(model)
        model.save(tmp_path / "saved")
    assert fieldrun.verify(tmp_path / "saved", engine=engine).passed


COPIED_OVER = """
import os, shutil, sys
from pathlib import Path
import numpy as np
import fieldrun

engine, folder, other = sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3])
texts = ["good", "the film was bad", "a gripping film of one who did transfer all " * 6]
texts += [f"word {i} of many" for i in range(70)]
def answers(model):
    return [model.field([text]) for text in texts] + [model.field(texts * 2)]
with fieldrun.load(folder, engine=engine) as model:
    expected = answers(model)
with fieldrun.load(folder, engine=engine) as model:
    for path in folder.iterdir():
        with open(path, "r+b") as file:  # as cp and scp do, which keep the file and replace its bytes
            file.truncate(0)
            if other != folder:
                file.write((other / path.name).read_bytes())
    for found, wanted in zip(answers(model), expected, strict=True):
        assert np.array_equal(found, wanted)
print("the same")
"""


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize(("source", "cut"), [("toy", True), ("toy", False), ("reference", True)])
def test_copying_over_a_loaded_bundle_changes_nothing(
    engine: str, source: str, cut: bool, toy_bundle: Path, other_bundle: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(toy_bundle if source == "toy" else REFERENCE_BUNDLE, tmp_path / "bundle"))
    argv = [sys.executable, "-c", COPIED_OVER, engine, str(folder), str(folder if cut else other_bundle)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "the same\n"), done.stderr


def rows(folder: Path) -> Path:
    path = folder / "rows.tsv"
    path.write_text("text\tlabel\ngood\tyes\nbad\tno\n", "utf-8")
    return path


def subject(kind: Callable[[SubjectSpec], Subject], bundle: Path) -> list[Any]:
    made = kind(SubjectSpec(name="a", kind="a", place=str(bundle), variant="numpy"))
    parts = sorted(name for name, part in made.stages("good").items() if part() is not None)
    return [made.run(TEXTS), made.tokens(TEXTS), parts, made.about()["artifact"]]


USES: dict[str, Callable[[Path, Path], Any]] = {
    "load and save": lambda bundle, folder: Bundle.load(fieldrun.load(bundle).save(folder / "saved")).manifest.files,
    "verify": lambda bundle, folder: fieldrun.verify(bundle).passed,
    "info": lambda bundle, folder: Bundle.load(bundle).about()["hashes"],
    "check": lambda bundle, folder: fieldrun.check(rows(folder), bundle=bundle).tokens,
    "install": lambda bundle, folder: fieldrun.install(bundle, folder / "installed").sha256,
    "serve": lambda bundle, folder: (
        Current(bundle, engine="auto", provider=None, threads=1, overflow="truncate", unknown="answer").served.sha256
    ),
    "bench a bundle": lambda bundle, folder: subject(BundleSubject, bundle),
    "bench a tokenizer": lambda bundle, folder: subject(TokenizerSubject, bundle),
}


@pytest.mark.parametrize("use", USES)
def test_a_bundle_is_read_once(use: str, toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its folder is deleted as soon as it was read: whatever is opened by its path again is not there."""
    for name in ("expected", "found"):
        (tmp_path / name).mkdir()
    expected = USES[use](toy_bundle, tmp_path / "expected")
    bundle = Path(shutil.copytree(toy_bundle, tmp_path / toy_bundle.name))
    read = Bundle._read

    def read_and_delete(folder: Path, handle: int) -> Bundle:
        found = read(folder, handle)
        if folder == bundle:
            shutil.rmtree(folder)
        return found

    monkeypatch.setattr(Bundle, "_read", read_and_delete)
    assert USES[use](bundle, tmp_path / "found") == expected
    assert not bundle.exists()


def test_a_record_is_of_the_bundle_that_was_verified(toy_bundle: Path, other_bundle: Path, tmp_path: Path) -> None:
    bundle = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    report = fieldrun.verify(bundle)
    (path,) = report.write(tmp_path, machine={})
    path.unlink()
    shutil.rmtree(bundle)
    shutil.copytree(other_bundle, bundle)
    with pytest.raises(IntegrityError, match="was replaced after it was verified"):
        report.write(tmp_path, machine={})
    assert not path.exists()


def test_two_bundles_saved_in_turns_are_never_mixed(toy_bundle: Path, other_bundle: Path, tmp_path: Path) -> None:
    models = [fieldrun.load(path, engine="numpy") for path in (toy_bundle, other_bundle)]
    wanted = [model.field(TEXTS[:2]) for model in models]
    folder, stop = models[0].save(tmp_path / "bundle"), threading.Event()

    def save_in_turns() -> None:
        turn = 0
        while not stop.is_set():
            turn += 1
            models[turn % 2].save(folder, overwrite=True)

    writer = threading.Thread(target=save_in_turns)
    writer.start()
    right = 0
    try:
        for _ in range(40):
            try:
                found = fieldrun.load(folder, engine="numpy").field(TEXTS[:2])
            except IntegrityError:
                continue
            assert any(np.array_equal(found, each) for each in wanted)
            right += 1
    finally:
        stop.set()
        writer.join()
    assert right > 0


def test_bundles_copied_over_each_other_are_never_mixed(toy_bundle: Path, other_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    old, new = (fieldrun.load(path, engine="numpy").field(TEXTS) for path in (toy_bundle, other_bundle))
    refused = 0
    for path in sorted(other_bundle.iterdir()):
        shutil.copyfile(path, folder / path.name)
        try:
            found = fieldrun.load(folder, engine="numpy").field(TEXTS)
        except IntegrityError:
            refused += 1
        else:
            assert np.array_equal(found, old) or np.array_equal(found, new)
    assert refused > 5
    np.testing.assert_array_equal(found, new)


@pytest.mark.parametrize("engine", [name for name in ENGINES if name != "onnxruntime"])
@pytest.mark.parametrize("overflow", ["truncate", "window"])
def test_an_answer_has_the_same_bits_alone_and_in_any_company(engine: str, overflow: str, toy_bundle: Path) -> None:
    rng = np.random.default_rng(0)
    texts = [" ".join(rng.choice(toy.WORDS, size=n)) for n in (1, 2, 3, 5, 8, 13, 40, 90, 300, 700) for _ in range(6)]
    weight, bias = rng.standard_normal((32, 5)).astype(np.float32), np.zeros(5, np.float32)
    with fieldrun.load(toy_bundle, engine=engine, overflow=overflow) as model:
        model.attach(Head(name="mine", kind="single", labels=tuple("abcde"), weight=weight, bias=bias))
        together = model.forward(texts)
        pairs = list(pairwise(texts))
        scores = {task: model.predict_proba(texts, task) for task in ("mood", "mine")}
        same = model.predict_proba(pairs, "same")
        for row, text in enumerate(texts):
            alone = model.forward([text])
            np.testing.assert_array_equal(alone.field[0], together.field[row])
            np.testing.assert_array_equal(alone.logits[0], together.logits[row])
            for task, expected in scores.items():
                np.testing.assert_array_equal(model.predict_proba([text], task)[0], expected[row])
        for row, pair in enumerate(pairs):
            np.testing.assert_array_equal(model.predict_proba([pair], "same")[0], same[row])


def test_a_work_folder_may_have_any_name(toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A colon and a percent sign, as on a mounted disk; a path that starts with them looks like a kind of subject."""
    folder = tmp_path / "wo:rk 100%d {x}"
    folder.mkdir()
    monkeypatch.chdir(tmp_path)
    bundle = Path(shutil.copytree(toy_bundle, f"{folder.name}/bundle"))
    assert fieldrun.verify(bundle, engine="all").passed
    assert fieldrun.install(bundle, folder / "installed").changed
    assert fieldrun.label(rows(folder), folder / "out.jsonl", bundle=folder / "installed", tasks=["mood"]).lines == 2
    with fieldrun.load(bundle) as model:
        model.save(folder / "saved")
    for name in (f"{bundle}@numpy", f"{bundle}@numpy#mood", f"{folder}/saved", f"bundle:{bundle}@numpy"):
        assert BundleSubject(parse_subject(name)).predict(TEXTS, "mood")
    assert main(["run", "good", "--bundle", str(bundle), "--task", "mood"], standalone_mode=False) is None
