"""The bucket plan covers every row once, in a bucket that exists and that fits."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldrun.errors import EngineError
from fieldrun.formats.bundle import Bucket
from fieldrun_runtimes.engines.buckets import BucketPlan

SHAPES = st.tuples(
    st.sets(st.integers(2, 40), max_size=3).map(lambda more: sorted({1, *more})),
    st.sets(st.integers(3, 60), min_size=1, max_size=4).map(sorted),
)


def plan_of(batches: list[int], lengths: list[int]) -> BucketPlan:
    return BucketPlan([Bucket(batch=b, length=n, graph=f"b{b}-l{n}.onnx") for b in batches for n in lengths])


@given(SHAPES, st.data())
def test_every_row_is_covered_once_in_the_smallest_length_that_fits(
    shapes: tuple[list[int], list[int]], data: st.DataObject
) -> None:
    batches, lengths = shapes
    counts = data.draw(st.lists(st.integers(1, lengths[-1]), min_size=1, max_size=90))
    covered: list[int] = []
    for bucket, rows in plan_of(batches, lengths).cut(counts):
        assert bucket.batch in batches
        assert 1 <= len(rows) <= bucket.batch
        assert rows == sorted(rows)
        for row in rows:
            assert bucket.length == min(n for n in lengths if n >= counts[row])
        covered += rows
    assert sorted(covered) == list(range(len(counts)))


@given(SHAPES, st.integers(1, 400))
def test_little_of_a_batch_is_wasted(shapes: tuple[list[int], list[int]], count: int) -> None:
    expected = 0
    for start, batch in plan_of(*shapes).batches_for(count):
        assert start == expected
        assert batch == 1 or 2 * (count - start) >= batch
        expected += batch
    assert count <= expected <= 2 * count


def test_a_single_text_goes_alone() -> None:
    plan = plan_of([1, 32], [16, 64])
    assert [(bucket.batch, bucket.length) for bucket, _ in plan.cut([16])] == [(1, 16)]
    assert [(bucket.batch, bucket.length) for bucket, _ in plan.cut([17])] == [(1, 64)]
    assert [bucket.batch for bucket, _ in plan.cut([1] * 35)] == [32, 1, 1, 1]


@pytest.mark.parametrize(("tokens", "length"), [(1, 16), (16, 16), (17, 64), (64, 64)])
def test_the_smallest_bucket_is_taken(tokens: int, length: int) -> None:
    assert plan_of([1, 2], [64, 16]).bucket_for(tokens).length == length


def test_a_text_beyond_every_bucket_is_refused() -> None:
    with pytest.raises(EngineError, match="a text of 65 tokens exceeds the largest bucket of 64 tokens"):
        plan_of([1], [64, 16]).bucket_for(65)
