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
    small, clustering, report = cluster(ENCODER, entries)
    weights = 3 * (4 * 32 * 32 + 2 * 32 * 64)
    assert report.bytes_before == 4 * weights
    assert report.bytes_after == weights * bits // 8 + 18 * 2 * entries == clustering.nbytes()
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
        _, _, report = cluster(encoder, entries)
        assert -20 * np.log10(report.changed[name]["weight_error"]) == pytest.approx(decibels, abs=0.3)


def test_the_output_error_is_that_of_the_outputs() -> None:
    name = "layer1.key"
    small, _, report = cluster(ENCODER, 8, accumulate(ENCODER, SEQUENCES))
    x = []
    for ids in SEQUENCES:
        forward(ENCODER, np.array([ids]), lambda own, value: x.append(value) if own == "layer1.query" else None)
    inputs, old = np.concatenate(x), ENCODER.tensors[f"{name}.weight"]
    error = np.linalg.norm(inputs @ (old - small.tensors[f"{name}.weight"])) / np.linalg.norm(inputs @ old)
    assert report.changed[f"{name}.weight"]["output_error"] == pytest.approx(error, rel=1e-3)


def test_tuning_moves_centroids_alone_and_brings_the_fields_back() -> None:
    small, clustering, _ = cluster(ENCODER, 8)
    target = pooled_states(ENCODER, SEQUENCES)
    tuned, found, report = tune(ENCODER, clustering, SEQUENCES, target, Regression(steps=40, batch=16, rate=0.01))
    field = report.changed["field"]
    assert field["recovered"] > 0.1
    assert field["before"]["mean_cosine"] < field["after"]["mean_cosine"] < 1
    assert found.codes is clustering.codes
    for name, book in found.books.items():
        assert (np.diff(book) >= 0).all()
        assert book.dtype == np.float16
        assert len(np.unique(tuned.tensors[name])) <= 8
    unmoved = [n for n in tuned.tensors if n not in found.books]
    assert all(tuned.tensors[n] is ENCODER.tensors[n] for n in unmoved)
    dense = forward(ENCODER, IDS)
    assert np.square(forward(tuned, IDS) - dense).sum() < np.square(forward(small, IDS) - dense).sum()


def test_biases_that_are_tuned_too_win_more_and_cost_nothing() -> None:
    _, clustering, _ = cluster(ENCODER, 8)
    target, plan = pooled_states(ENCODER, SEQUENCES), Regression(steps=40, batch=16, rate=0.01)
    _, _, alone = tune(ENCODER, clustering, SEQUENCES, target, plan)
    tuned, found, report = tune(ENCODER, clustering, SEQUENCES, target, plan, biases=True)
    assert report.changed["field"]["recovered"] > alone.changed["field"]["recovered"]
    assert report.bytes_after == alone.bytes_after == clustering.nbytes()
    moved = {name for name in tuned.tensors if tuned.tensors[name] is not ENCODER.tensors[name]}
    assert moved == set(found.books) | {name.removesuffix("weight") + "bias" for name in found.books}


def test_tuning_that_does_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _, clustering, _ = cluster(ENCODER, 8)
    target = pooled_states(ENCODER, SEQUENCES)
    with pytest.raises(ExportError, match="no nearer"):
        tune(ENCODER, clustering, SEQUENCES, target, Regression(steps=1, batch=2, rate=1e-9))


def test_a_clustering_that_does_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("studies.encoder_methods.cluster.Clustering.weight", lambda self, name: ENCODER.tensors[name])
    with pytest.raises(ExportError, match="did not become 16 values"):
        cluster(ENCODER, 16)


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
