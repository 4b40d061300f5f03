"""A3 and its controls: every closed form is the optimum it says, biases are exact, and nothing is done in silence."""

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
from fieldrun_exporters.encoder.lowrank import (
    METHODS,
    best_product,
    block_parameters,
    inner_size,
    lowrank,
    product_error,
)
from fieldrun_exporters.encoder.model import Encoder, forward
from tests.toy_encoder import toy_encoder, toy_sequences

ENCODER = toy_encoder()
SEQUENCES = toy_sequences(ENCODER, 300)
IDS = pad_ids(toy_sequences(ENCODER, 40, seed=1))


@pytest.fixture(scope="module")
def moments() -> Moments:
    return accumulate(ENCODER, SEQUENCES)


def _root(matrix: Array) -> Array:
    values, axes = np.linalg.eigh(matrix)
    root: Array = (axes * np.sqrt(np.maximum(values, 0))) @ axes.T
    return root


def _error(encoder: Encoder) -> float:
    dense = forward(ENCODER, IDS)
    return float(np.linalg.norm(forward(encoder, IDS) - dense) / np.linalg.norm(dense))


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


@pytest.mark.parametrize("method", METHODS)
def test_nothing_taken_away_changes_nothing(moments: Moments, method: str) -> None:
    same, report = lowrank(ENCODER, moments, 0, method)
    np.testing.assert_allclose(forward(same, IDS), forward(ENCODER, IDS), atol=1e-5)
    assert report.bytes_after == report.bytes_before == 4 * block_parameters(ENCODER)
    assert all(facts["output_error"] < 1e-6 for facts in report.changed.values())


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_a3_shrinks_the_inner_sizes_and_is_nearest(moments: Moments, ratio: float) -> None:
    errors = {}
    for method in METHODS:
        small, report = lowrank(ENCODER, moments, ratio, method)
        errors[method] = _error(small)
        assert report.bytes_after <= (1 - ratio + 0.13) * report.bytes_before
        assert all(0 < facts["output_error"] < 1 for facts in report.changed.values())
        if method.startswith("a3"):
            assert small.inner_sizes(1) == (inner_size(8, ratio), inner_size(8, ratio), inner_size(32, ratio))
            assert report.bytes_after == 4 * block_parameters(small)
            small.validate()
    assert errors["a3"] < errors["activation-svd"] < errors["svd"]
    assert errors["a3"] < errors["a3-published"]


def test_the_controls_get_no_fewer_parameters(moments: Moments) -> None:
    for ratio in (0.1, 0.2, 0.4, 0.7):
        sizes = {method: lowrank(ENCODER, moments, ratio, method)[1].bytes_after for method in METHODS}
        assert sizes["svd"] == sizes["activation-svd"] >= sizes["a3"] == sizes["a3-published"]


def test_activation_svd_is_the_optimum_for_one_map(moments: Moments) -> None:
    small, report = lowrank(ENCODER, moments, 0.5, "activation-svd")
    name, rank = "layer1.up", report.changed["layer1.up"]["rank"]
    C, W = moments.covariance(name), ENCODER.tensors[f"{name}.weight"].astype(np.float64)
    root = _root(C)
    U, S, Vt = np.linalg.svd(root @ W, full_matrices=False)
    wanted = np.linalg.inv(root) @ (U[:, :rank] * S[:rank]) @ Vt[:rank]
    np.testing.assert_allclose(small.tensors[f"{name}.weight"], wanted, atol=1e-4)
    assert np.linalg.matrix_rank(small.tensors[f"{name}.weight"], tol=1e-4) == rank
    left = np.sqrt(np.sum(S[rank:] ** 2) / np.sum(W * (moments.second[name] @ W)))
    assert report.changed[name]["output_error"] == pytest.approx(left, rel=1e-3)


def test_the_refitted_down_map_is_the_least_squares_one(moments: Moments) -> None:
    small, _ = lowrank(ENCODER, moments, 0.5, "a3")
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
    published, _ = lowrank(ENCODER, moments, 0.5, "a3-published")
    np.testing.assert_array_equal(published.tensors["layer2.down.weight"], W[kept].astype(np.float32))


def test_a_key_bias_and_a_value_bias_are_folded_exactly(moments: Moments) -> None:
    biased = dict(ENCODER.tensors)
    for k in range(ENCODER.config.layers):
        biased[f"layer{k}.key.bias"] = 50 * biased[f"layer{k}.key.bias"]
    loud = replace(ENCODER, tensors=biased)
    np.testing.assert_allclose(forward(loud, IDS), forward(ENCODER, IDS), atol=1e-4)  # a softmax does not see it
    small, _ = lowrank(loud, moments, 0.25, "a3")
    same, _ = lowrank(ENCODER, moments, 0.25, "a3")
    np.testing.assert_allclose(forward(small, IDS), forward(same, IDS), atol=1e-5)
    assert not small.tensors["layer0.key.bias"].any()
    assert not small.tensors["layer0.value.bias"].any()


def test_the_report_measures_what_was_done(moments: Moments, monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass made to do nothing, or worse than nothing, is told by its report."""
    module = "fieldrun_exporters.encoder.lowrank"
    _, honest = lowrank(ENCODER, moments, 0.5)
    monkeypatch.setattr(f"{module}.best_product", lambda A, B, R, C, rank: (A[:, :rank], B[:, :rank]))
    _, cut = lowrank(ENCODER, moments, 0.5)
    for component in ("layer1.qk", "layer1.ov"):
        assert cut.changed[component]["output_error"] > honest.changed[component]["output_error"]
    monkeypatch.setattr(f"{module}.inner_size", lambda size, ratio: size)
    with pytest.raises(ExportError, match="changes no size"):
        lowrank(ENCODER, moments, 0.5)


@pytest.mark.parametrize(
    ("ratio", "method", "words"), [(1, "a3", "ratio"), (-0.1, "a3", "ratio"), (0.1, "magic", "known: svd")]
)
def test_wrong_requests_are_one_line(moments: Moments, ratio: float, method: str, words: str) -> None:
    with pytest.raises(ExportError, match=words) as error:
        lowrank(ENCODER, moments, ratio, method)
    assert "\n" not in str(error.value)


def test_calibration_text_of_one_token_is_refused() -> None:
    wrong: list[list[list[int]]] = [[], [[]], [[5], [7]]]
    for sequences in wrong:
        with pytest.raises(ExportError, match="two tokens"):
            accumulate(ENCODER, sequences)


def test_moments_of_another_encoder_are_refused(moments: Moments) -> None:
    with pytest.raises(ExportError, match="this encoder"):
        lowrank(toy_encoder(layers=4), moments, 0.2)
    with pytest.raises(ExportError, match="this encoder"):
        lowrank(toy_encoder(d_ff=64), moments, 0.2)
