"""Safetensors in NumPy: the same bytes as the `safetensors` package reads and writes, and no file that is not one."""

from __future__ import annotations

import json
import pickle
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from safetensors.numpy import load_file, save_file

from fieldrun.formats.tensors import ALIGNMENT, Array, data_offsets, read_tensors, write_tensors

DTYPES = ("<f4", "<f2", "i1", "u1", "<i4", "<i8")
TENSORS = st.dictionaries(
    st.text(min_size=1, max_size=12).filter(lambda name: name != "__metadata__" and name.isprintable()),
    st.sampled_from(DTYPES).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=9))
    ),
    max_size=6,
)
REUSED = settings(suppress_health_check=[HealthCheck.function_scoped_fixture])  # each example overwrites its file


def assert_same(found: dict[str, Array], expected: dict[str, Array]) -> None:
    assert set(found) == set(expected)
    for name, array in expected.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def file_of(path: Path, header: Any, data: bytes = b"") -> Path:
    """A safetensors file with this header, given as an object or as raw bytes."""
    raw = header if isinstance(header, bytes) else json.dumps(header).encode("utf-8")
    path.write_bytes(struct.pack("<Q", len(raw)) + raw + data)
    return path


def entry(shape: Any = (1,), offsets: Any = (0, 4), dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


@REUSED
@given(TENSORS)
def test_what_is_written_is_read_by_us_and_by_the_safetensors_package(
    tmp_path: Path, tensors: dict[str, Array]
) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(write_tensors(tensors))
    assert_same(read_tensors(path), tensors)
    assert_same(load_file(path), tensors)


@REUSED
@given(TENSORS)
def test_files_of_the_safetensors_package_are_read(tmp_path: Path, tensors: dict[str, Array]) -> None:
    path = tmp_path / "t.safetensors"
    save_file(tensors, path, metadata={"format": "np"})
    assert_same(read_tensors(path), tensors)


@REUSED
@given(TENSORS)
def test_bytes_do_not_depend_on_order_and_elements_are_aligned(tmp_path: Path, tensors: dict[str, Array]) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(write_tensors(tensors))
    assert write_tensors(dict(reversed(tensors.items()))) == path.read_bytes()
    for name, (offset, length) in data_offsets(path).items():
        assert path.read_bytes()[offset : offset + length] == tensors[name].tobytes()
        assert offset % tensors[name].itemsize == 0
        if tensors[name].nbytes % ALIGNMENT == 0:
            assert offset % ALIGNMENT == 0


def test_the_data_starts_on_a_page_and_arrays_are_read_only(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    path.write_bytes(write_tensors({"a": np.arange(16, dtype="f4"), "b": np.ones((2, 3), ">f4")}))
    assert min(offset for offset, _ in data_offsets(path).values()) % 4096 == 0
    read = read_tensors(path)
    np.testing.assert_array_equal(read["b"], np.ones((2, 3)))
    with pytest.raises(ValueError, match="read-only"):
        read["a"][0] = 1


def test_strided_arrays_are_written_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "t.safetensors"
    matrix = np.arange(12, dtype="f4").reshape(3, 4)
    path.write_bytes(write_tensors({"t": matrix.T, "s": matrix[::2, ::-1]}))
    np.testing.assert_array_equal(read_tensors(path)["t"], matrix.T)
    np.testing.assert_array_equal(read_tensors(path)["s"], matrix[::2, ::-1])


@pytest.mark.parametrize("dtype", ["f8", "c8", "U3", "?", "O"])
def test_other_dtypes_are_not_written(dtype: str) -> None:
    with pytest.raises(ValueError, match="'weight' has dtype"):
        write_tensors({"weight": np.zeros(2, dtype)})


@pytest.mark.parametrize("cut", [0, 1, 7, 8, 9, 4095, 4096, 4100, -1])
def test_a_truncated_file_is_named(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "cut.safetensors"
    path.write_bytes(write_tensors({"a": np.arange(40, dtype="f4"), "b": np.arange(3, dtype="i1")})[:cut])
    with pytest.raises(ValueError, match=r"cut\.safetensors"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"{", b""),
        (b"\xff\xfe", b""),
        (b"[" * 100_000, b""),
        (b'{"a": ' + b"9" * 5000 + b"}", b""),
        ([], b""),
        ("a", b""),
        ({"a": 1}, b"abcd"),
        ({"a": {}}, b"abcd"),
        ({"a": entry(dtype="F64")}, b"abcd"),
        ({"a": entry(dtype="BF16")}, b"abcd"),
        ({"a": entry(dtype=["F32"])}, b"abcd"),
        ({"a": entry(shape=[2])}, b"abcd"),
        ({"a": entry(shape=[-1], offsets=[4, 0])}, b"abcd"),
        ({"a": entry(shape=[1.0])}, b"abcd"),
        ({"a": entry(shape=["1"])}, b"abcd"),
        ({"a": entry(shape=[True])}, b"abcd"),
        ({"a": entry(shape=[float("inf")])}, b"abcd"),
        ({"a": entry(shape=[0, 10**30], offsets=[0, 0])}, b""),
        ({"a": entry(offsets=[0, 4, 8])}, b"abcd"),
        ({"a": entry(offsets=[-4, 0])}, b"abcd"),
        ({"a": entry(offsets=[0, 8])}, b"abcd"),
    ],
)
def test_a_header_that_makes_no_sense_is_named(tmp_path: Path, header: Any, data: bytes) -> None:
    path = file_of(tmp_path / "odd.safetensors", header, data)
    with pytest.raises(ValueError, match=r"odd\.safetensors"):
        read_tensors(path)


@pytest.mark.parametrize(
    ("second", "data"),
    [
        (entry(offsets=(0, 4)), b"abcdefgh"),  # the same bytes twice
        (entry(offsets=(2, 6)), b"abcdefgh"),  # overlapping by half
        (entry(offsets=(8, 12)), b"abcdefghijkl"),  # a hole between
        (entry(offsets=(4, 8)), b"abcdefghijkl"),  # a hole at the end
    ],
)
def test_overlaps_and_holes_are_refused_as_the_safetensors_package_does(
    tmp_path: Path, second: dict[str, Any], data: bytes
) -> None:
    path = file_of(tmp_path / "holes.safetensors", {"a": entry(), "b": second}, data)
    with pytest.raises(ValueError, match=r"holes\.safetensors is corrupt"):
        read_tensors(path)
    with pytest.raises(Exception, match=r"(?i)header|offset|buffer"):
        load_file(path)


def test_a_huge_header_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "huge.safetensors"
    path.write_bytes(struct.pack("<Q", 2**62) + b"{}")
    with pytest.raises(ValueError, match=r"huge\.safetensors is truncated or not"):
        read_tensors(path)


def test_a_pickle_is_not_a_safetensors_file(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(pickle.dumps({"weight": np.zeros(1000, "f4")}))
    with pytest.raises(ValueError, match=r"model\.safetensors"):
        read_tensors(path)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_tensors(tmp_path / "none.safetensors")


@settings(max_examples=200)
@given(data=st.data())
def test_a_damaged_file_never_fails_otherwise(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    whole = bytearray(write_tensors({"a": np.arange(3, dtype="f4"), "b": np.arange(5, dtype="i1")}))
    position = data.draw(st.integers(0, 200) | st.integers(0, len(whole) - 1))
    whole[position] ^= 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.getbasetemp() / "flipped.safetensors"
    path.write_bytes(whole)
    try:
        read_tensors(path)
    except ValueError as error:
        assert "flipped.safetensors" in str(error)  # noqa: PT017 - a flip in the data is rightly not seen here
