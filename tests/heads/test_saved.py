"""Heads attached to a loaded model: they answer, they can be saved with the bundle, and they can be taken away."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fieldrun
from fieldrun.errors import (
    BundleError,
    HeadMismatch,
    InputTextError,
    IntegrityError,
    NameTaken,
    OutputExists,
    StorageError,
    UnknownName,
    UsageError,
)
from fieldrun.evaluation.metrics import auroc
from fieldrun.formats.bundle import HEADS_FILE, MANIFEST, REFERENCE_BUNDLE, Bundle, seal
from fieldrun.formats.storage import read_json, sha256_file
from fieldrun.formats.tensors import read_tensors, write_tensors
from fieldrun.heads.head import Head, pair_features, softmax
from fieldrun_runtimes.model import FieldModel

TEXTS = ["a good film", "nothing works", "how do i transfer cash to the card", "rain"]
PAIRS = [("it rains", "it is wet"), ("a film", "a card"), ("you wrote this", "who wrote it")]


def head(name: str = "mine", kind: str = "single", *, seed: int = 0, inputs: int = 32) -> Head:
    rng = np.random.default_rng(seed)
    inputs *= 4 if kind == "pair" else 1
    return Head(
        name=name,
        kind=kind,
        labels=("no", "perhaps", "yes"),
        weight=(rng.standard_normal((inputs, 3)) / 4).astype(np.float32),
        bias=rng.standard_normal(3).astype(np.float32),
        temperature=0.7,
        about={"n": 12, "cv": {"n": 12, "accuracy": 0.75, "ci95": [0.47, 0.91]}},
    )


@pytest.fixture
def model(toy_bundle: Path) -> Iterator[FieldModel]:
    with fieldrun.load(toy_bundle, engine="numpy") as opened:
        yield opened


@pytest.fixture(params=[True, False], ids=["with exported pairs", "without"])
def any_bundle(request: pytest.FixtureRequest, tmp_path: Path, toy_bundle: Path) -> Path:
    if request.param:
        return toy_bundle
    from tests import toy

    toy.toy_checkpoint(pairs=False).save(tmp_path / "checkpoint")
    fieldrun.export(tmp_path / "checkpoint", tmp_path / "exported", recipe="cpu-int8")
    return tmp_path / "exported"


def test_an_attached_head_answers_like_any_task(model: FieldModel) -> None:
    exported = model.tasks
    before = model.forward(TEXTS)
    model.attach(head())
    assert model.tasks == (*exported, "mine")
    assert (model.kind("mine"), model.labels("mine")) == ("single", ("no", "perhaps", "yes"))
    expected = softmax(model.field(TEXTS) @ head().weight + head().bias, 0.7)
    scores = model.predict_proba(TEXTS, "mine")
    np.testing.assert_allclose(scores, expected, rtol=1e-5)
    assert scores.dtype == np.float32
    np.testing.assert_allclose(scores.sum(1), 1, rtol=0, atol=1e-6)
    assert model.predict(TEXTS, "mine") == [model.labels("mine")[k] for k in scores.argmax(1)]
    np.testing.assert_array_equal(model.scores_of(before, "mine"), scores)  # encoded before it was attached
    np.testing.assert_allclose(model.scores_of(before.part(1, 3), "mine"), scores[1:3], rtol=0, atol=1e-6)


def test_an_attached_head_of_pairs(any_bundle: Path) -> None:
    with fieldrun.load(any_bundle, engine="numpy") as model:
        model.attach(head("pairs", "pair"))
        first, second = (model.forward([pair[k] for pair in PAIRS]) for k in (0, 1))
        scores = model.predict_proba(PAIRS, "pairs")
        expected = softmax(pair_features(first.field, second.field) @ head(kind="pair").weight + head().bias, 0.7)
        assert scores.shape == (3, 3)
        np.testing.assert_allclose(model.scores_of(first, "pairs", second), scores, rtol=0, atol=1e-5)
        np.testing.assert_allclose(scores, softmax(np.log(scores)), rtol=0, atol=1e-6)
        assert expected.shape == scores.shape
        with pytest.raises(UsageError, match="takes two encodings"):
            model.scores_of(first, "pairs")
        with pytest.raises(InputTextError, match="pairs must be a list, not str"):
            model.predict_proba("a text", "pairs")


def test_the_exported_tasks_do_not_change(model: FieldModel) -> None:
    before = {task: model.predict_proba(PAIRS if task == "same" else TEXTS, task) for task in model.tasks}
    model.attach(head())
    model.attach(head("pairs", "pair"))
    for task, scores in before.items():
        np.testing.assert_array_equal(model.predict_proba(PAIRS if task == "same" else TEXTS, task), scores)


def test_names_that_are_taken_and_names_that_are_unknown(model: FieldModel) -> None:
    with pytest.raises(NameTaken, match="'mood' is part of the exported bundle"):
        model.attach(head("mood"))
    with pytest.raises(NameTaken, match="part of the exported bundle"):
        model.attach(head("mood"), replace=True)
    model.attach(head())
    first = model.predict_proba(TEXTS, "mine")
    with pytest.raises(NameTaken, match="'mine' is attached; choose another name"):
        model.attach(head(seed=1))
    np.testing.assert_array_equal(model.predict_proba(TEXTS, "mine"), first)
    model.attach(head(seed=1), replace=True)
    assert not np.array_equal(model.predict_proba(TEXTS, "mine"), first)
    for name in ("mood", "theirs", None):
        with pytest.raises(UnknownName, match=r"unknown attached head .*; known: mine"):
            model.detach(name)  # type: ignore[arg-type]
    assert model.detach("mine").name == "mine"
    assert model.tasks == ("mood", "intent", "same")
    with pytest.raises(UnknownName, match="known: mood, intent, same"):
        model.predict_proba(TEXTS, "mine")
    with pytest.raises(UnknownName, match="known: none"):
        model.detach("mine")


def test_heads_that_do_not_fit(model: FieldModel) -> None:
    nan = head()
    nan.weight[0, 0] = np.nan
    for wrong, message in [
        (head(inputs=256), r"shape \(256, 3\), expected \(32, 3\)"),
        (replace(head(), kind="pair"), r"shape \(32, 3\), expected \(128, 3\)"),
        (nan, "NaN"),
        (replace(head(), about={"x": {1, 2}}), "not JSON serializable"),
        (replace(head(), about={"x": float("nan")}), "JSON"),
        ("mine", "attach takes a head, as fit_head returns it, not str"),
    ]:
        with pytest.raises(HeadMismatch, match=message) as caught:
            model.attach(wrong)  # type: ignore[arg-type]
        assert caught.value.exit_code == 2
    assert model.tasks == ("mood", "intent", "same")


def test_who_attached_a_head_cannot_change_it_afterwards(model: FieldModel) -> None:
    mine = head()
    model.attach(mine)
    before = model.predict_proba(TEXTS, "mine")
    mine.weight[:] = 0
    np.testing.assert_array_equal(model.predict_proba(TEXTS, "mine"), before)
    with pytest.raises(ValueError, match="read-only"):
        model.attached["mine"].weight[:] = 0
    with pytest.raises(TypeError):
        model.attached["other"] = mine  # type: ignore[index]


def test_heads_come_and_go_while_others_ask(model: FieldModel) -> None:
    expected = {}
    for seed in (0, 1):
        model.attach(head(seed=seed), replace=True)
        expected[seed] = model.predict_proba(TEXTS[:1], "mine").tobytes()
    stop = threading.Event()
    wrong: list[object] = []

    def ask() -> None:
        while not stop.is_set():
            try:
                if model.predict_proba(TEXTS[:1], "mine").tobytes() not in expected.values():
                    wrong.append("scores of neither head")
            except Exception as error:
                wrong.append(error)

    threads = [threading.Thread(target=ask) for _ in range(2)]
    for thread in threads:
        thread.start()
    for turn in range(100):
        model.attach(head(seed=turn % 2), replace=True)
        model.attach(head(f"other-{turn}"))
        model.detach(f"other-{turn}")
    stop.set()
    for thread in threads:
        thread.join()
    assert not wrong


@pytest.mark.parametrize("engine", ["numpy", "onnxruntime"])
def test_a_saved_bundle_gives_equal_scores_and_verifies(any_bundle: Path, tmp_path: Path, engine: str) -> None:
    saved = tmp_path / "saved"
    with fieldrun.load(any_bundle, engine=engine) as model:
        model.attach(head())
        model.attach(head("pairs", "pair", seed=2))
        assert model.save(saved) == saved
        exported = model.manifest.tasks
        with fieldrun.load(saved, engine=engine) as again:
            assert again.tasks == model.tasks == (*(task.name for task in exported), "mine", "pairs")
            assert again.manifest.tasks[: len(exported)] == exported
            np.testing.assert_array_equal(again.predict_proba(TEXTS, "mine"), model.predict_proba(TEXTS, "mine"))
            np.testing.assert_array_equal(again.predict_proba(PAIRS, "pairs"), model.predict_proba(PAIRS, "pairs"))
            np.testing.assert_array_equal(again.predict_proba(TEXTS, "mood"), model.predict_proba(TEXTS, "mood"))
            assert again.attached["mine"].about == head().about
            assert again.attached["mine"].temperature == 0.7
    report = fieldrun.verify(saved, engine=engine)
    assert report.passed
    assert report.files == len(list(saved.iterdir())) == len(list(any_bundle.iterdir())) + 1
    assert [path for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    card = (saved / "CARD.md").read_text("utf-8")
    assert "- `mine`: 3 labels, trained on 12 texts, held-out accuracy 75.0% (95 % interval 47.0% to 91.0%" in card
    assert "- `pairs`: 3 labels, trained on 12 pairs" in card


def test_saving_again_and_taking_everything_away(toy_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "bundle"
    with fieldrun.load(toy_bundle, engine="numpy") as model:
        model.attach(head())
        model.save(out)
    with fieldrun.load(out, engine="onnxruntime") as model:
        model.attach(head("second", seed=3))
        model.save(out, overwrite=True)  # its own folder, whose graphs it opens when they are needed
        model.predict_proba(TEXTS, "second")
        model.predict(PAIRS, "same")
    assert fieldrun.verify(out, engine="numpy").passed
    with fieldrun.load(out, engine="numpy") as model:
        assert tuple(model.attached) == ("mine", "second")
        model.detach("mine")
        model.detach("second")
        model.save(out, overwrite=True)
    assert fieldrun.verify(out, engine="numpy").passed
    for name in ("golden.json", "CARD.md", "weights.safetensors"):
        assert json.dumps((out / name).read_text("latin-1")) == json.dumps((toy_bundle / name).read_text("latin-1"))
    assert not (out / HEADS_FILE).exists()
    assert Bundle.load(out).manifest.tasks == Bundle.load(toy_bundle).manifest.tasks
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


def test_a_failed_verification_of_a_head(toy_bundle: Path, tmp_path: Path) -> None:
    with fieldrun.load(toy_bundle, engine="numpy") as model:
        model.attach(head())
        model.attach(head("pairs", "pair"))
        model.save(tmp_path / "out")
    for name in ("mine", "pairs"):
        folder = Path(shutil.copytree(tmp_path / "out", tmp_path / name))
        tensors = {key: value.copy() for key, value in read_tensors(folder / HEADS_FILE).items()}
        tensors[f"{name}.bias"][0] += 0.01
        _rewrite(folder, write_tensors(tensors))
        assert not fieldrun.verify(folder, engine="numpy").passed


def _rewrite(folder: Path, data: bytes) -> None:
    """Put `data` into the heads' file and make the manifest agree."""
    (folder / HEADS_FILE).write_bytes(data)
    manifest = read_json(folder / MANIFEST)
    manifest["files"][HEADS_FILE] = {"bytes": len(data), "sha256": sha256_file(folder / HEADS_FILE)}
    (folder / MANIFEST).write_text(json.dumps(seal(manifest)))


def test_damaged_heads_are_refused(toy_bundle: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    with fieldrun.load(toy_bundle, engine="numpy") as model:
        model.attach(head())
        model.save(out)
    weight, bias = head().weight, head().bias
    (out / HEADS_FILE).write_bytes((out / HEADS_FILE).read_bytes()[:-1])
    with pytest.raises(IntegrityError, match=HEADS_FILE):
        fieldrun.load(out, engine="numpy")
    for data, message in [
        (b"nothing", "not a safetensors file"),
        (write_tensors({"mine.weight": weight}), "its tensors are not those"),
        (write_tensors({"mine.weight": weight[:5], "mine.bias": bias}), "has shape"),
        (write_tensors({"mine.weight": weight * np.float32(np.nan), "mine.bias": bias}), "NaN"),
    ]:
        _rewrite(out, data)
        with pytest.raises(BundleError, match=message):
            fieldrun.load(out, engine="numpy")


def test_places_that_cannot_be_saved_to(model: FieldModel, tmp_path: Path) -> None:
    model.attach(head())
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "mine.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("folder", "file"):
        with pytest.raises(OutputExists, match="choose another folder"):
            model.save(tmp_path / name)
        with pytest.raises(OutputExists, match="is not a bundle; choose another folder"):
            model.save(tmp_path / name, overwrite=True)
    assert (tmp_path / "folder" / "mine.txt").read_text() == (tmp_path / "file").read_text() == "mine"
    for shipped in (REFERENCE_BUNDLE, REFERENCE_BUNDLE.parent / "new", "reference"):
        for overwrite in (True, False):
            with pytest.raises(OutputExists, match="save to a folder of your own"):
                model.save(shipped, overwrite=overwrite)
    (tmp_path / "link").symlink_to(REFERENCE_BUNDLE)
    with pytest.raises(OutputExists, match="save to a folder of your own"):
        model.save(tmp_path / "link", overwrite=True)
    with pytest.raises(StorageError, match="give the path of a folder"):
        model.save(None)  # type: ignore[arg-type]


def test_what_is_saved_is_the_bundle_that_was_loaded(toy_bundle: Path, tmp_path: Path) -> None:
    source = Path(shutil.copytree(toy_bundle, tmp_path / "source"))
    with fieldrun.load(source, engine="numpy") as model:
        model.attach(head())
        golden = (source / "golden.json").read_bytes()
        (source / "golden.json").write_bytes(golden.replace(b"[", b"{", 1))
        model.save(tmp_path / "out")
        shutil.rmtree(source)
        model.save(tmp_path / "again")
    assert fieldrun.verify(tmp_path / "out", engine="numpy").passed
    assert (tmp_path / "again" / MANIFEST).read_bytes() == (tmp_path / "out" / MANIFEST).read_bytes()


def test_a_model_is_saved_onto_its_own_path_again_and_again(toy_bundle: Path, tmp_path: Path) -> None:
    own = Path(shutil.copytree(toy_bundle, tmp_path / "own"))
    with fieldrun.load(own, engine="numpy") as model:
        for turn in range(3):
            model.attach(head(name=f"topic{turn}"))
            assert model.save(own, overwrite=True) == own
            with fieldrun.load(own, engine="numpy") as saved:
                assert saved.tasks == model.tasks
                assert saved.predict_all(["a good film"]) == model.predict_all(["a good film"])


def test_a_task_cannot_be_called_all(toy_bundle: Path) -> None:
    with fieldrun.load(toy_bundle, engine="numpy") as model:
        with pytest.raises(UsageError, match="stands for all tasks"):
            model.attach(head(name="all"))
        with pytest.raises(UsageError, match="stands for all tasks"):
            fieldrun.fit_head(model, ["a", "b"] * 10, ["x", "y"] * 10, name="all")


def test_a_label_that_would_control_the_terminal_is_not_attached(toy_bundle: Path) -> None:
    with fieldrun.load(toy_bundle, engine="numpy") as model, pytest.raises(HeadMismatch, match="control characters"):
        model.attach(replace(head(), labels=("no", "\x1b[2J", "yes")))


def test_fitted_on_the_fields_of_the_shipped_bundle(tmp_path: Path) -> None:
    topics = {
        "money": [
            "send cash to my card",
            "my transfer failed",
            "what is the fee for a payment",
            "the card was declined",
        ],
        "weather": [
            "will it rain tomorrow",
            "it is sunny and warm",
            "snow is coming tonight",
            "how cold is it outside",
        ],
    }
    texts = [text for rows in topics.values() for text in rows]
    labels = [label for label, rows in topics.items() for _ in rows]
    with fieldrun.load("reference", engine="numpy") as model:
        trainer = fieldrun.HeadTrainer(model, name="topic").add(texts, labels)
        model.attach(trainer.fit())
        assert model.predict(texts, "topic") == labels
        trainer.add(["play some music", "turn the song up", "next track please"], ["music"] * 3)
        model.attach(trainer.fit(), replace=True)
        assert model.labels("topic") == ("money", "music", "weather")
        assert model.predict(["play the next song"], "topic") == ["music"]
        model.save(tmp_path / "mine")
    assert fieldrun.verify(tmp_path / "mine", engine="numpy").passed


def test_the_first_numbers_of_a_field(model: FieldModel) -> None:
    model.attach(head())
    whole, short = model.forward(TEXTS), model.forward(TEXTS, dim=8)
    np.testing.assert_array_equal(short.field, whole.field[:, :8])
    assert short.field.flags.c_contiguous
    np.testing.assert_array_equal(short.logits, whole.logits)
    np.testing.assert_array_equal(short.tokens, whole.tokens)
    np.testing.assert_array_equal(model.field(TEXTS, dim=32), whole.field)
    np.testing.assert_array_equal(model.scores_of(short, "mood"), model.scores_of(whole, "mood"))
    for task, other in (("mine", None), ("same", short)):
        with pytest.raises(UsageError, match="needs whole fields; run forward without dim"):
            model.scores_of(short, task, other)
    with pytest.raises(UsageError, match="needs whole fields"):
        model.scores_of(whole, "same", short)
    for dim in (0, 33, -1, 8.0, "8", True):
        with pytest.raises(UsageError, match="dim must be a whole number from 1 to 32"):
            model.forward(TEXTS, dim=dim)  # type: ignore[arg-type]
        with pytest.raises(UsageError, match="dim must be"):
            model.encode("a", truncate_dim=dim)  # type: ignore[arg-type]


@pytest.mark.parametrize("task", ["mood", "intent", "same", "mine"])
def test_rejection_is_the_best_logit_over_the_mean(model: FieldModel, task: str) -> None:
    model.attach(head())
    texts: Any = PAIRS if task == "same" else TEXTS
    found = model.rejection(texts, task)
    assert found.shape == (len(texts),)
    assert found.dtype == np.float32
    logs = np.log(
        model.predict_proba(texts, task).astype(np.float64)
    )  # calibrated logits but for a constant of each row
    np.testing.assert_allclose(found, logs.mean(1) - logs.max(1), rtol=0, atol=1e-4)
    if task != "same":
        np.testing.assert_array_equal(model.rejection_of(model.forward(texts), task), found)
    with pytest.raises(UnknownName):
        model.rejection(texts, "nothing")


def test_rejection_tells_strangers_from_known_labels() -> None:
    known = ["how do i activate my card", "my card was stolen", "what is the exchange rate", "i want my money back"]
    strangers = [
        "the potato family of flowering plants",
        "in 1923 the river froze over",
        "her second novel won a prize",
    ]
    with fieldrun.load("reference", engine="numpy") as model:
        found = model.rejection(known + strangers, "banking77")
    assert auroc(found, [0] * 4 + [1] * 3) > 0.7
