"""What a student and a head may be, and what is refused with a word about the setting at fault."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldrun.errors import CheckpointError, RecipeError
from fieldrun.student import HASH_MULTIPLIERS, Head, StudentConfig, check_tensors, from_mapping
from tests.toy import toy_checkpoint, toy_config


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(
            (name, value)
            for name in ("vocab_size", "width", "hidden", "field_dim")
            for value in (0, -1, 1.0, "8", True)
        ),
        ("offsets", [1, 2]),
        ("offsets", [0, 0]),
        ("offsets", [0, 0.5]),
        ("offsets", 0),
        ("ngram_orders", [1]),
        ("ngram_orders", [5]),
        ("ngram_orders", "23"),
        ("ngram_orders", []),
        ("ngram_buckets", 0),
        ("ngram_buckets", -61),
        ("ngram_buckets", 61.0),
        ("mixer_kernel", 2),
        ("mixer_kernel", -1),
        ("mixer_kernel", 3.0),
        ("mixer_kernel", True),
        ("vocab_size", 50_000),
    ],
)
def test_a_setting_that_makes_no_sense_is_refused(setting: str, value: Any) -> None:
    with pytest.raises(CheckpointError) as caught:
        toy_config(**{setting: value})
    assert "\n" not in str(caught.value)
    assert caught.value.exit_code == 5


def test_the_hash_fits_32_bits_up_to_the_largest_vocabulary() -> None:
    largest = (2**31 - 1) // sum(HASH_MULTIPLIERS) + 1
    assert (largest - 1) * sum(HASH_MULTIPLIERS) < 2**31
    toy_config(vocab_size=largest)
    with pytest.raises(CheckpointError, match="32-bit"):
        toy_config(vocab_size=largest + 1)


def test_shapes_name_only_the_parts_that_there_are() -> None:
    assert set(toy_config().shapes()) >= {"ngram", "mixer.weight", "mixer.bias"}
    bare = toy_config(ngram_orders=(), ngram_buckets=0, mixer_kernel=0, offsets=(0,))
    assert not any(name.startswith(("ngram", "mixer")) for name in bare.shapes())
    assert bare.shapes()["window.weight"] == (1, bare.embedding_dim, bare.width)
    assert bare.parameters() == sum(math.prod(shape) for shape in bare.shapes().values())


@given(
    st.builds(
        toy_config,
        vocab_size=st.integers(1, 30_000),
        width=st.integers(1, 512),
        offsets=st.sets(st.integers(-9, 9)).map(lambda chosen: tuple(sorted({*chosen, 0}))),
        ngram_orders=st.sampled_from([(2,), (3, 2), (2, 3, 4)]),
        mixer_kernel=st.sampled_from([0, 1, 3, 5]),
    )
)
def test_a_config_survives_json(config: StudentConfig) -> None:
    assert from_mapping(StudentConfig, config.to_dict(), "student") == config


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([], "must be an object, not list"),
        (toy_config().to_dict() | {"colour": 1, "age": 2}, "unknown keys: age, colour"),
        ({"vocab_size": 3}, "incomplete"),
    ],
)
def test_from_mapping_says_what_is_wrong(value: Any, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        from_mapping(StudentConfig, value, "student")
    with pytest.raises(RecipeError, match=message):
        from_mapping(StudentConfig, value, "student", RecipeError)


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "../mood"},
        {"name": "a b"},
        {"kind": "triple"},
        {"labels": ("only",)},
        {"labels": ("same", "same")},
        {"labels": ("", "x")},
        {"labels": (1, 2)},
        {"labels": "ab"},
        *({"temperature": value} for value in (0, -1, 1e4, float("nan"), "1", None)),
    ],
)
def test_a_head_that_makes_no_sense_is_refused(changes: dict[str, Any]) -> None:
    head = {"name": "mood", "kind": "single", "labels": ("bad", "good")}
    tensors = {"weight": np.zeros((4, 2), "f4"), "bias": np.zeros(2, "f4")}
    Head(**head, **tensors).validate(4)  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match=r"^head "):
        Head(**(head | tensors | changes))


def test_a_pair_head_reads_four_fields() -> None:
    head = Head(name="p", kind="pair", labels=("a", "b"), weight=np.zeros((16, 2)), bias=np.zeros(2))
    head.validate(4)
    with pytest.raises(CheckpointError, match=r"'weight' has shape \(16, 2\), expected \(20, 2\)"):
        head.validate(5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("pool.bias"), "lacks the tensor 'pool.bias'"),
        (lambda tensors: tensors.update(extra=np.zeros(1)), "unknown tensor 'extra'"),
        (lambda tensors: tensors.update({"pool.bias": np.zeros(2)}), r"shape \(2,\), expected \(1,\)"),
        (lambda tensors: tensors.update({"pool.bias": np.zeros(1, int)}), "dtype int64"),
        (lambda tensors: tensors.update({"pool.bias": np.full(1, np.nan)}), "NaN or infinity"),
        (lambda tensors: tensors.update({"pool.bias": np.full(1, -np.inf)}), "NaN or infinity"),
    ],
)
def test_tensors_are_checked_one_by_one(change: Any, message: str) -> None:
    checkpoint = toy_checkpoint()
    tensors = dict(checkpoint.tensors)
    check_tensors(tensors, checkpoint.config.shapes(), "student")
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        check_tensors(tensors, checkpoint.config.shapes(), "student")
