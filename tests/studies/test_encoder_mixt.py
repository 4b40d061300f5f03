"""Tensor mixtures: the structured form is the dense expansion, the start is by least squares, recovery recovers."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldrun.errors import ExportError
from fieldrun.formats.tensors import Array
from fieldrun.student.windows import pad_ids
from fieldrun_exporters.encoder.activations import accumulate
from fieldrun_exporters.encoder.model import MAPS, forward
from studies.encoder_methods.mixt import drop_blocks, expand, fit, mixt, recover, recover_dropped
from studies.encoder_methods.network import pooled_states
from studies.encoder_methods.regression import Regression
from tests.toy_encoder import toy_encoder, toy_sequences

ENCODER = toy_encoder()
SEQUENCES = toy_sequences(ENCODER, 200)
PLAN = Regression(steps=40, batch=16, rate=0.02)


def _cores(rng: np.random.Generator, n: int) -> Array:
    return rng.standard_normal((n, 3, 5))


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4))
def test_a_mixture_is_what_its_definition_says(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    cores = _cores(rng, n)
    parts = 2 ** (n - 1)
    dense = np.zeros((3 * parts, 5 * parts))
    for k in range(n):  # by the definition, index by index
        for i in range(2**k):
            for j in range(2 ** (n - 1 - k)):
                rows = (i * 3 + np.arange(3)) * 2 ** (n - 1 - k) + j
                columns = (i * 5 + np.arange(5)) * 2 ** (n - 1 - k) + j
                dense[np.ix_(rows, columns)] += cores[k] / n
    np.testing.assert_allclose(expand(cores), dense, atol=1e-12)
    again = fit(dense, n)  # what is a mixture is found again
    np.testing.assert_allclose(expand(again), dense, atol=2e-2)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(2, 4))
def test_the_fit_is_the_least_squares_one(seed: int, n: int) -> None:
    rng = np.random.default_rng(seed)
    weight = rng.standard_normal((16, 24))
    parts = 2 ** (n - 1)
    a, b = 16 // parts, 24 // parts
    basis = []
    for i in range(n * a * b):
        unit = np.zeros(n * a * b)
        unit[i] = 1
        basis.append(expand(unit.reshape(n, a, b)).ravel())
    best, *_ = np.linalg.lstsq(np.array(basis).T, weight.ravel(), rcond=None)
    wanted = np.linalg.norm(weight.ravel() - np.array(basis).T @ best)
    found = np.linalg.norm(weight - expand(fit(weight, n)))
    assert wanted - 1e-9 <= found <= wanted * (1 + 1e-4)


@pytest.mark.parametrize(("n", "energy", "share"), [(2, 0.44, 0.5), (3, 0.15, 0.1875), (4, 0.05, 0.0625)])
def test_an_unstructured_matrix_keeps_the_known_energy(n: int, energy: float, share: float) -> None:
    weight = np.random.default_rng(0).standard_normal((256, 128))
    cores = fit(weight, n)
    kept = 1 - np.square(weight - expand(cores)).sum() / np.square(weight).sum()
    assert kept == pytest.approx(energy, abs=0.012)
    assert cores.size == share * weight.size


def test_blocks_become_mixtures_and_others_stay() -> None:
    small, mixture, changed = mixt(ENCODER, 2, [1, 2], accumulate(ENCODER, SEQUENCES))
    before, after = (sum(entry[f"parameters_{when}"] for entry in changed.values()) for when in ("before", "after"))
    assert after * 2 == before == 2 * (4 * 16 * 16 + 2 * 16 * 32)
    assert set(mixture.cores) == {f"layer{k}.{name}.weight" for k in (1, 2) for name in MAPS}
    for name, tensor in small.tensors.items():
        if name in mixture.cores:
            np.testing.assert_allclose(tensor, expand(mixture.cores[name]), atol=1e-6)
            assert 0 < changed[name]["energy"] < 1
            assert changed[name]["output_error"] > 0
        else:
            assert tensor is ENCODER.tensors[name]


def test_recovery_beats_the_start_and_moves_the_replaced_blocks_alone() -> None:
    target = pooled_states(ENCODER, SEQUENCES)
    start, mixture, _ = mixt(ENCODER, 2, [2])
    recovered, field = recover(ENCODER, mixture, SEQUENCES, target, PLAN)
    assert field["recovered"] > 0.2
    for name, tensor in recovered.tensors.items():
        if name in mixture.cores:
            np.testing.assert_allclose(tensor, expand(fit(tensor, 2)), atol=1e-4)  # still a mixture
        elif not (name.startswith("layer2.") and name.endswith(".bias")):
            assert tensor is ENCODER.tensors[name]
    ids = pad_ids(SEQUENCES[:50])
    dense = forward(ENCODER, ids)
    errors = [float(np.square(forward(e, ids) - dense).sum()) for e in (start, recovered)]
    assert errors[1] < errors[0]


def test_dropped_blocks_are_gone_and_the_others_move_up() -> None:
    shorter = drop_blocks(ENCODER, [1])
    assert shorter.config.layers == 2
    np.testing.assert_array_equal(shorter.tensors["layer1.up.weight"], ENCODER.tensors["layer2.up.weight"])
    lost = sum(tensor.size for name, tensor in ENCODER.tensors.items() if name.startswith("layer1."))
    assert shorter.parameters() == ENCODER.parameters() - lost
    shorter.validate()
    first = drop_blocks(ENCODER, [1, 2])
    states = pooled_states(ENCODER, SEQUENCES[:9])[:, 0]
    np.testing.assert_allclose(pooled_states(first, SEQUENCES[:9])[:, 0], states, atol=1e-6)
    target = pooled_states(ENCODER, SEQUENCES)
    recovered, field = recover_dropped(shorter, [1], SEQUENCES, target, PLAN)
    assert field["recovered"] > 0
    np.testing.assert_array_equal(recovered.tensors["layer0.up.weight"], ENCODER.tensors["layer0.up.weight"])


def test_wrong_requests_are_one_line() -> None:
    for layers, words in (([], "no layers"), ([3], "no layer 3")):
        with pytest.raises(ExportError, match=words):
            mixt(ENCODER, 2, layers)
        with pytest.raises(ExportError, match=words):
            drop_blocks(ENCODER, layers)
    with pytest.raises(ExportError, match="a block must be left"):
        drop_blocks(ENCODER, [0, 1, 2])
    for branches in (1, 6):
        with pytest.raises(ExportError, match="branches"):
            mixt(ENCODER, branches, [0])


def test_a_recovery_that_does_nothing_is_refused() -> None:
    target = pooled_states(ENCODER, SEQUENCES)
    _, mixture, _ = mixt(ENCODER, 2, [2])
    with pytest.raises(ExportError, match="no nearer"):
        recover(ENCODER, mixture, SEQUENCES, target, Regression(steps=1, batch=2, rate=1e-12))
