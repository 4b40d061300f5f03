"""A packed table in the native engine: rows that are opened one by one are those that are opened at once."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fieldrun.errors import BundleError
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.packing import code_bits, expand, pack_codes
from fieldrun.formats.tensors import Array
from fieldrun_runtimes.engines.native_engine import NativeEngine
from fieldrun_runtimes.engines.weights import read_weights

KINDS = ("plain", "coded", "split")


@pytest.fixture(scope="module")
def bundle(toy_bundle: Path) -> Bundle:
    return Bundle.load(toy_bundle)


def coded(rows: int, width: int, entries: int, run: int, rng: np.random.Generator) -> tuple[Array, Array]:
    codes = rng.integers(0, entries, (rows, -(-width // run))).astype(np.uint8)
    return pack_codes(codes, code_bits(entries)), rng.integers(-127, 128, (entries, run)).astype(np.int8)


def part(number: int, kind: str, rows: int, width: int, entries: int, run: int, seed: int) -> dict[str, Array]:
    """Random tensors of a part, as `fieldrun.formats.packing` describes them."""
    rng = np.random.default_rng(seed)
    if kind == "plain":
        return {f"table.rows.{number}": rng.integers(-127, 128, (rows, width)).astype(np.int8)}
    often = rng.random(rows) < 0.3
    names = {"": int(often.sum()), ".rarely": int((~often).sum())} if kind == "split" else {"": rows}
    stored: dict[str, Array] = {}
    for name, count in names.items():
        codes, book = coded(count, width, entries, run, rng)
        stored |= {f"table.codes.{number}{name}": codes, f"table.codebook.{number}{name}": book}
    if kind == "split":
        stored[f"table.often.{number}"] = np.packbits(often, bitorder="little")
    return stored


def packed(weights: dict[str, Array], cut: int, parts: list[tuple[str, int, int]], seed: int = 0) -> dict[str, Array]:
    """Return `weights` with a random packed table of the same shape, in two parts."""
    rows, width = weights["table"].shape
    rest = {name: tensor for name, tensor in weights.items() if name != "table"}
    rest["table.width"] = np.array([width], np.int32)
    for number, ((kind, entries, run), count) in enumerate(zip(parts, (cut, rows - cut), strict=True)):
        rest |= part(number, kind, count, width, entries, run, seed + number)
    return rest


one = st.tuples(st.sampled_from(KINDS), st.integers(1, 256), st.sampled_from([1, 2, 3, 4, 8]))


@settings(deadline=None)
@given(parts=st.lists(one, min_size=2, max_size=2), cut=st.integers(1, 150), seed=st.integers(0, 99))
def test_rows_are_opened_to_the_same_numbers(
    bundle: Bundle, parts: list[tuple[str, int, int]], cut: int, seed: int
) -> None:
    stored = packed(read_weights(bundle), cut, parts, seed)
    rng = np.random.default_rng(seed)
    texts = [rng.integers(1, bundle.manifest.network.vocab_size, rng.integers(1, 40)).tolist() for _ in range(9)]
    lazy, whole = (NativeEngine(bundle, 1, weights) for weights in (stored, expand(stored)))
    for _ in range(2):  # the second time nothing is opened
        for found, wanted in zip(lazy.run(texts), whole.run(texts), strict=True):
            np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize(
    ("entries", "run"), [(16, 1), (64, 1), (64, 2), (256, 4), (256, 8)], ids=lambda value: str(value)
)
def test_every_word_of_the_usual_palettes(bundle: Bundle, entries: int, run: int) -> None:
    stored = packed(read_weights(bundle), 100, [("split", entries, run), ("coded", entries, run)])
    ids = list(range(1, bundle.manifest.network.vocab_size))
    texts = [ids[start : start + 50] for start in range(0, len(ids), 50)]
    lazy, whole = (NativeEngine(bundle, 1, weights).run(texts) for weights in (stored, expand(stored)))
    for found, wanted in zip(lazy, whole, strict=True):
        np.testing.assert_array_equal(found, wanted)


def test_threads_that_open_the_same_rows(bundle: Bundle) -> None:
    stored = packed(read_weights(bundle), 100, [("split", 64, 1), ("coded", 64, 2)])
    ids = np.random.default_rng(0).integers(1, bundle.manifest.network.vocab_size, (40, 30)).tolist()
    wanted, _ = NativeEngine(bundle, 1, expand(stored)).run(ids)
    for _ in range(20):
        engine, together = NativeEngine(bundle, 1, stored), threading.Barrier(4)
        found: list[Array] = []

        def work(
            engine: NativeEngine = engine, together: threading.Barrier = together, into: list[Array] = found
        ) -> None:
            together.wait()
            into.append(engine.run(ids)[0])

        threads = [threading.Thread(target=work) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(found) == 4
        for field in found:
            np.testing.assert_array_equal(field, wanted)


def test_rows_have_a_place_when_all_slots_are_lost(bundle: Bundle) -> None:
    stored = packed(read_weights(bundle), 100, [("split", 64, 1), ("plain", 1, 1)])
    engine = NativeEngine(bundle, 1, stored)
    (used,) = (kept for kept in engine._kept if getattr(kept, "shape", None) == (1,) and kept.dtype == np.int32)
    used[0] = len(read_weights(bundle)["table"]) - 3  # three are left
    texts = [[5, 9, 3, 77], [9, 40, 41]]
    wanted = NativeEngine(bundle, 1, expand(stored)).run(texts)
    for found, expected in zip(engine.run(texts), wanted, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_a_code_beyond_its_codebook_is_an_error(bundle: Bundle) -> None:
    stored = packed(read_weights(bundle), 100, [("coded", 16, 1), ("coded", 16, 1)])
    for number in range(2):
        stored[f"table.codebook.{number}"] = stored[f"table.codebook.{number}"][:9]
    with pytest.raises(BundleError, match="a code beyond its codebook; copy the bundle again"):
        NativeEngine(bundle, 1, stored).run([[5, 9, 3, 77]])


@pytest.mark.parametrize("name", ["table.codes.0", "table.codebook.1"])
def test_parts_that_do_not_fit_are_refused(bundle: Bundle, name: str) -> None:
    stored = packed(read_weights(bundle), 100, [("coded", 16, 1), ("coded", 16, 1)])
    stored[name] = stored[name][:, :0]
    with pytest.raises(BundleError, match=r"cannot be used .*; copy it again"):
        NativeEngine(bundle, 1, stored)


def test_a_table_of_other_rows_is_refused(bundle: Bundle) -> None:
    stored = packed(read_weights(bundle), 100, [("coded", 16, 1), ("coded", 16, 1)])
    stored["table.codes.1"] = stored["table.codes.1"][:-1]
    with pytest.raises(BundleError, match="does not fit the manifest's network"):
        NativeEngine(bundle, 1, stored)


WIDTHS: list[Array] = [np.zeros(0, np.int32), np.ones(2, np.int32), np.ones(1, np.float32), np.array(8, np.int32)]


@pytest.mark.parametrize("width", WIDTHS)
def test_a_width_that_is_not_one_number_is_refused(bundle: Bundle, width: Array) -> None:
    stored = packed(read_weights(bundle), 100, [("coded", 16, 1), ("coded", 16, 1)]) | {"table.width": width}
    with pytest.raises(BundleError, match=r"table\.width is not \(1,\) int32"):
        NativeEngine(bundle, 1, stored)
    with pytest.raises(ValueError, match=r"width is not \(1,\) int32"):
        expand(stored)
