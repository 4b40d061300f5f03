"""Weights that are not those of the manifest's network are refused before an engine reads by them.

The hash of such a file can be in order. Each case made the native engine leave its arrays or divide by zero, or NumPy
end in a traceback, or would have given other answers than the graphs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import fieldrun
from fieldrun.errors import BundleError
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.tensors import Array
from fieldrun_runtimes.engines import open_engine
from fieldrun_runtimes.engines.weights import read_weights
from tests.toy import WORDS


def first(value: float) -> Callable[[Array], Array]:
    """Put `value` in the first place of a copy."""

    def change(x: Array) -> Array:
        x = x.copy()
        x.flat[0] = value
        return x

    return change


@pytest.fixture(scope="module")
def integer_bundle(toy_checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """Every layer with int8 inputs."""
    folder = tmp_path_factory.mktemp("integers")
    (folder / "int8.toml").write_text(
        'schema = 1\npasses = ["fold", "int8"]\n'
        '[precision]\ntables = "int8"\nmixer = "int8"\nhidden = "int8"\noutput = "int8"\n'
        "[buckets]\nbatches = [1]\nlengths = [24]\n[parity]\nmin_cosine = 0.98\nmax_abs = 0.5\n"
    )
    short = [" ".join(WORDS[i : i + 9]) for i in range(40)]
    return Bundle.load(
        fieldrun.export(toy_checkpoint, folder / "b", recipe=folder / "int8.toml", calibration=short).path
    )


@pytest.mark.parametrize("name", ["native", "numpy"])
@pytest.mark.parametrize(
    ("tensor", "change"),
    [
        ("rows.base", lambda x: x + 10**6),
        ("rows.base", first(2**31 - 1)),  # base + modulus is beyond int32
        ("rows.base", first(-1)),
        ("rows.base", lambda x: x[:-1]),
        ("rows.base", lambda x: x.astype(np.int64)),
        ("rows.modulus", lambda x: x * 0),
        ("rows.modulus", lambda x: x.astype(np.float32) / 2),
        ("rows.modulus", lambda x: x[0]),
        ("rows.coef", lambda x: x.astype(np.float32)),
        ("rows.coef", lambda x: x[:, :-1]),
        ("table", lambda x: x.astype(np.int32)),
        ("table", lambda x: x[:, :-1]),
        ("table.scale", lambda x: x[:-1]),
        ("table.scale", lambda x: x.astype(np.int8)),
        ("mean.gain", lambda x: x[:0]),
        ("mean.gain", lambda x: x * 0),
        ("score.weight", lambda x: x[:-1]),
        ("score.weight", lambda x: x.astype(np.int8)),
        ("mixer.weight", lambda x: x[:, :-1]),
        ("mixer.weight", lambda x: x.astype(np.uint8)),
        ("mixer.bias", lambda _: np.ones(1, np.float32)),
        ("hidden.weight", lambda x: x[:-1]),
        ("hidden.bias", lambda x: x.astype(np.int32)),
        ("hidden.weight_scale", lambda x: x[:1]),
        ("hidden.weight_scale", lambda x: x.astype(np.int32)),
        ("hidden.input_scale", lambda x: x[:0]),
        ("hidden.input_scale", lambda x: np.repeat(x, 3)),
        ("hidden.input_scale", lambda x: -x),
        ("hidden.input_scale", lambda x: x * 0),
        ("hidden.input_scale", lambda x: x * np.inf),
        ("hidden.input_scale", lambda x: x * np.nan),
        ("hidden.input_scale", lambda x: x.astype(np.int32) + 1),
        ("output.bias", lambda x: x[:, None]),
        ("pairs.weight", lambda x: x[:1]),
    ],
)
def test_weights_of_another_network_are_refused(
    integer_bundle: Bundle, name: str, tensor: str, change: Callable[[Array], Array]
) -> None:
    weights = read_weights(integer_bundle)
    open_engine(name, integer_bundle, 1, weights)
    weights[tensor] = change(weights.get(tensor, np.zeros(0)))
    with pytest.raises(
        BundleError, match=f"'{tensor}' in weights.safetensors does not fit the manifest's network; copy"
    ):
        open_engine(name, integer_bundle, 1, weights)


@pytest.mark.parametrize("name", ["native", "numpy"])
def test_a_pair_layer_without_pair_tasks_is_refused(toy_bundle: Path, name: str) -> None:
    bundle = Bundle.load(toy_bundle)
    single = tuple(task for task in bundle.manifest.tasks if task.kind == "single")
    files = {n: entry for n, entry in bundle.manifest.files.items() if n not in bundle.manifest.pair_graphs.values()}
    without = replace(bundle, manifest=replace(bundle.manifest, tasks=single, pair_graphs={}, files=files))
    with pytest.raises(BundleError, match=r"'pairs\.weight' in weights"):
        open_engine(name, without, 1, read_weights(bundle))
