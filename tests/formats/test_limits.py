"""The limits of a bundle: what exceeds them is refused with one line, with little work and memory, by every engine."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fieldrun
from fieldrun.errors import BundleError
from fieldrun.formats import limits
from fieldrun.formats.bundle import MANIFEST, Bundle, seal
from fieldrun.formats.storage import read_bytes, read_json, sha256_file
from fieldrun.formats.tensors import read_tensors, write_tensors
from fieldrun_runtimes.engines.graphs import whole_graph
from fieldrun_runtimes.engines.native_engine import is_compiled

ENGINES = ("numpy", "onnxruntime", *(("native",) if is_compiled() else ()))
Change = Callable[[dict[str, Any]], object]


@pytest.fixture
def folder(toy_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))


def reseal(folder: Path, change: Change = lambda _: None) -> None:
    manifest = read_json(folder / MANIFEST)
    for name in manifest["files"]:
        size = (folder / name).stat().st_size
        manifest["files"][name] = {"bytes": size, "sha256": sha256_file(folder / name)}
    change(manifest)
    (folder / MANIFEST).write_text(json.dumps(seal(manifest)))


def edit(folder: Path, name: str, change: Change) -> None:
    value = read_json(folder / name)
    change(value)
    (folder / name).write_text(json.dumps(value))
    reseal(folder)


def refused(folder: Path) -> str:
    """The message, which every engine gives after work and memory that grow with the manifest, not with its numbers."""
    size = min((folder / MANIFEST).stat().st_size, limits.most_bytes(MANIFEST))
    for engine in ENGINES:
        calls = itertools.count()
        tracemalloc.start()
        sys.setprofile(lambda *_, calls=calls: next(calls) and None)
        try:
            with pytest.raises(BundleError) as caught:
                fieldrun.load(folder, engine=engine).predict_all(["caf\u00e9 [x]"])
        finally:
            sys.setprofile(None)
            peak = tracemalloc.get_traced_memory()[1]
            tracemalloc.stop()
        assert next(calls) < 100_000 + 2 * size
        assert peak < (4 << 20) + 16 * size
        assert str(caught.value).isprintable()
    return str(caught.value)


MANIFESTS: dict[str, Change] = {
    "a long bucket": lambda m: m["buckets"][-1].update(length=1_000_000),
    "a large batch": lambda m: m["buckets"][-1].update(batch=1_000_000),
    "many buckets": lambda m: m.update(buckets=m["buckets"][:1] * 10_000),
    "a wide kernel": lambda m: m["network"].update(mixer_kernel=1_000_000),
    "a vocabulary": lambda m: m["network"].update(vocab_size=1 << 31),
    "a bool": lambda m: m["network"].update(field_dim=True),
    "a far shift": lambda m: m["network"].update(shifts=[0, 10**9]),
    "many shifts": lambda m: m["network"].update(shifts=[0] * 10_000),
    "a name": lambda m: m.update(name="x\x1b[2J"),
    "a label": lambda m: m["tasks"][0].update(labels=["\x1b]0;x\x07", "b"]),
    "a key": lambda m: m["provenance"].update({"\x1b[31m": 1}),
    "a nested licence": lambda m: m["provenance"].update(deep=json.loads("[" * 500 + "]" * 500)),
    "a large integer": lambda m: m["provenance"].update(big=10**30),
    "not a number": lambda m: m["provenance"].update(nan=float("nan")),
    "a text for a number": lambda m: m.update(golden_tolerance="0.001"),
    "a cold temperature": lambda m: m["tasks"][0].update(temperature=1e-300),
}


@pytest.mark.parametrize("change", MANIFESTS.values(), ids=MANIFESTS)
def test_a_manifest_beyond_a_limit(folder: Path, change: Change) -> None:
    reseal(folder, change)
    refused(folder)


def vocab(value: object) -> Change:
    return lambda t: t["model"]["vocab"].update(film=value)


TOKENIZERS: dict[str, Change] = {
    "a far id": vocab(1 << 31),
    "an id beyond the vocabulary": vocab(10_000),
    "a negative id": vocab(-1),
    "a bool as id": vocab(True),
    "no unknown token": lambda t: t["model"]["vocab"].pop("[UNK]"),
    "words without end": lambda t: t["model"].update(max_input_chars_per_word=10**9),
    "a prefix that is a number": lambda t: t["model"].update(continuing_subword_prefix=2),
    "a special token beyond the vocabulary": lambda t: t["post_processor"]["special_tokens"]["[CLS]"].update(
        ids=[1 << 31]
    ),
    "a pre-tokenizer that Rust refuses": lambda t: t.update(pre_tokenizer={"type": "Split"}),
    "no pre-tokenizer of this name": lambda t: t.update(pre_tokenizer={"type": "Nothing"}),
    "a list": lambda t: t.update(model=[]),
}


@pytest.mark.parametrize("change", TOKENIZERS.values(), ids=TOKENIZERS)
def test_a_tokenizer_beyond_a_limit(folder: Path, change: Change) -> None:
    edit(folder, "tokenizer.json", change)
    assert "tokenizer.json" in refused(folder)


@pytest.mark.parametrize("value", [np.nan, np.inf, 1e30])
def test_weights_that_are_no_numbers(folder: Path, value: float) -> None:
    for name in ("output.bias", "table.scale", "hidden.weight_scale"):
        tensors = {key: np.array(tensor) for key, tensor in read_tensors(folder / "weights.safetensors").items()}
        tensors[name].reshape(-1)[0] = value
        (folder / "weights.safetensors").write_bytes(write_tensors(tensors))
        reseal(folder)
        for engine in ENGINES:
            if engine == "onnxruntime" and value == 1e30:
                continue  # it is a number, and the graph's answers are finite
            with pytest.raises(BundleError):
                fieldrun.load(folder, engine=engine).predict_all(["a film"])


@pytest.mark.parametrize("name", [MANIFEST, "golden.json", "weights.safetensors"])
def test_only_regular_files_are_read(folder: Path, name: str) -> None:
    (folder / name).unlink()
    os.mkfifo(folder / name)
    refused(folder)
    (folder / name).unlink()
    (folder / name).symlink_to("/dev/zero")
    refused(folder)
    (folder / name).unlink()
    with (folder / name).open("wb") as file:
        file.truncate(200 << 30)
    refused(folder)
    with pytest.raises(ValueError, match="more than"):
        read_bytes(folder / name, 1000)


@pytest.mark.parametrize("other", [b"../../../etc/passwd", b"golden.json/./././."])
def test_a_graph_names_no_other_file(folder: Path, other: bytes) -> None:
    for path in folder.glob("*.onnx"):
        data = path.read_bytes()
        assert b"weights.safetensors" in data
        path.write_bytes(data.replace(b"weights.safetensors", other))
    reseal(folder)
    with pytest.raises(BundleError, match="is stored in"):
        fieldrun.load(folder, engine="onnxruntime").predict_all(["a film"])
    contents = Bundle.load(folder).contents
    with pytest.raises(BundleError, match="is stored in"):  # for TensorRT
        whole_graph(contents["b1-l8.onnx"], contents["weights.safetensors"], "b1-l8.onnx")


def test_limits_leave_room_for_the_shipped_bundle() -> None:
    manifest = fieldrun.load(engine="null").manifest
    assert 10 * manifest.network.vocab_size < limits.VOCABULARY
    assert 10 * max(bucket.length for bucket in manifest.buckets) < limits.LENGTH
    assert 10 * len(manifest.buckets) < limits.BUCKETS
    for name, entry in manifest.files.items():
        assert 10 * entry.bytes < limits.most_bytes(name)


@pytest.mark.parametrize("depth", [limits.JSON_DEPTH + 1, 500])
def test_deep_json_is_refused_without_recursion(depth: int) -> None:
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    with pytest.raises(BundleError, match="nested deeper"):
        limits.check_json(value, "it")
