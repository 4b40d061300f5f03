"""Texts, pairs and labels as callers hand them over."""

from __future__ import annotations

import array
import collections
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fieldrun
from fieldrun.errors import InputTextError, LabelError
from fieldrun.evaluation.rows import check_labels, check_texts, split_pairs, split_texts
from fieldrun_exporters.calibrate import choose_texts

REFUSED: list[tuple[Any, str]] = [
    ("one text", "not one string"),
    (b"bytes", "texts must be a list, not bytes"),
    ([], "texts is empty"),
    ((), "texts is empty"),
    (iter(()), "texts is empty"),
    (None, "not NoneType"),
    (3, "not int"),
    ({"a": 1}, "not dict"),
    ({"a"}, "not set"),
    (bytearray(b"a"), "not bytearray"),
    (memoryview(b"a"), "not memoryview"),
    (["a", None], "text 1 is NoneType"),
    (["a", "b", 3], "text 2 is int"),
    ([b"a"], "text 0 is bytes"),
    ([["a"]], "text 0 is list"),
    ([("a", "b")], "text 0 is tuple"),
    ([float("nan")], "text 0 is float"),
    (["a", ""], "text 1 is empty or only whitespace"),
    ([" \t\n\r "], "text 0 is empty or only whitespace"),
    (["\u2003\u00a0\u2028"], "text 0 is empty or only whitespace"),
    (["a", "b \ud83d c"], r"text 1 holds a lone surrogate \(U\+D83D\) at character 2"),
    (["\udc80"], r"text 0 holds a lone surrogate \(U\+DC80\) at character 0"),
]


@pytest.mark.parametrize(("texts", "message"), REFUSED)
def test_what_is_not_a_list_of_texts_is_refused(texts: Any, message: str) -> None:
    with pytest.raises(InputTextError, match=message) as caught:
        check_texts(texts)
    assert caught.value.exit_code == 2
    assert "\n" not in str(caught.value)


def generator() -> Iterator[str]:
    yield "a"
    yield "b"


LISTS: list[Any] = [["a", "b"], ("a", "b"), generator(), map(str.lower, "AB"), np.array(["a", "b"])]


@pytest.mark.parametrize("texts", LISTS)
def test_lists_and_what_can_be_listed_are_taken(texts: Any) -> None:
    assert check_texts(texts) == ["a", "b"]


class Keyed:
    """A table of some package: it iterates over its keys."""

    def keys(self) -> list[str]:
        return ["text", "label"]

    def __getitem__(self, key: str) -> list[str]:
        return ["a", "b"]

    def __iter__(self) -> Iterator[str]:
        return iter(self.keys())


ORDERED: list[Any] = [
    {"a": 1, "b": 2}.keys(),
    {1: "a", 2: "b"}.values(),
    collections.deque(["a", "b"]),
    np.array(["a", "b"], object),
]
UNORDERED: list[Any] = [
    collections.ChainMap({"a": 1}),
    collections.UserDict({"a": 1}),
    collections.OrderedDict({"a": 1}),
    collections.Counter("ab"),
    os.environ,
    {"a"},
    frozenset({"a"}),
    Keyed(),
    array.array("u", "ab"),
]


@pytest.mark.parametrize("texts", ORDERED, ids=lambda texts: type(texts).__name__)
def test_what_has_an_order_is_taken(texts: Any) -> None:
    assert check_texts(texts) == ["a", "b"]


@pytest.mark.parametrize("values", UNORDERED, ids=lambda values: type(values).__name__)
def test_what_has_keys_or_no_order_is_refused_by_name(values: Any) -> None:
    for check in (check_texts, split_pairs, lambda rows: split_texts(rows), lambda rows: choose_texts(rows, 16)):
        with pytest.raises(InputTextError, match=f"must be a list, not {type(values).__name__}"):
            check(values)
    with pytest.raises(LabelError, match=f"must be a list, not {type(values).__name__}"):
        check_labels(values, 1)


def test_a_pandas_column_is_taken_and_a_frame_refused() -> None:
    pandas: Any = pytest.importorskip("pandas")
    for kind in (object, "string", "category"):
        assert check_texts(pandas.Series(["a", "b"], index=[7, 3], dtype=kind)) == ["a", "b"]
    assert check_texts(pandas.Index(["a", "b"])) == ["a", "b"]
    for frame in (pandas.DataFrame({"text": ["a", "b"]}), pandas.DataFrame([["a", "b"], ["c", "d"]])):
        for check in (check_texts, split_pairs, split_texts):
            with pytest.raises(InputTextError, match="must be a list, not DataFrame; choose a column"):
                check(frame)
    pairs = pandas.DataFrame([["a", "b"], ["c", "d"]])
    assert split_pairs(pairs.to_numpy()) == (["a", "c"], ["b", "d"])
    assert split_pairs(zip(pairs[0], pairs[1], strict=True)) == (["a", "c"], ["b", "d"])


def test_arrow_columns_are_taken_and_tables_refused() -> None:
    arrow: Any = pytest.importorskip("pyarrow")
    column = arrow.array(["a", "b"])
    table = arrow.table({"text": column, "label": arrow.array([1, 0])})
    assert check_texts(column) == check_texts(table["text"]) == ["a", "b"]
    assert check_texts(arrow.array(["a", "b", "a"]).dictionary_encode()) == ["a", "b", "a"]
    assert check_labels(table["label"], 2) == ["1", "0"]
    assert split_texts(arrow.array([["a", "b"], ["c", "d"]])) == ("pair", (["a", "c"], ["b", "d"]))
    for value in (table, table.to_batches()[0]):
        with pytest.raises(InputTextError, match=f"must be a list, not {type(value).__name__}; choose a column"):
            check_texts(value)
    with pytest.raises(InputTextError, match="text 1 is NoneType"):
        check_texts(arrow.array(["a", None]))


def test_a_model_takes_every_list_and_no_table(toy_bundle: Path) -> None:
    with fieldrun.load(toy_bundle, engine="numpy") as model:
        expected, pairs = model.predict(["a", "b"], "mood"), model.predict([("a", "b"), ("c", "d")], "same")
        for texts in (("a", "b"), np.array(["a", "b"]), iter(["a", "b"]), (c for c in "ab"), {1: "a", 2: "b"}.values()):
            assert model.predict(texts, "mood") == expected
        assert model.predict(zip("ac", "bd", strict=True), "same") == pairs
        assert model.predict(np.array([["a", "b"], ["c", "d"]]), "same") == pairs
        assert [found["label"] for found in fieldrun.answer(model, iter(["a", "b"]), ["mood"])] == expected
        assert [found["label"] for found in fieldrun.answer(model, zip("ac", "bd", strict=True), "same")] == pairs
        np.testing.assert_array_equal(model.similarity(iter("ab"), ["a"]), model.similarity(["a", "b"], ["a"]))
        for table in (collections.ChainMap({"a": 1}), collections.UserDict({"a": 1}), {"a"}, Keyed()):
            for use in (model.forward, model.encode, model.predict_all, lambda rows: model.predict(rows, "same")):
                with pytest.raises(InputTextError, match=f"must be a list, not {type(table).__name__}"):
                    use(table)
            with pytest.raises(InputTextError, match=f"must be a list, not {type(table).__name__}"):
                list(fieldrun.answer(model, table, ["mood"]))
            with pytest.raises(InputTextError, match=f"must be a list, not {type(table).__name__}"):
                fieldrun.fit_head(model, table, ["x"])


@pytest.mark.parametrize("label", ["a\nb", "a\n", "a\tb", "\x1b[31ma", "a\x00", "\ud800"])
def test_a_label_that_no_bundle_can_have_is_refused(label: str) -> None:
    with pytest.raises(LabelError, match=r"label 1 has control characters or line ends: .*; remove them"):
        check_labels(["x", label], 2)


class Lazy:
    """A table that computes its columns when they are asked for, as Polars does, with a warning."""

    @property
    def columns(self) -> list[str]:
        raise AssertionError("the columns were computed")


def test_a_lazy_table_is_refused_without_being_computed() -> None:
    with pytest.raises(InputTextError, match="texts must be a list, not Lazy; choose a column"):
        check_texts(Lazy())


@pytest.mark.parametrize(
    "pairs", [[("a", "b"), ["c", "d"]], np.array([["a", "b"], ["c", "d"]]), zip("ac", "bd", strict=True)]
)
def test_pairs_are_split(pairs: Any) -> None:
    assert split_pairs(pairs) == (["a", "c"], ["b", "d"])
