"""What makes a figure worth less than it looks, in sentences: said by `fit`, `evaluate` and `check`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .copies import Copies, near_equal_labels

__all__ = ["FEW_ROWS", "caveats", "listed"]

FEW_ROWS = 8
"""A label with fewer rows than this is named: its accuracy is hardly known, and often low."""


def caveats(rows: Mapping[str, int], copies: Copies, *, weigh: str = "") -> list[str]:
    """Return the caveats of labelled data with so many `rows` of each label.

    `weigh` says how much copies weigh, where that is decided.
    """
    found = []
    if copies.copies:
        found.append(f"{copies.copies} rows repeat another row" + (f"; {weigh}" if weigh else ""))
    if copies.conflicting:
        found.append(f"{copies.conflicting} rows have a text that is there with another label too; correct one of them")
    found += [
        f"the labels {', '.join(map(ascii, group))} differ only in case, blanks or Unicode form; they can be joined"
        for group in near_equal_labels(rows)
    ]
    none = [label for label, count in rows.items() if count == 0]
    few = [label for label, count in rows.items() if 0 < count < FEW_ROWS]
    if none:
        found.append(f"no rows, so that no accuracy covers them: {listed(none)}")
    if few:
        found.append(f"fewer than {FEW_ROWS} rows: {listed(few)}; add examples")
    return found


def listed(names: Sequence[str], most: int = 8) -> str:
    """Return the first `most` names, and how many more there are."""
    shown = ", ".join(map(repr, names[:most]))
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
