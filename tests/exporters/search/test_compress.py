"""Compress: a candidate is what an export makes of it, limits hold, and a run that was killed continues."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest

import fieldrun
from fieldrun.errors import ExportError, OutputExists, ParityError, StorageError, UsageError
from fieldrun.evaluation.dataset import Dataset
from fieldrun.formats.bundle import Bundle, Network
from fieldrun.formats.progress import Progress
from fieldrun.formats.storage import read_json
from fieldrun.heads.trained import Checkpoint
from fieldrun_exporters.calibrate import tokenize
from fieldrun_exporters.parity import field_errors
from fieldrun_exporters.precision import Precision
from fieldrun_exporters.recipe import Buckets, load_recipe
from fieldrun_exporters.search import compress as module
from fieldrun_exporters.search import inputs as search_inputs
from fieldrun_exporters.search import shapes as search_shapes
from fieldrun_exporters.search import space as search_space
from fieldrun_exporters.search.compress import CompressReport, compress
from fieldrun_exporters.search.evolve import evolve
from fieldrun_exporters.search.front import front_plot
from fieldrun_exporters.search.shapes import device
from fieldrun_exporters.search.space import Levels, Space
from fieldrun_exporters.search.state import State, rows_digest
from fieldrun_exporters.student.deployed import Deployed
from fieldrun_exporters.student.passes.fold import fold
from fieldrun_exporters.student.passes.int8 import int8
from fieldrun_exporters.student.passes.palettize import palettize
from fieldrun_exporters.student.simulate import outputs
from tests.exporters.student.test_drop import sequences
from tests.exporters.student.test_passes import FOLDED
from tests.portable import unportable
from tests.toy import WORDS
from tests.toy import toy_checkpoint as make_toy

Run = Callable[..., CompressReport]
CALIBRATION = [" ".join(np.random.default_rng(i).choice(WORDS, size=2 + i % 14)) for i in range(420)]
LONG_ROWS: dict[str, Any] = {"width": 64, "ngram_buckets": 127}
"""Of a toy whose rows are long enough for codes to take fewer bytes than int8 does, codebooks included."""


def silent(phase: str, done: int, total: int) -> None:
    assert 0 <= done <= total


def space(tmp_path: Path, folded: Deployed) -> Space:
    target = outputs(folded, sequences(4))[:, : folded.network.field_dim]
    return Space(folded, sequences(4), tmp_path, silent, target)


def built(index: int, rules: dict[str, str]) -> Any:
    precision, deployed = Precision(rules), FOLDED[index]
    wanted = precision.wants(rules)
    if "int8" in wanted:
        deployed, _ = int8(deployed, precision, {})
    return palettize(deployed, FOLDED[index], precision)[0] if "palettize" in wanted else deployed


@pytest.mark.parametrize("index", [0, 1, 3])
def test_a_candidate_is_what_the_passes_make(tmp_path: Path, index: int) -> None:
    found, rng = space(tmp_path, FOLDED[index]), np.random.default_rng(index)
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


def test_the_front_is_one_and_a_killed_evolution_continues(tmp_path: Path) -> None:
    folded, _ = fold(make_toy(3, **LONG_ROWS))
    found = space(tmp_path, folded)

    def evolved(state: State, report: Progress = silent) -> tuple[list[Levels], dict[Levels, float]]:
        return evolve(found, state, report, seed=0, children=4, generations=3)

    front, seen = evolved(State(tmp_path, {"test": 0}))
    sizes, errors = [found.size(levels) for levels in front], [seen[levels] for levels in front]
    assert sizes == sorted(sizes)
    assert errors == sorted(errors, reverse=True)
    assert len(set(sizes)) == len(sizes)
    uniform = found.uniform()
    for levels in uniform:  # none is smaller and nearer than every point of the front
        assert any(found.size(a) <= found.size(levels) and seen[a] <= found.error(levels) + 1e-9 for a in front)
    assert len(uniform) == len(set(uniform)) == len(search_space.TABLE_LEVELS) * len(search_space.DENSE_LEVELS)
    for levels in found.uniform(dense=0):
        rules = found.rules(levels)
        assert len({rules[part] for part in folded.blocks}) == 1
        assert {rules[part] for part in found.parts if part not in folded.blocks} == {"int8-weights"}

    def kill(phase: str, done: int, total: int) -> None:
        if done >= total // 2:
            raise KeyboardInterrupt

    state = State(tmp_path, {"test": 1})
    with pytest.raises(KeyboardInterrupt):
        evolved(state, kill)
    kept = State(tmp_path, {"test": 1})
    assert len(kept.values) >= 2
    assert evolved(kept) == (front, seen)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("small") / "checkpoint"
    make_toy(3, **LONG_ROWS).save(path)
    return path


def labelled(kind: Literal["single", "pair"], texts: Sequence[Any], labels: Sequence[str]) -> Dataset:
    return Dataset(path=Path("rows.tsv"), kind=kind, texts=tuple(texts), labels=tuple(labels))


@pytest.fixture(scope="module")
def rows(small: Path, texts: list[str]) -> dict[str, Dataset]:
    """Rows of a single task, labelled as the float student labels them, and of the pair task."""
    source = Checkpoint.load(small)
    best = outputs(fold(source)[0], tokenize(source, texts, 24))[:, source.config.field_dim :][:, :2].argmax(1)
    return {
        "mood": labelled("single", texts, [("bad", "good")[k] for k in best]),
        "same": labelled("pair", list(pairwise(texts)), ["yes"] * (len(texts) - 1)),
    }


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("work")


@pytest.fixture(scope="module")
def run(small: Path, rows: dict[str, Dataset], work: Path) -> Iterator[Run]:
    """Compress the toy in few steps; all runs share a work folder, so that only the first clusters and evolves."""
    settings: dict[str, Any] = {"data": rows, "work": work, "calibration": CALIBRATION}
    buckets = Buckets(batches=(1, 4), lengths=(8, 16, 64))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_CHILDREN", 4)
        patch.setattr(module, "_GENERATIONS", 3)
        patch.setattr(module, "load_recipe", lambda name: dataclasses.replace(load_recipe(name), buckets=buckets))
        patch.setattr(search_shapes, "SHARES", (1.0, 0.75, 0.5))
        yield lambda out, **changes: compress(small, out, **(settings | changes))


@pytest.fixture(scope="module")
def found(run: Run, tmp_path_factory: pytest.TempPathFactory) -> CompressReport:
    """The smallest candidate."""
    return run(tmp_path_factory.mktemp("found") / "out", max_drop=100)


def test_the_smallest_bundle_within_a_drop(found: CompressReport) -> None:
    assert found.chosen == 0
    assert found.front[0]["accuracy"]["mean_drop"] <= 100
    blocks = {part for part in found.front[0]["precision"] if part.startswith(("offset", "ngrams"))}
    levels = [{point["precision"][block] for block in blocks} for point in (found.front[0], found.front[-1])]
    assert levels[0] <= {"palette256x8", "palette256x4"}
    assert levels[1] == {"int8"}
    weights = (found.path / "weights.safetensors").stat().st_size
    assert found.front[0]["weights_bytes"] < weights < found.front[0]["weights_bytes"] + 8192
    assert found.bytes <= found.front[0]["bytes"]
    for point in found.uniform:  # each judged, and none nearer than the front at its size
        assert point["accuracy"].keys() >= {"mean_drop", "ci95"}
        assert any(p["bytes"] <= point["bytes"] and p["field_error"] <= point["field_error"] for p in found.front)
    stored = read_json(found.path.parent / "compress.json")
    assert {key: stored[key] for key in found.to_dict()} == json.loads(json.dumps(found.to_dict()))
    assert "one level for all tables" in (found.path.parent / "front.svg").read_text()
    assert any("the table is packed" in line for line in found.warnings)


def test_a_memory_card_takes_every_name(found: CompressReport, work: Path) -> None:
    assert any(path.name.endswith(".safetensors") for path in work.rglob("*"))
    assert unportable(work) == unportable(found.path.parent) == []


def test_a_size_holds_and_the_recipe_makes_the_bundle_again(
    run: Run, found: CompressReport, small: Path, tmp_path: Path, rows: dict[str, Dataset]
) -> None:
    limit = (found.front[0]["bytes"] + found.front[-1]["bytes"]) // 2
    report = run(tmp_path / "out", max_bytes=limit)
    assert 0 < report.chosen < len(report.front) - 1
    assert report.front[report.chosen]["weights_bytes"] > found.front[0]["weights_bytes"]
    bundle = Bundle.load(report.path)
    assert bundle.total_bytes() == report.bytes <= report.front[report.chosen]["bytes"] <= limit
    assert fieldrun.verify(report.path).passed
    again = fieldrun.export(small, tmp_path / "again", recipe=report.recipe, calibration=CALIBRATION, data=rows)
    assert Bundle.load(again.path).manifest.files == bundle.manifest.files


def test_the_bundle_says_what_it_costs_and_its_recipe_holds_it_to_that(
    run: Run, found: CompressReport, small: Path, tmp_path: Path
) -> None:
    report = run(tmp_path / "out", max_bytes=10**9)
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
    rough, text = tmp_path / "rough.toml", report.recipe.read_text()
    changed = text.replace('"ngrams" = "int8"', '"ngrams" = "palette2"')
    assert changed != text
    rough.write_text(changed if "palettize" in text else changed.replace('"int8"]', '"int8", "palettize"]'))
    with pytest.raises(ParityError, match="the recipe's limit is"):
        fieldrun.export(small, tmp_path / "again", recipe=rough, calibration=CALIBRATION)


def test_a_second_run_does_nothing_again_and_leaves_other_files(
    run: Run, found: CompressReport, work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cluster", "cluster_block"):
        monkeypatch.setattr(search_space, name, lambda *_: pytest.fail("what was clustered is clustered again"))
    monkeypatch.setattr(search_inputs, "accuracy_drop", lambda *_: pytest.fail("the same rows are judged again"))
    other = work / "model.safetensors"
    other.write_bytes(b"somebody else's")
    assert run(tmp_path / "out", max_drop=100).front == found.front
    assert other.read_bytes() == b"somebody else's"


def test_other_rows_are_judged_anew(run: Run, found: CompressReport, tmp_path: Path, rows: dict[str, Dataset]) -> None:
    wrong = [{"good": "bad", "bad": "good"}[label] for label in rows["mood"].labels]
    report = run(tmp_path / "out", max_drop=100, data={"mood": labelled("single", rows["mood"].texts, wrong)})
    one, other = (each.front[0]["accuracy"]["tasks"]["mood"] for each in (found, report))
    assert one["fp32"] + other["fp32"] == pytest.approx(1)
    assert one["accuracy"] + other["accuracy"] == pytest.approx(1)


def test_the_digest_of_rows_is_of_tasks_texts_and_labels(rows: dict[str, Dataset]) -> None:
    mood = rows["mood"]
    sets = [
        {"mood": mood},
        {"intent": mood},
        {"mood": labelled("single", mood.texts, ["another", *mood.labels[1:]])},
        {"mood": mood, "same": rows["same"]},
    ]
    assert len({rows_digest(each) for each in sets}) == len(sets)
    assert rows_digest(dict(reversed(list(sets[-1].items())))) == rows_digest(sets[-1])


def by_width(bundle: Path, texts: Sequence[str]) -> float:
    """A device on which a text takes as many microseconds as a position has features."""
    assert len(texts) > 1
    return float(width(bundle))


def width(bundle: Path) -> int:
    network = Bundle.load(bundle).manifest.network
    assert isinstance(network, Network)
    return network.width


class Timed(Exception):
    pass


def never(bundle: Path, texts: Sequence[str]) -> float:
    raise Timed


def test_a_limit_of_latency_takes_the_largest_shape_that_keeps_to_it(
    run: Run,
    found: CompressReport,
    small: Path,
    rows: dict[str, Dataset],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    report = run(tmp_path / "out", max_latency_us=50.0, timer=by_width)
    widths = [shape["width"] for shape in report.shapes]
    assert [shape["latency_us"] for shape in report.shapes] == widths == sorted(widths, reverse=True)
    assert width(report.path) == max(shape["width"] for shape in report.shapes if shape["width"] <= 50)
    assert report.chosen == len(report.front) - 1, "without a limit of size nothing is saved on bytes"
    assert report.shapes[0]["field_error"] == pytest.approx(0, abs=1e-6)
    assert report.shapes[-1]["field_error"] > 0
    assert "text to all labels" in (tmp_path / "out" / "front.svg").read_text()
    again = fieldrun.export(small, tmp_path / "again", recipe=report.recipe, calibration=CALIBRATION, data=rows)
    assert Bundle.load(again.path).manifest.files == Bundle.load(report.path).manifest.files
    with pytest.raises(ExportError, match=r"no shape is fast enough: the smallest takes 32\.0 us here"):
        run(tmp_path / "no", max_latency_us=1, timer=never)  # what was timed on this machine is kept
    monkeypatch.setattr(search_shapes, "device", lambda: "another machine")
    with pytest.raises(Timed):
        run(tmp_path / "there", max_latency_us=50.0, timer=never)


def test_without_matplotlib_the_front_is_not_drawn(
    run: Run, found: CompressReport, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    report = run(tmp_path / "out", max_drop=100)
    assert "front.svg was not drawn" in report.warnings[-1]
    assert "fieldrun[bench]" in report.warnings[-1]
    assert not (tmp_path / "out" / "front.svg").exists()


def test_the_plot_shows_what_was_judged() -> None:
    accuracy = {"mean_drop": 0.5, "ci95": [0.1, 0.9]}
    points: list[dict[str, Any]] = [{"bytes": 8e6, "accuracy": accuracy}, {"bytes": 9e6}, {"bytes": 16e6}]
    points[2]["accuracy"] = accuracy
    text = front_plot(points, 2, [])
    assert front_plot(points, 2, []) == text
    assert "chosen" in text
    assert "one level" not in text
    assert "latency" not in text
    both = front_plot(points, 1, [{"latency_us": 20.0, "accuracy": accuracy}], [points[0] | {"bytes": 12e6}])
    assert "chosen" not in both, "a point that was not judged is not drawn"
    assert "one level for all tables" in both
    assert "text to all labels" in both


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({}, UsageError, "give a limit"),
        ({"max_bytes": 0}, UsageError, "must be positive"),
        ({"max_drop": float("nan")}, UsageError, "0 or more"),
        ({"max_latency_us": 0}, UsageError, "positive number of microseconds"),
        ({"max_latency_us": 50}, UsageError, "max_latency_us needs a timer"),
        ({"max_bytes": 100_000}, ExportError, "no candidate fits 100,000 bytes: the smallest has"),
        ({"max_bytes": 200}, ExportError, "no candidate fits 200 bytes: at one bit a number the student alone has"),
        ({"max_drop": 1, "data": {}}, UsageError, "give data"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused(
    run: Run, found: CompressReport, tmp_path: Path, changes: dict[str, Any], error: Any, message: str
) -> None:
    with pytest.raises(error, match=message):
        run(tmp_path / "out", **changes)
    assert not (tmp_path / "out").exists()


def test_an_impossible_drop_says_how_near_it_comes(
    run: Run, found: CompressReport, tmp_path: Path, rows: dict[str, Dataset], monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = {"tasks": {}, "mean_drop": 7.5, "ci95": [7.0, 8.0]}
    monkeypatch.setattr(search_inputs, "accuracy_drop", lambda *_: bad)
    unseen = {"mood": labelled("single", rows["mood"].texts, ["good"] * len(rows["mood"]))}
    with pytest.raises(ExportError, match=r"no candidate keeps to 0.5 points: the best one costs 7.50"):
        run(tmp_path / "out", data=unseen, max_drop=0.5)
    (tmp_path / "taken").mkdir()
    with pytest.raises(OutputExists):
        run(tmp_path / "taken", max_drop=0.5)


def test_a_work_folder_that_cannot_be_used_is_refused(run: Run, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    for changes in ({"work": tmp_path / "file"}, {"work": tmp_path / "file" / "work"}):
        with pytest.raises(StorageError, match=r"cannot make the work folder .*Not a directory; choose another"):
            run(tmp_path / "out", max_drop=1, **changes)
    with pytest.raises(StorageError, match="cannot make the work folder"):
        run(tmp_path / ("x" * 300), max_drop=1, work=None)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"identity": {"test": 0}, "values": 3}', '{"values": {}}'])
def test_a_corrupt_state_is_named(tmp_path: Path, text: str) -> None:
    state = State(tmp_path, {"test": 0})
    state.put("one", 1)
    assert State(tmp_path, {"test": 0}).values == {"one": 1}
    (state.work / "state.json").write_text(text)
    with pytest.raises(ExportError, match=r"compress-\w+ is corrupt: .*; delete it and start again") as caught:
        State(tmp_path, {"test": 0})
    assert "\n" not in str(caught.value)
    assert State(tmp_path, {"test": 1}).values == {}


def test_the_device_is_named() -> None:
    assert device() == device()
    assert device().count(",") >= 1
