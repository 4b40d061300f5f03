"""The command line over a real, tiny bundle: each answer is the Python answer, each ending is clean."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np
import pytest
from click.testing import CliRunner, Result

import fieldrun
from fieldrun.cli import main
from fieldrun.errors import IntegrityError, StorageError
from fieldrun.formats.bundle import Bundle, TaskSpec, seal
from fieldrun.formats.storage import sha256_file
from fieldrun_benchmarks.harness.record import read_record

TEXTS = ["a film to remember", "nothing works", "who wrote it ?"]
PAIRS = [("it rains", "it is wet"), ("a", "b")]
PROGRAM = [sys.executable, "-m", "fieldrun"]


@pytest.fixture
def single(toy_bundle: Path) -> TaskSpec:
    return next(task for task in Bundle.load(toy_bundle).manifest.tasks if task.kind == "single")


@pytest.fixture
def pair(toy_bundle: Path) -> TaskSpec:
    return next(task for task in Bundle.load(toy_bundle).manifest.tasks if task.kind == "pair")


def call(*arguments: str | Path, stdin: str | None = None, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments], input=stdin, catch_exceptions=False)
    assert result.exit_code == code, (result.stdout, result.stderr)
    return result


def lines(result: Result) -> list[dict[str, Any]]:
    return [json.loads(line) for line in result.stdout.splitlines()]


def test_run_gives_the_scores_of_the_model(toy_bundle: Path, single: TaskSpec) -> None:
    with fieldrun.load(toy_bundle, engine="numpy") as model:
        expected, labels = model.predict_proba(TEXTS, single.name), model.predict(TEXTS, single.name)
    arguments = ("run", "-b", toy_bundle, "--task", single.name, "--engine", "numpy", "--json")
    answers = lines(call(*arguments, *TEXTS))
    assert [answer["text"] for answer in answers] == TEXTS
    assert [answer["label"] for answer in answers] == labels
    assert all(answer["dropped"] == 0 and answer["tokens"] >= 2 for answer in answers)
    scores = [[answer["scores"][label] for label in single.labels] for answer in answers]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)
    for line, answer in zip(lines(call(*arguments, stdin="\n".join(TEXTS))), answers, strict=True):
        assert line.pop("scores") == pytest.approx(answer.pop("scores"), abs=1e-5)
        assert line == answer


def test_run_gives_the_scores_of_pairs(toy_bundle: Path, pair: TaskSpec) -> None:
    with fieldrun.load(toy_bundle, engine="numpy") as model:
        expected = model.predict_proba(PAIRS, pair.name)
    stdin = "".join(f"{a}\t{b}\n" for a, b in PAIRS)
    answers = lines(call("run", "-b", toy_bundle, "--task", pair.name, "--engine", "numpy", "--json", stdin=stdin))
    assert [tuple(answer["text"]) for answer in answers] == PAIRS
    scores = [[answer["scores"][label] for label in pair.labels] for answer in answers]
    np.testing.assert_allclose(scores, expected, rtol=0, atol=1e-5)


def test_run_without_a_task_answers_every_single_task(toy_bundle: Path) -> None:
    names = [task.name for task in Bundle.load(toy_bundle).manifest.tasks if task.kind == "single"]
    answers = lines(call("run", "-b", toy_bundle, "--json", TEXTS[0]))
    assert [answer["task"] for answer in answers] == names


def test_a_long_text_is_counted_or_refused(toy_bundle: Path, single: TaskSpec) -> None:
    long = "word " * 5000
    arguments = ("run", "-b", toy_bundle, "--task", single.name, "--json", long)
    result = call(*arguments)
    assert lines(result)[0]["dropped"] > 0
    assert "1 of 1 texts were too long" in result.stderr
    assert "text 1 has " in call(*arguments, "--overflow", "error", code=10).stderr
    windowed = call(*arguments, "--overflow", "window")
    assert (lines(windowed)[0]["dropped"], windowed.stderr) == (0, "")


def test_field_is_the_field_of_the_model(toy_bundle: Path, tmp_path: Path) -> None:
    call("field", "-b", toy_bundle, "--engine", "numpy", "-o", tmp_path / "fields.npy", *TEXTS)
    with fieldrun.load(toy_bundle, engine="numpy") as model:
        np.testing.assert_allclose(np.load(tmp_path / "fields.npy"), model.field(TEXTS), rtol=0, atol=1e-5)
    refused = call("field", "-b", toy_bundle, "-o", tmp_path / "x", "--dim", "33", "x", code=2)
    assert "dim must be a whole number from 1 to 32" in refused.stderr


def test_eval_of_the_models_own_answers_is_perfect(
    toy_bundle: Path, single: TaskSpec, pair: TaskSpec, tmp_path: Path
) -> None:
    with fieldrun.load(toy_bundle) as model:
        labels, pair_labels = model.predict(TEXTS, single.name), model.predict(PAIRS, pair.name)
    records = "".join(f"{text}\t{label}\n" for text, label in zip(TEXTS, labels, strict=True))
    (tmp_path / "single.tsv").write_text(f"text\tlabel\n{records}")
    records = "".join(f"{a}\t{b}\t{label}\n" for (a, b), label in zip(PAIRS, pair_labels, strict=True))
    (tmp_path / "pair.tsv").write_text(f"text_a\ttext_b\tlabel\n{records}")
    for task, name, n in ((single, "single.tsv", 3), (pair, "pair.tsv", 2)):
        (value,) = lines(call("eval", toy_bundle, "--task", task.name, "--data", tmp_path / name, "--json"))
        assert (value["n"], value["accuracy"], value["macro_f1"]) == (n, 1.0, 1.0)
        assert value["data_sha256"] == sha256_file(tmp_path / name)
        assert value["confusion"]["labels"] == list(task.labels)


def test_info_and_tasks(toy_bundle: Path) -> None:
    manifest = Bundle.load(toy_bundle).manifest
    (value,) = lines(call("info", toy_bundle, "--json"))
    assert {"path", "bytes", "parameters", "recipe", "buckets", "tasks", "hashes", "licence", "name"} <= set(value)
    assert value["bytes"] == sum(path.stat().st_size for path in toy_bundle.iterdir())
    assert value["hashes"] == {name: sha256_file(toy_bundle / name) for name in manifest.files}
    assert list(value["tasks"]) == [task.name for task in manifest.tasks]
    text = call("info", toy_bundle).stdout
    assert manifest.name in text
    assert "the sha256 of every file matches the manifest" in text
    (value,) = lines(call("tasks", toy_bundle, "--json"))
    assert [task["labels"] for task in value["tasks"]] == [list(task.labels) for task in manifest.tasks]
    assert all(task.name in call("tasks", toy_bundle).stdout for task in manifest.tasks)


def test_verify_passes(toy_bundle: Path) -> None:
    assert lines(call("verify", toy_bundle, "--engine", "numpy", "--json"))[0]
    assert call("verify", toy_bundle, "--engine", "numpy").stdout


def test_verify_writes_a_record_with_what_the_machine_is(toy_bundle: Path, tmp_path: Path) -> None:
    folder = tmp_path / "new" / "records"
    result = call("verify", toy_bundle, "--engine", "numpy", "--record", folder, "--json")
    (path,) = folder.iterdir()
    assert path.name == "verify-toy-cpu-int8-numpy.json"
    assert str(path) in result.stderr
    record, (report,) = read_record(path, "verify"), lines(result)
    (entry,) = report["engines"]
    assert {key: record[key] for key in entry} == entry
    assert (record["texts"], record["files"]) == (report["texts"], report["files"])
    assert record["sha256"] == json.loads((toy_bundle / "manifest.json").read_text())["sha256"]
    assert str(tmp_path) not in path.read_text()
    machine = record["conditions"]["machine"]
    assert {"device", "board", "nvidia", "container", "cpu", "memory", "python"} <= set(machine)
    assert machine["packages"]["numpy"] == record["engine_version"] == np.__version__
    manifest = json.loads((toy_bundle / "manifest.json").read_text())
    assert record["files_sha256"] == {name: entry["sha256"] for name, entry in manifest["files"].items()}
    assert (record["by_bucket"], record["buckets"]) == ({}, 0)
    assert record["max_abs_field"] <= record["tolerance"]


def test_records_of_two_engines_providers_and_recipes_lie_side_by_side(toy_bundle: Path, tmp_path: Path) -> None:
    call("verify", toy_bundle, "--engine", "all", "--record", tmp_path)
    call("verify", toy_bundle, "--provider", "cpu", "--record", tmp_path)  # the default by its name: the same record
    names = [f"verify-toy-cpu-int8-{way}.json" for way in ("native", "numpy", "onnxruntime-cpu")]
    assert sorted(path.name for path in tmp_path.iterdir()) == names
    record = read_record(tmp_path / names[2], "verify")
    assert (record["engine"], record["provider"]) == ("onnxruntime", "cpu")
    assert set(record["by_bucket"]) <= {f"{b.batch}x{b.length}" for b in Bundle.load(toy_bundle).manifest.buckets}
    assert len(record["by_bucket"]) == record["buckets"] > 0
    assert max(record["by_bucket"].values()) <= record["max_abs_field"] <= record["tolerance"]
    assert record["command"].endswith("--engine onnxruntime --provider cpu")


def test_a_record_of_a_bundle_that_differs_says_so(toy_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    golden = json.loads((folder / "golden.json").read_text())
    golden["fields"][0][0] += 1
    (folder / "golden.json").write_text(json.dumps(golden))
    manifest = json.loads((folder / "manifest.json").read_text())
    size = (folder / "golden.json").stat().st_size
    manifest["files"]["golden.json"] = {"bytes": size, "sha256": sha256_file(folder / "golden.json")}
    (folder / "manifest.json").write_text(json.dumps(seal(manifest)))
    call("verify", folder, "--engine", "numpy", "--record", tmp_path / "records", code=8)
    record = read_record(tmp_path / "records" / "verify-toy-cpu-int8-numpy.json", "verify")
    assert record["passed"] is False
    assert record["max_abs_field"] > 0.5


def test_a_record_s_folder_is_made_before_the_work(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    result = call("verify", tmp_path / "nowhere", "--record", tmp_path / "file", code=StorageError.exit_code)
    assert "cannot make the folder" in result.stderr


def test_doctor_loads_the_bundle(toy_bundle: Path, tmp_path: Path) -> None:
    assert lines(call("doctor", toy_bundle, "--json"))[0]["bundle"]["ready"] is True
    (facts,) = lines(call("doctor", tmp_path / "nowhere", "--json"))
    assert facts["bundle"]["ready"] is False
    assert "nowhere" in facts["bundle"]["reason"]


@pytest.mark.parametrize("command", ["run", "info", "tasks", "verify"])
def test_a_changed_bundle_is_refused(toy_bundle: Path, tmp_path: Path, single: TaskSpec, command: str) -> None:
    copy = shutil.copytree(toy_bundle, tmp_path / "copy")
    data = bytearray((copy / "weights.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "weights.safetensors").write_bytes(data)
    more = ("x", "-b", copy) if command == "run" else (copy,)
    result = call(command, *more, "--json", code=IntegrityError.exit_code)
    assert result.stderr.count("\n") == 1
    assert lines(result)[0]["error"]["type"] == "IntegrityError"


def test_export_makes_a_bundle_once(toy_checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    assert lines(call("export", toy_checkpoint, "--recipe", "cpu-fp32", "-o", out, "--json"))[0]
    Bundle.load(out)
    before = sha256_file(out / "manifest.json")
    assert "exists" in call("export", toy_checkpoint, "-o", out, code=2).stderr
    assert sha256_file(out / "manifest.json") == before
    assert "cpu-fp32" in call("export", toy_checkpoint, "--recipe", "none", "-o", tmp_path / "x", code=2).stderr
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.fixture
def stream(toy_bundle: Path, single: TaskSpec) -> Iterator[subprocess.Popen[bytes]]:
    """A `fieldrun run` process that reads lines."""
    command = [*PROGRAM, "run", "-b", str(toy_bundle), "--task", single.name, "--json"]
    pipe = subprocess.PIPE
    # a suite that a shell runs in the background ignores Ctrl-C, and its children would inherit that
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, env=os.environ | {"CI": ""}) as process:
        signal.signal(signal.SIGINT, before)
        try:
            yield process
        finally:
            process.kill()


def _pipes(process: subprocess.Popen[bytes]) -> tuple[IO[bytes], IO[bytes], IO[bytes]]:
    assert process.stdin is not None
    assert process.stdout is not None
    assert process.stderr is not None
    return process.stdin, process.stdout, process.stderr


def test_a_line_is_answered_while_the_pipe_stays_open(stream: subprocess.Popen[bytes]) -> None:
    stdin, stdout, stderr = _pipes(stream)
    for text in TEXTS:
        stdin.write(text.encode() + b"\n")
        stdin.flush()
        assert json.loads(stdout.readline())["text"] == text
    stdin.close()
    assert stdout.read() == b""
    assert stderr.read() == b""
    assert stream.wait(timeout=30) == 0


def test_a_reader_that_leaves_is_no_error(stream: subprocess.Popen[bytes]) -> None:
    stdin, stdout, stderr = _pipes(stream)
    stdin.write(b"one\n")
    stdin.flush()
    assert stdout.readline()
    stdout.close()
    stdin.write(b"two\n")
    stdin.close()
    assert stderr.read() == b""
    assert stream.wait(timeout=30) == 141


def test_control_c_ends_quietly(stream: subprocess.Popen[bytes]) -> None:
    stdin, stdout, stderr = _pipes(stream)
    stdin.write(b"one\n")
    stdin.flush()
    assert stdout.readline()
    stream.send_signal(signal.SIGINT)
    assert stderr.read().strip() == b""
    assert stream.wait(timeout=30) == 130


def _run(
    *arguments: str | Path, code: int = 0, stdout: int | IO[bytes] = subprocess.PIPE, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[bytes]:
    command = [*PROGRAM, *map(str, arguments)]
    result = subprocess.run(command, stdout=stdout, stderr=subprocess.PIPE, env=env, timeout=60, check=False)
    assert result.returncode == code, (result.stdout, result.stderr)
    return result


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_full_disk_is_one_line(toy_bundle: Path, single: TaskSpec) -> None:
    with Path("/dev/full").open("wb") as full:
        result = _run("run", "-b", toy_bundle, "--task", single.name, "x", stdout=full, code=StorageError.exit_code)
    message = b"cannot write to stdout: No space left on device; free space or choose another place"
    assert result.stderr == b"fieldrun: error: " + message + b"\n"


def test_undecodable_arguments_and_narrow_terminals(toy_bundle: Path, single: TaskSpec) -> None:
    narrow = os.environ | {"PYTHONIOENCODING": "ascii"}
    result = _run("run", "-b", toy_bundle, "--task", single.name, "na\u00efve \U0001f600", env=narrow)
    assert result.stdout.rstrip().endswith(rb"na\xefve \U0001f600")
    result = _run("run", "-b", toy_bundle, "--task", single.name, os.fsdecode(b"na\xefve"), env=narrow, code=2)
    assert result.stderr.startswith(b"fieldrun: error: text 1 holds a lone surrogate")
    assert result.stderr.count(b"\n") == 1


def test_run_starts_with_nothing_it_does_not_need(toy_bundle: Path, single: TaskSpec) -> None:
    heavy = (
        "rich",
        "torch",
        "transformers",
        "onnx",
        "fieldrun_exporters",
        "fieldrun.distill",
        "fieldrun.evaluation.metrics",
    )
    arguments = ["run", "-b", str(toy_bundle), "--engine", "numpy", "--task", single.name, "x", "--json"]
    script = (
        "import sys\nfrom fieldrun.cli import main\n"
        f"try: main({arguments})\n"
        f"except SystemExit as end: print(end.code, [name for name in {heavy} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, check=True, text=True)
    assert result.stdout.splitlines()[-1] == "0 []"
