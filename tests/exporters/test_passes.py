"""The passes: folding keeps every field, and an int8 number is at most half a step from the float."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fieldrun.errors import ExportError
from fieldrun.reference import forward, head_logits, pad_ids
from fieldrun.tensors import Array
from fieldrun_exporters.deployed import Deployed
from fieldrun_exporters.passes import int8 as module
from fieldrun_exporters.passes.fold import fold
from fieldrun_exporters.passes.int8 import int8, quantize_columns, quantize_rows
from fieldrun_exporters.recipe import Precision
from tests.toy import toy_checkpoint

SHAPES: list[dict[str, Any]] = [
    {},
    {"mixer_kernel": 0, "ngram_orders": (), "ngram_buckets": 0, "offsets": (0,)},
    {"offsets": (3, 0, -4), "ngram_orders": (4, 2), "ngram_buckets": 13, "mixer_kernel": 5},
    {"pairs": False},
]
CHECKPOINTS = [toy_checkpoint(seed, **changes) for seed, changes in enumerate(SHAPES)]
FOLDED = [fold(checkpoint)[0] for checkpoint in CHECKPOINTS]
IDS = st.lists(st.integers(1, CHECKPOINTS[0].config.vocab_size - 1), min_size=1, max_size=9)
INT8 = Precision(tables="int8", mixer="int8", hidden="int8", output="int8")


def deployed_y(deployed: Deployed, ids: list[int], t: int) -> Array:
    """Position `t` before the first ReLU, from the table in the deployed form's own words."""
    tensors, y = deployed.tensors, np.zeros(deployed.network.width)
    window = [ids[t + s] if 0 <= t + s < len(ids) else 0 for s in deployed.network.shifts]
    for coef, modulus, base in zip(tensors["rows.coef"].T, tensors["rows.modulus"], tensors["rows.base"], strict=True):
        y += tensors["table"][sum(int(c) * i for c, i in zip(coef, window, strict=True)) % int(modulus) + int(base)]
    return y


@pytest.mark.parametrize("index", range(len(SHAPES)))
@given(ids=IDS)
def test_folding_keeps_the_first_layer(index: int, ids: list[int]) -> None:
    checkpoint, w = CHECKPOINTS[index], CHECKPOINTS[index].tensors
    for t in range(len(ids)):
        y = w["window.bias"].astype(np.float64)
        for offset, matrix in zip(checkpoint.config.offsets, w["window.weight"], strict=True):
            y = y + w["embedding"][ids[t + offset] if 0 <= t + offset < len(ids) else 0].astype(np.float64) @ matrix
        for order in checkpoint.config.ngram_orders:
            back = [ids[t - k] if t >= k else 0 for k in range(order)]
            hashed = sum(i * m for i, m in zip(back, (20011, 15013, 10007, 5003), strict=False))
            y = y + w["ngram"][hashed % checkpoint.config.ngram_buckets]
        np.testing.assert_allclose(deployed_y(FOLDED[index], ids, t), y, rtol=0, atol=1e-5)


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


MATRICES = hnp.arrays(
    "f4", hnp.array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.floats(-1e6, 1e6, width=32)
)


@pytest.mark.parametrize("levels", [127, 63])
@given(table=MATRICES)
def test_an_int8_row_is_within_half_a_step(levels: int, table: Array) -> None:
    quantized, scale = quantize_rows(table, levels)
    assert quantized.dtype == np.int8
    assert scale.dtype == np.float32
    assert scale.shape == (len(table), 1)
    for row, q, (step,) in zip(table.tolist(), quantized.tolist(), scale.tolist(), strict=True):
        largest = max(abs(x) for x in row)
        assert math.isclose(step, largest / levels, rel_tol=1e-6) or (largest < 1e-35 and step == 1)
        for x, n in zip(row, q, strict=True):
            assert -levels <= n <= levels
            assert abs(n * step - x) <= step / 2 * (1 + 1e-4)


@given(MATRICES)
def test_an_int8_matrix_cannot_saturate_16_bits(matrix: Array) -> None:
    by_column, column_scale = quantize_columns(matrix)
    quantized, scale = quantize_rows(matrix.T, 63)
    np.testing.assert_array_equal(by_column, quantized.T)
    np.testing.assert_array_equal(column_scale, scale[:, 0])
    assert by_column.flags.c_contiguous
    # x86 without VNNI: two products of an uint8 and a weight are added in 16 bits, saturating
    assert 2 * 255 * int(np.abs(by_column.astype(np.int32)).max()) < 2**15


def test_int8_reports_what_it_changed() -> None:
    deployed = FOLDED[0]
    ranges = dict.fromkeys(deployed.dense(), 4.0) | {"hidden.mean": 0.5}
    result, report = int8(deployed, INT8, ranges)
    assert set(report.changed) == {"table", "mean.gain", *deployed.dense()}
    assert report.changed["mean.gain"] == {"gain": 8.0} == {"gain": float(result.tensors["mean.gain"][0])}
    for name, facts in report.changed.items():
        if name == "mean.gain":
            continue
        key = name if name == "table" else f"{name}.weight"
        assert facts["weights"] == deployed.tensors[key].size == result.tensors[key].size
        assert result.tensors[key].dtype == np.int8
        assert 0 < facts["relative_error"] < (0.01 if name == "table" else 0.02)  # a matrix has half the steps
        assert facts["bytes_after"] < facts["bytes_before"] / 3
    assert report.bytes_after == result.nbytes() < report.bytes_before / 2 == deployed.nbytes() / 2
    assert result.tensors["hidden.input_scale"].tolist() == [np.float32(4 / 127)]
    assert result.tensors["score.weight"].dtype == np.float32, "exp follows it"


def test_int8_of_the_tables_alone() -> None:
    result, report = int8(FOLDED[0], Precision(tables="int8"), {})
    assert list(report.changed) == ["table"]
    assert not any(result.is_int8(layer) for layer in result.dense())


def test_a_layer_that_calibration_never_reached_is_refused() -> None:
    for ranges in ({}, dict.fromkeys(FOLDED[0].dense(), 0.0), dict.fromkeys(FOLDED[0].dense(), float("nan"))):
        with pytest.raises(ExportError, match="calibration text never reached") as caught:
            int8(FOLDED[0], INT8, ranges)
        assert caught.value.exit_code == 8


def test_a_pass_that_does_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    ranges = dict.fromkeys((*FOLDED[0].dense(), "hidden.mean"), 4.0)
    with pytest.raises(ExportError, match="nothing was quantized"):
        int8(FOLDED[0], Precision(), ranges)
    monkeypatch.setattr(module, "quantize_rows", lambda table, *_: (table, np.ones((len(table), 1), np.float32)))
    with pytest.raises(ExportError, match="'table' is still a float"):
        int8(FOLDED[0], INT8, ranges)
