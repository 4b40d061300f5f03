"""The load test of the service finds no wrong and no lost answer, and it would find one."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

import fieldrun
from fieldrun_benchmarks.harness.record import read_record
from studies.serve.measure import expected_answers, main, questions
from tests import toy

pytestmark = pytest.mark.study


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("other")
    toy.toy_checkpoint(seed=1).save(folder / "checkpoint")
    fieldrun.export(folder / "checkpoint", folder / "bundle", recipe="cpu-int8")
    return folder / "bundle"


def test_every_answer_tells_the_bundles_apart(toy_bundle: Path, other: Path) -> None:
    asked = questions([f"a film {word}" for word in toy.WORDS], "intent")
    assert {question.endpoint for question in asked} == {"/predict", "/scores", "/field"}
    answers = [expected_answers(bundle, asked) for bundle in (toy_bundle, other)]
    assert all(a != b for a, b in zip(*answers, strict=True))


def test_no_answer_is_wrong_or_lost(toy_bundle: Path, other: Path, tmp_path: Path) -> None:
    output = tmp_path / "serve.json"
    arguments = [str(toy_bundle), str(other), "--task", "intent", "--seconds", "6", "-o", str(output)]
    CliRunner().invoke(main, arguments, catch_exceptions=False)
    record = read_record(output, "serve")
    assert (record["wrong"], record["lost"], record["stopped_well"]) == (0, 0, True)
    assert len(record["by_bundle"]) == 2
    assert [switch["how"] for switch in record["switches"]] == ["watched", "SIGHUP", "POST /reload"]
    assert record["requests"] == sum(record["by_bundle"].values()) > 100


def test_bundles_that_answer_alike_prove_nothing(toy_bundle: Path, tmp_path: Path) -> None:
    arguments = [str(toy_bundle), str(toy_bundle), "--task", "intent", "-o", str(tmp_path / "serve.json")]
    assert "choose two that differ" in str(CliRunner().invoke(main, arguments).exception)
