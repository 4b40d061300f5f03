"""A3: every closed form is the optimum it says, biases are exact, and the report measures what was done."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldrun.errors import ExportError
from fieldrun.formats.tensors import Array
from fieldrun.student.windows import pad_ids
from fieldrun_exporters.encoder.activations import Moments, accumulate
from fieldrun_exporters.encoder.lowrank import best_product, inner_size, lowrank, product_error
from fieldrun_exporters.encoder.model import MAPS, forward
from fieldrun_exporters.recipe import COMPONENTS
from tests.toy_encoder import toy_encoder, toy_sequences

ENCODER = toy_encoder()
SEQUENCES = toy_sequences(ENCODER, 300)
IDS = pad_ids(toy_sequences(ENCODER, 40, seed=1))
MAPPED = [f"layer{k}.{name}.{kind}" for k in range(3) for name in MAPS for kind in ("weight", "bias")]


@pytest.fixture(scope="module")
def moments() -> Moments:
    return accumulate(ENCODER, SEQUENCES)


def _root(matrix: Array) -> Array:
    values, axes = np.linalg.eigh(matrix)
    root: Array = (axes * np.sqrt(np.maximum(values, 0))) @ axes.T
    return root


def test_moments_are_those_of_the_inputs(moments: Moments) -> None:
    seen: dict[str, list[Array]] = {}
    within = []
    for ids in SEQUENCES:
        forward(ENCODER, np.array([ids]), lambda name, x: seen.setdefault(name, []).append(x.astype(np.float64)))
        states = seen["layer1.query"][-1]
        within.append(states - states.mean(0))
    x = np.concatenate(seen["layer1.down"])
    assert moments.tokens == len(x)
    np.testing.assert_allclose(moments.second["layer1.down"], x.T @ x / len(x), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(moments.covariance("layer1.down"), np.cov(x.T, bias=True), rtol=1e-3, atol=1e-4)
    wide = np.column_stack([x, np.ones(len(x))])
    np.testing.assert_allclose(moments.augmented("layer1.down"), wide.T @ wide / len(x), rtol=1e-4, atol=1e-5)
    apart = np.concatenate(within)
    np.testing.assert_allclose(moments.within["layer1.query"], apart.T @ apart / len(x), rtol=1e-4, atol=1e-5)
    heads = np.concatenate(seen["layer1.context"]).reshape(len(x), 2, 16)
    for h in range(2):
        second = heads[:, h].T @ heads[:, h] / len(x)
        np.testing.assert_allclose(moments.second["layer1.context"][h], second, rtol=1e-4, atol=1e-5)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 6))
def test_the_product_is_the_truncated_decomposition_of_the_paper(seed: int, rank: int) -> None:
    rng = np.random.default_rng(seed)
    A, B = rng.standard_normal((12, 6)), rng.standard_normal((9, 6))
    X, Y = rng.standard_normal((40, 12)) * rng.uniform(0.1, 3, 12), rng.standard_normal((40, 9))
    R, C = X.T @ X / 40, Y.T @ Y / 40
    A_new, B_new = best_product(A, B, R, C, rank)
    assert A_new.shape == (12, rank)
    U, S, Vt = np.linalg.svd(_root(R) @ A @ B.T @ _root(C))
    wanted = np.linalg.inv(_root(R)) @ (U[:, :rank] * S[:rank]) @ Vt[:rank] @ np.linalg.inv(_root(C))
    np.testing.assert_allclose(A_new @ B_new.T, wanted, atol=1e-7)
    error, size = product_error(A, B, A_new, B_new, R, C)
    assert error == pytest.approx(float(np.sum(S[rank:] ** 2)), abs=1e-6)
    assert size == pytest.approx(float(np.sum(S**2)))
    for _ in range(20):  # no neighbour is better
        near = (A_new + 1e-3 * rng.standard_normal(A_new.shape), B_new + 1e-3 * rng.standard_normal(B_new.shape))
        assert product_error(A, B, *near, R, C)[0] >= error - 1e-9


def taken(ratio: float) -> dict[str, float]:
    """The same share of every component."""
    return dict.fromkeys(COMPONENTS, ratio)


def test_nothing_taken_away_changes_nothing(moments: Moments) -> None:
    same, report = lowrank(ENCODER, moments, taken(0))
    np.testing.assert_allclose(forward(same, IDS), forward(ENCODER, IDS), atol=1e-5)
    assert report.bytes_after == report.bytes_before == sum(4 * ENCODER.tensors[name].size for name in MAPPED)
    assert all(facts["output_error"] < 1e-6 for facts in report.changed.values())


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_a3_shrinks_the_inner_sizes(moments: Moments, ratio: float) -> None:
    small, report = lowrank(ENCODER, moments, taken(ratio))
    assert small.inner_sizes(1) == (inner_size(8, ratio), inner_size(8, ratio), inner_size(32, ratio))
    small.validate()
    assert report.bytes_after == sum(4 * small.tensors[name].size for name in MAPPED)
    assert report.bytes_after <= (1 - ratio + 0.13) * report.bytes_before
    assert all(0 < facts["output_error"] < 1 for facts in report.changed.values())
    outputs = [forward(each, IDS) for each in (small, ENCODER)]
    assert np.linalg.norm(outputs[0] - outputs[1]) < 0.5 * np.linalg.norm(outputs[1])


def test_the_refitted_down_map_is_the_least_squares_one(moments: Moments) -> None:
    small, _ = lowrank(ENCODER, moments, taken(0.5))
    inputs: list[Array] = []
    for ids in SEQUENCES:
        forward(ENCODER, np.array([ids]), lambda name, x: inputs.append(x) if name == "layer2.down" else None)
    x = np.concatenate(inputs).astype(np.float64)
    W, bias = (ENCODER.tensors[f"layer2.down.{kind}"].astype(np.float64) for kind in ("weight", "bias"))
    scores = np.square(x).mean(0) * np.square(W).sum(1)
    kept = np.sort(np.argsort(-scores)[:16])
    np.testing.assert_array_equal(small.tensors["layer2.up.weight"], ENCODER.tensors["layer2.up.weight"][:, kept])
    design = np.column_stack([x[:, kept], np.ones(len(x))])
    fitted, *_ = np.linalg.lstsq(design, x @ W + bias, rcond=None)
    np.testing.assert_allclose(small.tensors["layer2.down.weight"], fitted[:-1], atol=2e-3)
    np.testing.assert_allclose(small.tensors["layer2.down.bias"], fitted[-1], atol=2e-3)


def test_a_key_bias_and_a_value_bias_are_folded_exactly(moments: Moments) -> None:
    biased = dict(ENCODER.tensors)
    for k in range(ENCODER.config.layers):
        biased[f"layer{k}.key.bias"] = 50 * biased[f"layer{k}.key.bias"]
    loud = replace(ENCODER, tensors=biased)
    np.testing.assert_allclose(forward(loud, IDS), forward(ENCODER, IDS), atol=1e-4)  # a softmax does not see it
    small, _ = lowrank(loud, moments, taken(0.25))
    same, _ = lowrank(ENCODER, moments, taken(0.25))
    np.testing.assert_allclose(forward(small, IDS), forward(same, IDS), atol=1e-5)
    assert not small.tensors["layer0.key.bias"].any()
    assert not small.tensors["layer0.value.bias"].any()


def test_the_report_measures_what_was_done(moments: Moments, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass made to do nothing, or worse than nothing, is told by its report."""
    module = "fieldrun_exporters.encoder.lowrank"
    _, honest = lowrank(ENCODER, moments, taken(0.5))
    monkeypatch.setattr(f"{module}.best_product", lambda A, B, R, C, rank: (A[:, :rank], B[:, :rank]))
    _, cut = lowrank(ENCODER, moments, taken(0.5))
    for component in ("layer1.qk", "layer1.ov"):
        assert cut.changed[component]["output_error"] > honest.changed[component]["output_error"]
    monkeypatch.setattr(f"{module}.inner_size", lambda size, ratio: size)
    with pytest.raises(ExportError, match="changes no size"):
        lowrank(ENCODER, moments, taken(0.5))


@pytest.mark.parametrize(
    ("ratios", "words"),
    [({"qk": 1}, "ratio"), ({"ov": -0.1}, "ratio"), ({"up": 0.1}, "unknown component 'up'; known: qk")],
)
def test_wrong_requests_are_one_line(moments: Moments, ratios: dict[str, float], words: str) -> None:
    with pytest.raises(ExportError, match=words) as error:
        lowrank(ENCODER, moments, ratios)
    assert "\n" not in str(error.value)


def test_too_few_tokens_are_refused() -> None:
    few = accumulate(ENCODER, [[2, 5, 3]] * 21)
    with pytest.raises(ExportError, match="63 tokens of calibration text are too few, give 64 or more"):
        lowrank(ENCODER, few, taken(0.25))


def test_calibration_text_of_one_token_is_refused() -> None:
    wrong: list[list[list[int]]] = [[], [[]], [[5], [7]]]
    for sequences in wrong:
        with pytest.raises(ExportError, match="two tokens"):
            accumulate(ENCODER, sequences)


def test_moments_of_another_encoder_are_refused(moments: Moments) -> None:
    with pytest.raises(ExportError, match="this encoder"):
        lowrank(toy_encoder(layers=4), moments, taken(0.2))
    with pytest.raises(ExportError, match="this encoder"):
        lowrank(toy_encoder(d_ff=64), moments, taken(0.2))
