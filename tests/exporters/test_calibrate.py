"""Calibration: which texts are taken, how they are cut, and the activation ranges they give."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldrun.errors import CheckpointError, ExportError, InputTextError
from fieldrun.formats.tensors import Array
from fieldrun.student.oracle import forward
from fieldrun.student.windows import pad_ids
from fieldrun_exporters.calibrate import SHIPPED_TEXT, CalibrationText, Largest, choose_texts, tokenize
from fieldrun_exporters.student.passes.fold import fold
from fieldrun_exporters.student.simulate import input_ranges
from tests.toy import toy_checkpoint

TOY = toy_checkpoint()
FOLDED = fold(TOY)[0]


def test_the_shipped_sample_is_enough_for_the_shipped_recipes() -> None:
    chosen = choose_texts(None, 512)
    assert len(chosen) == len(set(chosen)) == 512
    assert set(chosen) <= {line.strip() for line in SHIPPED_TEXT.read_text("utf-8").splitlines()}


@given(st.lists(st.integers(0, 60), min_size=0, max_size=80), st.integers(1, 40))
def test_texts_are_distinct_in_order_and_spread(numbers: list[int], count: int) -> None:
    texts = [f" text {number}\n" for number in numbers] + ["", "  "]
    different = list(dict.fromkeys(text.strip() for text in texts if text.strip()))
    if len(different) < 16:
        with pytest.raises(InputTextError, match=f"calibration has {len(different)} different texts"):
            choose_texts(texts, count)
        return
    chosen = choose_texts(iter(texts), count)  # type: ignore[arg-type]
    assert len(chosen) == len(set(chosen)) == min(count, len(different))
    places = [different.index(text) for text in chosen]
    assert places == sorted(places)
    assert places[0] == 0
    if len(places) > 1:
        gaps = np.diff([*places, len(different)])
        assert gaps.max() - gaps.min() <= 2


def test_every_fourth_text_is_held_back_and_no_pass_sees_it() -> None:
    texts = CalibrationText([f"text {i}" for i in range(100)], 80)
    assert len(texts.chosen) == 80
    assert texts.held_back
    assert len(texts.proof) == 20
    assert "text 0" in texts.proof, "a small bucket needs the shortest"
    assert not set(texts.proof) & {*texts.calibration, *texts.learning(1000)}
    assert {*texts.proof, *texts.calibration} == set(texts.chosen)
    assert {*texts.proof, *texts.learning(1000)} == {f"text {i}" for i in range(100)}
    few = CalibrationText([f"text {i}" for i in range(20)], 80)
    assert few.chosen == few.proof == few.calibration == few.learning(1000)
    assert not few.held_back
    with pytest.raises(InputTextError, match="must be a list, not str"):
        CalibrationText("one text", 80)


@pytest.mark.parametrize(
    "texts", ["one text", b"bytes", 3, [1] * 20, [None] * 20, ["a"] * 20 + [b"b"], ["\udc00"] * 20]
)
def test_what_is_not_a_list_of_texts_is_refused(texts: Any) -> None:
    with pytest.raises(InputTextError, match="calibration") as caught:
        choose_texts(texts, 16)
    assert caught.value.exit_code == 2


def test_tokens_are_framed_and_cut() -> None:
    long, short = tokenize(TOY, ["rain " * 50, "a film"], 16)
    assert len(long) == 16
    assert long[0] == short[0]
    assert long[-1] == short[-1]
    assert len(short) == 4
    with pytest.raises(CheckpointError, match=r"tokenizer\.json cannot be used"):
        tokenize(dataclasses.replace(TOY, tokenizer=b"{}"), ["a"], 16)


def test_ranges_are_percentiles_of_what_the_layers_take() -> None:
    rng = np.random.default_rng(1)
    sequences = [rng.integers(1, TOY.config.vocab_size, size=n).tolist() for n in rng.integers(1, 12, size=100)]
    inputs: dict[str, list[Array]] = {"mixer": [], "hidden": [], "field": []}
    for ids in sequences:  # one by one, where input_ranges takes batches
        forward(TOY.config, TOY.tensors, pad_ids([ids]), record=lambda name, x: inputs[name].append(x.ravel()))
    largest = input_ranges(FOLDED, sequences, 100)
    assert set(largest) == {"mixer", "hidden", "mean", "output", "pairs"}
    means = [x.reshape(-1, TOY.config.pooled)[:, : TOY.config.mixer_width] for x in inputs["hidden"]]
    assert largest["mean"] == pytest.approx(np.abs(np.concatenate(means)).max(), rel=1e-5)
    for name, recorded in (("mixer", "mixer"), ("hidden", "hidden"), ("output", "field")):
        values = np.abs(np.concatenate(inputs[recorded]))
        assert largest[name] == pytest.approx(values.max(), rel=1e-5)
        assert input_ranges(FOLDED, sequences, 99)[name] == pytest.approx(np.percentile(values, 99), rel=1e-4)
    with pytest.raises(ExportError, match="at least 16"):
        input_ranges(FOLDED, sequences[:15], 100)


def test_ranges_of_a_student_without_some_layers() -> None:
    rng = np.random.default_rng(2)
    no_mixer = {"mixer_kernel": 0, "mixer_width": 0}
    students: list[tuple[dict[str, Any], set[str]]] = [
        ({"hidden": 0}, {"mixer", "output", "mean", "pairs"}),
        ({"mean": False}, {"mixer", "hidden", "output", "pairs"}),
        ({"mean": False, "hidden": 0, **no_mixer}, {"output", "pairs"}),
    ]
    for changes, layers in students:
        toy = toy_checkpoint(1, **changes)
        sequences = [rng.integers(1, toy.config.vocab_size, size=n).tolist() for n in range(1, 20)]
        ranges = input_ranges(fold(toy)[0], sequences, 100)
        assert set(ranges) == layers
        if not toy.config.hidden:
            assert ranges["output"] >= ranges.get("mean", 0), "the output takes mean and maximum together"


@given(
    st.lists(st.floats(0, 100, width=32), min_size=1, max_size=40),
    st.floats(90, 100),
    st.integers(0, 30),
)
def test_the_largest_numbers_give_numpys_percentile(values: list[float], percentile: float, spare: int) -> None:
    largest = Largest(len(values) + spare, percentile)
    for start in range(0, len(values), 7):
        largest.add(np.array(values[start : start + 7], np.float32))
    assert largest.value() == pytest.approx(np.percentile(np.array(values, np.float32), percentile), rel=1e-5, abs=1e-5)
