"""Labelling files: the order of the input, no line lost or doubled after an end half-way, what is refused."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

import fieldrun
from fieldrun.errors import DatasetError, EngineError, InputTextError, OutputExists, UsageError
from fieldrun_runtimes import label as module
from tests.toy import PAIR_TASK, TASKS, WORDS

COMMAND = [sys.executable, "-m", "fieldrun", "label", "--task", "mood", "--engine", "numpy", "--workers", "2"]


class _HerePool:
    """Answers in this process, when the answer is asked for."""

    submitted = 0
    most_waiting = 0
    fail_at: int | None = None

    def __init__(self, workers: int, *, initializer: Any, initargs: Any, **_: Any) -> None:
        initializer(*initargs)
        type(self).submitted = type(self).most_waiting = 0
        self.waiting = 0

    def submit(self, call: Any, *arguments: Any) -> Any:
        kind = type(self)
        kind.submitted += 1
        self.waiting += 1
        kind.most_waiting = max(kind.most_waiting, self.waiting)
        number = kind.submitted

        class Later(Future[Any]):
            def result(inner, timeout: float | None = None) -> Any:  # noqa: N805
                self.waiting -= 1
                if number == kind.fail_at:
                    raise BrokenProcessPool
                return call(*arguments)

        return Later()

    def shutdown(self, **_: Any) -> None:
        pass


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> type[_HerePool]:
    monkeypatch.setattr(module, "ProcessPoolExecutor", _HerePool)
    monkeypatch.setattr(module, "_BATCH_BYTES", 100)
    monkeypatch.setattr(module, "_NOTE_S", -1.0)
    monkeypatch.setattr(signal, "signal", lambda *_: None)
    monkeypatch.setattr(_HerePool, "fail_at", None)
    return _HerePool


def _file(path: Path, n: int, end: str = "\n") -> list[str]:
    texts = [f"{WORDS[i % len(WORDS)]} {WORDS[i * 11 % len(WORDS)]} {i}" for i in range(n)]
    path.write_bytes(end.join([*texts, ""]).encode())
    return texts


def _objects(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def _label(bundle: Path, sources: list[Path], output: Path, **settings: Any) -> fieldrun.LabelReport:
    chosen: dict[str, Any] = {"workers": 2, "engine": "numpy", "tasks": ["mood"], "on_error": "fail", **settings}
    return fieldrun.label(sources, output, bundle=bundle, **chosen)


def test_the_order_is_the_inputs(toy_bundle: Path, tmp_path: Path, here: type[_HerePool]) -> None:
    one, two = tmp_path / "one.txt", tmp_path / "two.txt"
    texts = _file(one, 30) + _file(two, 25, "\r\n")
    seen: list[tuple[str, int, int]] = []
    done = _label(toy_bundle, [one, two], tmp_path / "out", progress=lambda *step: seen.append(step), tasks=())
    found = _objects(tmp_path / "out")
    assert [row["text"] for row in found[:: len(TASKS)]] == texts
    assert done.lines == 55
    assert done.resumed_at == 0
    assert seen[-1] == ("label", (whole := one.stat().st_size + two.stat().st_size), whole)
    with fieldrun.load(toy_bundle, engine="numpy") as model:
        for task in TASKS:
            assert [row["label"] for row in found if row["task"] == task] == model.predict(texts, task)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.txt", "out", "two.txt"]


def test_few_batches_are_on_their_way(toy_bundle: Path, tmp_path: Path, here: type[_HerePool]) -> None:
    _file(tmp_path / "in", 200)
    _label(toy_bundle, [tmp_path / "in"], tmp_path / "out")
    assert here.submitted > 20
    assert here.most_waiting == 2 * module._AHEAD


def test_one_worker_is_this_process(toy_bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ProcessPoolExecutor", None)
    texts = _file(tmp_path / "in", 600)
    assert _label(toy_bundle, [tmp_path / "in"], tmp_path / "out", workers=1).lines == 600
    assert [row["text"] for row in _objects(tmp_path / "out")] == texts
    (tmp_path / "in").write_bytes(b"good\n \n")
    with pytest.raises(InputTextError, match="in, line 2: the text is empty"):
        _label(toy_bundle, [tmp_path / "in"], tmp_path / "other", workers=1)


@pytest.mark.parametrize("fail_at", [1, 4, 6])
@pytest.mark.parametrize("beyond", [b"", b'{"half a li'])
def test_an_ended_run_goes_on(
    toy_bundle: Path, tmp_path: Path, here: type[_HerePool], fail_at: int, beyond: bytes
) -> None:
    texts = _file(tmp_path / "one", 31) + _file(tmp_path / "two", 20)
    sources, output = [tmp_path / "one", tmp_path / "two"], tmp_path / "out"
    here.fail_at = fail_at
    with pytest.raises(EngineError, match="run the same command to continue"):
        _label(toy_bundle, sources, output)
    assert not output.exists()
    with (tmp_path / "out.partial").open("ab") as partial:
        partial.write(beyond)  # what a kill leaves that no note vouches for
    here.fail_at = None
    done = _label(toy_bundle, sources, output)
    assert [row["text"] for row in _objects(output)] == texts
    assert done.lines == 51
    assert (done.resumed_at > 0) == (fail_at > 1)


def test_other_input_or_settings_are_not_mixed(toy_bundle: Path, tmp_path: Path, here: type[_HerePool]) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    texts = _file(source, 60)
    whole = source.read_bytes()

    def interrupted() -> None:
        here.fail_at = 5
        with pytest.raises(EngineError):
            _label(toy_bundle, [source], output, force=True)
        here.fail_at = None

    interrupted()
    with pytest.raises(OutputExists, match="belongs to other files, tasks or another bundle; add --force"):
        _label(toy_bundle, [source], output, tasks=["intent"])
    source.write_bytes(b"x" + whole[1:])
    with pytest.raises(OutputExists, match="has changed since it was partly labelled; add --force"):
        _label(toy_bundle, [source], output)
    assert _label(toy_bundle, [source], output, force=True).resumed_at == 0
    source.write_bytes(whole)
    with pytest.raises(OutputExists, match="exists; choose another name or add --force"):
        _label(toy_bundle, [source], output)
    interrupted()
    assert _label(toy_bundle, [source], output, force=True).resumed_at > 0, "the same command continues"
    assert [row["text"] for row in _objects(output)] == texts
    interrupted()
    assert _label(toy_bundle, [source], output, tasks=["intent"], force=True).resumed_at == 0
    assert {row["task"] for row in _objects(output)} == {"intent"}


def test_a_bad_line_is_named_and_can_be_mended(toy_bundle: Path, tmp_path: Path, here: type[_HerePool]) -> None:
    source, output = tmp_path / "in.txt", tmp_path / "out"
    texts = _file(source, 40)
    lines = source.read_bytes().split(b"\n")
    source.write_bytes(b"\n".join([*lines[:30], b" ", *lines[31:]]))
    with pytest.raises(InputTextError, match=r"in\.txt, line 31: the text is empty"):
        _label(toy_bundle, [source], output)
    source.write_bytes(b"\n".join(lines))
    assert _label(toy_bundle, [source], output).resumed_at > 0
    assert [row["text"] for row in _objects(output)] == texts


def test_bad_lines_are_reported_or_left_out(toy_bundle: Path, tmp_path: Path, here: type[_HerePool]) -> None:
    bad = [b"\xef\xbb\xbfgood", b"", b"\xff", b"\x00", "\u200b".encode(), b"bad\r", b"  "]
    (tmp_path / "a.txt").write_bytes(b"\n".join(bad))
    texts = _file(tmp_path / "b.txt", 20)
    sources = [tmp_path / "a.txt", tmp_path / "b.txt"]
    report = _label(toy_bundle, sources, tmp_path / "out", on_error="report")
    found = _objects(tmp_path / "out")
    assert (report.lines, report.errors) == (27, 5)
    assert [row.get("line", row.get("text")) for row in found] == ["good", 2, 3, 4, 5, "bad", 7, *texts]
    assert {row["file"] for row in found if "error" in row} == {"a.txt"}
    assert found[3]["error"] == {
        "type": "InputTextError",
        "message": "the text has no token: only control characters; leave it out",
    }
    report = _label(toy_bundle, sources, tmp_path / "skipped", on_error="skip")
    assert [row["text"] for row in _objects(tmp_path / "skipped")] == ["good", "bad", *texts]
    assert report.errors == 5


def test_tables_are_labelled_by_their_column(toy_bundle: Path, tmp_path: Path, here: type[_HerePool]) -> None:
    (tmp_path / "a.csv").write_text('id;text\n1;"good; film"\n2;"two\nlines"\n3;\n4;bad\n\n', "utf-16")
    (tmp_path / "b.jsonl").write_text('{"text": "good"}\n{"id": 3}\n', "utf-8-sig")
    (tmp_path / "c.tsv").write_text("label\ttext\nx\tbad\n", "utf-8")
    sources = [tmp_path / name for name in ("a.csv", "b.jsonl", "c.tsv")]
    report = _label(toy_bundle, sources, tmp_path / "out", on_error="report")
    shown = [row.get("line", row.get("text")) for row in _objects(tmp_path / "out")]
    assert shown == ["good; film", "two\nlines", 5, "bad", "good", 2, "bad"]
    assert (report.lines, report.errors) == (7, 2)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.csv", "b.jsonl", "c.tsv", "out"]
    with pytest.raises(InputTextError, match=r"a\.csv, line 5: the text is empty"):
        _label(toy_bundle, sources, tmp_path / "new")
    (tmp_path / "p.csv").write_text("first,second\nit is wet,rain\n", "utf-8")
    columns = {"text_column": "first", "text_b_column": "second"}
    _label(toy_bundle, [tmp_path / "p.csv"], tmp_path / "pairs", tasks=[PAIR_TASK], **columns)
    assert _objects(tmp_path / "pairs")[0]["text"] == ["it is wet", "rain"]
    with pytest.raises(DatasetError, match="mood takes single texts, and the file has pairs"):
        _label(toy_bundle, [tmp_path / "p.csv"], tmp_path / "x", **columns)


def test_a_table_is_one_in_every_encoding_and_name(toy_bundle: Path, tmp_path: Path, here: type[_HerePool]) -> None:
    (tmp_path / "a.tsv").write_text("id\ttext\n1\tgood\n", "utf-16")
    (tmp_path / "b.json").write_text('{"text": "bad"}\n', "utf-8")
    _label(toy_bundle, [tmp_path / "a.tsv", tmp_path / "b.json"], tmp_path / "out")
    assert [row["text"] for row in _objects(tmp_path / "out")] == ["good", "bad"]


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_lines_in_another_encoding_are_not_labelled(toy_bundle: Path, tmp_path: Path, encoding: str) -> None:
    (tmp_path / "a.txt").write_text("good\nbad\n", encoding)
    with pytest.raises(DatasetError, match=r"a\.txt is UTF-(16|32).*; convert the file to UTF-8"):
        fieldrun.label(tmp_path / "a.txt", tmp_path / "out", bundle=toy_bundle, tasks=["mood"], on_error="report")
    (tmp_path / "a.txt").write_bytes(b"\x1f\x8b\x08" + bytes(20))
    with pytest.raises(DatasetError, match="is compressed"):
        fieldrun.label(tmp_path / "a.txt", tmp_path / "out", bundle=toy_bundle, tasks=["mood"], on_error="report")
    assert [path.name for path in tmp_path.iterdir()] == ["a.txt"]


def test_an_interrupted_table_goes_on(toy_bundle: Path, tmp_path: Path, here: type[_HerePool]) -> None:
    (tmp_path / "a.csv").write_text("text\n" + "".join(f"good film {i}\n" for i in range(60)), "utf-8")
    here.fail_at = 6
    with pytest.raises(EngineError):
        _label(toy_bundle, [tmp_path / "a.csv"], tmp_path / "out")
    here.fail_at = None
    assert _label(toy_bundle, [tmp_path / "a.csv"], tmp_path / "out").resumed_at > 0
    assert [row["text"] for row in _objects(tmp_path / "out")] == [f"good film {i}" for i in range(60)]


def test_one_file_and_one_task_by_name(toy_bundle: Path, tmp_path: Path, here: type[_HerePool]) -> None:
    texts = _file(tmp_path / "in.txt", 3)
    fieldrun.label(tmp_path / "in.txt", tmp_path / "out", bundle=toy_bundle, engine="numpy", tasks="mood")
    assert [row["text"] for row in _objects(tmp_path / "out")] == texts


def test_broken_notes_and_files(toy_bundle: Path, tmp_path: Path, here: type[_HerePool]) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    with pytest.raises(UsageError, match="at least one file and one worker"):
        _label(toy_bundle, [], output)
    with pytest.raises(DatasetError, match="cannot read"):
        _label(toy_bundle, [source], output)
    source.write_bytes(b"")
    with pytest.raises(InputTextError, match="the files are empty"):
        _label(toy_bundle, [source], output)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    _file(source, 3)
    (tmp_path / "out.partial").write_bytes(b"x")
    with pytest.raises(OutputExists, match=r"has no out\.resume beside it"):
        _label(toy_bundle, [source], output)
    (tmp_path / "out.resume").write_bytes(b"{")
    with pytest.raises(OutputExists, match=r"out\.resume is corrupt"):
        _label(toy_bundle, [source], output)
    assert _label(toy_bundle, [source], output, force=True).lines == 3
    (tmp_path / "out.partial").write_bytes(b"x")
    assert _label(toy_bundle, [source], output, force=True).lines == 3


def test_pairs_are_two_texts_a_line(toy_bundle: Path, tmp_path: Path, here: type[_HerePool]) -> None:
    (tmp_path / "in").write_bytes(b"it is wet\train\ngood\tbad")
    report = _label(toy_bundle, [tmp_path / "in"], tmp_path / "out", tasks=[PAIR_TASK], top=1)
    found = _objects(tmp_path / "out")
    assert [row["text"] for row in found] == [["it is wet", "rain"], ["good", "bad"]]
    assert all(len(row["scores"]) == 1 for row in found)
    assert json.loads(json.dumps(report.to_dict()))["lines"] == 2


@pytest.fixture
def waiting(toy_bundle: Path, tmp_path: Path) -> Iterator[tuple[list[str], subprocess.Popen[str], Path]]:
    """A run of two workers that has labelled one file and waits for a second, a pipe: command, process, pipe."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    _file(tmp_path / "in", 40)
    command = [*COMMAND, str(tmp_path / "in"), str(pipe), "-b", str(toy_bundle), "-o", str(tmp_path / "out")]
    with subprocess.Popen(
        command, start_new_session=True, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True
    ) as run:
        try:
            yield command, run, pipe
        finally:
            with suppress(ProcessLookupError):
                os.killpg(run.pid, signal.SIGKILL)


def test_a_second_run_of_the_same_output_is_refused(
    waiting: tuple[list[str], subprocess.Popen[str], Path], tmp_path: Path
) -> None:
    command, first, pipe = waiting
    with pipe.open("wb"):  # opens once the first run reads it: it is at work, and owns the output
        second = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert second.returncode == OutputExists.exit_code
        assert f"another run is writing {tmp_path / 'out'}.partial" in second.stderr
        assert len(second.stderr.splitlines()) == 1
    _, said = first.communicate(timeout=60)
    assert first.returncode == 0, said
    assert len(_objects(tmp_path / "out")) == 40
    assert not (tmp_path / "out.partial").exists()


def test_workers_end_with_a_parent_that_is_killed(waiting: tuple[list[str], subprocess.Popen[str], Path]) -> None:
    _, parent, pipe = waiting
    with pipe.open("wb"):
        os.kill(parent.pid, signal.SIGKILL)
    parent.communicate(timeout=60)  # stderr, which the workers share, closes with the last of them


def test_a_run_that_ended_meanwhile_is_not_written_over(
    toy_bundle: Path, tmp_path: Path, here: type[_HerePool], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another run makes the output after this one has looked for it, before this one owns it."""
    _file(tmp_path / "in", 5)
    look = module._check_free
    looked: list[Path] = []

    def check(output: Path, force: bool) -> None:
        look(output, force)
        looked.append(output)
        output.write_text("of the other run", "utf-8")

    monkeypatch.setattr(module, "_check_free", check)
    with pytest.raises(OutputExists, match="exists; choose another name"):
        _label(toy_bundle, [tmp_path / "in"], tmp_path / "out")
    assert len(looked) == 1
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in", "out"]
    assert (tmp_path / "out").read_text("utf-8") == "of the other run"


@pytest.mark.slow
def test_a_killed_process_loses_and_doubles_nothing(toy_bundle: Path, tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    texts = _file(source, 20_000)
    command = [*COMMAND, str(source), "-b", str(toy_bundle), "-o", str(output)]
    with subprocess.Popen(command, start_new_session=True, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as run:
        note = tmp_path / "out.resume"
        while run.poll() is None and not note.exists():
            time.sleep(0.05)
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    assert [row["text"] for row in _objects(output)] == texts, done.stderr
