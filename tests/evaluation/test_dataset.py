"""TSV in, texts and labels out; every broken file is named with its line."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldrun.errors import DatasetError
from fieldrun.evaluation.dataset import Dataset, read_tsv

CELL = st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1).filter(str.strip)
# A carriage return is text inside a cell; only at the end of the line would it be the line's end.
TEXT = st.text(st.characters(exclude_characters="\t\n", exclude_categories=["Cs"]), min_size=1).filter(str.strip)


def write(folder: Path, data: bytes) -> Path:
    path = folder / "data.tsv"
    path.write_bytes(data)
    return path


def test_single_texts(tmp_path: Path) -> None:
    data = "text\tlabel\n\"quoted, it's\t1\nnaïve café\ttwo words\n".encode()
    dataset = read_tsv(write(tmp_path, data))
    assert dataset.kind == "single"
    assert dataset.texts == ("\"quoted, it's", "naïve café")
    assert dataset.labels == ("1", "two words")
    assert len(dataset) == 2
    assert dataset.sha256 == hashlib.sha256(data).hexdigest()
    assert dataset.where(1) == f"{tmp_path / 'data.tsv'}, line 3"


def test_pairs(tmp_path: Path) -> None:
    dataset = read_tsv(str(write(tmp_path, b"text_a\ttext_b\tlabel\r\none\ttwo\tsame\r\n")))
    assert dataset == Dataset(
        path=tmp_path / "data.tsv",
        kind="pair",
        texts=(("one", "two"),),
        labels=("same",),
        sha256=dataset.sha256,
        lines=(2,),
    )


@pytest.mark.parametrize("data", [b"text\tlabel\na\tx", b"\xef\xbb\xbftext\tlabel\na\tx\n", b"text\tlabel\r\na\tx"])
def test_line_ends_and_byte_order_mark(tmp_path: Path, data: bytes) -> None:
    dataset = read_tsv(write(tmp_path, data))
    assert (dataset.texts, dataset.labels) == (("a",), ("x",))


def test_only_newlines_end_a_line(tmp_path: Path) -> None:
    text = "a\u2028b\x0bc\x0cd\x85e\rf"
    assert read_tsv(write(tmp_path, f"text\tlabel\n{text}\tx\n".encode())).texts == (text,)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "line 1: the file is empty"),
        (b"text\tlabel\n", "line 2: there are no records"),
        (b"sentence\tlabel\na\tx\n", r"line 1: the header is 'sentence\\tlabel'; it must be 'text<TAB>label'"),
        (b"Text\tLabel\na\tx\n", "line 1: the header"),
        (b"h" * 1000 + b"\n", "line 1: the header is 'hhh.*hhh[.][.][.]'"),
        (b"text\tlabel\na\tx\nb\n", "line 3: 1 tab-separated columns, 2 expected"),
        (b"text\tlabel\na\tb\tx\n", "line 2: 3 tab-separated columns, 2 expected"),
        (b"text_a\ttext_b\tlabel\na\tx\n", "line 2: 2 tab-separated columns, 3 expected"),
        (b"text\tlabel\na\tx\n\nb\ty\n", "line 3: the line is blank; delete it"),
        (b"text\tlabel\na\t\n", "line 2: the label is empty"),
        (b"text\tlabel\na\t \n", "line 2: the label is empty"),
        (b"text\tlabel\n  \tx\n", "line 2: the text is empty"),
        (b"text_a\ttext_b\tlabel\na\t\tx\n", "line 2: the text is empty"),
        (b"text\tlabel\na\tx\n\xff\ty\n", "line 3: not valid UTF-8"),
        (b"text\tlabel\n\xed\xa0\x80\ty\n", "line 2: not valid UTF-8"),
    ],
)
def test_broken_files_are_named_with_their_line(tmp_path: Path, data: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=f"data[.]tsv, {message}"):
        read_tsv(write(tmp_path, data))


def test_missing_and_unreadable_files(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"nowhere\.tsv does not exist"):
        read_tsv(tmp_path / "nowhere.tsv")
    with pytest.raises(DatasetError, match=r"cannot read .*: Is a directory"):
        read_tsv(tmp_path)


@given(records=st.lists(st.tuples(TEXT, CELL), min_size=1), end=st.sampled_from(["\n", "\r\n"]))
def test_single_round_trip(tmp_path_factory: pytest.TempPathFactory, records: list[tuple[str, str]], end: str) -> None:
    body = "".join(f"{text}\t{label}{end}" for text, label in records)
    dataset = read_tsv(write(tmp_path_factory.mktemp("data"), f"text\tlabel{end}{body}".encode()))
    assert list(zip(dataset.texts, dataset.labels, strict=True)) == records


@given(records=st.lists(st.tuples(TEXT, TEXT, CELL), min_size=1))
def test_pair_round_trip(tmp_path_factory: pytest.TempPathFactory, records: list[tuple[str, str, str]]) -> None:
    body = "".join("\t".join(record) + "\n" for record in records)
    dataset = read_tsv(write(tmp_path_factory.mktemp("data"), f"text_a\ttext_b\tlabel\n{body}".encode()))
    assert [(a, b, label) for (a, b), label in zip(dataset.texts, dataset.labels, strict=True)] == records
