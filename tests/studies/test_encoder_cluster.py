"""Weight clustering: few values per matrix, centroids that tuning moves, and the rank experiment."""

from __future__ import annotations

import numpy as np
import pytest

from fieldrun.errors import ExportError
from fieldrun.student.windows import pad_ids
from fieldrun_exporters.encoder.activations import accumulate
from fieldrun_exporters.encoder.model import MAPS, forward
from studies.encoder_methods.cluster import ORDERS, cluster, reorder, tune
from studies.encoder_methods.network import pooled_states
from studies.encoder_methods.regression import Regression
from tests.toy_encoder import toy_encoder, toy_sequences

ENCODER = toy_encoder(hidden=32, heads=4, d_ff=64)
SEQUENCES = toy_sequences(ENCODER, 200)
IDS = pad_ids(SEQUENCES[:50])


@pytest.mark.parametrize(("entries", "bits"), [(2, 1), (16, 4), (20, 5), (256, 8)])
def test_every_matrix_has_few_values(entries: int, bits: int) -> None:
    small, clustering, changed = cluster(ENCODER, entries)
    weights = 3 * (4 * 32 * 32 + 2 * 32 * 64)
    assert sum(entry["bytes_before"] for entry in changed.values()) == 4 * weights
    assert sum(entry["bytes_after"] for entry in changed.values()) == weights * bits // 8 + 18 * 2 * entries
    for name, tensor in small.tensors.items():
        if name.endswith(".weight") and name.split(".")[1] in MAPS:
            assert len(np.unique(tensor)) <= entries
            assert (np.diff(clustering.books[name]) >= 0).all()
            assert clustering.books[name].dtype == np.float16
            distance = np.abs(ENCODER.tensors[name].ravel()[:, None] - clustering.books[name].astype(np.float32))
            nearest = distance.min(1)
            np.testing.assert_allclose(np.abs(ENCODER.tensors[name] - tensor).ravel(), nearest, atol=1e-6)
        else:
            assert tensor is ENCODER.tensors[name]


def test_gaussian_weights_keep_the_known_share() -> None:
    """The optimal quantizer of a Gaussian: 20.2 dB at 16 values (Max 1960), 26 at 32."""
    encoder = toy_encoder(hidden=64, heads=4, layers=1, d_ff=256)
    rng = np.random.default_rng(0)
    name = "layer0.up.weight"
    encoder.tensors[name][...] = rng.standard_normal((64, 256)).astype(np.float32)
    for entries, decibels in ((16, 20.2), (32, 26.0)):
        _, _, changed = cluster(encoder, entries)
        assert -20 * np.log10(changed[name]["weight_error"]) == pytest.approx(decibels, abs=0.3)


def test_the_output_error_is_that_of_the_outputs() -> None:
    name = "layer1.key"
    small, _, changed = cluster(ENCODER, 8, accumulate(ENCODER, SEQUENCES))
    x = []
    for ids in SEQUENCES:
        forward(ENCODER, np.array([ids]), lambda own, value: x.append(value) if own == "layer1.query" else None)
    inputs, old = np.concatenate(x), ENCODER.tensors[f"{name}.weight"]
    error = np.linalg.norm(inputs @ (old - small.tensors[f"{name}.weight"])) / np.linalg.norm(inputs @ old)
    assert changed[f"{name}.weight"]["output_error"] == pytest.approx(error, rel=1e-3)


def test_tuning_moves_centroids_alone_and_brings_the_fields_back() -> None:
    small, clustering, _ = cluster(ENCODER, 8)
    target = pooled_states(ENCODER, SEQUENCES)
    tuned, field = tune(ENCODER, clustering, SEQUENCES, target, Regression(steps=40, batch=16, rate=0.01))
    assert field["recovered"] > 0.1
    assert field["before"]["mean_cosine"] < field["after"]["mean_cosine"] < 1
    for name, tensor in tuned.tensors.items():
        if name not in clustering.codes:
            assert tensor is ENCODER.tensors[name]
            continue
        values = np.array([np.unique(tensor[clustering.codes[name] == k]) for k in range(8)])
        assert values.shape == (8, 1)  # the labels stay
        assert (np.diff(values[:, 0]) >= 0).all()  # and so does their order
    dense = forward(ENCODER, IDS)
    assert np.square(forward(tuned, IDS) - dense).sum() < np.square(forward(small, IDS) - dense).sum()


def test_biases_that_are_tuned_too_win_more_and_cost_nothing() -> None:
    _, clustering, _ = cluster(ENCODER, 8)
    target, plan = pooled_states(ENCODER, SEQUENCES), Regression(steps=40, batch=16, rate=0.01)
    _, alone = tune(ENCODER, clustering, SEQUENCES, target, plan)
    tuned, field = tune(ENCODER, clustering, SEQUENCES, target, plan, biases=True)
    assert field["recovered"] > alone["recovered"]
    moved = {name for name in tuned.tensors if tuned.tensors[name] is not ENCODER.tensors[name]}
    assert moved == set(clustering.books) | {name.removesuffix("weight") + "bias" for name in clustering.books}


def test_tuning_that_does_nothing_is_refused() -> None:
    _, clustering, _ = cluster(ENCODER, 8)
    target = pooled_states(ENCODER, SEQUENCES)
    with pytest.raises(ExportError, match="no nearer"):
        tune(ENCODER, clustering, SEQUENCES, target, Regression(steps=1, batch=2, rate=1e-9))


@pytest.mark.parametrize("entries", [0, 1, 257, 16.0])
def test_wrong_sizes_are_refused(entries: int) -> None:
    with pytest.raises(ExportError, match="2 to 256"):
        cluster(ENCODER, entries)


@pytest.mark.parametrize("order", ORDERS)
def test_reorder_does_what_it_says(order: str) -> None:
    small, clustering, _ = cluster(ENCODER, 16)
    changed, facts = reorder(small, clustering, order, [1])
    again, _ = reorder(small, clustering, order, [1])
    for name, codes in clustering.codes.items():
        new, old = changed.tensors[name], small.tensors[name]
        np.testing.assert_array_equal(new, again.tensors[name])
        if not name.startswith("layer1."):
            assert new is old
            continue
        by_label = np.array([new[codes == k].mean() for k in range(16)])
        assert (np.diff(by_label) >= 0).all() == order.startswith("kept")
        if order != "kept":
            assert new.mean() == pytest.approx(old.mean(), abs=1e-4)
            assert new.std() == pytest.approx(old.std(), rel=1e-3)
    assert facts["weight_error"] > 0.05
    assert facts["correlation"] > 0.5 if order != "broken" else facts["correlation"] < 0.8


def test_the_near_control_is_as_far_as_the_kept_order() -> None:
    small, clustering, _ = cluster(ENCODER, 16)
    facts = {order: reorder(small, clustering, order, [0, 1, 2])[1]["weight_error"] for order in ORDERS}
    assert facts["kept-affine"] <= facts["broken-near"] <= facts["kept-affine"] + 0.15
    assert facts["broken-near"] < facts["broken"]


def test_wrong_reorders_are_refused() -> None:
    small, clustering, _ = cluster(ENCODER, 16)
    for order, layers, words in (("up", [0], "known: kept"), ("kept", [7], "layer7"), ("kept", [], "no layers")):
        with pytest.raises(ExportError, match=words):
            reorder(small, clustering, order, layers)
