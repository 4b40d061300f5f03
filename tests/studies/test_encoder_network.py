"""The encoder in torch is the encoder in NumPy; field regression moves what it is given, and nothing else."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from fieldrun.errors import ExportError
from fieldrun.student.windows import pad_ids
from fieldrun_exporters.encoder.activations import accumulate, by_length
from fieldrun_exporters.encoder.lowrank import lowrank
from fieldrun_exporters.encoder.model import forward
from studies.encoder_methods.network import Network, fields, pooled_states
from studies.encoder_methods.regression import Regression, regress
from tests.toy_encoder import toy_encoder, toy_sequences

ENCODER = toy_encoder()
SEQUENCES = toy_sequences(ENCODER, 150)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("pooling", ["mean", "cls"])
def test_torch_gives_the_fields_of_numpy(pooling: str, normalize: bool) -> None:
    encoder = replace(ENCODER, config=replace(ENCODER.config, pooling=pooling, normalize=normalize))
    small, _ = lowrank(encoder, accumulate(encoder, SEQUENCES), {"qk": 0.4, "ov": 0.4, "mlp": 0.4})
    for each in (encoder, small):  # inner sizes that differ are read from the tensors
        np.testing.assert_allclose(fields(each, SEQUENCES), forward(each, pad_ids(SEQUENCES)), atol=2e-5)


def test_states_are_those_after_every_layer() -> None:
    encoder = replace(ENCODER, config=replace(ENCODER.config, normalize=False))
    states = pooled_states(encoder, SEQUENCES[:20])
    for k in range(3):
        shorter = replace(encoder, config=replace(encoder.config, layers=k + 1))
        np.testing.assert_allclose(states[:, k], forward(shorter, pad_ids(SEQUENCES[:20])), atol=2e-5)


def test_batches_hold_every_text_once_and_are_of_similar_length() -> None:
    batches = by_length(SEQUENCES, 16)
    assert sorted(i for rows in batches for i in rows) == list(range(len(SEQUENCES)))
    lengths = [len(SEQUENCES[i]) for rows in batches for i in rows]
    assert lengths == sorted(lengths)


def test_regression_finds_a_shifted_bias() -> None:
    target = pooled_states(ENCODER, SEQUENCES)
    name = "layer2.down.bias"
    moved = replace(ENCODER, tensors=dict(ENCODER.tensors) | {name: ENCODER.tensors[name][::-1].copy()})
    bias = torch.tensor(moved.tensors[name], requires_grad=True)
    told: list[tuple[str, int, int]] = []

    def tell(phase: str, done: int, total: int) -> None:
        told.append((phase, done, total))

    held = regress(
        moved,
        lambda: {name: bias},
        [bias],
        SEQUENCES,
        target,
        Regression(steps=60, batch=16, rate=0.2),
        tell,
    )
    assert told[-1] == ("regression", 60, 60)
    found = replace(moved, tensors=dict(moved.tensors) | {name: bias.detach().numpy()})
    before, after = held.errors(moved), held.errors(found)
    assert 1 - after["mean_cosine"] < 0.1 * (1 - before["mean_cosine"])
    assert len(held.sequences) == 37
    other = Network(moved).tensors
    assert all(np.array_equal(other[key].numpy(), value) for key, value in moved.tensors.items())


def test_the_rate_falls_along_a_cosine(monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[float] = []

    class Spy(torch.optim.Adam):
        def step(self, closure: Any = None) -> Any:
            rates.append(self.param_groups[0]["lr"])
            return super().step(closure)

    monkeypatch.setattr(torch.optim, "Adam", Spy)
    name = "layer2.down.bias"
    bias = torch.tensor(ENCODER.tensors[name], requires_grad=True)
    spread = float(bias.detach().std())
    plan = Regression(steps=8, batch=4, rate=0.1)
    regress(ENCODER, lambda: {name: bias}, [bias], SEQUENCES, pooled_states(ENCODER, SEQUENCES), plan)
    wanted = 0.1 * spread * 0.5 * (1 + np.cos(np.pi * np.arange(8) / 8))
    np.testing.assert_allclose(rates, wanted, rtol=1e-6)


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"batch": 1}, {"rate": 0.0}, {"rate": 1.0}, {"steps": 1.5}])
def test_wrong_plans_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ExportError):
        Regression(**wrong)  # type: ignore[arg-type]


def test_too_few_texts_or_targets_are_refused() -> None:
    target = pooled_states(ENCODER, SEQUENCES)
    for count, words in ((10, "too few"), (100, "one each")):
        with pytest.raises(ExportError, match=words):
            regress(ENCODER, dict, [], SEQUENCES[:count], target, Regression())
