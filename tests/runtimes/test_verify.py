"""Verification passes on what was exported, fails on what differs, and refuses golden texts that cannot be used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fieldrun
from fieldrun.errors import BundleError, UnknownName
from fieldrun.formats.bundle import MANIFEST, seal
from fieldrun.formats.storage import read_json, sha256_file


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
    assert report.tokens_equal
    assert report.texts >= 8
    assert report.engine == ("native" if engine == "auto" else engine)
    assert report.files == len(list(toy_bundle.iterdir()))
    assert max(report.max_abs_field, report.max_abs_scores) <= report.tolerance == 1e-5
    assert json.loads(json.dumps(report.to_dict()))["passed"] is True


def test_zeros_do_not_verify(toy_bundle: Path) -> None:
    report = fieldrun.verify(toy_bundle, engine="null")
    assert not report.passed
    assert report.max_abs_field > 0.1


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
