"""AN1's claims: the probe, the spectra, the whole measurement on a planted field, and the page made from its record."""

from __future__ import annotations

import dataclasses
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from xml.etree import ElementTree

import numpy as np
import pytest
from click.testing import CliRunner

import fieldrun
from fieldrun.distill.pool import build_pool
from fieldrun.distill.recipe import load_recipe
from fieldrun.errors import UsageError
from fieldrun.formats.storage import read_json, write_json
from fieldrun.heads.trained import Checkpoint
from fieldrun_benchmarks.harness.record import read_record
from studies import figures
from studies.an1 import card as an1_card
from studies.an1 import measure as an1
from studies.an1 import probe
from studies.an1.probe import Floats, Integers, accumulate, fit, fit_rows
from studies.an1.spectrum import cumulative, principal, spectra
from studies.an1.tables import BLOCKS
from studies.columns import markdown
from studies.paired import Hits, compare, published, scored


def _task(n: int, d: int, labels: int, seed: int = 0) -> tuple[Floats, Integers]:
    """Inputs `(n, d)` with columns of unlike means and sizes, and labels that they tell in part."""
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) * rng.uniform(0.1, 9, d) + rng.uniform(-5, 5, d)
    y = (x[:, :labels] / x[:, :labels].std(0) + rng.standard_normal((n, labels))).argmax(1)
    return x, y.astype(np.int64)


def _ridge(x: Floats, y: Integers, labels: int, scaling: str, penalty: float, new: Floats) -> Floats:
    """Scores by the normal equations, written down independently."""
    mean, std = x.mean(0), x.std(0) if scaling == "standardised" else 1.0
    a, target = (x - mean) / std, np.eye(labels)[y]
    shift = penalty * np.trace(a.T @ a) / x.shape[1]
    weight = np.linalg.solve(a.T @ a + shift * np.eye(x.shape[1]), a.T @ (target - target.mean(0)))
    return np.asarray((new - mean) / std @ weight + target.mean(0))


@pytest.mark.parametrize(("n", "d"), [(400, 12), (9000, 7), (40, 60)])
def test_the_probe_is_the_best_of_the_grid_and_solves_the_normal_equations(n: int, d: int) -> None:
    x, y = _task(n + 300, d, 3)
    x, x_held, y, y_held = x[:n], x[n:], y[:n], y[n:]
    grid = {}
    for scaling in probe.SCALINGS:
        for penalty in probe.PENALTIES:
            scores = _ridge(x, y, 3, scaling, penalty, x_held)
            grid[scaling, penalty] = (
                -(scores.argmax(1) == y_held).mean(),
                np.square(scores - np.eye(3)[y_held]).mean(),
            )
    found = fit(accumulate(lambda rows: x[rows], np.arange(n), y, 3), x_held, y_held)
    assert (found.scaling, found.penalty) == min(grid, key=lambda key: grid[key])
    assert found.held_out == -min(grid.values())[0]
    np.testing.assert_allclose(
        x_held @ found.weight + found.bias, _ridge(x, y, 3, found.scaling, found.penalty, x_held), atol=1e-8
    )
    np.testing.assert_array_equal(found.predict(x_held), (x_held @ found.weight + found.bias).argmax(1))


@pytest.mark.parametrize(("n", "d"), [(50, 200), (200, 50)])
def test_rows_and_moments_give_the_same_probe(n: int, d: int) -> None:
    x, y = _task(n + 100, d, 4, seed=1)
    x[:, 5] = 3.0  # a constant column says nothing and breaks nothing
    x, x_held, y, y_held = x[:n], x[n:], y[:n], y[n:]
    primal = fit(accumulate(lambda rows: x[rows], np.arange(n), y, 4), x_held, y_held)
    dual = fit_rows(x, y, 4, x_held, y_held)
    assert (primal.scaling, primal.penalty, primal.held_out) == (dual.scaling, dual.penalty, dual.held_out)
    np.testing.assert_allclose(x_held @ primal.weight + primal.bias, x_held @ dual.weight + dual.bias, atol=1e-7)


def test_moments_do_not_depend_on_the_chunks_and_can_be_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    x, y = _task(230, 9, 3)
    whole = accumulate(lambda rows: x[rows], np.arange(230), y, 3)
    monkeypatch.setattr(probe, "_CHUNK", 50)
    parts = accumulate(lambda rows: x[rows], np.arange(230), y, 3)
    columns = np.array([1, 2, 7])
    cut, few = parts.part(columns), accumulate(lambda rows: x[rows][:, columns], np.arange(230), y, 3)
    for a, b in ((whole, parts), (cut, few)):
        for name in ("mean", "gram", "cross", "shares"):
            np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-9 * np.abs(whole.gram).max())


def test_the_spectrum_is_that_of_the_singular_values() -> None:
    x, _ = _task(500, 20, 2)
    found = spectra(accumulate(lambda rows: x[rows], np.arange(500)), slice(4, 16))
    part = x[:, 4:16]
    for form, values in (
        ("uncentred", part),
        ("centred", part - part.mean(0)),
        ("standardised", (part - part.mean(0)) / part.std(0)),
    ):
        squares = np.linalg.svd(values, compute_uv=False) ** 2
        shares = np.cumsum(squares) / squares.sum()
        for k, share in found[form]["share"].items():
            assert share == pytest.approx(shares[int(k) - 1], abs=1e-5)
        assert found[form]["share"]["12"] == 1.0
        for share, k in found[form]["directions"].items():
            assert k == int((shares < int(share) / 100 - 1e-12).sum()) + 1


def test_cumulative_shares_rise_to_one() -> None:
    matrix = np.cov(np.random.default_rng(0).standard_normal((30, 8)), rowvar=False)
    shares = cumulative(matrix)
    assert (np.diff(shares) >= 0).all()
    assert shares[-1] == pytest.approx(1)
    assert cumulative(np.zeros((3, 3))).tolist() == [1, 1, 1]


def test_principal_components_recover_a_planted_subspace() -> None:
    rng = np.random.default_rng(0)
    hidden = rng.standard_normal((800, 5)) * [5, 4, 3, 2, 1.5]
    x = hidden @ rng.standard_normal((5, 40)) + 7 + 1e-3 * rng.standard_normal((800, 40))
    moments = accumulate(lambda rows: x[rows], np.arange(800))
    assert spectra(moments, slice(None))["standardised"]["directions"]["99"] <= 5
    offset, projection = principal(moments, 5)
    components = x @ projection - offset
    design = np.column_stack([components, np.ones(800)])
    _, residual, _, _ = np.linalg.lstsq(design, hidden, rcond=None)
    assert residual.max() / 800 < 1e-4  # five components say all that the planted directions say
    covariance = components.T @ components / 800
    np.testing.assert_allclose(covariance, np.diag(np.diagonal(covariance)), atol=1e-9)
    assert (np.diff(np.diagonal(covariance)) <= 0).all()
    left, values, _ = np.linalg.svd((x - x.mean(0)) / x.std(0), full_matrices=False)
    np.testing.assert_allclose(np.abs(components), np.abs(left[:, :5] * values[:5]), atol=1e-6)


RECIPE = """
schema = 1
name = "tiny"
seed = 3
[teacher]
dtype = "float32"
[compressor]
steps = 20
batch = 32
rows_per_task = 32
[training]
held_out = 0.2
[[tasks]]
name = "sst2"
report = "dev.tsv"
[[tasks]]
name = "trec"
report = "test.tsv"
[[tasks]]
name = "rte"
report = "dev.tsv"
[[tasks]]
name = "stsb"
similarity = 5
"""
HIDDEN = 40  # seven layers are wider than 256


def _write(path: Path, header: str, rows: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join([header, *rows]) + "\n", "utf-8")


@pytest.fixture(scope="module")
def suite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Texts of numbers: `text 7 3` is about topic 7 % labels; a pair entails when both have the same topic."""
    folder = tmp_path_factory.mktemp("suite")
    for task, labels, report in (("sst2", 2, "dev.tsv"), ("trec", 5, "test.tsv")):
        for file, n, first in (("train.tsv", 200, 0), (report, 90, 1000)):
            rows = [f"{task} {i % labels} {first + i}\t{i % labels}" for i in range(n)]
            _write(folder / task / file, "text\tlabel", rows)
    for file, n, first in (("train.tsv", 160, 0), ("dev.tsv", 80, 1000)):
        rows = [f"p {i % 2} {first + i}\tq {i // 2 % 2} {first + i}\t{i % 2 == i // 2 % 2}" for i in range(n)]
        _write(folder / "rte" / file, "text_a\ttext_b\tlabel", rows)
    _write(folder / "stsb" / "train.tsv", "text_a\ttext_b\tlabel", [f"s {i}\tt {i}\t{i % 6}" for i in range(40)])
    (folder / "tiny.toml").write_text(RECIPE, "utf-8")
    return folder


def _extract(texts: Sequence[str], *_: object, **__: object) -> Floats:
    """Stand in for a teacher: the topic as a direction per task, in noise of its own for every text."""
    directions = np.random.default_rng(0).standard_normal((8, 7 * HIDDEN))
    field = []
    for text in texts:
        kind, topic, number = text.split()
        noise = np.random.default_rng([int(number), *kind.encode()]).standard_normal(7 * HIDDEN)
        field.append(3 + noise + 0.9 * directions[int(topic)])
    return np.array(field, np.float16)


@pytest.fixture(scope="module")
def records(suite: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the record of a small run; treat it as read-only."""
    folder = tmp_path_factory.mktemp("records")
    with pytest.MonkeyPatch.context() as patch:
        _replace_models(patch)
        assert _run(suite, folder / "work", folder / "an1.json") == 0
    return folder


def _replace_models(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(an1, "extract_raw_field", _extract)
    patch.setattr(an1, "teacher_hashes", lambda folder: {"model.safetensors": folder.name})
    patch.setattr(an1, "teacher_shape", lambda _: (12, HIDDEN, 512))
    patch.setattr(fieldrun, "load", lambda *_, **__: _Student())


def _run(suite: Path, work: Path, out: Path) -> int:
    arguments = ["--data", str(suite), "--recipe", str(suite / "tiny.toml"), "--work", str(work), "-o", str(out)]
    teachers = ["--teacher", "frozen=a", "--teacher", "tuned=b", "--seeds", "2"]
    return CliRunner().invoke(an1.main, [*arguments, *teachers], catch_exceptions=False).exit_code


class _Student:
    """Right on everything but every tenth row."""

    manifest = SimpleNamespace(
        name="toy",
        recipe={"name": "cpu-int8"},
        files={"weights.safetensors": SimpleNamespace(sha256="ab" * 32)},
        network=SimpleNamespace(parameters=7),
    )

    def __enter__(self) -> _Student:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def predict(self, texts: Sequence[str] | Sequence[tuple[str, str]], task: str) -> list[str]:
        """The topic, or whether two are the same."""
        if task == "rte":
            right = [str(a.split()[1] == b.split()[1]) for a, b in (pair for pair in texts if isinstance(pair, tuple))]
        else:
            right = [text.split()[1] for text in texts if isinstance(text, str)]
        return ["nothing" if i % 10 == 0 else label for i, label in enumerate(right)]


def test_the_record_has_every_method_on_every_task(records: Path) -> None:
    record = read_record(records / "an1.json", "an1")
    assert list(record["tasks"]) == ["sst2", "trec", "rte"]
    assert record["tasks"]["trec"] == {
        "kind": "single", "labels": 5, "train": 160, "held_out": 40, "report": 90, "majority": 0.2,
    }  # fmt: skip
    assert record["texts"] == {"train": 160 + 160 + 2 * 128, "all": 2 * 290 + 2 * 240}
    for name, teacher in record["teachers"].items():
        assert teacher["sha256"] == {"model.safetensors": {"frozen": "a", "tuned": "b"}[name]}
        assert list(teacher["spectra"]) == [*map(str, teacher["layers"]), "whole"]
        kept = [f"pca{k}" for k in an1.DIRECTIONS]
        assert list(teacher["tasks"]) == ["raw", "sentence", *kept, "field_head", "field_probe"]
        for tasks in teacher["tasks"].values():
            for task, entry in tasks.items():
                assert entry["n"] == record["tasks"][task]["report"]
                assert entry["ci95"][0] <= entry["accuracy"] <= entry["ci95"][1]
                assert "hits" not in entry
        assert teacher["tasks"]["raw"]["sst2"]["accuracy"] > 0.95  # seven layers tell the topic, three directions less
        assert teacher["tasks"]["raw"]["trec"]["accuracy"] > teacher["tasks"]["pca1"]["trec"]["accuracy"]
        assert len(teacher["tasks"]["field_head"]["rte"]["runs"]) == 2
        entries = [entry["accuracy"] for entry in teacher["tasks"]["raw"].values()]
        assert teacher["means"]["raw"]["all"]["accuracy"] == pytest.approx(np.mean(entries), abs=1e-5)
        assert teacher["means"]["raw"]["single"]["accuracy"] == pytest.approx(np.mean(entries[:2]), abs=1e-5)
        student = record["student"]["tasks"]["student"]
        found = teacher["differences"]["student - raw"]
        for task, entry in found["tasks"].items():
            difference = student[task]["accuracy"] - teacher["tasks"]["raw"][task]["accuracy"]
            assert entry["difference"] == pytest.approx(difference, abs=2e-5)
        assert student["sst2"]["accuracy"] == 0.9
    text = (records / "an1.json").read_text("utf-8")
    assert str(records) not in text


def test_a_second_run_goes_on_from_the_work_folder(
    suite: Path, records: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _replace_models(monkeypatch)
    shutil.copytree(records / "work", tmp_path / "work")
    monkeypatch.setattr(an1, "spectra", None)  # to measure again would fail
    assert _run(suite, tmp_path / "work", tmp_path / "an1.json") == 0
    before, after = (read_record(folder / "an1.json", "an1") for folder in (records, tmp_path))
    assert before["teachers"] == after["teachers"]
    monkeypatch.setattr(an1, "_METHOD", 99)  # other settings: what was kept does not count
    with pytest.raises(TypeError, match="not callable"):
        _run(suite, tmp_path / "work", tmp_path / "an1.json")


def test_large_tasks_are_drawn_from(suite: Path) -> None:
    pool = build_pool(load_recipe(suite / "tiny.toml"), suite)
    small, whole = an1.restrict(pool, 100, 50), an1.restrict(pool)
    for task, every in zip(small.tasks, whole.tasks, strict=True):
        assert task.report is not None
        assert every.report is not None
        assert (len(task.train), len(task.report)) == (100, 50)
        for part, full in ((task.train, every.train), (task.report, every.report)):
            rows = {(*np.atleast_1d(r).tolist(), int(y)) for r, y in zip(full.rows, full.labels, strict=True)}
            texts = {tuple(whole.texts[i] for i in row[:-1]) + row[-1:] for row in rows}
            for row, label in zip(part.rows, part.labels, strict=True):
                assert (*(small.texts[i] for i in np.atleast_1d(row)), int(label)) in texts


def test_a_teacher_needs_a_name(suite: Path, tmp_path: Path) -> None:
    arguments = ["--data", str(suite), "--work", str(tmp_path), "-o", str(tmp_path / "x.json"), "--teacher"]
    for wrong in ("name=", "=folder", "a/b=folder"):
        with pytest.raises(UsageError, match="NAME=FOLDER"):
            CliRunner().invoke(an1.main, [*arguments, wrong], catch_exceptions=False)


def test_differences_are_taken_row_by_row() -> None:
    hits = {"a": "1110", "b": "1100"}
    runs = {name: [{"t": scored(np.array([c == "1" for c in digits]))}] for name, digits in hits.items()}
    found = compare({"field_head": runs["a"], "raw": runs["b"]}, {"t": Hits(np.ones(4))}, {"t": "single"})[
        "field_head - raw"
    ]
    half = 1.959963984540054 * math.sqrt(3 / 16 / 4)  # the differences are 0 0 1 0
    assert found["all"] == {"difference": 0.25, "ci95": [round(0.25 - half, 5), round(0.25 + half, 5)]}
    both = published({"m": [*runs["a"], *runs["b"]]}, {"t": "single"})["tasks"]["m"]["t"]
    assert (both["accuracy"], both["runs"]) == (0.625, [0.75, 0.5])


def test_verdicts_follow_the_intervals(repository: Path, tmp_path: Path) -> None:
    record = read_json(repository / "benchmarks" / "records" / "an1.json")
    (tmp_path / "records").mkdir()

    def said(pair: str, task: str | None, low: float, high: float) -> str:
        for teacher in record["teachers"].values():
            found = teacher["differences"][pair]
            entry = found["all"] if task is None else found["tasks"][task]
            entry |= {"difference": 0.0, "ci95": [low / 100, high / 100]}
        write_json(tmp_path / "records" / "an1.json", record)
        return markdown(BLOCKS["an1-claims"](tmp_path / "records"))

    for low, high, words in (
        (0.2, 2.5, "the claim holds: a gain, and 1.81 is not too much"),
        (0.2, 1.5, "a gain, but smaller than claimed"),
        (-0.5, 1.0, "no gain is shown, and one of 1.81 is ruled out"),
        (-0.5, 2.0, "no gain is shown, and one of 1.81 is not ruled out either"),
        (-2.0, -0.1, "the claim does not hold: it is a loss"),
    ):
        assert words in said("field_head - raw", None, low, high)
    for low, high, words in (
        (-0.3, 1, "the claim holds"),
        (-1, 1, "872 rows cannot tell"),
        (-2, -0.5, "it loses more"),
        (-3, -0.9, "own table is exceeded"),
    ):
        assert words in said("student - field_head", "sst2", low, high).partition("on SST-2.")[2]


def test_a_small_record_is_shown_and_drawn(records: Path) -> None:
    shown = {name: markdown(block(records)) for name, block in BLOCKS.items()}
    assert "**frozen**" in shown["an1-accuracy"]
    assert "90.0 (" in shown["an1-accuracy"]
    assert "cannot tell" in shown["an1-claims"] or "does not hold" in shown["an1-claims"]
    for name in ("an1-spectrum.svg", "an1-directions.svg"):
        text = figures.draw(name, records)
        ElementTree.fromstring(text)
        assert "frozen" in text
        assert text == figures.draw(name, records)


def test_the_card_of_a_checkpoint_gets_the_lines(records: Path, toy_checkpoint: Path, tmp_path: Path) -> None:
    arguments = [str(toy_checkpoint), str(records), str(tmp_path / "new")]
    assert CliRunner().invoke(an1_card.main, arguments, catch_exceptions=False).exit_code == 0
    before, after = Checkpoint.load(toy_checkpoint), Checkpoint.load(tmp_path / "new")
    card = (tmp_path / "new" / "CARD.md").read_text("utf-8")
    assert "## AN1's claims" in card
    assert "| (c) PCA-256, probe |" in card
    assert "AN1" not in (toy_checkpoint / "CARD.md").read_text("utf-8")
    assert after.config == before.config
    for name, tensor in before.tensors.items():
        np.testing.assert_array_equal(tensor, after.tensors[name])
    broken = dataclasses.replace(before, record={"an1": 3})
    assert "## AN1's claims\n\nNot recorded." in broken.card()
