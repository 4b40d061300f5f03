"""The search: what it says of a candidate is what an export makes of it, limits hold, and a killed one goes on."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner

import fieldrun
from fieldrun.cli import main
from fieldrun.errors import ExportError, OutputExists, ParityError, StorageError, UsageError
from fieldrun.evaluation.dataset import Dataset
from fieldrun.formats.bundle import Bundle, Network
from fieldrun.formats.storage import read_json
from fieldrun_exporters.parity import field_errors
from fieldrun_exporters.precision import Precision
from fieldrun_exporters.recipe import Buckets, load_recipe
from fieldrun_exporters.search import compress as module
from fieldrun_exporters.search import shapes as search_shapes
from fieldrun_exporters.search import space as search_space
from fieldrun_exporters.search.compress import search
from fieldrun_exporters.search.front import front_plot
from fieldrun_exporters.search.shapes import device
from fieldrun_exporters.search.space import Space
from fieldrun_exporters.search.state import State, rows_digest
from fieldrun_exporters.student.passes.int8 import int8
from fieldrun_exporters.student.passes.palettize import palettize
from fieldrun_exporters.student.simulate import outputs
from tests.exporters.student.test_drop import rows, sequences
from tests.exporters.student.test_passes import FOLDED
from tests.toy import toy_checkpoint as make_toy

__all__ = ["rows"]


def small_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("_CHILDREN", 4), ("_GENERATIONS", 3)):
        monkeypatch.setattr(module, name, value)
    buckets = Buckets(batches=(1, 4), lengths=(8, 16, 64))
    monkeypatch.setattr(module, "load_recipe", lambda name: dataclasses.replace(load_recipe(name), buckets=buckets))


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    small_steps(monkeypatch)


def space(tmp_path: Path, index: int = 0) -> Any:
    return Space(FOLDED[index], sequences(4), tmp_path, lambda *_: None, None)


def built(index: int, rules: dict[str, str]) -> Any:
    precision, deployed = Precision(rules), FOLDED[index]
    wanted = precision.wants(rules)
    if "int8" in wanted:
        deployed, _ = int8(deployed, precision, {})
    return palettize(deployed, FOLDED[index], precision)[0] if "palettize" in wanted else deployed


@pytest.mark.parametrize("index", [0, 1, 3])
def test_a_candidate_is_what_the_passes_make(tmp_path: Path, index: int) -> None:
    found, rng = space(tmp_path, index), np.random.default_rng(index)
    ids, dim = sequences(4), FOLDED[index].network.field_dim
    expected = outputs(FOLDED[index], ids)[:, :dim]
    for _ in range(4):
        levels = tuple(int(rng.integers(len(found.levels[part]))) for part in found.parts)
        rules = found.rules(levels)
        deployed = built(index, rules)
        assert found.size(levels) == deployed.nbytes(), rules
        error = 1 - field_errors(expected, outputs(deployed, ids)[:, :dim])["mean_cosine"]
        assert found.error(levels) == pytest.approx(error, abs=2e-4), rules
        judged = found.deployed(levels)
        assert judged.tensors.keys() >= {name for name in deployed.tensors if name != "pairs.weight_scale"}
        np.testing.assert_allclose(outputs(judged, ids), outputs(deployed, ids), atol=0.05)


def test_the_front_is_one(tmp_path: Path) -> None:
    found = space(tmp_path)
    front, seen = module._evolve(found, State(tmp_path, {"test": 0}), 0, lambda *_: None)
    sizes, errors = [found.size(levels) for levels in front], [seen[levels] for levels in front]
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    assert len(set(sizes)) == len(sizes)
    uniform = found.uniform()
    for levels in uniform:  # none is smaller and nearer than every point of the front
        assert any(found.size(a) <= found.size(levels) and seen[a] <= found.error(levels) + 1e-9 for a in front)
    tables, dense = (
        {len(found.levels[p]) for p in found.parts if (p in FOLDED[0].blocks) is kind} for kind in (True, False)
    )
    assert len(uniform) == len(set(uniform)) == tables.pop() * dense.pop()
    for levels in uniform:
        rules = found.rules(levels)
        assert len({rules[part] for part in FOLDED[0].blocks}) == 1
    for levels in found.uniform(dense=0):
        assert {found.rules(levels)[part] for part in found.parts if part not in FOLDED[0].blocks} == {"int8-weights"}


@pytest.fixture
def small(tmp_path: Path) -> Path:
    """A toy whose rows are long enough for codes to take fewer bytes than int8 does, codebooks and all."""
    path = tmp_path / "checkpoint"
    make_toy(3, width=64, ngram_buckets=127).save(path)
    return path


def test_limits_hold_and_the_recipe_makes_the_bundle_again(
    small: Path, tmp_path: Path, rows: dict[str, Dataset]
) -> None:
    data, work = {"mood": rows["mood"]}, tmp_path / "work"
    smallest = search(small, tmp_path / "smallest", data=data, max_drop=100, work=work)
    assert smallest.chosen == 0
    assert smallest.front[0]["accuracy"]["mean_drop"] <= 100
    limit = (smallest.front[0]["bytes"] + smallest.front[-1]["bytes"]) // 2
    report = search(small, tmp_path / "out", data=data, max_bytes=limit, work=work)
    assert 0 < report.chosen < len(report.front) - 1
    blocks = {part for part in report.front[0]["precision"] if part.startswith(("offset", "ngrams"))}
    levels = [{point["precision"][block] for block in blocks} for point in (report.front[0], report.front[-1])]
    assert levels[0] <= {"palette256x8", "palette256x4"}
    assert levels[1] == {"int8"}
    for each in (smallest, report):
        point = each.front[each.chosen]
        assert each.bytes <= point["bytes"]
        weights = (each.path / "weights.safetensors").stat().st_size
        assert point["weights_bytes"] < weights < point["weights_bytes"] + 8192
    assert smallest.front[0]["weights_bytes"] < report.front[report.chosen]["weights_bytes"]
    assert report.bytes <= limit
    bundle = Bundle.load(report.path)
    assert bundle.total_bytes() == report.bytes
    assert fieldrun.verify(report.path).passed
    again = fieldrun.export(small, tmp_path / "again", recipe=report.recipe, data=data)
    assert Bundle.load(again.path).manifest.files == bundle.manifest.files
    for point in report.uniform:  # each judged, and none nearer than the front at its size
        assert point["accuracy"].keys() >= {"mean_drop", "ci95"}
        assert any(p["bytes"] <= point["bytes"] and p["field_error"] <= point["field_error"] for p in report.front)
    stored = read_json(tmp_path / "out" / "search.json")
    assert stored["front"] == json.loads(json.dumps(report.to_dict()["front"]))
    assert "accuracy" in report.front[report.chosen]


def test_the_bundle_says_what_it_costs_and_its_recipe_holds_it_to_that(
    small: Path, tmp_path: Path, rows: dict[str, Dataset]
) -> None:
    data = {name: rows[name] for name in ("mood", "same")}
    report = search(small, tmp_path / "out", data=data, max_bytes=10**9)
    stored = read_json(report.path / "report.json")
    assert list(stored["proof"]["accuracy"]["tasks"]) == ["mood", "same"]
    assert stored["proof"]["accuracy"] == json.loads(json.dumps(report.front[report.chosen]["accuracy"]))
    gate = load_recipe(report.recipe).parity
    worst = min(bucket["min_cosine"] for bucket in stored["parity"])
    assert 1 - worst < 1 - gate.min_cosine < 1.6 * (1 - worst) + 2e-4
    farthest = max(bucket["max_abs"] for bucket in stored["parity"])
    assert farthest < gate.max_abs < 1.6 * farthest
    agreement = [each["top1_agreement"] for each in stored["parity"] + stored["pair_parity"]]
    assert 0.5 <= gate.min_top1 < min(agreement), "one label of a bucket with one text and two tasks may differ"
    rough = tmp_path / "rough.toml"
    text = report.recipe.read_text().replace('"ngrams" = "int8"', '"ngrams" = "palette2"')
    assert text != report.recipe.read_text()
    rough.write_text(text if "palettize" in text else text.replace('"int8"]', '"int8", "palettize"]'))
    with pytest.raises(ParityError, match="the recipe's limit is"):
        fieldrun.export(small, tmp_path / "again", recipe=rough)


def named(rows: Dataset, labels: tuple[str, ...]) -> Dataset:
    """Rows of no file."""
    return Dataset(path=Path("rows"), kind=rows.kind, texts=rows.texts, labels=labels)


def test_other_rows_are_judged_anew(
    small: Path, tmp_path: Path, rows: dict[str, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    right = rows["mood"]
    wrong = tuple({"good": "bad", "bad": "good"}[label] for label in right.labels)
    work = tmp_path / "work"
    sets = [{"mood": named(right, right.labels)}, {"mood": named(right, wrong)}]
    found = [search(small, tmp_path / f"out{i}", data=each, max_drop=100, work=work) for i, each in enumerate(sets)]
    one, other = (each.front[0]["accuracy"]["tasks"]["mood"] for each in found)
    assert one["fp32"] + other["fp32"] == pytest.approx(1)
    assert one["accuracy"] + other["accuracy"] == pytest.approx(1)
    monkeypatch.setattr(module, "accuracy_drop", lambda *_: pytest.fail("the same rows are judged again"))
    search(small, tmp_path / "again", data=sets[1], max_drop=100, work=work)


def test_the_digest_of_rows_is_of_tasks_texts_and_labels(rows: dict[str, Dataset]) -> None:
    mood = rows["mood"]
    sets = [
        {"mood": mood},
        {"intent": mood},
        {"mood": named(mood, mood.labels)},
        {"mood": named(mood, ("another", *mood.labels[1:]))},
        {"mood": mood, "same": rows["same"]},
    ]
    assert len({rows_digest(each) for each in sets}) == len(sets)
    assert rows_digest(dict(reversed(list(sets[-1].items())))) == rows_digest(sets[-1])


def test_a_killed_search_goes_on(
    small: Path, tmp_path: Path, rows: dict[str, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = search(small, tmp_path / "whole", data=rows, max_bytes=10**9)

    class Killed(Exception):
        pass

    def killer(phase: str, done: int, total: int) -> None:
        if phase == "search" and done >= total // 2:
            raise Killed

    with pytest.raises(Killed):
        search(small, tmp_path / "out", data=rows, max_bytes=10**9, progress=killer)
    assert not (tmp_path / "out").exists()
    for name in ("cluster", "cluster_block"):
        monkeypatch.setattr(search_space, name, lambda *_: pytest.fail("what was clustered is clustered again"))
    (folder,) = (tmp_path / "out.work").iterdir()
    done = len(read_json(folder / "state.json")["values"])
    assert done >= 2
    monkeypatch.undo()
    small_steps(monkeypatch)
    found = search(small, tmp_path / "out", data=rows, max_bytes=10**9)
    assert found.front == whole.front
    assert found.chosen == whole.chosen
    other = tmp_path / "out.work" / "model.safetensors"
    other.write_bytes(b"somebody else's")
    again = search(small, tmp_path / "new", data=rows, max_bytes=10**9, work=tmp_path / "out.work", seed=1)
    assert other.read_bytes() == b"somebody else's"
    assert again.front[-1]["weights_bytes"] > 0


def by_width(bundle: Path, texts: Any) -> float:
    """A device on which a text takes as many microseconds as a position has features."""
    assert len(texts) > 1
    return float(width(bundle))


class Timed(Exception):
    pass


def never(bundle: Path, texts: Any) -> float:
    raise Timed


def width(bundle: Path) -> int:
    network = Bundle.load(bundle).manifest.network
    assert isinstance(network, Network)
    return network.width


def test_a_limit_of_latency_takes_the_largest_shape_that_keeps_to_it(
    small: Path, tmp_path: Path, rows: dict[str, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    report = search(small, tmp_path / "out", data=rows, max_latency_us=50.0, timer=by_width)
    widths = [shape["width"] for shape in report.shapes]
    assert [shape["latency_us"] for shape in report.shapes] == widths == sorted(widths, reverse=True)
    assert width(report.path) == max(shape["width"] for shape in report.shapes if shape["width"] <= 50)
    assert report.chosen == len(report.front) - 1, "without a limit of size nothing is saved on bytes"
    assert report.shapes[0]["field_error"] == pytest.approx(0, abs=1e-6)
    assert report.shapes[-1]["field_error"] > 0
    again = fieldrun.export(small, tmp_path / "again", recipe=report.recipe, data=rows)
    assert Bundle.load(again.path).manifest.files == Bundle.load(report.path).manifest.files
    svg = (tmp_path / "out" / "front.svg").read_text()
    shown = sum("accuracy" in p for p in report.front) + len(report.shapes) + len(report.uniform)
    assert svg.count("<circle") == shown
    here = search(small, tmp_path / "here", data=rows, max_latency_us=50.0, timer=never, work=tmp_path / "out.work")
    assert here.shapes == report.shapes, "what was timed on this machine is kept"
    monkeypatch.setattr(search_shapes, "device", lambda: "another machine")
    with pytest.raises(Timed):
        search(small, tmp_path / "there", data=rows, max_latency_us=50.0, timer=never, work=tmp_path / "out.work")
    with pytest.raises(ExportError, match=r"no shape is that fast here: the smallest takes 32\.0 us"):
        search(small, tmp_path / "no", data=rows, max_latency_us=1, timer=by_width)
    with pytest.raises(UsageError, match="needs a timer"):
        search(small, tmp_path / "no", data=rows, max_latency_us=1)


def test_the_plot_shows_what_was_judged() -> None:
    accuracy = {"mean_drop": 0.5, "ci95": [0.1, 0.9]}
    points: list[dict[str, Any]] = [{"bytes": 8e6, "accuracy": accuracy}, {"bytes": 9e6}, {"bytes": 16e6}]
    points[2]["accuracy"] = accuracy
    text = front_plot(points, 2, [])
    root = ElementTree.fromstring(text)
    circles = root.findall("{http://www.w3.org/2000/svg}circle")
    assert [c.get("class") for c in circles] == ["dot", "chosen"]
    assert float(circles[0].get("cx", "0")) < float(circles[1].get("cx", "0"))
    assert "orange" in root.get("aria-label", "")
    assert front_plot(points, 2, []) == text
    one = front_plot([points[0]], 0, [{"latency_us": 20.0, "accuracy": accuracy}])
    assert one.count("<circle") == 2
    ringed = front_plot(points, 2, [], [points[0] | {"bytes": 12e6}])
    assert ringed.count('<circle class="uniform"') == 1
    assert "rings" in ringed


@pytest.mark.parametrize(
    ("limits", "error", "message"),
    [
        ({}, UsageError, "needs a limit"),
        ({"max_bytes": 0}, UsageError, "must be positive"),
        ({"max_drop": float("nan")}, UsageError, "from 0 on"),
        ({"max_bytes": 100_000}, ExportError, "no candidate fits 100,000 bytes: the smallest has"),
        ({"max_bytes": 200}, ExportError, "no candidate fits 200 bytes: at a bit a number the student alone has"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(
    small: Path, tmp_path: Path, rows: dict[str, Dataset], limits: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        search(small, tmp_path / "out", data=rows, **limits)
    assert not (tmp_path / "out").exists()


def test_an_impossible_drop_says_how_near_it_comes(
    small: Path, tmp_path: Path, rows: dict[str, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {"tasks": {}, "mean_drop": 7.5, "ci95": [7.0, 8.0]}
    monkeypatch.setattr(module, "accuracy_drop", lambda *_: bad)
    with pytest.raises(ExportError, match=r"no candidate keeps to 0.5 points: the best one costs 7.50"):
        search(small, tmp_path / "out", data=rows, max_drop=0.5)
    with pytest.raises(UsageError, match="give data"):
        search(small, tmp_path / "out", data={}, max_drop=0.5)
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputExists):
        search(small, tmp_path / "taken", data=rows, max_drop=0.5)


def test_a_work_folder_that_cannot_be_used_is_refused(small: Path, tmp_path: Path, rows: dict[str, Dataset]) -> None:
    (tmp_path / "file").write_text("mine")
    for work in (tmp_path / "file", tmp_path / "file" / "work"):
        with pytest.raises(StorageError, match=r"cannot make the work folder .*Not a directory; choose another"):
            search(small, tmp_path / "out", data=rows, max_drop=1, work=work)
    for out in (tmp_path / "file" / "out", tmp_path / ("x" * 300)):
        with pytest.raises(StorageError, match="cannot make the work folder"):
            search(small, out, data=rows, max_drop=1)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"identity": {"test": 0}, "values": 3}', '{"values": {}}'])
def test_a_damaged_state_is_named(tmp_path: Path, text: str) -> None:
    state = State(tmp_path, {"test": 0})
    state.put("one", 1)
    assert State(tmp_path, {"test": 0}).values == {"one": 1}
    (state.work / "state.json").write_text(text)
    with pytest.raises(ExportError, match=r"search-\w+ is damaged: .*; delete it and search again") as caught:
        State(tmp_path, {"test": 0})
    assert "\n" not in str(caught.value)
    assert State(tmp_path, {"test": 1}).values == {}


def test_the_device_is_named() -> None:
    assert device() == device()
    assert device().count(",") >= 1


def test_the_command(small: Path, tmp_path: Path, rows: dict[str, Dataset]) -> None:
    runner, data = CliRunner(), ["--data", f"mood={rows['mood'].path}"]
    start = ["search", str(small), *data]
    result = runner.invoke(main, [*start, "--max-size", "1.5MB", "-o", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    assert "points of size against field error" in result.output
    assert "<- chosen" in result.output
    json_result = runner.invoke(
        main, [*start, "--max-drop", "99", "--json", "-o", str(tmp_path / "two"), "--work", str(tmp_path / "out.work")]
    )
    assert json.loads(json_result.stdout)["chosen"] == 0
    assert json_result.stderr.startswith("fieldrun: warning: the table is packed")
    assert len(json.loads(json_result.stdout)["warnings"]) == 1
    for wrong, message in (
        ([], "needs a limit"),
        (["--max-size", "small"], "is not a size; write 10MB"),
        (["--max-size", "9" * 400], "999...' is not a size; write 10MB"),
        (["--max-size", "9" * 400 + "GB"], "is not a size; write 10MB"),
    ):
        result = runner.invoke(main, [*start, *wrong, "-o", str(tmp_path / "three")])
        assert result.exit_code == 2
        assert message in result.output
