"""What A3 is compared with: each control is what it says, gets no fewer numbers, and comes no nearer."""

from __future__ import annotations

import numpy as np
import pytest

from fieldrun.errors import ExportError
from fieldrun.formats.tensors import Array
from fieldrun.student.windows import pad_ids
from fieldrun_exporters.encoder.activations import Moments, accumulate
from fieldrun_exporters.encoder.model import Encoder, forward
from studies.encoder_methods.controls import METHODS, lowrank
from studies.encoder_methods.errors import block_parameters
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


@pytest.mark.parametrize("method", METHODS)
def test_nothing_taken_away_changes_nothing(moments: Moments, method: str) -> None:
    same, report = lowrank(ENCODER, moments, 0, method)
    np.testing.assert_allclose(forward(same, IDS), forward(ENCODER, IDS), atol=1e-5)
    assert report.bytes_after == report.bytes_before == 4 * block_parameters(ENCODER)
    assert all(facts["output_error"] < 1e-6 for facts in report.changed.values())


@pytest.mark.parametrize("ratio", [0.25, 0.5])
def test_a3_is_nearest(moments: Moments, ratio: float) -> None:
    errors = {}
    for method in METHODS:
        small, report = lowrank(ENCODER, moments, ratio, method)
        errors[method] = _error(small)
        assert report.bytes_after <= (1 - ratio + 0.13) * report.bytes_before
        assert all(0 < facts["output_error"] < 1 for facts in report.changed.values())
        if method.startswith("a3"):
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


def test_as_published_nothing_is_fitted_again(moments: Moments) -> None:
    small, _ = lowrank(ENCODER, moments, 0.5, "a3-published")
    whole = {tuple(row) for row in ENCODER.tensors["layer2.down.weight"].tolist()}
    assert {tuple(row) for row in small.tensors["layer2.down.weight"].tolist()} < whole


def test_an_unknown_method_is_refused(moments: Moments) -> None:
    with pytest.raises(ExportError, match="known: svd"):
        lowrank(ENCODER, moments, 0.1, "magic")
