"""A recipe with small buckets and calibration text of the toy's own words, for exports of a fraction of a second."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.toy import WORDS

RECIPE = """
schema = 1
passes = {passes}
[precision]
{precision}
[buckets]
batches = [1, 4]
lengths = {lengths}
[parity]
min_cosine = {min_cosine}
max_abs = {max_abs}
"""
ALL_INT8 = 'tables = "int8"\nmixer = "int8"\nhidden = "int8"\noutput = "int8"'


@pytest.fixture
def write_recipe(tmp_path: Path) -> Callable[..., Path]:
    """Write a small recipe; keywords replace its lines."""

    def write(
        *, int8: bool = True, min_cosine: float = 0.98, max_abs: float = 0.5, lengths: tuple[int, ...] = (8, 24)
    ) -> Path:
        passes = '["fold", "int8"]' if int8 else '["fold"]'
        precision = ALL_INT8 if int8 else ""
        path = tmp_path / ("small-int8.toml" if int8 else "small-fp32.toml")
        gate = {"min_cosine": min_cosine, "max_abs": max_abs, "lengths": list(lengths)}
        path.write_text(RECIPE.format(passes=passes, precision=precision, **gate), "utf-8")
        return path

    return write


@pytest.fixture(scope="session")
def texts() -> list[str]:
    """Sixty different texts of 1 to 20 of the toy's words."""
    rng = np.random.default_rng(7)
    return [" ".join(rng.choice(WORDS, size=1 + i % 20)) + f" {i}" for i in range(60)]


GRAPH_RECIPE = """
schema = 1
passes = {passes}
[precision]
{precision}
[buckets]
batches = {batches}
lengths = {lengths}
[parity]
min_cosine = {min_cosine}
max_abs = {max_abs}
max_bucket_gap = {max_bucket_gap}
"""


@pytest.fixture(scope="session")
def encoder_recipe(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Write a recipe for encoders and foreign graphs with small buckets; keywords replace its lines."""
    folder = tmp_path_factory.mktemp("recipes")

    def write(kind: str, **changes: object) -> Path:
        lines: dict[str, object] = {
            "passes": '["fold", "int8"]' if kind == "int8" else '["fold"]',
            "precision": 'tables = "int8"\ndense = "int8"' if kind == "int8" else "",
            "batches": [1, 4],
            "lengths": [8, 32],
            "min_cosine": 0.98 if kind == "int8" else 0.99999,
            "max_abs": 0.5 if kind == "int8" else 1e-4,
            "max_bucket_gap": 0.1 if kind == "int8" else 1e-5,
        }
        path = folder / f"{kind}-{len(list(folder.iterdir()))}.toml" if changes else folder / f"{kind}.toml"
        path.write_text(GRAPH_RECIPE.format(**(lines | changes)), "utf-8")
        return path

    return write
