"""An export that fails, or is stopped or killed, leaves nothing behind that looks like a bundle."""

from __future__ import annotations

import dataclasses
import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest

import fieldrun
from fieldrun.errors import (
    CheckpointError,
    ExportError,
    FieldrunError,
    InputTextError,
    MissingDependency,
    OutputExists,
    ParityError,
    StorageError,
    UnknownName,
)
from fieldrun.formats.tensors import Array
from fieldrun.student.oracle import head_logits
from fieldrun_exporters import parity, writer
from fieldrun_exporters.student import source as module
from fieldrun_exporters.student.deployed import Deployed
from fieldrun_exporters.student.graph import field_graph
from fieldrun_exporters.student.passes import PassReport
from tests.toy import toy_checkpoint as make_toy


@pytest.fixture
def refused(
    toy_checkpoint: Path, tmp_path: Path, texts: list[str], write_recipe: Callable[..., Path]
) -> Callable[..., str]:
    """Export the toy, expect an error of one line, and see that nothing was written."""

    def call(kind: type[FieldrunError], checkpoint: Path = toy_checkpoint, **changes: Any) -> str:
        place = tmp_path / "place"
        place.mkdir(exist_ok=True)
        arguments = {"calibration": texts} | changes
        if "recipe" not in arguments:
            arguments["recipe"] = write_recipe()
        with pytest.raises(kind) as caught:
            fieldrun.export(checkpoint, place / "out", **arguments)
        assert list(place.iterdir()) == []
        assert "\n" not in str(caught.value)
        return str(caught.value)

    return call


def test_failing_parity_writes_nothing(refused: Callable[..., str], write_recipe: Callable[..., Path]) -> None:
    assert "min_cosine" in refused(ParityError, recipe=write_recipe(min_cosine=1.1))
    assert "max_abs is" in refused(ParityError, recipe=write_recipe(max_abs=1e-9))


def test_a_wrong_graph_is_not_written(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    build = field_graph

    def wrong(deployed: Deployed, *rest: Any) -> onnx.ModelProto:
        model = build(deployed, *rest)
        next(node for node in model.graph.node if node.op_type == "Relu").op_type = "Neg"
        return model

    monkeypatch.setattr(module, "field_graph", wrong)
    assert "nothing was written" in refused(ParityError)


def test_wrong_logits_and_wrong_pair_logits_are_not_written(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def negative(weight: Array, bias: Array, x: Array) -> Array:
        return -head_logits(weight, bias, x)

    monkeypatch.setattr(module, "head_logits", negative)
    assert "min_top1" in refused(ParityError)
    monkeypatch.undo()
    monkeypatch.setattr(parity, "head_logits", negative)
    assert "pair graph of batch 1: min_top1" in refused(ParityError)


def test_a_graph_that_is_not_onnx_is_not_written(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "pair_graph", lambda *_: onnx.ModelProto())
    assert "pair-b1.onnx is not valid ONNX" in refused(ExportError)


def test_a_pass_that_does_nothing_is_not_written(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    nothing = PassReport(name="int8", bytes_before=1, bytes_after=1)
    monkeypatch.setattr(module, "int8", lambda deployed, precision, ranges: (deployed, nothing))
    assert "wants 'table' in int8, but the passes left it in fp32" in refused(ExportError)


def test_a_layer_that_falls_out_of_int8_is_not_written(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(writer, "op_histogram", lambda path: {"MatMul": 4})
    assert "3 products must be int8, but ONNX Runtime runs 0" in refused(ExportError)


def test_wrong_inputs_write_nothing(refused: Callable[..., str], texts: list[str], tmp_path: Path) -> None:
    refused(CheckpointError, checkpoint=tmp_path / "none")
    refused(UnknownName, recipe="cpu-int4")
    for calibration in (texts[:15], [], "one text", 3, [*texts, None], [b"bytes"] * 20, ["a \ud800", *texts]):
        refused(InputTextError, calibration=calibration)
    long = [" ".join(["rain"] * 40) + f" {i}" for i in range(20)]
    assert "give shorter texts" in refused(ParityError, calibration=long)


def test_a_tokenizer_that_cannot_be_used_writes_nothing(refused: Callable[..., str], tmp_path: Path) -> None:
    broken = dataclasses.replace(make_toy(), tokenizer=b'{"model": {"vocab": {"a": 1}}}')
    broken.save(tmp_path / "broken")
    assert "tokenizer.json cannot be used" in refused(CheckpointError, checkpoint=tmp_path / "broken")


def test_onnxruntime_that_is_not_installed_is_named(
    refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    assert "pip install 'fieldrun[ort]'" in refused(MissingDependency)


def test_a_full_disk_leaves_nothing(refused: Callable[..., str], monkeypatch: pytest.MonkeyPatch) -> None:
    calls = iter(range(100))

    def fsync(handle: int) -> None:
        if next(calls) == 6:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", fsync)
    assert "No space left on device" in refused(StorageError)


def test_an_interrupt_leaves_nothing(toy_checkpoint: Path, tmp_path: Path) -> None:
    def stop(phase: str, done: int, total: int) -> None:
        if phase == "parity":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fieldrun.export(toy_checkpoint, tmp_path / "out", progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_is_taken_is_left_alone(toy_checkpoint: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("mine")
    for name in ("link", "folder", "file"):
        with pytest.raises(OutputExists, match="choose another folder"):
            fieldrun.export(toy_checkpoint, tmp_path / name)
    for name in ("file/out", "x" * 300):
        with pytest.raises(StorageError):
            fieldrun.export(toy_checkpoint, tmp_path / name)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["file", "folder", "link"]


def test_killed_in_the_middle_the_next_export_succeeds(
    toy_checkpoint: Path, tmp_path: Path, texts: list[str], write_recipe: Callable[..., Path]
) -> None:
    program = (
        "import os, signal, sys, fieldrun\n"
        "kill = lambda phase, done, total: phase == 'parity' and os.kill(os.getpid(), signal.SIGKILL)\n"
        "fieldrun.export(sys.argv[1], sys.argv[2], recipe=sys.argv[3], calibration=sys.argv[4:], progress=kill)\n"
    )
    place, recipe = tmp_path / "place", write_recipe()
    command = [sys.executable, "-c", program, str(toy_checkpoint), str(place / "out"), str(recipe), *texts]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert all(path.name.startswith(".out.partial-") for path in place.iterdir()), "only a hidden part may remain"
    fieldrun.export(toy_checkpoint, place / "out", recipe=recipe, calibration=texts)
    assert fieldrun.verify(place / "out", engine="numpy").passed


def test_progress_is_reported(
    toy_checkpoint: Path, tmp_path: Path, texts: list[str], write_recipe: Callable[..., Path]
) -> None:
    seen: list[tuple[str, int, int]] = []
    arguments: dict[str, Any] = {"recipe": write_recipe(), "calibration": iter(texts)}
    fieldrun.export(toy_checkpoint, tmp_path / "out", progress=lambda *step: seen.append(step), **arguments)
    assert seen
    assert all(isinstance(phase, str) and 0 <= done <= total for phase, done, total in seen)
