"""The passes: folding keeps every field, and an int8 number is at most half a step from the float."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fieldrun.errors import ExportError
from fieldrun.formats.tensors import Array
from fieldrun.heads.head import head_logits
from fieldrun.student.oracle import forward
from fieldrun.student.windows import pad_ids
from fieldrun_exporters.precision import Precision
from fieldrun_exporters.student.deployed import Deployed
from fieldrun_exporters.student.passes import int8 as module
from fieldrun_exporters.student.passes.fold import fold
from fieldrun_exporters.student.passes.int8 import int8, quantize_columns, quantize_rows
from tests.toy import toy_checkpoint

NO_MIXER: dict[str, Any] = {"mixer_kernel": 0, "mixer_width": 0}
SHAPES: list[dict[str, Any]] = [
    {},
    {"ngrams": (), "ngram_buckets": 0, "offsets": (0,), "hidden": 0, **NO_MIXER},
    {"offsets": (3, 0, -4), "ngrams": ((2, -3, 0, 1), (1, 0)), "ngram_buckets": 13, "mixer_kernel": 3},
    {"pairs": False, "mean": False},
    {"mean": False, "hidden": 0},
]
CHECKPOINTS = [toy_checkpoint(seed, **changes) for seed, changes in enumerate(SHAPES)]
FOLDED = [fold(checkpoint)[0] for checkpoint in CHECKPOINTS]
IDS = st.lists(st.integers(1, CHECKPOINTS[0].config.vocab_size - 1), min_size=1, max_size=9)
INT8 = Precision({"tables": "int8", "dense": "int8"})


def deployed_y(deployed: Deployed, ids: list[int], t: int) -> Array:
    """Position `t` before the first ReLU, from the table in the deployed form's own words."""
    tensors, y = deployed.tensors, np.zeros(deployed.network.width)
    window = [ids[t + s] if 0 <= t + s < len(ids) else 0 for s in deployed.network.shifts]
    for coef, modulus, base in zip(tensors["rows.coef"].T, tensors["rows.modulus"], tensors["rows.base"], strict=True):
        row = sum(int(c) * i for c, i in zip(coef, window, strict=True)) % int(modulus) + int(base)
        y += tensors["table"][row] * tensors["table.scale"][row].astype(np.float64)
    return y


@pytest.mark.parametrize("index", range(len(SHAPES)))
@given(ids=IDS)
def test_folding_keeps_the_first_layer(index: int, ids: list[int]) -> None:
    checkpoint, w = CHECKPOINTS[index], CHECKPOINTS[index].tensors
    for t in range(len(ids)):
        y = w["window.bias"].astype(np.float64)
        for offset, matrix in zip(checkpoint.config.offsets, w["window.weight"], strict=True):
            y = y + w["embedding"][ids[t + offset] if 0 <= t + offset < len(ids) else 0].astype(np.float64) @ matrix
        for number, gram in enumerate(checkpoint.config.ngrams):
            seen = [ids[t + o] if 0 <= t + o < len(ids) else 0 for o in gram]
            factors = [(20011, 15013, 10007, 5003)[(i + number) % 4] for i in range(len(gram))]
            y = y + w["ngram"][sum(np.multiply(seen, factors)) % checkpoint.config.ngram_buckets]
        np.testing.assert_allclose(deployed_y(FOLDED[index], ids, t), y, rtol=0, atol=1e-5)


@pytest.mark.parametrize("tables", ["fp32", "int8"])
@pytest.mark.parametrize("index", range(len(SHAPES)))
@given(ids=IDS)
def test_padding_is_negative_whatever_stands_around_it(index: int, tables: str, ids: list[int]) -> None:
    deployed = FOLDED[index]
    if tables == "int8":
        deployed = int8(deployed, Precision({"tables": "int8"}), {})[0]
    left, right = deployed.network.margins
    for t in range(len(ids), len(ids) + max(left, right) + 3):
        assert deployed_y(deployed, ids, t).max() < 0
    middle = [*ids, 0, *ids]
    assert deployed_y(deployed, middle, len(ids)).max() < 0


@given(
    hnp.arrays("f4", (5, 4), elements=st.floats(-6e4, 6e4, width=16)),
    hnp.arrays("f4", (4,), elements=st.floats(-6e4, 6e4, width=16)),
)
def test_no_weights_make_padding_positive(ngram: Array, bias: Array) -> None:
    toy = toy_checkpoint(1, width=4, ngram_buckets=5, **NO_MIXER)
    rng = np.random.default_rng(0)
    embedding = rng.choice([-6e4, 6e4], toy.tensors["embedding"].shape)
    changed = dict(toy.tensors) | {"embedding": embedding, "ngram": ngram, "window.bias": bias}
    folded, _ = fold(dataclasses.replace(toy, tensors=changed))
    for deployed in (folded, int8(folded, Precision({"tables": "int8"}), {})[0]):
        for ids in ([1], [0], [7, 8, 9, 10]):
            for t in (len(ids), len(ids) + 1, len(ids) + 4):
                assert deployed_y(deployed, ids, t).max() < 0


@pytest.mark.parametrize("index", range(len(SHAPES)))
def test_folding_keeps_field_and_logits(index: int) -> None:
    checkpoint, tensors = CHECKPOINTS[index], FOLDED[index].tensors
    seen: dict[str, Array] = {}
    field = forward(
        checkpoint.config, checkpoint.tensors, pad_ids([[5, 6, 7], [9]]), float64=True, record=seen.__setitem__
    )
    singles = [head for head in checkpoint.heads if head.kind == "single"]
    expected = np.concatenate([field, *(head_logits(head, field) for head in singles)], axis=1)
    found = seen["field"] @ tensors["output.weight"] + tensors["output.bias"]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)
    assert ("pairs.weight" in tensors) == any(head.kind == "pair" for head in checkpoint.heads)
    assert ("mixer.weight" in tensors) == bool(checkpoint.config.mixer_kernel)
    assert ("hidden.weight" in tensors) == bool(checkpoint.config.hidden)
    assert ("score.weight" in tensors) == checkpoint.config.mean
    assert "mixer.bias" not in tensors


def test_the_fold_report_counts_rows_and_bytes() -> None:
    checkpoint = CHECKPOINTS[0]
    deployed, report = fold(checkpoint)
    config = checkpoint.config
    assert (
        report.changed["table"]["rows"]
        == 3 * config.vocab_size + config.ngram_buckets
        == len(deployed.tensors["table"])
    )
    assert report.bytes_after == deployed.nbytes() == sum(t.nbytes for t in deployed.tensors.values())
    stored = [*checkpoint.tensors.values(), *(t for head in checkpoint.heads for t in (head.weight, head.bias))]
    assert report.bytes_before == sum(t.nbytes for t in stored)
    assert deployed.network.parameters == checkpoint.parameters() == sum(t.size for t in stored)


@given(
    hnp.arrays("f4", hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.floats(-1e6, 1e6, width=32)),
    st.sampled_from([127, 63]),
)
def test_an_int8_row_is_within_half_a_step(table: Array, largest: int) -> None:
    quantized, scale = quantize_rows(table, largest)
    assert quantized.dtype == np.int8
    assert scale.dtype == np.float32
    assert scale.shape == (len(table),)
    for row, q, step in zip(table.tolist(), quantized.tolist(), scale.tolist(), strict=True):
        peak = max(abs(x) for x in row)
        assert math.isclose(step, peak / largest, rel_tol=1e-6) or (peak < 1e-35 and step == 1)
        for x, n in zip(row, q, strict=True):
            assert -largest <= n <= largest
            assert abs(n * step - x) <= step / 2 * (1 + 1e-4)
    if largest == 63:
        by_column, column_scale = quantize_columns(table.T)
        np.testing.assert_array_equal(by_column, quantized.T)
        np.testing.assert_array_equal(column_scale, scale)
        assert by_column.flags.c_contiguous


@given(hnp.arrays("f4", (6, 3), elements=st.floats(-1e4, 1e4, width=32)), st.integers(0, 2**32 - 1))
def test_dense_weights_never_saturate_16_bits(weight: Array, seed: int) -> None:
    """As x86 without VNNI does it: products of uint8 and int8 are added in pairs, in a saturating 16-bit integer."""
    quantized, _ = quantize_columns(weight)
    w = quantized.astype(np.int64)
    x = np.random.default_rng(seed).choice([0, 1, 127, 128, 255], (4, 6))
    exact = x @ w
    pairs = x[:, 0::2, None] * w[None, 0::2] + x[:, 1::2, None] * w[None, 1::2]
    np.testing.assert_array_equal(np.clip(pairs, -(2**15), 2**15 - 1).sum(1), exact)


@pytest.mark.parametrize("index", range(len(SHAPES)))
def test_every_dense_weight_keeps_to_seven_bits(index: int) -> None:
    deployed = FOLDED[index]
    result, _ = int8(deployed, INT8, dict.fromkeys((*deployed.dense(), "mean"), 4.0))
    for layer in deployed.dense():
        weight = result.tensors[f"{layer}.weight"]
        largest = np.abs(weight.astype(np.int64)).max(0)
        assert 2 * 255 * largest.max() <= 2**15 - 1, f"a pair of products in {layer} can saturate"
        assert largest.tolist() == [63] * weight.shape[1], "every output channel uses all its steps"
    assert np.abs(result.tensors["table"]).max() == 127, "rows of the table are never multiplied as integers"


def test_int8_reports_what_it_changed() -> None:
    deployed = FOLDED[0]
    ranges = dict.fromkeys(deployed.dense(), 4.0) | {"mean": 0.5}
    result, report = int8(deployed, INT8, ranges)
    assert set(report.changed) == {"table", "mean.gain", *deployed.dense()}
    assert report.changed["mean.gain"] == {"gain": 8.0} == {"gain": float(result.tensors["mean.gain"][0])}
    for name, facts in report.changed.items():
        if name == "mean.gain":
            continue
        key = name if name == "table" else f"{name}.weight"
        assert facts["weights"] == deployed.tensors[key].size == result.tensors[key].size
        assert result.tensors[key].dtype == np.int8
        assert 0 < facts["relative_error"] < (0.01 if name == "table" else 0.02)
        assert facts["bytes_after"] < facts["bytes_before"] / 3
    assert report.bytes_after == result.nbytes() < report.bytes_before / 2 == deployed.nbytes() / 2
    assert result.tensors["hidden.input_scale"].tolist() == [np.float32(4 / 127)]
    assert result.tensors["score.weight"].dtype == np.float32


def test_int8_of_the_tables_alone() -> None:
    result, report = int8(FOLDED[0], Precision({"tables": "int8"}), {})
    assert list(report.changed) == ["table"]
    assert {result.precision(layer) for layer in result.dense()} == {"fp32"}
    assert result.tensors["mean.gain"].tolist() == [1]
    assert result.tensors["table.scale"].shape == (len(result.tensors["table"]),)


def test_int8_weights_need_no_calibration_and_keep_eight_bits() -> None:
    wanted = Precision({"tables": "int8", "dense": "int8-weights"})
    result, report = int8(FOLDED[0], wanted, {})
    assert {result.precision(layer) for layer in result.dense()} == {"int8-weights"}
    assert not [name for name in result.tensors if name.endswith("input_scale")]
    assert result.tensors["mean.gain"].tolist() == [1]
    for layer in result.dense():
        before, after = FOLDED[0].tensors[f"{layer}.weight"], result.tensors[f"{layer}.weight"]
        scale = result.tensors[f"{layer}.weight_scale"]
        assert (np.abs(after * scale - before) <= scale / 2 * (1 + 1e-4)).all()
        assert (np.abs(after.astype(int)).max(0) == 127).all()
        assert report.changed[layer]["bytes_after"] < report.changed[layer]["bytes_before"]


def test_the_gain_goes_to_the_layer_that_takes_the_mean() -> None:
    for index, layer, others in ((0, "hidden", "output"), (1, "output", "pairs")):
        ranges = dict.fromkeys(FOLDED[index].dense(), 4.0) | {"mean": 0.5}
        result, _ = int8(FOLDED[index], INT8, ranges)
        half = len(result.tensors["score.weight"])
        for name in (layer, others):
            before, scale = FOLDED[index].tensors[f"{name}.weight"].copy(), result.tensors[f"{name}.weight_scale"]
            before[:half] /= 8 if name == layer else 1
            difference = np.abs(result.tensors[f"{name}.weight"] * scale - before)
            assert (difference <= scale / 2 * (1 + 1e-4)).all()
    for index in (3, 4):
        result, report = int8(FOLDED[index], INT8, dict.fromkeys(FOLDED[index].dense(), 4.0))
        assert "mean.gain" not in report.changed, "there is no mean"
        assert result.tensors["mean.gain"].tolist() == [1]


def test_a_layer_that_calibration_never_reached_is_refused() -> None:
    for ranges in ({}, dict.fromkeys(FOLDED[0].dense(), 0.0), dict.fromkeys(FOLDED[0].dense(), float("nan"))):
        with pytest.raises(ExportError, match="no calibration text uses the layer") as caught:
            int8(FOLDED[0], INT8, ranges)
        assert caught.value.exit_code == 8


def test_a_pass_that_does_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = dict.fromkeys((*FOLDED[0].dense(), "mean"), 4.0)
    with pytest.raises(ExportError, match="int8: nothing became smaller"):
        int8(FOLDED[0], Precision(), ranges)
    monkeypatch.setattr(module, "quantize_rows", lambda table, largest=127: (table, np.ones(len(table), np.float32)))
    with pytest.raises(ExportError, match="'table' is still a float"):
        int8(FOLDED[0], INT8, ranges)
