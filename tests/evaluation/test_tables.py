"""Files that people have: what Excel, pandas and others write, read by the names of the columns."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldrun.errors import DatasetError, MissingDependency
from fieldrun.evaluation.dataset import read_tsv

ROWS = [('a film, "great"; really', "up"), ("it\nrained", "down"), ("\u00fcber\tall", "up")]


def write(path: Path, data: str | bytes, encoding: str = "utf-8") -> Path:
    path.write_bytes(data if isinstance(data, bytes) else data.encode(encoding))
    return path


def as_csv(
    rows: Sequence[tuple[str, ...]], delimiter: str = ",", end: str = "\r\n", quoting: Any = csv.QUOTE_MINIMAL
) -> str:
    text = io.StringIO(newline="")
    csv.writer(text, delimiter=delimiter, lineterminator=end, quoting=quoting).writerows(rows)
    return text.getvalue()


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le-bom"])
@pytest.mark.parametrize("tail", ["", "blank"])
def test_csv_as_excel_and_others_write_it(tmp_path: Path, delimiter: str, end: str, encoding: str, tail: str) -> None:
    rows = [("id", "text", "when", "label"), *((str(i), text, "x", label) for i, (text, label) in enumerate(ROWS))]
    text = as_csv(rows, delimiter, end) + (end + delimiter * 3 + end if tail else "")
    if encoding == "utf-16-le-bom":
        text, encoding = "\ufeff" + text, "utf-16-le"
    found = read_tsv(write(tmp_path / "data.csv", text, encoding))
    assert list(zip(found.texts, found.labels, strict=True)) == ROWS
    assert found.lines == (2, 3, 5)
    assert found.where(2) == f"{tmp_path / 'data.csv'}, line 5"


def test_what_excel_saves_as_unicode_text(tmp_path: Path) -> None:
    found = read_tsv(write(tmp_path / "data.txt", as_csv([("text", "label"), *ROWS], "\t"), "utf-16"))
    assert list(zip(found.texts, found.labels, strict=True)) == ROWS
    hinted = read_tsv(write(tmp_path / "hint.csv", "sep=;\r\ntext;label\r\na, b;x\r\nc;y\r\n"))
    assert (hinted.texts, hinted.lines) == (("a, b", "c"), (3, 4))


def test_columns_are_found_by_name(tmp_path: Path) -> None:
    path = write(tmp_path / "data.csv", "sentence,text_b,class\nit rains,it is wet,1\n")
    found = read_tsv(path, text_column="sentence", label_column="class")
    assert (found.kind, found.texts, found.labels) == ("single", ("it rains",), ("1",))
    pairs = read_tsv(path, text_column="sentence", text_b_column="text_b", label_column="class")
    assert (pairs.kind, pairs.texts) == ("pair", (("it rains", "it is wet"),))
    swapped = read_tsv(write(tmp_path / "data.tsv", 'label\tid\ttext\nx\t1\ta "b\n'))
    assert (swapped.texts, swapped.labels) == (('a "b',), ("x",)), "no quoting in a .tsv file"
    both = read_tsv(write(tmp_path / "both.csv", "text_b,label,text_a\nb,x,a\n"))
    assert both.texts == (("a", "b"),)
    with pytest.raises(
        DatasetError, match=r"line 1: the header is 'sentence,text_b,class'; it must be 'text<TAB>label'"
    ):
        read_tsv(path)
    with pytest.raises(DatasetError, match="line 1: there is no column 'txt'; the columns are sentence, text_b, class"):
        read_tsv(path, text_column="txt", label_column="class")
    with pytest.raises(DatasetError, match="two columns are called 'text'; rename one"):
        read_tsv(write(tmp_path / "twice.csv", "text,text,label\na,b,x\n"))


NO_TEXT = {
    "gzip": (gzip.compress(b"text\tlabel\na\tx\n"), "is compressed .gzip.; unpack it first"),
    "bzip2": (bz2.compress(b"text\tlabel\na\tx\n"), "is compressed .bzip2."),
    "xz": (lzma.compress(b"text\tlabel\na\tx\n"), "is compressed .xz."),
    "xlsx": (b"PK\x03\x04" + bytes(90), "is an Excel workbook or a zip archive; save it as CSV"),
    "xls": (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "is an Excel workbook"),
    "utf-16-le": ("text\tlabel\na\tx\n".encode("utf-16-le"), "is UTF-16 without a byte-order mark; convert"),
    "utf-16-be": ("text\tlabel\na\tx\n".encode("utf-16-be"), "is UTF-16 without a byte-order mark"),
    "utf-32": ("text\tlabel\na\tx\n".encode("utf-32"), "is UTF-32"),
}


@pytest.mark.parametrize(("data", "message"), NO_TEXT.values(), ids=NO_TEXT)
@pytest.mark.parametrize("name", ["d.tsv", "d.csv", "d.jsonl", "d.csv.gz", "d"])
def test_a_file_that_is_no_text_is_called_what_it_is(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        read_tsv(write(tmp_path / name, data))
    assert "header" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("d.csv", "text,label\ra,x\rb,y\r", "its lines end with CR alone"),
        ("d.csv", '"text","label"\r"a","x"\r', "its lines end with CR alone"),
        ("d.tsv", "text\tlabel\ra\tx\r", "its lines end with CR alone"),
        ("d.json", '[{"text": "a", "label": "x"}]', "is a JSON array; write one object per line"),
        ("d.json", '[\n{"text": "a", "label": "x"}\n]\n', "is a JSON array"),
        ("d.csv", 'text,label\na,"x\ny"\n', r"line 2: the label has control characters or line ends: 'x\\ny'; remove"),
        ("d.jsonl", '{"text": "a", "label": "x\\u001b[2J"}', "line 1: the label has control characters"),
    ],
)
def test_what_is_nearly_a_table_is_told_apart(tmp_path: Path, name: str, text: str, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        read_tsv(write(tmp_path / name, text))


@pytest.mark.parametrize("name", ["data.jsonl", "data.ndjson", "data.json", "data"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    lines = [
        {"id": 1, "text": "a\tfilm", "label": "x"},
        {"label": 3, "text": "\u00fcber"},
        {"text": "c", "label": True},
    ]
    text = "\n".join(map(json.dumps, lines)) + "\n\n"
    for mark in ("", "\ufeff"):
        found = read_tsv(write(tmp_path / name, mark + text))
        assert (found.texts, found.labels) == (("a\tfilm", "\u00fcber", "c"), ("x", "3", "True"))
    pairs = read_tsv(write(tmp_path / "p.jsonl", '{"text_a": "a", "text_b": "b", "label": "x"}'))
    assert pairs.texts == (("a", "b"),)


def test_parquet(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    arrow: Any = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    columns = {"text": ["a", "b", None], "label": [1, 0, 1], "vector": [[0.5]] * 3}
    parquet.write_table(arrow.table(columns).slice(0, 2), tmp_path / "data.parquet")
    found = read_tsv(tmp_path / "data.parquet")
    assert (found.texts, found.labels, found.where(1)) == (
        ("a", "b"),
        ("1", "0"),
        f"{tmp_path / 'data.parquet'}, row 2",
    )
    parquet.write_table(arrow.table(columns), tmp_path / "bad.parquet")
    with pytest.raises(DatasetError, match=r"bad\.parquet, row 3: the text is missing"):
        read_tsv(tmp_path / "bad.parquet")
    with pytest.raises(DatasetError, match="there is no column 'x'; the columns are text, label, vector"):
        read_tsv(tmp_path / "bad.parquet", text_column="x")
    with pytest.raises(DatasetError, match="is not a Parquet file"):
        read_tsv(write(tmp_path / "no.parquet", "text"))
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    with pytest.raises(MissingDependency, match=r"pip install 'fieldrun\[data\]'"):
        read_tsv(tmp_path / "data.parquet")


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("d.csv", b"", "line 1: the file is empty"),
        ("d.csv", b"\n", "line 1: it is blank"),
        ("d.csv", b"\xef\xbb\xbf", "line 1: the file is empty"),
        ("d.csv", b"text,label\n", "line 2: there are no records"),
        ("d.csv", b"text,label\na,b,c\n", "line 2: 3 columns, 2 expected"),
        ("d.csv", b'text,label\n"a\n\nb",x\nc\n', "line 5: 1 columns, 2 expected"),
        ("d.csv", b"text,label\na,x\n\nb,y\n", "line 3: the line is blank"),
        ("d.csv", b'text,label\na,x\n"b,y\nc,z\n', r"line 3: not CSV .*; correct the quotes"),
        ("d.csv", b'text,label\n"a"b,x\n', r"line 2: not CSV"),
        ("d.csv", b"text,label\n,x\n", "line 2: the text is empty"),
        ("d.csv", b"text,label\na,\n", "line 2: the label is empty"),
        ("d.csv", b"text,label\na,x\nb\xff,y\n", "line 3: not valid UTF-8"),
        ("d.csv", "text,label\na,x\n".encode("utf-16")[:-1], "not valid UTF-16"),
        ("d.jsonl", b'{"text": "a"}\n', "line 1: the header is"),
        ("d.jsonl", b'{"text": "a", "label": "x"}\n[1]\n', "line 2: not a JSON object"),
        ("d.jsonl", b'{"text": "a", "label": "x"}\n{"text": "a"}\n', "line 2: the label is missing"),
        ("d.jsonl", b'{"text": "a", "label": 1.5}\n', "line 1: the label is float"),
        ("d.jsonl", b'{"text": ["a"], "label": "x"}\n', "line 1: the text is list"),
        ("d.jsonl", b'{"text": "\\ud800", "label": "x"}\n', "line 1: not valid UTF-8"),
        ("d.jsonl", b'{"text": "a", "label": NaN}\n', "line 1: the label is missing"),
    ],
)
def test_what_is_wrong_is_named_with_its_line(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    with pytest.raises(DatasetError, match=message) as caught:
        read_tsv(write(tmp_path / name, data))
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_very_long_text(tmp_path: Path) -> None:
    assert len(read_tsv(write(tmp_path / "d.csv", f"text,label\n{'a ' * 200_000},x\n")).texts[0]) == 400_000


CELLS = st.text(st.characters(exclude_characters="\r\x00", exclude_categories=["Cs"])).filter(
    lambda cell: cell != "" and not cell.isspace()
)

LABELS = st.text(st.characters(exclude_categories=["Cc", "Cs"])).filter(lambda cell: cell != "" and not cell.isspace())


@given(
    rows=st.lists(st.tuples(CELLS, LABELS), min_size=1),
    delimiter=st.sampled_from(",;|"),
    quoting=st.sampled_from([0, 1]),
)
def test_a_round_trip(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[str, str]], delimiter: str, quoting: int
) -> None:
    path = write(
        tmp_path_factory.mktemp("data") / "d.csv", as_csv([("text", "label"), *rows], delimiter, "\r\n", quoting)
    )
    found = read_tsv(path)
    assert list(zip(found.texts, found.labels, strict=True)) == rows
