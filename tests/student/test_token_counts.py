"""Usage: tokens and buckets counted as plain loops count them, kept in a checkpoint, refused when it does not fit."""

from __future__ import annotations

import dataclasses
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldrun.errors import CheckpointError
from fieldrun.heads.trained import Checkpoint
from fieldrun.student.config import HASH_MULTIPLIERS
from fieldrun.student.token_counts import count_usage
from tests.toy import toy_checkpoint, toy_config

TEXTS = st.lists(st.lists(st.integers(1, toy_config().vocab_size - 1), min_size=1, max_size=9), max_size=8)


@given(TEXTS)
def test_counts_are_those_of_a_loop(texts: list[list[int]]) -> None:
    config = toy_config()
    usage = count_usage(config, texts)
    tokens, buckets = Counter[int](), Counter[int]()
    for ids in texts:
        tokens.update(ids)
        for t in range(len(ids)):
            for number, gram in enumerate(config.ngrams):
                at = [ids[t + o] if 0 <= t + o < len(ids) else 0 for o in gram]
                total = sum(x * HASH_MULTIPLIERS[(i + number) % 4] for i, x in enumerate(at))
                buckets[total % config.ngram_buckets] += 1
    assert usage["tokens"].tolist() == [tokens[i] for i in range(config.vocab_size)]
    assert usage["ngrams"].tolist() == [buckets[i] for i in range(config.ngram_buckets)]


def test_a_student_without_ngrams_counts_tokens_alone() -> None:
    assert set(count_usage(toy_config(ngrams=(), ngram_buckets=0), [[1, 2]])) == {"tokens"}


def test_a_checkpoint_keeps_its_counts(tmp_path: Path) -> None:
    checkpoint = toy_checkpoint(0)
    checkpoint.save(tmp_path / "with")
    found = Checkpoint.load(tmp_path / "with")
    assert set(found.usage) == {"tokens", "ngrams"}
    for name, counts in checkpoint.usage.items():
        np.testing.assert_array_equal(found.usage[name], counts)
    dataclasses.replace(checkpoint, usage={}).save(tmp_path / "without")
    assert not Checkpoint.load(tmp_path / "without").usage


def test_counts_that_do_not_fit_are_refused() -> None:
    checkpoint = toy_checkpoint(0)
    for usage in (
        {"tokens": checkpoint.usage["tokens"]},
        {**checkpoint.usage, "ngrams": checkpoint.usage["ngrams"][:-1]},
        {name: counts.astype(np.float32) for name, counts in checkpoint.usage.items()},
    ):
        with pytest.raises(CheckpointError, match="usage: the counts must be int32 of the shapes"):
            dataclasses.replace(checkpoint, usage=usage).validate()
