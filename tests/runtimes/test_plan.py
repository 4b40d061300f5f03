"""The bucket plan covers every row once, in a bucket that exists and that fits."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldrun.formats.bundle import Bucket, Network
from fieldrun_runtimes.engines.buckets import BucketPlan

SHAPES = st.tuples(
    st.sets(st.integers(2, 40), max_size=3).map(lambda more: sorted({1, *more})),
    st.sets(st.integers(3, 60), min_size=1, max_size=4).map(sorted),
)


SHIFTS = st.sets(st.integers(-8, 8), max_size=4).map(lambda some: tuple(sorted({0, *some})))


def plan_of(batches: list[int], lengths: list[int], shifts: tuple[int, ...] = (0,)) -> BucketPlan:
    network = Network(
        vocab_size=400,
        width=8,
        shifts=shifts,
        mixer_kernel=0,
        mixer_width=0,
        mean=False,
        hidden=0,
        field_dim=8,
        parameters=1,
    )
    buckets = [Bucket(batch=b, length=n, graph=f"b{b}-l{n}.onnx") for b in batches for n in lengths]
    return BucketPlan(network, buckets)


@given(SHAPES, SHIFTS, st.data())
def test_every_row_is_covered_once_in_the_smallest_length_that_fits(
    shapes: tuple[list[int], list[int]], shifts: tuple[int, ...], data: st.DataObject
) -> None:
    batches, lengths = shapes
    left, right = max(0, -min(shifts)), max(0, max(shifts))
    counts = data.draw(st.lists(st.integers(1, lengths[-1]), min_size=1, max_size=90))
    sequences = [[1 + row] * count for row, count in enumerate(counts)]
    covered: list[int] = []
    for chunk in plan_of(batches, lengths, shifts).chunks(sequences):
        batch, length = chunk.ids.shape[0], chunk.ids.shape[1] - left - right
        assert batch in batches
        assert length in lengths
        assert chunk.ids.dtype == np.int32
        assert 1 <= len(chunk.rows) <= batch
        for k, row in enumerate(chunk.rows):
            expected = [0] * left + sequences[row] + [0] * (length - counts[row] + right)
            assert chunk.ids[k].tolist() == expected
            assert length == min(n for n in lengths if n >= counts[row])
        for k in range(len(chunk.rows), batch):
            assert chunk.ids[k].tolist() == chunk.ids[0].tolist(), "a filled batch has no empty row"
        covered += chunk.rows
    assert sorted(covered) == list(range(len(sequences)))


@given(SHAPES, SHIFTS, st.data())
def test_one_text_alone_is_the_chunk_of_a_request_of_one(
    shapes: tuple[list[int], list[int]], shifts: tuple[int, ...], data: st.DataObject
) -> None:
    plan = plan_of(*shapes, shifts)
    text = data.draw(st.lists(st.integers(1, 99), min_size=1, max_size=plan.longest))
    (chunk,) = plan_of([1], shapes[1], shifts).chunks([text])
    np.testing.assert_array_equal(plan.one(text), chunk.ids)


@given(SHAPES, st.integers(1, 400))
def test_little_of_a_batch_is_wasted(shapes: tuple[list[int], list[int]], count: int) -> None:
    plan = plan_of(*shapes)
    left, run = count, 0
    while left > 0:
        batch = plan.batch_for(left)
        assert batch == 1 or 2 * left >= batch
        run += batch
        left -= batch
    assert run <= 2 * count


def test_a_single_text_goes_alone() -> None:
    plan = plan_of([1, 32], [16, 64])
    (chunk,) = plan.chunks([[5] * 16])
    assert chunk.ids.shape == (1, 16)
    (chunk,) = plan.chunks([[5] * 17])
    assert chunk.ids.shape == (1, 64)
    assert [c.ids.shape[0] for c in plan.chunks([[5]] * 35)] == [32, 1, 1, 1]


@pytest.mark.parametrize(("tokens", "length"), [(1, 16), (16, 16), (17, 64), (64, 64)])
def test_length_for(tokens: int, length: int) -> None:
    assert plan_of([1], [64, 16]).length_for(tokens) == length
