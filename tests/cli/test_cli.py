"""The command line over a model of a few lines: what is read, what is printed, how it ends."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import fieldrun
from fieldrun.cli import main
from fieldrun.errors import InputTextError, StorageError, TextTooLong, UnknownName
from fieldrun.formats.bundle import TaskSpec
from fieldrun.heads.head import softmax

TASKS = (
    TaskSpec(name="mood", kind="single", labels=("down", "up"), start=0, temperature=0.5),
    TaskSpec(name="topic", kind="single", labels=("war", "sport", "film"), start=2, temperature=1.0),
    TaskSpec(name="same", kind="pair", labels=("different", "same"), start=0, temperature=1.0),
)


@dataclass
class FakeEncoding:
    texts: list[str]
    field: Any
    logits: Any
    tokens: Any
    dropped: Any
    known: Any

    def part(self, start: int, stop: int) -> FakeEncoding:
        rows = slice(start, stop)
        return FakeEncoding(
            self.texts[rows],
            self.field[rows],
            self.logits[rows],
            self.tokens[rows],
            self.dropped[rows],
            self.known[rows],
        )


class FakeModel:
    """A `FieldModel` that counts: longer than 8 words is too long, "good" is up, "film" is film, "wrong" is refused."""

    path = Path("fake")
    engine, engine_reason = "numpy", "it is the only one"
    tasks = tuple(task.name for task in TASKS)

    def __init__(
        self, bundle: str, *, engine: str, provider: str | None, threads: int, overflow: str, unknown: str = "answer"
    ) -> None:
        self.settings = (bundle, engine, threads, overflow)
        self.overflow = overflow
        self.calls: list[int] = []
        known = {task.name: task for task in TASKS}
        network = SimpleNamespace(field_dim=256)
        self.manifest = SimpleNamespace(name="fake-1", network=network, task=lambda name: known[name])

    def __enter__(self) -> FakeModel:
        return self

    def __exit__(self, *_: object) -> None:
        self.calls.append(-1)

    def labels(self, task: str) -> tuple[str, ...]:
        labels: tuple[str, ...] = self.manifest.task(task).labels
        return labels

    def kind(self, task: str) -> str:
        if task not in self.tasks:
            raise UnknownName("task", task, self.tasks)
        return str(self.manifest.task(task).kind)

    def forward(self, texts: Sequence[str], *, dim: int | None = None) -> Any:
        self.calls.append(len(texts))
        words = np.array([len(text.split()) for text in texts])
        if any("wrong" in text or "\udcff" in text for text in texts):
            raise InputTextError("the text cannot be encoded")
        if self.overflow == "error" and words.max() > 8:
            raise TextTooLong("the text has more tokens than the largest bucket")
        logits = np.zeros((len(texts), 5), np.float32)
        for i, text in enumerate(texts):
            logits[i, 1] = 1.0 if "good" in text else -1.0
            logits[i, 4] = 2.0 if "film" in text else -2.0
        field = np.repeat(words[:, None], dim or 256, axis=1).astype(np.float32)
        return FakeEncoding(
            list(texts), field, logits, np.minimum(words, 8), np.maximum(words - 8, 0), np.ones(len(texts))
        )

    def rejected(self, encoding: FakeEncoding, other: FakeEncoding | None = None) -> Any:
        return np.zeros(len(encoding.texts), bool)

    def get_embedding_dimension(self) -> int:
        return 256

    def rejection_of(self, encoding: FakeEncoding, task: str, other: FakeEncoding | None = None) -> Any:
        return np.full(len(encoding.texts), -0.5, np.float32)

    def scores_of(self, encoding: FakeEncoding, task: str, other: FakeEncoding | None = None) -> Any:
        if other is not None:
            assert task == "same"
            pairs = zip(encoding.texts, other.texts, strict=True)
            return np.array([[0.25, 0.75] if a == b else [0.9, 0.1] for a, b in pairs], np.float32)
        spec = self.manifest.task(task)
        return softmax(encoding.logits[:, spec.start : spec.start + len(spec.labels)], spec.temperature)

    def best_of(
        self, encoding: FakeEncoding, task: str, other: FakeEncoding | None = None, *, k: int | None = None
    ) -> Any:
        scores = self.scores_of(encoding, task, other)
        order = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        return order, np.take_along_axis(scores, order, axis=1)


@pytest.fixture
def models(monkeypatch: pytest.MonkeyPatch) -> list[FakeModel]:
    """The models that the commands have loaded."""
    loaded: list[FakeModel] = []

    def load(bundle: str, **settings: Any) -> FakeModel:
        loaded.append(FakeModel(bundle, **settings))
        return loaded[-1]

    monkeypatch.setattr(fieldrun, "load", load, raising=False)
    return loaded


def call(*arguments: str | Path, stdin: bytes | None = None, code: int = 0) -> Result:
    """Run `fieldrun` in this process; an exception that is not an exit is the test's."""
    result = CliRunner().invoke(main, [str(a) for a in arguments], input=stdin, catch_exceptions=False)
    assert result.exit_code == code, (result.stdout, result.stderr)
    return result


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_run_prints_label_probability_and_text(models: list[FakeModel]) -> None:
    result = call(
        "run", "-b", "b", "--task", "mood", "a good film", "bad\tluck\n", "--engine", "numpy", "--threads", "2"
    )
    assert result.stdout == "up    0.881  a good film\ndown  0.881  bad luck\n"
    assert result.stderr == ""
    assert models[0].settings == ("b", "numpy", 2, "truncate")
    assert models[0].calls == [2, -1]


def test_run_serves_all_tasks_with_one_forward_pass(models: list[FakeModel]) -> None:
    result = call("run", "-b", "b", "--top", "2", "a good film")
    assert models[0].calls == [1, -1]
    assert result.stdout.splitlines() == [
        "mood   up     0.881  down   0.119  a good film",
        "topic  film   0.787  war    0.107  a good film",
    ]


def test_run_json_lines(models: list[FakeModel]) -> None:
    first, second = lines(call("run", "-b", "b", "--json", "--task", "topic", "--task", "mood", "so good " * 5))
    assert first["task"] == "topic"
    assert list(first["scores"]) == ["war", "sport", "film"]
    assert second == {
        "text": "so good " * 5,
        "task": "mood",
        "label": "up",
        "scores": {"up": pytest.approx(0.880797), "down": pytest.approx(0.119203)},
        "rejection": -0.5,
        "known": 1.0,
        "tokens": 8,
        "dropped": 2,
    }
    assert sum(first["scores"].values()) == pytest.approx(1.0, abs=1e-6)


def test_run_reads_stdin(models: list[FakeModel]) -> None:
    result = call("run", "-b", "b", "--json", "--task", "mood", stdin="\ufeffgood\r\nbad\u2028é\nlast".encode())
    assert [(line["text"], line["label"]) for line in lines(result)] == [
        ("good", "up"),
        ("bad\u2028é", "down"),
        ("last", "down"),
    ]


def test_run_pairs(models: list[FakeModel]) -> None:
    result = call("run", "-b", "b", "--task", "same", "a\ta", "--pair", "one", "two", "--json")
    assert [(line["text"], line["label"], line["tokens"]) for line in lines(result)] == [
        (["a", "a"], "same", 2),
        (["one", "two"], "different", 2),
    ]
    assert call("run", "-b", "b", "--pair", "x", "x").stdout == "same       0.750  x | x\n"
    assert call("run", "-b", "b", "--task", "same", stdin=b"a\tb\n").stdout == "different  0.900  a | b\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--task", "none", "x"), "unknown task 'none'; known: mood, topic, same"),
        (("--task", "mood", "--task", "same", "x"), "same takes pairs, mood single texts; run them separately"),
        (("--task", "mood", "--pair", "x", "y"), "pairs are for pair tasks (same); give single texts"),
        (("reference", "x"), "'reference' is a bundle, not a text; write --bundle reference"),
        (("--task", "same", "x"), "text 1: a pair is two texts with one tab between them, not 0 tabs"),
        (("--task", "same", "x\ty\tz"), "text 1: a pair is two texts with one tab between them, not 2 tabs"),
        (("--task", "same", "x\t "), "text 1: one text of the pair is empty; leave the pair out"),
        (("--task", "same", "--pair", "", "x"), "pair 1: one text of the pair is empty; leave the pair out"),
        (("--task", "mood", ""), "text 1: the text is empty; leave it out"),
        (("--task", "mood"), "no texts: give them as arguments, or one per line on stdin"),
    ],
)
def test_run_refuses(models: list[FakeModel], arguments: tuple[str, ...], message: str) -> None:
    result = call("run", "-b", "b", *arguments, stdin=b"", code=2)
    assert (result.stdout, result.stderr) == ("", f"fieldrun: error: {message}\n")


BAD = b"\xef\xbb\xbfgood\n \n\xff\nwrong\nbad\r\n\xe2\x80\x8b\n"
"""A byte-order mark, and lines that are blank, not UTF-8, refused by the model."""


def test_a_bad_line_is_reported_in_its_place(models: list[FakeModel]) -> None:
    result = call("run", "-b", "b", "--task", "mood", "--json", stdin=BAD, code=2)
    found = lines(result)
    assert [row.get("label", row.get("line")) for row in found] == ["up", 2, 3, 4, "down", "down"]
    assert found[1]["error"] == {"type": "InputTextError", "message": "the text is empty; leave it out"}
    assert found[2]["error"]["message"] == "not valid UTF-8; convert the input to UTF-8"
    assert found[3]["error"]["message"] == "the text cannot be encoded"
    assert found[0]["text"] == "good", "without its byte-order mark"
    assert "3 of 6 texts could not be answered" in result.stderr
    shown = call("run", "-b", "b", "--task", "mood", stdin=BAD, code=2).stdout.splitlines()
    assert [line[:6] for line in shown] == ["up    ", '{"line', '{"line', '{"line', "down  ", "down  "]
    assert json.loads(shown[1])["line"] == 2


def test_a_bad_line_is_left_out_on_request(models: list[FakeModel]) -> None:
    result = call("run", "-b", "b", "--task", "mood", "--json", "--on-error", "skip", stdin=BAD)
    assert [row["label"] for row in lines(result)] == ["up", "down", "down"]
    result = call("run", "-b", "b", "--task", "mood", "good", " ", code=2)
    assert (result.stdout, "text 2: the text is empty" in result.stderr) == ("up    0.881  good\n", True)
    result = call("run", "-b", "b", "--task", "mood", "--on-error", "report", "good", " ", code=2)
    assert json.loads(result.stdout.splitlines()[1])["line"] == 2


def test_errors_in_pairs_and_in_several_tasks(models: list[FakeModel]) -> None:
    result = call("run", "-b", "b", "--task", "same", "--json", stdin=b"a\ta\nno tab\nb\t \na\tb\n", code=2)
    assert [row.get("label", row.get("line")) for row in lines(result)] == ["same", 2, 3, "different"]
    both = call("run", "-b", "b", "--json", stdin=b"good\nwrong\ngood\n", code=2)
    assert [row.get("task", row.get("line")) for row in lines(both)] == ["mood", "topic", 2, "mood", "topic"]
    only = call("run", "-b", "b", "--json", stdin=b"\n\n", code=2)
    assert [row["line"] for row in lines(only)] == [1, 2]


def test_field_reports_and_skips_too(models: list[FakeModel], tmp_path: Path) -> None:
    path = tmp_path / "fields.npy"
    (value,) = lines(call("field", "-b", "b", "-o", path, "--json", stdin=BAD, code=2))
    assert [error["line"] for error in value["errors"]] == [2, 3, 4]
    assert np.isnan(np.load(path)).all(1).tolist() == [False, True, True, True, False, False]
    said = call("field", "-b", "b", "-o", path, "--force", stdin=BAD, code=2).stderr
    assert "line 4: the text cannot be encoded" in said
    call("field", "-b", "b", "-o", path, "--force", "--on-error", "skip", stdin=BAD)
    assert np.load(path).shape == (3, 256)


def test_answer_reports_in_python(models: list[FakeModel]) -> None:
    model: Any = fieldrun.load("b", engine="numpy", threads=1, overflow="truncate", provider=None)
    texts = ["good", "wrong", "bad"]
    found = list(fieldrun.answer(model, texts, ["mood"], on_error="report"))
    assert found[1] == {"line": 2, "error": {"type": "InputTextError", "message": "the text cannot be encoded"}}
    assert [row["label"] for row in fieldrun.answer(model, texts, ["mood"], on_error="skip")] == ["up", "down"]
    with pytest.raises(InputTextError, match="text 1: the text cannot be encoded"):
        list(fieldrun.answer(model, texts, ["mood"]))
    with pytest.raises(UnknownName, match="unknown on_error 'ignore'"):
        list(fieldrun.answer(model, texts, ["mood"], on_error="ignore"))


def test_a_bad_line_may_end_the_stream_after_what_came_before(models: list[FakeModel]) -> None:
    result = call("run", "-b", "b", "--task", "mood", "--on-error", "fail", stdin=b"good\nbad\n \ngood\n", code=2)
    assert result.stdout == "up    0.881  good\ndown  0.881  bad\n"
    assert result.stderr == "fieldrun: error: line 3: the text is empty; leave it out\n"
    result = call("run", "-b", "b", "--task", "mood", "--json", "--on-error", "fail", stdin=b"good\n\xff\n", code=2)
    good, error = lines(result)
    assert good["label"] == "up"
    assert error["error"] == {
        "type": "InputTextError",
        "message": "line 2: not valid UTF-8; convert the input to UTF-8",
        "exit_code": 2,
    }


def test_a_text_the_model_refuses_is_named_with_its_line(models: list[FakeModel]) -> None:
    result = call("run", "-b", "b", "--task", "mood", "--on-error", "fail", stdin=b"good\nwrong\ngood\n", code=2)
    assert result.stdout == "up    0.881  good\n"
    assert result.stderr == "fieldrun: error: line 2: the text cannot be encoded\n"
    assert models[0].calls == [3, 1, 1, -1]
    long = b"1 2 3 4 5 6 7 8 9\n"
    result = call(
        "run",
        "-b",
        "b",
        "--task",
        "mood",
        "--overflow",
        "error",
        "--on-error",
        "fail",
        stdin=b"good\n" + long,
        code=TextTooLong.exit_code,
    )
    assert result.stdout == "up    0.881  good\n"
    assert "line 2: the text has more tokens" in result.stderr


def test_an_undecodable_argument_is_one_line(models: list[FakeModel]) -> None:
    assert "text 1: the text cannot be encoded" in call("run", "-b", "b", "--task", "mood", "a\udcff", code=2).stderr
    assert "unknown task 'a\\udcff'" in call("run", "-b", "b", "--task", "a\udcff", "x", code=2).stderr


def test_what_was_cut_is_said(models: list[FakeModel]) -> None:
    result = call("run", "-b", "b", "--task", "mood", "1 2 3 4 5 6 7 8 9 10", "good")
    note = "1 of 2 texts were too long and lost 2 tokens; --overflow window reads them whole"
    assert result.stderr == f"fieldrun: note: {note}\n"


def test_many_lines_go_in_batches(models: list[FakeModel]) -> None:
    result = call("run", "-b", "b", "--task", "mood", stdin=b"good\n" * 600)
    assert result.stdout.count("up") == 600
    assert models[0].calls == [256, 256, 88, -1]


def test_field_writes_an_array(models: list[FakeModel], tmp_path: Path) -> None:
    path = tmp_path / "fields.npy"
    result = call("field", "-b", "b", "-o", path, stdin=b"one\ntwo words\n" * 200)
    assert result.stdout == f"{path}: 400 fields of 256 float32\n"
    fields = np.load(path)
    assert (fields.shape, fields.dtype) == ((400, 256), np.float32)
    assert fields[:2, 0].tolist() == [1.0, 2.0]
    assert "exists; choose another name or add --force" in call("field", "-b", "b", "x", "-o", path, code=2).stderr
    result = call("field", "-b", "b", "x", "-o", path, "--force", "--json")
    assert lines(result) == [{"path": str(path), "shape": [1, 256], "engine": "numpy", "dropped": 0, "errors": []}]
    assert np.load(path).shape == (1, 256)
    call("field", "-b", "b", "one", "two words", "-o", path, "--force", "--dim", "64")
    assert np.load(path)[:, 0].tolist() == [1.0, 2.0]
    assert np.load(path).shape == (2, 64)
    assert [p.name for p in tmp_path.iterdir()] == ["fields.npy"]


def test_field_that_fails_leaves_nothing(models: list[FakeModel], tmp_path: Path) -> None:
    path = tmp_path / "fields.npy"
    assert "line 2" in call("field", "-b", "b", "-o", path, "--on-error", "fail", stdin=b"one\nwrong\n", code=2).stderr
    assert (
        "does not exist"
        in call("field", "-b", "b", "x", "-o", tmp_path / "no" / "f", code=StorageError.exit_code).stderr
    )
    assert list(tmp_path.iterdir()) == []
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    for place in (tmp_path, tmp_path / "pipe", tmp_path / "link", tmp_path / ("n" * 300)):
        error = call("field", "-b", "b", "x", "-o", place, "--force", code=StorageError.exit_code).stderr
        assert error.count("\n") == 1
        assert "cannot write" in error
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "pipe"]
    assert (tmp_path / "pipe").is_fifo()


def test_eval(models: list[FakeModel], tmp_path: Path) -> None:
    data, matrix = tmp_path / "dev.tsv", tmp_path / "matrix.tsv"
    data.write_bytes(b"text\tlabel\n" + b"good day\tup\n" * 300 + b"bad day\tup\nbad\tdown\n1 2 3 4 5 6 7 8 9\tdown\n")
    result = call("eval", "b", "--task", "mood", "--data", data, "--confusion", matrix, "--json")
    (value,) = lines(result)
    low, high = value.pop("ci95")
    assert low < value["accuracy"] < high
    assert value.pop("macro_f1") == pytest.approx((4 / 5 + 600 / 601) / 2)
    assert len(value.pop("data_sha256")) == 64
    assert value.pop("recall") == {"down": 1, "up": pytest.approx(300 / 301)}
    assert 0 < value.pop("calibration_error") < 1
    assert value.pop("balanced_accuracy") == pytest.approx((1 + 300 / 301) / 2)
    low, high = value.pop("balanced_ci95")
    assert 0.5 < low < 0.99 < high <= 1
    assert value.pop("warnings") == [
        "299 rows repeat another row; each of them weighs",
        "fewer than 8 rows: 'down'; add examples",
    ]
    assert value == {
        "task": "mood",
        "n": 303,
        "accuracy": 302 / 303,
        "confusion": {"labels": ["down", "up"], "matrix": [[2, 0], [1, 300]]},
        "bundle": "fake-1",
        "engine": "numpy",
        "data": str(data),
        "dropped": 1,
        "cut": 1,
    }
    assert matrix.read_text() == "true\\predicted\tdown\tup\ndown\t2\t0\nup\t1\t300\n"
    assert "1 of 303 texts were too long" in result.stderr
    human = call("eval", "b", "--task", "mood", "--data", data).stdout
    assert human == (
        "mood  accuracy 99.67% (95 % interval 98.15% to 99.94%, n = 303)  "
        "balanced 99.83% (66.94% to 99.97%)  macro F1 89.92%\n"
    )


@pytest.mark.parametrize(
    ("task", "data", "message"),
    [
        (
            "mood",
            b"text\tlabel\na\tup\nb\tsideways\n",
            "line 3: the task 'mood' has no label 'sideways'; known: down, up",
        ),
        ("same", b"text\tlabel\na\tsame\n", "line 1: the task 'same' takes pairs; the header must be"),
        (
            "mood",
            b"text_a\ttext_b\tlabel\na\tb\tup\n",
            "line 1: the task 'mood' takes single texts; the header must be",
        ),
        ("mood", b"nothing\n", "line 1: the header is 'nothing'"),
    ],
)
def test_eval_names_the_broken_line(
    models: list[FakeModel], tmp_path: Path, task: str, data: bytes, message: str
) -> None:
    (tmp_path / "dev.tsv").write_bytes(data)
    result = call("eval", "b", "--task", task, "--data", tmp_path / "dev.tsv", "--json", code=4)
    assert f"dev.tsv, {message}" in result.stderr
    assert lines(result)[0]["error"]["type"] == "DatasetError"


def test_eval_names_the_line_of_a_refused_text(models: list[FakeModel], tmp_path: Path) -> None:
    (tmp_path / "dev.tsv").write_bytes(b"text\tlabel\na\tup\nwrong\tup\n")
    result = call("eval", "b", "--task", "mood", "--data", tmp_path / "dev.tsv", code=2)
    assert "dev.tsv, line 3: the text cannot be encoded" in result.stderr
    (tmp_path / "matrix").touch()
    arguments = ("--data", tmp_path / "dev.tsv", "--confusion", tmp_path / "matrix")
    assert "matrix exists" in call("eval", "b", "--task", "mood", *arguments, code=2).stderr


def test_doctor() -> None:
    text = call("doctor").stdout
    assert "bundle " in text.splitlines()[-1]
    assert re.search(r"^engine +numpy +ready", text, re.MULTILINE)
    (facts,) = lines(call("doctor", "nowhere", "--json"))
    assert {"python", "cpu", "memory", "engines", "extras", "bundle"} <= set(facts)
    assert facts["bundle"]["ready"] is False
    assert "bundle nowhere does not load: no bundle at nowhere" in call("doctor", "nowhere").stdout


def test_usage_errors(models: list[FakeModel]) -> None:
    assert "No such command 'rnu'" in call("rnu", code=2).stderr
    (value,) = lines(call("label", "x", "--json", code=2))
    assert value["error"]["exit_code"] == 2
    assert "--output" in value["error"]["message"]
    assert "--json" not in call("run", "-b", "b", "--task", "none", "--", "--json", code=2).stdout


def test_an_unforeseen_error_keeps_its_traceback(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(fieldrun, "load", broken, raising=False)
    with pytest.raises(ZeroDivisionError, match="a bug"):
        call("run", "-b", "b", "--task", "mood", "x")


@pytest.mark.parametrize(
    ("error", "code"),
    [(KeyboardInterrupt(), 130), (BrokenPipeError(32, "Broken pipe"), 141)],
)
def test_interrupted_and_left_alone(monkeypatch: pytest.MonkeyPatch, error: BaseException, code: int) -> None:
    def ended(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(fieldrun, "load", ended, raising=False)
    result = call("run", "-b", "b", "--task", "mood", "x", code=code)
    assert result.stdout == ""
    assert result.stderr.strip() == ""


def test_a_full_disk_is_said_once(models: list[FakeModel], monkeypatch: pytest.MonkeyPatch) -> None:
    def full() -> None:
        raise StorageError("cannot write to stdout: No space left on device")

    monkeypatch.setattr("fieldrun.cli.run.flush", full)
    result = call("run", "-b", "b", "--task", "mood", "x", code=StorageError.exit_code)
    assert result.stderr == "fieldrun: error: cannot write to stdout: No space left on device\n"


def test_a_terminal_line_is_cut(models: list[FakeModel], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fieldrun.cli.run.terminal_width", lambda: 40)
    (line,) = call("run", "-b", "b", "--task", "mood", "word " * 7).stdout.splitlines()
    assert len(line) <= 40
    assert line.endswith("...")
