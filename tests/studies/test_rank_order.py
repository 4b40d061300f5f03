"""The rank experiment: what keeps the order keeps it, what breaks it keeps the moments, and both reach the record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

import fieldrun
from fieldrun.formats.tensors import Array
from fieldrun_benchmarks.harness.record import read_record
from studies.columns import markdown
from studies.rank_order import measure as rank_order
from studies.rank_order.measure import CHANGES, changed_codebooks, moments_matched
from studies.rank_order.tables import BLOCKS
from tests.exporters.student.test_palettize import made
from tests.studies.test_measure import suite

__all__ = ["suite"]

BOOK = st.lists(st.integers(-127, 127), min_size=4, max_size=16, unique=True).map(lambda v: np.array(v, np.float64))


@given(BOOK)
def test_orders_are_kept_and_broken(values: Array) -> None:
    ranks = np.argsort(np.argsort(values))
    kept = CHANGES["order kept"][0](values)
    np.testing.assert_array_equal(np.argsort(np.argsort(kept)), ranks)
    assert np.ptp(np.diff(np.sort(kept))) < 1e-9
    swapped = np.argsort(np.argsort(CHANGES["neighbours swapped"][0](values)))
    assert np.abs(swapped - ranks).max() == 1
    for name in ("neighbours swapped", "order broken"):
        assert sorted(CHANGES[name][0](values)) == sorted(values)


@given(BOOK, st.integers(0, 99))
def test_moments_come_back(values: Array, seed: int) -> None:
    counts = np.random.default_rng(seed).integers(1, 50, len(values)).astype(float)
    weights = np.repeat(values, counts.astype(int))
    found = moments_matched(CHANGES["order broken"][0](values), values, counts)
    assert np.repeat(found, counts.astype(int)).mean() == pytest.approx(weights.mean(), abs=1e-6)
    assert np.repeat(found, counts.astype(int)).std() == pytest.approx(weights.std(), abs=1e-6)


def test_codes_stay_as_they_are() -> None:
    deployed = made(0, {"tables": "palette16", "hidden": "palette8"})
    for change, affine in CHANGES.values():
        form, moved = changed_codebooks(deployed, change, affine)
        assert moved > 0
        for name, tensor in deployed.packed.items():
            assert np.array_equal(tensor, form.packed[name]) == (".codebook." not in name)
        assert not np.array_equal(form.tensors["table"], deployed.tensors["table"])


def test_the_record_and_its_table(suite: Path, tmp_path: Path, toy_checkpoint: Path) -> None:
    bundle = fieldrun.export(toy_checkpoint, tmp_path / "bundle").path
    record = tmp_path / "rank-order.json"
    arguments = ["--data", suite, "--checkpoint", toy_checkpoint, "--bundle", bundle, "-o", record, "--entries", "16"]
    result = CliRunner().invoke(rank_order.main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    results = read_record(record, "rank-order")["results"]
    by = {(r["part"], r["change"]): r["field"]["mean_cosine"] for r in results}
    assert by["all tables", "clustered"] > by["all tables", "order kept, affine"] > by["all tables", "order broken"]
    lines = markdown(BLOCKS["rank-order"](tmp_path)).split("\n")
    assert len([line for line in lines if line.startswith("| 16 ")]) == len(results)
