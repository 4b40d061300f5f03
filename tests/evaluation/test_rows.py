"""Texts, pairs and labels as callers hand them over."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest

from fieldrun.errors import InputTextError
from fieldrun.evaluation.rows import check_texts, split_pairs

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


def test_a_pandas_column_is_taken_and_a_frame_refused() -> None:
    pandas: Any = pytest.importorskip("pandas")
    assert check_texts(pandas.Series(["a", "b"], index=[7, 3])) == ["a", "b"]
    with pytest.raises(InputTextError, match="texts must be a list, not DataFrame"):
        check_texts(pandas.DataFrame({"text": ["a", "b"]}))


@pytest.mark.parametrize(
    "pairs", [[("a", "b"), ["c", "d"]], np.array([["a", "b"], ["c", "d"]]), zip("ac", "bd", strict=True)]
)
def test_pairs_are_split(pairs: Any) -> None:
    assert split_pairs(pairs) == (["a", "c"], ["b", "d"])
