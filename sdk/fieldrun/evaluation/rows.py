"""Texts and labels as callers pass them: any list of strings or of pairs of strings, and a label for each."""

from __future__ import annotations

from array import array
from collections.abc import Callable, ItemsView, Iterable, KeysView, Mapping, Sequence, Set
from typing import Any, Literal, TypeVar

import numpy as np

from ..errors import FieldrunError, InputTextError, LabelError, TextTooLong
from ..formats.limits import has_control

__all__ = ["Labels", "Texts", "as_list", "check_labels", "check_texts", "run_located", "split_pairs", "split_texts"]

Texts = Iterable[str] | Iterable[Sequence[str]]
Labels = Iterable[str | int | np.generic]

T = TypeVar("T")


def as_list(values: object, what: str, error: type[FieldrunError] = InputTextError) -> list[Any]:
    """Return the items of a list, tuple, array, Series, Arrow column or iterator; `what` names them in the message.

    Raises:
        FieldrunError: as `error`; `values` is a string, has no order (a set), or would be read as its keys or column
            names (a mapping, a table).
    """
    if isinstance(values, list):
        return values
    ordered = isinstance(values, KeysView | ItemsView)  # of a dict, although they are sets
    if (not ordered and (isinstance(values, _REFUSED) or _is_table(values))) or not isinstance(values, Iterable):
        hint = "; choose a column" if _is_table(values) else ""
        raise error(f"{what} must be a list, not {type(values).__name__}{hint}")
    to_python = getattr(values, "to_pylist", None)  # of an Arrow column, whose own items are not str
    try:
        return list(to_python() if callable(to_python) else values)
    except TypeError as cause:  # an array without dimensions
        raise error(f"{what} must be a list, not a single value") from cause


_REFUSED = (str, bytes, bytearray, memoryview, array, Mapping, Set)


def _is_table(values: object) -> bool:
    kind = type(values)  # what a lazy table computes when it is asked is not asked for
    keyed = hasattr(kind, "keys") and hasattr(kind, "__getitem__") and not hasattr(kind, "iloc")
    return keyed or hasattr(kind, "columns") or hasattr(kind, "column_names")


def check_texts(texts: object, what: str = "text") -> list[str]:
    """Return `texts` as a list of non-blank, valid Unicode strings, at least one; `what` names one in messages.

    Raises:
        InputTextError: it is not; the message says which text and why.
    """
    if isinstance(texts, str):
        raise InputTextError("texts must be a list of strings, not one string; write [text]")
    listed = as_list(texts, f"{what}s")
    if not listed:
        raise InputTextError(f"{what}s is empty; give at least one text")
    for i, text in enumerate(listed):
        if not isinstance(text, str):
            raise InputTextError(f"{what} {i} is {type(text).__name__}, not a string")
        if not text or text.isspace():
            raise InputTextError(f"{what} {i} is empty or only whitespace; leave it out")
        if not text.isascii():
            try:
                text.encode("utf-8")
            except UnicodeEncodeError as error:
                raise InputTextError(
                    f"{what} {i} holds a lone surrogate (U+{ord(text[error.start]):04X}) at character {error.start}; "
                    "decode it as UTF-8 first"
                ) from error
    return listed


def split_pairs(pairs: object) -> tuple[list[str], list[str]]:
    """Return the first and the second texts of `pairs`, checked as `check_texts` does.

    Raises:
        InputTextError: an item is not a pair of texts.
    """
    listed = as_list(pairs, "pairs")
    for i, pair in enumerate(listed):
        if not isinstance(pair, list | tuple | np.ndarray) or len(pair) != 2:
            raise InputTextError(f"item {i} is not a pair; give a list of pairs: [(text_a, text_b), ...]")
    return check_texts([a for a, _ in listed], "first text"), check_texts([b for _, b in listed], "second text")


def split_texts(texts: object) -> tuple[Literal["single", "pair"], Sequence[list[str]]]:
    """Return the kind of `texts` and their sides: the texts, or the first and the second of each pair."""
    listed = as_list(texts, "texts")
    if listed and isinstance(listed[0], list | tuple | np.ndarray):
        return "pair", split_pairs(listed)
    return "single", [check_texts(listed)]


def check_labels(labels: object, n: int) -> list[str]:
    """Return `n` labels as strings.

    Raises:
        LabelError: `labels` is not a list of `n`, or one is not a string, int or bool, is blank, or has control
            characters.
    """
    checked = as_list(labels, "labels", LabelError)
    if len(checked) != n:
        raise LabelError(f"{n} texts and {len(checked)} labels; give one label for each text")
    for i, label in enumerate(checked):
        if not isinstance(label, str | int | np.integer | np.bool_):
            raise LabelError(f"label {i} is {type(label).__name__}, not a string, int or bool; write str(label)")
        if not str(label).strip():
            raise LabelError(f"label {i} is empty; give text {i} a label or leave it out")
        if isinstance(label, str) and has_control(label):  # a bundle cannot have such a label
            raise LabelError(f"label {i} has control characters or line ends: {label[:40]!a}; remove them")
    return [str(label) for label in checked]


def run_located(
    run: Callable[[Sequence[Any]], T], rows: Sequence[Any], place: Callable[[int], str], *, start: int = 0
) -> T:
    """Return `run(rows)`; when a text is refused, the error starts with the place of its row, counted from `start`.

    Raises:
        InputTextError, TextTooLong: as `run` does.
    """
    try:
        return run(rows)
    except (InputTextError, TextTooLong):
        for i, row in enumerate(rows, start):
            try:
                run([row])
            except (InputTextError, TextTooLong) as error:
                said = str(error)
                at = said.replace("text 0", place(i), 1) if said.startswith("text 0 ") else f"{place(i)}: {said}"
                raise type(error)(at) from error
        raise
