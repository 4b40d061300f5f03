"""What a student and a head may be, and what is refused with a word about the setting at fault."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldrun.errors import CheckpointError, RecipeError
from fieldrun.formats.integrity import from_mapping
from fieldrun.formats.tensors import check_tensors
from fieldrun.heads.head import Head
from fieldrun.student.config import HASH_MULTIPLIERS, StudentConfig
from tests.toy import toy_checkpoint, toy_config

BAD_OFFSETS: list[Any] = [[1, 2], [], [0, 0], [0, 0.5], [0, True], [0, 9], [-9, 0], [0, [1]], [0, None], 0, "0", None]

BAD_NGRAMS: list[Any] = [[[0]], [[]], [[0, 0]], [[0, 9]], [[0, 0.5]], [[0, [1]]], [range(5)], [list(range(5))], [3]]


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        *(
            (name, value)
            for name in ("vocab_size", "embedding_dim", "width", "field_dim", "max_tokens")
            for value in (0, -1, 1.0, "8", True, None)
        ),
        *(
            (name, value)
            for name in ("ngram_buckets", "mixer_kernel", "mixer_width", "hidden")
            for value in (-1, 1.0, "8", True, None)
        ),
        *((name, 0) for name in ("ngram_buckets", "mixer_kernel", "mixer_width")),  # without its other half
        *(("mean", value) for value in (0, 1, "true", None)),
        *(("offsets", value) for value in BAD_OFFSETS),
        *(("ngrams", value) for value in BAD_NGRAMS),
        *(("ngrams", value) for value in ([[0, 1], "ab"], "ab", 3, None, [], {"a": [0, 1]})),
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
    whole = toy_config().shapes()
    assert set(whole) == {
        "embedding", "window.weight", "window.bias", "ngram", "mixer.weight", "pool.weight", "hidden.weight",
        "hidden.bias", "field.weight", "field.bias",
    }  # fmt: skip
    assert (whole["mixer.weight"], whole["pool.weight"]) == ((2 * 16, 20), (20, 1))
    assert (whole["hidden.weight"], whole["field.weight"]) == ((2 * 20, 24), (24, 32))
    bare = toy_config(ngrams=(), ngram_buckets=0, mixer_kernel=0, mixer_width=0, mean=False, hidden=0, offsets=(0,))
    assert set(bare.shapes()) == {"embedding", "window.weight", "window.bias", "field.weight", "field.bias"}
    assert bare.shapes()["field.weight"] == (16, 32)
    assert toy_config(hidden=0).shapes()["field.weight"] == (40, 32)
    assert toy_config(mean=False).shapes()["hidden.weight"] == (20, 24)
    assert bare.shapes()["window.weight"] == (1, bare.embedding_dim, bare.width)
    assert bare.parameters() == sum(math.prod(shape) for shape in bare.shapes().values())


@given(
    st.builds(
        toy_config,
        vocab_size=st.integers(1, 30_000),
        width=st.integers(1, 512),
        offsets=st.sets(st.integers(-8, 8)).map(lambda chosen: tuple(sorted({*chosen, 0}))),
        ngrams=st.lists(st.lists(st.integers(-8, 8), min_size=2, max_size=4, unique=True), min_size=1, max_size=5),
        mixer_kernel=st.integers(1, 9),
        mixer_width=st.integers(1, 64),
        mean=st.booleans(),
        hidden=st.integers(0, 64),
    )
)
def test_a_config_survives_json(config: StudentConfig) -> None:
    read = from_mapping(StudentConfig, json.loads(json.dumps(config.to_dict())), "student")
    assert read == config
    assert hash(read) == hash(config), "read as tuples"


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
        (lambda tensors: tensors.pop("hidden.bias"), "lacks the tensor 'hidden.bias'"),
        (lambda tensors: tensors.update(extra=np.zeros(1)), "unknown tensor 'extra'"),
        (lambda tensors: tensors.update({"hidden.bias": np.zeros(2)}), r"shape \(2,\), expected \(24,\)"),
        (lambda tensors: tensors.update({"hidden.bias": np.zeros(24, int)}), "dtype int64"),
        (lambda tensors: tensors.update({"hidden.bias": np.full(24, np.nan)}), "NaN or infinity"),
        (lambda tensors: tensors.update({"hidden.bias": np.full(24, -np.inf)}), "NaN or infinity"),
    ],
)
def test_tensors_are_checked_one_by_one(change: Any, message: str) -> None:
    checkpoint = toy_checkpoint()
    tensors = dict(checkpoint.tensors)
    check_tensors(tensors, checkpoint.config.shapes(), "student")
    change(tensors)
    with pytest.raises(CheckpointError, match=message):
        check_tensors(tensors, checkpoint.config.shapes(), "student")
