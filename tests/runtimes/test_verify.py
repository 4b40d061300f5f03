"""Verification passes on what was exported, fails on what differs, and refuses golden texts that cannot be used."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fieldrun
from fieldrun.errors import BundleError, EngineError, UnknownName, UsageError
from fieldrun.formats.bundle import MANIFEST, Bundle, Network, seal
from fieldrun.formats.storage import read_json, sha256_file, write_json
from fieldrun.formats.tensors import read_tensors, write_tensors


@pytest.fixture
def tamper(toy_bundle: Path, tmp_path: Path) -> Callable[[Callable[[dict[str, Any]], Any]], Path]:
    """A copy of the bundle with changed golden replies whose hash is right."""

    def call(change: Callable[[dict[str, Any]], Any]) -> Path:
        folder = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
        golden = read_json(folder / "golden.json")
        changed = change(golden)
        (folder / "golden.json").write_text(json.dumps(golden if changed is None else changed))
        manifest = read_json(folder / MANIFEST)
        size = (folder / "golden.json").stat().st_size
        manifest["files"]["golden.json"] = {"bytes": size, "sha256": sha256_file(folder / "golden.json")}
        (folder / MANIFEST).write_text(json.dumps(seal(manifest)))
        return folder

    return call


@pytest.mark.parametrize("engine", ["native", "numpy", "onnxruntime", "auto"])
def test_what_was_exported_verifies(toy_bundle: Path, engine: str) -> None:
    report = fieldrun.verify(toy_bundle, engine=engine)
    assert report.passed
    assert report.texts >= 8
    assert report.files == len(list(toy_bundle.iterdir()))
    assert report.skipped == {}
    (found,) = report.engines
    assert found.passed
    assert found.tokens_equal
    assert found.engine == ("native" if engine == "auto" else engine)
    assert found.provider == ("cpu" if engine == "onnxruntime" else None)
    assert max(report.max_abs_field, report.max_abs_scores) <= found.tolerance == 1e-5
    assert found.min_cosine > 0.99999
    assert found.agreement == 1
    assert json.loads(json.dumps(report.to_dict()))["engines"] == [found.to_dict()]


def test_buckets_are_named_only_where_a_graph_was_run(toy_bundle: Path) -> None:
    (native,) = fieldrun.verify(toy_bundle, engine="native").engines
    assert (native.buckets, native.by_bucket) == (0, {})
    (graphs,) = fieldrun.verify(toy_bundle, engine="onnxruntime").engines
    assert len(graphs.by_bucket) == graphs.buckets > 4
    assert max(graphs.by_bucket.values()) <= graphs.max_abs_field


def test_all_replays_what_is_installed_and_says_why_others_are_skipped(
    toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fieldrun_runtimes.verify.find_gpu", lambda: "no GPU here")
    report = fieldrun.verify(toy_bundle, engine="all", threads=2)
    assert report.passed
    assert [entry.engine for entry in report.engines] == ["native", "numpy", "onnxruntime"]
    assert report.max_abs_field == max(entry.max_abs_field for entry in report.engines)
    gpu = ("tensorrt", "tensorrt-rtx", "onnxruntime on cuda", "onnxruntime on cuda-graph")
    assert report.skipped == dict.fromkeys(gpu, "no GPU here")
    assert [entry.threads for entry in report.engines] == [2, 1, 2]
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    report = fieldrun.verify(toy_bundle, engine="all")
    assert [entry.engine for entry in report.engines] == ["native", "numpy"]
    assert "fieldrun[ort]" in report.skipped["onnxruntime"]


def test_all_passes_only_if_every_engine_does(
    tamper: Callable[..., Path], toy_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tamper(change_score)
    report = fieldrun.verify(folder, engine="all")
    assert not report.passed
    assert not any(entry.passed for entry in report.engines)
    monkeypatch.setattr("fieldrun_runtimes.verify._ALL", (("tensorrt", None),))
    with pytest.raises(EngineError, match=r"no engine can run .*toy.*: no NVIDIA driver"):
        fieldrun.verify(toy_bundle, engine="all")
    with pytest.raises(UsageError, match="threads must be a positive integer, not 0"):
        fieldrun.verify(toy_bundle, threads=0)
    with pytest.raises(UsageError, match="tries every provider"):
        fieldrun.verify(toy_bundle, engine="all", provider="cpu")


def test_zeros_do_not_verify(toy_bundle: Path) -> None:
    report = fieldrun.verify(toy_bundle, engine="null")
    assert not report.passed
    assert report.max_abs_field > 0.1
    assert report.engines[0].min_cosine == 0


def test_a_number_that_is_none_is_null_in_json(tamper: Callable[..., Path]) -> None:
    value = fieldrun.verify(tamper(nan_field), engine="onnxruntime").to_dict()
    assert value["max_abs_field"] is None
    assert None in value["engines"][0]["by_bucket"].values()
    json.dumps(value, allow_nan=False)


def change_field(golden: dict[str, Any]) -> None:
    golden["fields"][3][7] += 2e-5


def change_score(golden: dict[str, Any]) -> None:
    golden["scores"]["intent"][-1][2] -= 1e-3


def change_pair_score(golden: dict[str, Any]) -> None:
    golden["scores"]["same"][0].reverse()


def nan_field(golden: dict[str, Any]) -> None:
    golden["fields"][0][0] = float("nan")


def nan_score(golden: dict[str, Any]) -> None:
    golden["scores"]["mood"][0][0] = float("nan")


def no_number(golden: dict[str, Any]) -> None:
    golden["fields"][0][0] = None


def change_ids(golden: dict[str, Any]) -> None:
    golden["ids"][0].append(5)


@pytest.mark.parametrize(
    "change", [change_field, change_score, change_pair_score, nan_field, nan_score, no_number, change_ids]
)
def test_what_differs_does_not_verify(tamper: Callable[..., Path], change: Any) -> None:
    assert not fieldrun.verify(tamper(change), engine="numpy").passed


@pytest.mark.parametrize(
    "change",
    [
        lambda golden: [],
        lambda golden: 3,
        lambda golden: {},
        lambda golden: golden | {"texts": [], "fields": [], "ids": []},
        lambda golden: golden | {"texts": golden["texts"][:-1]},
        lambda golden: golden | {"texts": ["", *golden["texts"][1:]]},
        lambda golden: golden | {"texts": ["rain " * 300, *golden["texts"][1:]]},
        lambda golden: golden | {"fields": [row[:-1] for row in golden["fields"]]},
        lambda golden: golden | {"fields": [row[:1] for row in golden["fields"]]},
        lambda golden: golden | {"fields": [row[: k + 1] for k, row in enumerate(golden["fields"])]},
        lambda golden: golden | {"fields": [[10**400] * 32 for _ in golden["fields"]]},
        lambda golden: golden | {"fields": "none"},
        lambda golden: golden | {"ids": [1] * len(golden["texts"])},
        lambda golden: golden | {"scores": []},
        lambda golden: golden | {"scores": {"mood": golden["scores"]["mood"]}},
        lambda golden: golden | {"scores": golden["scores"] | {"colour": [[1.0]]}},
        lambda golden: golden | {"scores": golden["scores"] | {"mood": [[1.0]]}},
        lambda golden: golden | {"scores": golden["scores"] | {"mood": [[1.0, 0.0, 0.0]]}},
    ],
)
def test_golden_replies_of_another_shape_are_refused(tamper: Callable[..., Path], change: Any) -> None:
    with pytest.raises(BundleError, match=r"golden\.json cannot be used .*export again") as caught:
        fieldrun.verify(tamper(change), engine="numpy")
    assert caught.value.exit_code == 6
    assert "\n" not in str(caught.value)


def test_an_unknown_engine(toy_bundle: Path) -> None:
    with pytest.raises(UnknownName):
        fieldrun.verify(toy_bundle, engine="torch")


def test_a_tokenizer_is_verified_on_every_kind_of_text(toy_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    golden = read_json(folder / "golden.json")
    texts = "".join(golden["tokenizer"]["texts"])
    for kind in ("\u00e9", "\u4e2d", "\U0001f600", "[CLS]", "x" * 100, "\u201c"):
        assert kind in texts
    assert max(map(len, golden["tokenizer"]["ids"])) > 256, "one takes several windows"
    tokenizer = read_json(folder / "tokenizer.json")
    tokenizer["normalizer"]["strip_accents"] = False  # which no other golden text needs
    write_json(folder / "tokenizer.json", tokenizer)
    manifest = read_json(folder / MANIFEST)
    path = folder / "tokenizer.json"
    manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    write_json(folder / MANIFEST, seal(manifest))
    report = fieldrun.verify(folder, engine="numpy")
    assert not report.passed
    assert not report.engines[0].tokens_equal
    assert report.max_abs_field < 1e-3


def test_padding_that_is_not_zero_is_found(toy_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(toy_bundle, tmp_path / "bundle"))
    path = folder / "weights.safetensors"
    tensors = {name: np.array(tensor) for name, tensor in read_tensors(path).items()}
    network = Bundle.load(folder).manifest.network
    assert isinstance(network, Network)
    shifts = network.shifts
    coefs = tensors["rows.coef"].T
    own = next(j for j, coef in enumerate(coefs) if coef[shifts.index(0)] and np.count_nonzero(coef) == 1)
    tensors["table"][tensors["rows.base"][own]] = 1
    path.write_bytes(write_tensors(tensors))
    manifest = read_json(folder / MANIFEST)
    manifest["files"][path.name] = {"bytes": path.stat().st_size, "sha256": sha256_file(path)}
    write_json(folder / MANIFEST, seal(manifest))
    with pytest.raises(BundleError, match="padding is not zero"):
        fieldrun.verify(folder, engine="numpy")


def test_a_loose_tolerance_lets_no_text_pass_for_another(
    tamper: Callable[[Callable[[dict[str, Any]], Any]], Path],
) -> None:
    def exchange(golden: dict[str, Any]) -> None:
        golden["fields"][0], golden["fields"][1] = golden["fields"][1], golden["fields"][0]

    folder = tamper(exchange)
    manifest = read_json(folder / MANIFEST)
    manifest["golden_tolerance"] = 0.99
    write_json(folder / MANIFEST, seal(manifest))
    entry = fieldrun.verify(folder, engine="numpy").engines[0]
    assert not entry.passed
    assert entry.identified < 1


@pytest.mark.parametrize("engine", ["native", "numpy", "onnxruntime"])
def test_no_tolerance_is_wider_than_the_recipe_can_need(
    tamper: Callable[[Callable[[dict[str, Any]], Any]], Path], engine: str
) -> None:
    """A manifest that grants 0.78 does not make fields equal that are off by a tenth of that."""

    def move(golden: dict[str, Any]) -> None:
        for field in golden["fields"]:
            field[0] += 0.078

    folder = tamper(move)
    manifest = read_json(folder / MANIFEST)
    manifest["golden_tolerance"] = 0.78
    write_json(folder / MANIFEST, seal(manifest))
    entry = fieldrun.verify(folder, engine=engine).engines[0]
    assert (entry.passed, entry.identified) == (False, 1)
    largest = np.abs(read_json(folder / "golden.json")["fields"]).max()
    assert entry.tolerance == pytest.approx(1e-3 * largest, rel=1e-6)
