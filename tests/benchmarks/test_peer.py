"""Another library as a subject: described by its folder, run by an interpreter of its own."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from fieldrun.errors import DatasetError, UnknownName, UsageError
from fieldrun.formats.storage import write_json
from fieldrun_benchmarks.harness.subject import (
    open_subject,
    packages_of,
    parse_subject,
    program_of,
    source_module,
)
from fieldrun_benchmarks.harness.worker_process import WorkerProcess, link_packages


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "planted"
    path.mkdir()
    for task in ("mood", "other"):
        write_json(path / f"head-{task}.json", {"labels": ["no", "yes"]})
    (path / "mood.bin").write_bytes(b"model")
    (path / "other.bin").write_bytes(b"another model")
    peer = {
        "answer": "tests.benchmarks.planted:peer_of",
        "python": sys.executable,
        "program": "print({folder!r}, {task!r})",
        "needs": ["planted"],
        "made_with": {"planted": "1"},
    }
    write_json(path / "peer.json", peer)
    return path


def test_a_peer_answers_one_task(folder: Path) -> None:
    spec = parse_subject(f"peer:{folder}#mood")
    subject = open_subject(spec)
    assert (spec.name, spec.python) == ("planted#mood", sys.executable)
    assert subject.tasks() == {"mood": ["no", "yes"]}
    assert subject.run(["good", "poor"]) == subject.predict(["good", "poor"], "mood") == ["yes", "no"]
    assert subject.tokens(["a"]) is None
    assert subject.stages("a") == {}
    about = subject.about()
    assert set(about["artifact"]["sha256"]) == {"mood.bin", "head-mood.json"}
    assert about["made_with"] == {"planted": "1"}
    assert program_of(spec) == f"print({str(folder)!r}, 'mood')"
    assert packages_of(spec) == ("planted",)
    subject.close()
    with pytest.raises(UnknownName, match="task 'other'"):
        subject.predict(["good"], "other")


def test_a_peer_that_cannot_be_opened(folder: Path) -> None:
    with pytest.raises(UnknownName, match="task 'sst2'"):
        open_subject(parse_subject(f"peer:{folder}#sst2"))
    write_json(folder / "peer.json", {"answer": "no.such.module:f"})
    with pytest.raises(UsageError, match=r"'no\.such\.module:f' cannot be imported"):
        open_subject(parse_subject(f"peer:{folder}"))
    write_json(folder / "peer.json", {})
    with pytest.raises(UsageError, match="has no 'answer'; prepare the peer again"):
        open_subject(parse_subject(f"peer:{folder}"))
    for path in folder.glob("head-*.json"):
        path.unlink()
    with pytest.raises(DatasetError, match=r"has no head-TASK\.json"):
        open_subject(parse_subject(f"peer:{folder}"))


def test_another_interpreter_sees_fieldrun_and_the_peers_package(folder: Path, tmp_path: Path) -> None:
    assert source_module(parse_subject(f"peer:{folder}")) == "tests.benchmarks.planted"
    assert source_module(parse_subject("null")) == ""
    links = tmp_path / "links"
    links.mkdir()
    link_packages(links, "tests.benchmarks.planted", "fieldrun.errors")
    assert sorted(path.name for path in links.iterdir()) == ["fieldrun", "fieldrun_benchmarks", "tests"]

    python = tmp_path / "python"  # another name is another interpreter for the harness
    python.symlink_to(sys.executable)
    peer = json.loads((folder / "peer.json").read_text("utf-8")) | {"python": str(python)}
    write_json(folder / "peer.json", peer)
    with WorkerProcess(parse_subject(f"peer:{folder}#mood"), ["good", "poor"], timeout_s=60) as worker:
        assert worker.ask("load")["tasks"] == {"mood": ["no", "yes"]}
        assert worker.ask("predict", texts=["good", "poor"], task="mood") == ["yes", "no"]
