"""`fieldrun check`: every bad row at once, and what deceives in the good ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

import fieldrun
from fieldrun.cli import main
from fieldrun.errors import DatasetError
from fieldrun_runtimes.check import looks_english

ROWS = """text;label;id
a good film;pos;1
A  good FILM;pos;2
a good film;neg;3
;pos;4
the film was "bad";neg;5
"broken;neg
das ist ein sehr guter neuer spielfilm gewesen;Pos;7
😀🚀;pos;8
no label;;9
\x01;pos;10
""".replace("\\x01", "\x01")


def call(*arguments: str | Path, code: int = 0) -> Result:
    result = CliRunner().invoke(main, [str(a) for a in arguments], catch_exceptions=False)
    assert result.exit_code == code, (result.stdout, result.stderr)
    return result


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.csv"
    path.write_text(ROWS.replace('"broken;neg', "too few"), "utf-8-sig")
    return path


def test_everything_is_reported_at_once(data: Path) -> None:
    value = json.loads(call("check", data, "--json", code=4).stdout)
    places = [(where.rpartition(" ")[2], why.partition(";")[0]) for where, why in value["bad"]]
    assert places == [
        ("5", "the text is empty"),
        ("7", "1 columns, 3 expected"),
        ("10", "the label is empty"),
        ("11", "the text has no token: only control characters"),
    ]
    assert (value["n"], value["labels"]) == (6, {"Pos": 1, "neg": 2, "pos": 3})
    assert value["near_equal"] == [["Pos", "pos"]]
    assert [where.rpartition(" ")[2] for where in value["copies"]] == ["3"]
    assert [where.rpartition(" ")[2] for where in value["conflicts"]] == ["2", "3", "4"]
    assert (value["nothing_known"], value["not_english"], value["too_long"]) == (1, 1, 0)
    assert value["tokens"]["min"] >= 3
    said = " | ".join(value["warnings"])
    for part in ("1 rows repeat", "3 rows have a text", "'Pos', 'pos'", "fewer than 8 rows", "do not look English"):
        assert part in said


def test_the_report_in_words(data: Path) -> None:
    result = call("check", data, code=4)
    assert f"{data}, line 5: the text is empty; add it or delete the line" in result.stdout
    assert f"{data}, line 3: copy" in result.stdout
    assert "6 rows can be used, 4 cannot; 1 copies, 3 in conflict" in result.stdout
    assert "texts: with unknown" in result.stdout
    assert "note: the labels 'Pos', 'pos' differ only in case" in result.stderr


def test_good_files_and_other_columns(tmp_path: Path) -> None:
    path = tmp_path / "p.csv"
    path.write_text("a,b,c\n" + "".join(f"it rains {i},it is wet,{i % 2}\n" for i in range(40)), "utf-8")
    report = fieldrun.check(path, text_column="a", text_b_column="b", label_column="c")
    assert (report.kind, report.n, report.texts, report.bad, report.warnings) == ("pair", 40, 80, (), ())
    (tmp_path / "s.tsv").write_text("text\tlabel\na\tx\n", "utf-8")
    (tmp_path / "p.tsv").write_text("text_a\ttext_b\tlabel\na\tb\tx\n", "utf-8")
    with pytest.raises(DatasetError, match="single texts and pairs"):
        fieldrun.check([tmp_path / "s.tsv", tmp_path / "p.tsv"])


def test_what_fit_says_of_a_broken_file(data: Path, tmp_path: Path) -> None:
    said = call("fit", data, "--name", "x", "-o", tmp_path / "out", code=4).stderr
    assert "data.csv, line 5: the text is empty; add it or delete the line (and 2 more rows; 'fieldrun check'" in said


def test_fit_says_what_a_check_would(toy_bundle: Path, tmp_path: Path) -> None:
    rows = [f"das ist ein sehr guter neuer film gewesen {i}\t{i % 2}" for i in range(20)]
    path = tmp_path / "d.tsv"
    path.write_text("\n".join(["text\tlabel", *rows]), "utf-8")
    result = call("fit", path, "-b", toy_bundle, "--name", "x", "-o", tmp_path / "out")
    assert "20 of 20 texts do not look English" in result.stderr


@pytest.mark.parametrize(
    ("text", "english"),
    [
        ("how do i top up my card", True),
        ("nice film", True),
        ("wie lade ich meine neue karte auf", False),
        ("\u0e2a\u0e27\u0e31\u0e2a\u0e14\u0e35", False),
        ("caf\u00e9 au lait", True),
        ("12:30", True),
    ],
)
def test_what_looks_english(text: str, english: bool) -> None:
    assert looks_english(text) == english
