"""Packed matrices: codes come back from their bits, whatever their number, and damage is named."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldrun.errors import BundleError
from fieldrun.formats.packing import code_bits, expand, pack_codes, packed_names, unpack_codes
from fieldrun.formats.tensors import Array


def bit_by_bit(packed: Array, bits: int, count: int) -> Array:
    """The codes of rows of bytes, read one bit after another."""
    out = np.zeros((len(packed), count), int)
    for row, data in enumerate(packed):
        number = int.from_bytes(data.tobytes(), "little")
        for k in range(count):
            out[row, k] = number >> (k * bits) & (2**bits - 1)
    return out


@given(
    entries=st.integers(1, 256),
    each=st.sampled_from([1, 2, 3, 4, 8]),
    width=st.integers(1, 70),
    rows=st.integers(0, 5),
    seed=st.integers(0, 99),
)
def test_codes_come_back(entries: int, each: int, width: int, rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    codebook = rng.integers(-127, 128, (entries, each)).astype(np.int8)
    codes = rng.integers(0, entries, (rows, -(-width // each))).astype(np.uint8)
    packed = pack_codes(codes, code_bits(entries))
    assert packed.shape == (rows, -(-codes.shape[1] // 8) * code_bits(entries))
    np.testing.assert_array_equal(bit_by_bit(packed, code_bits(entries), codes.shape[1]), codes)
    expected = codebook[codes].reshape(rows, codes.shape[1] * each)[:, :width]
    np.testing.assert_array_equal(unpack_codes(packed, codebook, width), expected)


def test_more_rows_than_are_unpacked_at_once() -> None:
    rng = np.random.default_rng(1)
    codebook, codes = (
        rng.integers(-127, 128, (64, 2)).astype(np.int8),
        rng.integers(0, 64, (70_000, 8)).astype(np.uint8),
    )
    found = unpack_codes(pack_codes(codes, 6), codebook, 16)
    np.testing.assert_array_equal(found, codebook[codes].reshape(-1, 16))


def test_the_bits_of_a_code() -> None:
    assert [code_bits(n) for n in (1, 2, 3, 16, 17, 64, 256)] == [1, 1, 2, 4, 5, 6, 8]
    for wrong in (0, 257):
        with pytest.raises(ValueError, match="1 to 256 entries"):
            code_bits(wrong)


def packed_table() -> dict[str, Array]:
    codebook = np.arange(-8, 8, dtype=np.int8)[:, None]
    codes = np.arange(48).reshape(6, 8).astype(np.uint8) % 16
    return {
        "table.width": np.array([8], np.int32),
        "table.codes.0": pack_codes(codes[:4], 4),
        "table.codebook.0": codebook,
        "table.rows.1": codebook[codes[4:], 0],
        "table.scale": np.ones(6, np.float16),
        "score.weight": np.ones((8, 1), np.float32),
    }


def test_expand_puts_the_parts_together() -> None:
    stored = packed_table()
    opened = expand(stored)
    assert packed_names(stored) == ("table",)
    assert set(opened) == {"table", "table.scale", "score.weight"}
    np.testing.assert_array_equal(opened["table"], (np.arange(48) % 16 - 8).reshape(6, 8))
    assert [opened[name].dtype.name for name in ("table", "table.scale")] == ["int8", "float32"]
    plain: dict[str, Array] = {"table": np.ones((2, 2), np.float16), "table.scale": np.ones(2, np.float32)}
    assert expand(plain)["table"] is plain["table"]


def test_a_dense_weight_stands_transposed() -> None:
    stored = packed_table()
    renamed = {name.replace("table", "hidden.weight"): tensor for name, tensor in stored.items()}
    assert expand(renamed)["hidden.weight"].shape == (8, 6)
    np.testing.assert_array_equal(expand(renamed)["hidden.weight"].T, expand(stored)["table"])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"table.width": np.array([9], np.int32)}, "rows of 9 numbers take 8 bytes"),
        ({"table.codebook.0": np.zeros((5, 1), np.int8)}, "rows of 8 numbers take 3 bytes"),
        ({"table.codebook.0": np.zeros((9, 1), np.int8)}, "not in the codebook of 9 entries"),
        ({"table.codebook.0": np.zeros((16, 1), np.float32)}, "no codebook"),
        ({"table.codebook.0": None}, "no codebook"),
        ({"table.codebook.0": np.zeros((16, 0), np.int8)}, "no codebook"),
        ({"table.rows.1": np.zeros((2, 7), np.int8)}, r"is not \(rows, 8\) int8"),
    ],
)
def test_parts_that_do_not_fit_are_named(change: dict[str, Array | None], message: str) -> None:
    stored = {name: tensor for name, tensor in (packed_table() | change).items() if tensor is not None}
    with pytest.raises(ValueError, match=message):
        expand(stored)


def test_a_tensor_mixture_is_refused() -> None:
    mixture: dict[str, Array] = {"hidden.weight.mixt.0": np.zeros((4, 8), np.float16)}
    with pytest.raises(BundleError, match=r"'hidden\.weight' is stored as a tensor mixture, .* export the checkpoint"):
        expand(packed_table() | mixture)


@given(rows=st.integers(1, 40), seed=st.integers(0, 99))
def test_the_rows_of_a_split_part_come_back_in_their_places(rows: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    often = rng.random(rows) < 0.4
    books = [rng.integers(-127, 128, shape).astype(np.int8) for shape in ((16, 1), (4, 2))]
    codes = [
        rng.integers(0, 16, (int(often.sum()), 8)).astype(np.uint8),
        rng.integers(0, 4, (int((~often).sum()), 4)).astype(np.uint8),
    ]
    stored = {
        "table.codes.0": pack_codes(codes[0], 4),
        "table.codebook.0": books[0],
        "table.codes.0.rarely": pack_codes(codes[1], 2),
        "table.codebook.0.rarely": books[1],
        "table.often.0": np.packbits(often, bitorder="little"),
        "table.width": np.array([8], np.int32),
    }
    table = expand(stored)["table"]
    np.testing.assert_array_equal(table[often], books[0][codes[0]].reshape(-1, 8))
    np.testing.assert_array_equal(table[~often], books[1][codes[1]].reshape(-1, 8))
    for wrong, message in (
        (np.zeros(7, np.uint8), "is not a bit for each"),
        (np.packbits(~often, bitorder="little"), "chooses"),
    ):
        if wrong.shape == stored["table.often.0"].shape and often.sum() * 2 == rows:
            continue
        with pytest.raises(ValueError, match=message):
            expand(stored | {"table.often.0": wrong})
