"""The NumPy reference against the formula of `fieldrun.student`, written out with loops over positions and channels."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldrun.checkpoint import Checkpoint
from fieldrun.reference import forward, head_logits, pad_ids, pair_features, shift, softmax
from fieldrun.tensors import Array
from tests.toy import toy_checkpoint

SHAPES: dict[str, dict[str, Any]] = {
    "whole": {},
    "no mixer": {"mixer_kernel": 0},
    "wide mixer": {"mixer_kernel": 5},
    "no n-grams": {"ngram_orders": (), "ngram_buckets": 0},
    "four-grams alone": {"ngram_orders": (4,), "ngram_buckets": 7},
    "only the token": {"offsets": (0,), "mixer_kernel": 0, "ngram_orders": (), "ngram_buckets": 0},
    "far offsets": {"offsets": (-6, 5, 0)},
}
CHECKPOINTS = {name: toy_checkpoint(seed, **changes) for seed, (name, changes) in enumerate(SHAPES.items())}
MULTIPLIERS = (20011, 15013, 10007, 5003)
IDS = st.lists(st.integers(1, CHECKPOINTS["whole"].config.vocab_size - 1), min_size=1, max_size=9)


def looped_field(checkpoint: Checkpoint, ids: list[int]) -> list[float]:
    """The field of one text without padding: every sum of the formula is a loop, in Python's floats."""
    config, w = checkpoint.config, {name: tensor.tolist() for name, tensor in checkpoint.tensors.items()}
    channels, reach = range(config.width), config.mixer_kernel // 2

    def token(t: int) -> int:
        return ids[t] if 0 <= t < len(ids) else 0

    h = []
    for t in range(len(ids)):
        y = list(w["window.bias"])
        for o, offset in enumerate(config.offsets):
            for e, value in enumerate(w["embedding"][token(t + offset)]):
                for c in channels:
                    y[c] += value * w["window.weight"][o][e][c]
        for order in config.ngram_orders:
            row = sum(token(t - k) * MULTIPLIERS[k] for k in range(order)) % config.ngram_buckets
            y = [y[c] + w["ngram"][row][c] for c in channels]
        h.append([max(0.0, value) for value in y])
    if config.mixer_kernel:
        mixed = []
        for t in range(len(ids)):
            r = list(w["mixer.bias"])
            for k in range(config.mixer_kernel):
                if 0 <= t + k - reach < len(ids):
                    for d, value in enumerate(h[t + k - reach]):
                        for c in channels:
                            r[c] += value * w["mixer.weight"][k][d][c]
            mixed.append([h[t][c] + max(0.0, r[c]) for c in channels])
        h = mixed
    score = [sum(row[c] * w["pool.weight"][c][0] for c in channels) + w["pool.bias"][0] for row in h]
    a = [math.exp(min(10.0, max(-10.0, value))) for value in score]
    p = [sum(a[t] * h[t][c] for t in range(len(h))) / sum(a) for c in channels]
    p += [max(row[c] for row in h) for c in channels]

    def dense(x: list[float], layer: str) -> list[float]:
        weight, bias = w[f"{layer}.weight"], w[f"{layer}.bias"]
        return [sum(x[i] * weight[i][j] for i in range(len(x))) + bias[j] for j in range(len(bias))]

    return dense([max(0.0, value) for value in dense(p, "hidden")], "field")


@pytest.mark.parametrize("name", SHAPES)
@settings(max_examples=12)
@given(ids=IDS)
def test_the_field_is_the_formula(name: str, ids: list[int]) -> None:
    checkpoint = CHECKPOINTS[name]
    expected = looped_field(checkpoint, ids)
    exact = forward(checkpoint.config, checkpoint.tensors, pad_ids([ids]), float64=True)
    assert exact.dtype == np.float64
    np.testing.assert_allclose(exact[0], expected, rtol=0, atol=1e-12)
    field = forward(checkpoint.config, checkpoint.tensors, pad_ids([ids]))
    assert field.dtype == np.float32
    np.testing.assert_allclose(field[0], expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", SHAPES)
@given(texts=st.lists(IDS, min_size=1, max_size=5), more=st.integers(0, 30))
def test_padding_and_company_do_not_change_a_field(name: str, texts: list[list[int]], more: int) -> None:
    checkpoint = CHECKPOINTS[name]
    longest = max(len(ids) for ids in texts)
    together = forward(checkpoint.config, checkpoint.tensors, pad_ids(texts, longest + more), float64=True)
    for row, ids in zip(together, texts, strict=True):
        alone = forward(checkpoint.config, checkpoint.tensors, pad_ids([ids]), float64=True)
        np.testing.assert_allclose(row, alone[0], rtol=0, atol=1e-12)


def test_record_sees_every_dense_input_without_padding() -> None:
    checkpoint = CHECKPOINTS["whole"]
    config = checkpoint.config
    seen: dict[str, Array] = {}
    ids = pad_ids([[5, 6, 7], [8]], 20)
    forward(config, checkpoint.tensors, ids, record=seen.__setitem__)
    assert {name: x.shape for name, x in seen.items()} == {
        "mixer": (4, config.mixer_kernel * config.width),
        "hidden": (2, 2 * config.width),
        "field": (2, config.hidden),
    }


def test_pad_ids() -> None:
    assert pad_ids([[1, 2], [3]]).tolist() == [[1, 2], [3, 0]]
    assert pad_ids([[1]], 3).tolist() == [[1, 0, 0]]
    assert pad_ids([[1]]).dtype == np.int64


@given(length=st.integers(1, 6), offset=st.integers(-8, 8))
def test_shift(length: int, offset: int) -> None:
    x = np.arange(1, 2 * length + 1).reshape(2, length)
    for b in range(2):
        row = [x[b, t + offset] if 0 <= t + offset < length else 0 for t in range(length)]
        assert shift(x, offset)[b].tolist() == row


@given(
    st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=6),
    st.floats(0.0625, 16, width=32),
)
def test_softmax_is_a_distribution_that_keeps_the_order(logits: list[float], temperature: float) -> None:
    x = np.array([logits], np.float32)
    scores = softmax(x, temperature)
    assert scores.dtype == np.float32
    assert scores.min() >= 0
    np.testing.assert_allclose(scores.sum(-1), 1, rtol=0, atol=1e-5)
    assert scores[0, int(x.argmax())] == scores.max()
    largest = max(logits)
    weights = [math.exp((value - largest) / temperature) for value in logits]
    np.testing.assert_allclose(scores[0], np.array(weights) / sum(weights), rtol=0, atol=2e-3)


def test_pair_features_and_head_logits() -> None:
    a, b = np.array([[1.0, -2.0]]), np.array([[3.0, 4.0]])
    assert pair_features(a, b).tolist() == [[1, -2, 3, 4, 2, 6, 3, -8]]
    pair = next(head for head in CHECKPOINTS["whole"].heads if head.kind == "pair")
    x = np.ones((3, pair.weight.shape[0]), np.float32)
    np.testing.assert_allclose(head_logits(pair, x)[2], pair.weight.sum(0) + pair.bias, rtol=0, atol=1e-4)
