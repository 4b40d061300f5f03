"""The NumPy oracle against the formula of `fieldrun.student.config`, written with loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldrun.formats.tensors import Array
from fieldrun.heads import head as heads
from fieldrun.heads.trained import Checkpoint
from fieldrun.student import oracle, windows
from fieldrun.student.oracle import forward, pad_ids
from tests.toy import toy_checkpoint

NO_MIXER = {"mixer_kernel": 0, "mixer_width": 0}
NO_NGRAMS = {"ngrams": (), "ngram_buckets": 0}
SHAPES: dict[str, dict[str, Any]] = {
    "whole": {},
    "no mixer": NO_MIXER,
    "three together": {"mixer_kernel": 3, "mixer_width": 7},
    "one by one": {"mixer_kernel": 1, "mixer_width": 30},
    "no n-grams": NO_NGRAMS,
    "a four-gram alone": {"ngrams": ((-1, -3, 0, 2),), "ngram_buckets": 7},
    "more n-grams than multipliers": {"ngrams": ((-1, 0), (0, 1), (0, 2), (-2, 0), (-3, -1), (-3, 0))},
    "no mean": {"mean": False},
    "no hidden layer": {"hidden": 0},
    "neither mean nor hidden layer": {"mean": False, "hidden": 0},
    "only the token": {"offsets": (0,), "mean": False, "hidden": 0, **NO_MIXER, **NO_NGRAMS},
    "far offsets": {"offsets": (-8, 5, 0), "ngrams": ((-8, 8),)},
}
CHECKPOINTS = {name: toy_checkpoint(seed, **changes) for seed, (name, changes) in enumerate(SHAPES.items())}
MULTIPLIERS = (20011, 15013, 10007, 5003)
IDS = st.lists(st.integers(1, CHECKPOINTS["whole"].config.vocab_size - 1), min_size=1, max_size=9)


def looped_field(checkpoint: Checkpoint, ids: list[int]) -> list[float]:
    """The field of one text without padding: every sum of the formula is a loop, in Python's floats."""
    config, w = checkpoint.config, {name: tensor.tolist() for name, tensor in checkpoint.tensors.items()}
    channels = range(config.width)

    def token(t: int) -> int:
        return ids[t] if 0 <= t < len(ids) else 0

    h = []
    for t in range(len(ids)):
        y = list(w["window.bias"])
        for o, offset in enumerate(config.offsets):
            for e, value in enumerate(w["embedding"][token(t + offset)]):
                for c in channels:
                    y[c] += value * w["window.weight"][o][e][c]
        for number, gram in enumerate(config.ngrams):
            row = sum(token(t + o) * MULTIPLIERS[(i + number) % 4] for i, o in enumerate(gram)) % config.ngram_buckets
            y = [y[c] + w["ngram"][row][c] for c in channels]
        h.append([max(0.0, value) for value in y])
    g = h
    if config.mixer_kernel:
        r = config.mixer_kernel
        g = []
        for start in range(len(ids)):
            mixed: Any = [0.0] * config.mixer_width
            for k, features in enumerate(h[start : start + r]):  # beyond the text, h is zero
                for c in channels:
                    for m in range(config.mixer_width):
                        mixed[m] += features[c] * w["mixer.weight"][k * config.width + c][m]
            g.append([max(0.0, value) for value in mixed])
    p = [max(row[m] for row in g) for m in range(len(g[0]))]
    if config.mean:
        a = [sum(row[m] * w["pool.weight"][m][0] for m in range(len(row))) for row in g]
        p = [sum(a[s] * g[s][m] for s in range(len(g))) / (sum(a) + 1e-9) for m in range(len(p))] + p

    def dense(x: list[float], layer: str) -> list[float]:
        weight, bias = w[f"{layer}.weight"], w[f"{layer}.bias"]
        return [sum(x[i] * weight[i][j] for i in range(len(x))) + bias[j] for j in range(len(bias))]

    if config.hidden:
        p = [max(0.0, value) for value in dense(p, "hidden")]
    return dense(p, "field")


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


@pytest.mark.parametrize("name", SHAPES)
def test_a_text_without_any_feature_has_a_field(name: str) -> None:
    checkpoint = CHECKPOINTS[name]
    tensors = dict(checkpoint.tensors) | {"window.bias": np.full(checkpoint.config.width, -1e4, np.float32)}
    empty = np.zeros((1, checkpoint.config.pooled))
    if checkpoint.config.hidden:
        empty = np.maximum(tensors["hidden.bias"], 0)[None]
    for float64 in (False, True):
        field = forward(checkpoint.config, tensors, pad_ids([[5, 6, 7]], 9), float64=float64)
        np.testing.assert_allclose(field, empty @ tensors["field.weight"] + tensors["field.bias"], rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", SHAPES)
def test_record_sees_every_dense_input_without_padding(name: str) -> None:
    checkpoint = CHECKPOINTS[name]
    config = checkpoint.config
    seen: dict[str, Array] = {}
    forward(config, checkpoint.tensors, pad_ids([[5, 6, 7], [8]], 20), record=seen.__setitem__)
    expected = {"field": (2, config.hidden or config.pooled)}
    if config.hidden:
        expected["hidden"] = (2, config.pooled)
    if config.mixer_kernel:
        expected["mixer"] = (4, config.mixer_kernel * config.width)
    assert {name: x.shape for name, x in seen.items()} == expected


@pytest.mark.parametrize("module", [oracle, windows])
def test_pad_ids(module: Any) -> None:
    assert module.pad_ids([[1, 2], [3]]).tolist() == [[1, 2], [3, 0]]
    assert module.pad_ids([[1]], 3).tolist() == [[1, 0, 0]]
    assert module.pad_ids([[1]]).dtype == np.int64


@pytest.mark.parametrize("module", [oracle, windows])
@given(length=st.integers(1, 6), offset=st.integers(-8, 8))
def test_shift(module: Any, length: int, offset: int) -> None:
    x = np.arange(1, 2 * length + 1).reshape(2, length)
    for b in range(2):
        row = [x[b, t + offset] if 0 <= t + offset < length else 0 for t in range(length)]
        assert module.shift(x, offset)[b].tolist() == row


@pytest.mark.parametrize("module", [oracle, heads])
@given(
    logits=st.lists(st.floats(-1e4, 1e4, width=32), min_size=2, max_size=6),
    temperature=st.floats(0.0625, 16, width=32),
)
def test_softmax_is_a_distribution_that_keeps_the_order(module: Any, logits: list[float], temperature: float) -> None:
    x = np.array([logits], np.float32)
    scores = module.softmax(x, temperature)
    assert scores.dtype == np.float32
    assert scores.min() >= 0
    np.testing.assert_allclose(scores.sum(-1), 1, rtol=0, atol=1e-5)
    assert scores[0, int(x.argmax())] == scores.max()
    largest = max(logits)
    weights = [math.exp((value - largest) / temperature) for value in logits]
    np.testing.assert_allclose(scores[0], np.array(weights) / sum(weights), rtol=0, atol=2e-3)


@pytest.mark.parametrize("module", [oracle, heads])
def test_pair_features(module: Any) -> None:
    a, b = np.array([[1.0, -2.0]]), np.array([[3.0, 4.0]])
    assert module.pair_features(a, b).tolist() == [[1, -2, 3, 4, 2, 6, 3, -8]]


def test_head_logits() -> None:
    pair = next(head for head in CHECKPOINTS["whole"].heads if head.kind == "pair")
    x = np.ones((3, pair.weight.shape[0]), np.float32)
    for found in (oracle.head_logits(pair.weight, pair.bias, x), heads.head_logits(pair, x)):
        np.testing.assert_allclose(found[2], pair.weight.sum(0) + pair.bias, rtol=0, atol=1e-4)
