"""Tensor mixtures: the paper's counts and energies, the formula by Kronecker products, every engine opens them."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fieldrun
from fieldrun.errors import ExportError, RecipeError
from fieldrun.formats.packing import expand, mixture
from fieldrun_exporters.precision import Precision
from fieldrun_exporters.student.passes.fold import fold
from fieldrun_exporters.student.passes.mixt import decompose, mixt
from tests.exporters.student.test_palettize import RECIPE
from tests.toy import toy_checkpoint


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3), st.integers(0, 99))
def test_a_mixture_applies_its_operators_to_the_modes(count: int, rows: int, columns: int, seed: int) -> None:
    """Entry by entry: branch k changes the middle of (2^k, *, 2^(N-1-k)) modes and leaves the outer ones."""
    rng = np.random.default_rng(seed)
    branches = [rng.standard_normal((rows, columns)) for _ in range(count)]
    found = mixture(branches)
    expected = np.zeros((rows * 2 ** (count - 1), columns * 2 ** (count - 1)))
    for k, branch in enumerate(branches):
        outer, inner = 2**k, 2 ** (count - 1 - k)
        for a, b, o, i in itertools.product(range(outer), range(inner), range(rows), range(columns)):
            expected[(a * rows + o) * inner + b, (a * columns + i) * inner + b] += branch[o, i] / count
    np.testing.assert_allclose(found, expected, atol=1e-12)


@pytest.mark.parametrize(("count", "published", "share"), [(2, 0.44, 0.5), (3, 0.15, 0.1875), (4, 0.05, 0.0625)])
def test_energy_and_parameters_are_the_papers(count: int, published: float, share: float) -> None:
    matrix = np.random.default_rng(0).standard_normal((128, 128))
    branches = decompose(matrix, count)
    kept = 1 - np.square(matrix - mixture(branches)).sum() / np.square(matrix).sum()
    assert kept == pytest.approx(published, abs=0.01)
    assert sum(branch.size for branch in branches) == share * matrix.size


@given(st.integers(0, 30))
def test_no_other_operators_are_nearer(seed: int) -> None:
    rng = np.random.default_rng(seed)
    matrix = rng.standard_normal((8, 12))
    branches = decompose(matrix, 3)
    error = np.square(matrix - mixture(branches)).sum()
    for _ in range(5):
        other = [branch + 1e-3 * rng.standard_normal(branch.shape) for branch in branches]
        assert np.square(matrix - mixture(other)).sum() >= error - 1e-9


def test_what_is_a_mixture_comes_back() -> None:
    rng = np.random.default_rng(1)
    matrix = mixture([rng.standard_normal((4, 6)) for _ in range(2)])
    np.testing.assert_allclose(mixture(decompose(matrix, 2)), matrix, atol=1e-6)


def test_the_report_says_what_is_left() -> None:
    folded = fold(toy_checkpoint(0))[0]
    result, report = mixt(folded, Precision({"mixer": "mixt2", "hidden": "mixt3"}))
    assert set(report.changed) == {"mixer", "hidden"}
    assert report.changed["mixer"]["parameters"] == 32 * 20 / 2
    assert report.changed["hidden"]["parameters"] == 40 * 24 * 3 / 16
    for facts in report.changed.values():
        assert 0 < facts["energy_kept"] < 1
        assert facts["relative_error"] == pytest.approx(np.sqrt(1 - facts["energy_kept"]))
    opened = expand(result.stored())
    for name, tensor in result.tensors.items():
        np.testing.assert_array_equal(opened[name], tensor)
    assert report.bytes_after == sum(t.nbytes for t in result.stored().values()) < folded.nbytes()


def test_what_cannot_be_a_mixture_is_refused() -> None:
    folded = fold(toy_checkpoint(0, hidden=25))[0]
    with pytest.raises(
        RecipeError, match=r"precision.hidden: a mixture of 2 divides both sizes of a layer by 2, .*40 x 25"
    ):
        mixt(folded, Precision({"hidden": "mixt2"}))
    with pytest.raises(ExportError, match="nothing became a mixture"):
        mixt(folded, Precision({"hidden": "int8"}))
    with pytest.raises(RecipeError, match=r"precision\.tables must be one of"):
        Precision({"tables": "mixt2"})
    with pytest.raises(ValueError, match="not a mixture of float16 operators"):
        expand({"hidden.weight.mixt.0": np.zeros((2, 3), np.float32), "hidden.weight.width": np.array([3], np.int32)})


def test_every_engine_opens_a_mixture(tmp_path: Path) -> None:
    toy_checkpoint(0, pairs=False).save(tmp_path / "toy")  # fields this far off answer no pair as the reference does
    path = tmp_path / "mine.toml"
    path.write_text(
        RECIPE.replace("min_cosine = 0.7", "min_cosine = 0.01")
        .replace("max_abs = 4.0", "max_abs = 100.0")
        .replace("min_top1 = 0.5", "min_top1 = 0.01")
        .format(passes='["fold", "mixt", "int8"]', precision='tables = "int8"\nmixer = "mixt2"\nhidden = "mixt3"')
    )
    report = fieldrun.export(tmp_path / "toy", tmp_path / "bundle", recipe=path)
    texts = ["it was a great film", "no", "what is my card for"]
    fields = {}
    for engine in ("native", "numpy", "onnxruntime"):
        assert fieldrun.verify(report.path, engine=engine).passed
        with fieldrun.load(report.path, engine=engine) as model:
            fields[engine] = model.field(texts)
    for found in fields.values():
        np.testing.assert_allclose(found, fields["native"], atol=1e-5)
    assert set(report.proof["parts"]) >= {"mixer", "hidden"}


def test_a_pass_that_does_nothing_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    from fieldrun_exporters.student.passes import mixt as module

    folded = dataclasses.replace(fold(toy_checkpoint(0))[0])
    monkeypatch.setattr(module, "branches_of", lambda value: 0)
    with pytest.raises(ExportError, match="nothing became a mixture"):
        mixt(folded, Precision({"mixer": "mixt2"}))
