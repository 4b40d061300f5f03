"""Peers with environments of their own: made once, named when they fail, measured like any subject."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from fieldrun.errors import ExportError
from fieldrun.formats.storage import read_json, write_json
from fieldrun_benchmarks.harness.subject import open_subject, packages_of, parse_subject, program_of
from studies.peers import heads
from studies.peers import models as module
from studies.peers.heads import LinearHead
from studies.peers.models import PEERS, main, prepare


@pytest.fixture
def train(tmp_path: Path) -> dict[str, Path]:
    path = tmp_path / "train.tsv"
    path.write_text("text\tlabel\ngood film\tyes\nbad film\tno\n", "utf-8")
    return {"mood": path}


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """Stand in for venv, pip and the peer's interpreter."""
    seen: list[list[str]] = []

    def run(command: list[str], *, env: Mapping[str, str] | None, **_: Any) -> Any:
        seen.append(command)
        if "venv" in command:
            (Path(command[-1]) / "bin").mkdir(parents=True, exist_ok=True)
            (Path(command[-1]) / "bin" / "python").touch()
        if "studies.peers.models" in command:
            assert env is not None
            assert sorted(path.name for path in Path(env["PYTHONPATH"]).iterdir()) == [
                "fieldrun",
                "fieldrun_benchmarks",
                "studies",
            ]
            write_json(Path(command[5]) / "peer.json", {"made_with": {"fasttext": "0.9.3"}})
        return SimpleNamespace(returncode=0, stdout="", stderr="")

    monkeypatch.setattr(subprocess, "run", run)
    return seen


def test_a_peer_is_made_once(tmp_path: Path, train: dict[str, Path], calls: list[list[str]]) -> None:
    said: list[str] = []
    folder = prepare("fasttext", tmp_path, tmp_path / "work", train, said.append)
    assert [command[1:3] for command in calls] == [
        ["-m", "venv"],
        ["-m", "pip"],
        ["-m", "studies.peers.models"],
    ]
    python = read_json(folder / "peer.json")["python"]
    assert parse_subject(f"peer:{folder}#mood").python == python == str(tmp_path / "work/env-fasttext/bin/python")
    prepare("fasttext", tmp_path, tmp_path / "work", train, said.append)
    assert len(calls) == 3
    train["mood"].write_text("text\tlabel\na\tb\n", "utf-8")
    prepare("fasttext", tmp_path, tmp_path / "work", train, said.append)
    assert len(calls) == 6
    assert len(said) == 4


def test_what_cannot_be_installed_is_quoted(
    tmp_path: Path, train: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    failed = SimpleNamespace(returncode=1, stdout="", stderr="first\nno compiler\n")
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(ExportError, match="exit code 1: no compiler"):
        prepare("fasttext", tmp_path, tmp_path, train, lambda line: None)
    assert not (tmp_path / "fasttext").exists()


def described(folder: Path, key: str) -> None:
    """Write the `peer.json` that `prepare_isolated` writes, for this interpreter."""
    peer = PEERS[key]
    about = {"answer": "studies.peers.models:answer", "program": peer.program, "needs": peer.needs}
    write_json(folder / "peer.json", {**about, "python": sys.executable})


class _FastText:
    """What fasttext has of a module, remembering the lines it learns from."""

    lines: Sequence[str] = ()

    def train_supervised(self, path: str, **settings: Any) -> Any:
        type(self).lines = Path(path).read_text("utf-8").splitlines()
        assert settings["wordNgrams"] == 2
        return SimpleNamespace(save_model=lambda path: Path(path).touch())

    def load_model(self, path: str) -> Any:
        def predict(texts: Sequence[str]) -> Any:
            return [["__label__1" if "good" in text else "__label__0"] for text in texts], None

        return SimpleNamespace(predict=predict)


def test_fasttext_answers_with_the_labels_of_the_file(
    tmp_path: Path, train: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "need", lambda name: _FastText())
    monkeypatch.setattr(module, "version", lambda name: "1")
    folder = tmp_path / "fasttext"
    folder.mkdir()
    main(["fasttext", str(tmp_path), str(folder), f"mood={train['mood']}"])
    assert _FastText.lines == ["__label__1 good film", "__label__0 bad film"]
    assert read_json(folder / "peer.json") == {"made_with": {"fasttext": "1", "numpy": "1"}}
    described(folder, "fasttext")
    spec = parse_subject(f"peer:{folder}")
    subject = open_subject(spec)
    assert subject.tasks() == {"mood": ["no", "yes"]}
    assert subject.run(["good", "poor"]) == subject.predict(["good", "poor"], "mood") == ["yes", "no"]
    assert "/mood.bin" in (program_of(spec) or "")
    compile(program_of(spec) or "", "program", "exec")
    assert packages_of(spec) == ("fasttext",)


def test_wordllama_answers_with_its_heads(
    tmp_path: Path, train: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "package"
    for name in ("tokenizers", "weights"):
        (package / name).mkdir(parents=True)
        (package / name / f"{name}.json").touch()
    (package / "__init__.py").touch()

    def load(**settings: Any) -> Any:
        assert settings["disable_download"]
        assert (settings["cache_dir"] / "weights" / "weights.json").is_file()
        return SimpleNamespace(
            embed=lambda texts, norm: np.array([[float("good" in text)] for text in texts], np.float32)
        )

    wordllama = SimpleNamespace(__file__=str(package / "__init__.py"), WordLlama=SimpleNamespace(load=load))
    head = LinearHead(weight=np.array([[-1, 1]], np.float32), bias=np.array([0.5, 0], np.float32), labels=("no", "yes"))
    monkeypatch.setattr(module, "need", lambda name: wordllama)
    monkeypatch.setattr(heads, "fit_head", lambda vectors, labels: head)
    folder = tmp_path / "wordllama"
    folder.mkdir()
    PEERS["wordllama"].build(tmp_path, folder, train)
    described(folder, "wordllama")
    spec = parse_subject(f"peer:{folder}")
    assert open_subject(spec).run(["good", "poor"]) == ["yes", "no"]
    compile(program_of(spec) or "", "program", "exec")
