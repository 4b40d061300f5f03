"""Rows that are the same text, and labels that are the same word: what may not stand on both sides of a split.

Two texts are copies when they are equal after NFKC, case folding, the removal of invisible characters (control and
format ones, such as a zero-width space) and the joining of whitespace; two labels are nearly equal under the same rule.
Pairs are copies when both their texts are.
"""

from __future__ import annotations

import unicodedata
from collections import Counter
from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

__all__ = ["Copies", "Key", "count_copies", "first_rows", "join_labels", "near_equal_labels", "numbered", "text_key"]

Key = str | tuple[str, ...]


def text_key(text: str | Sequence[str]) -> Key:
    """Return what copies of `text`, or of a pair of texts, have in common."""
    if not isinstance(text, str):
        return tuple(_key(part) for part in text)
    return _key(text)


def _key(text: str) -> str:
    seen = text if text.isprintable() else "".join(c for c in text if not _is_invisible(c))
    if seen.isascii():
        return " ".join(seen.lower().split())
    folded = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", seen).casefold())
    return " ".join(folded.split())


def _is_invisible(character: str) -> bool:
    return not character.isspace() and unicodedata.category(character) in ("Cc", "Cf")


def numbered(*keys: Sequence[Hashable]) -> list[int]:
    """Return a group for each row: rows that are equal in one of `keys`, directly or through others, share it."""
    parent = list(range(len(keys[0])))

    def root(i: int) -> int:
        while parent[i] != i:
            parent[i] = i = parent[parent[i]]
        return i

    for values in keys:
        first: dict[Hashable, int] = {}
        for i, value in enumerate(values):
            a, b = root(first.setdefault(value, i)), root(i)
            parent[max(a, b)] = min(a, b)
    order: dict[int, int] = {}
    return [order.setdefault(root(i), len(order)) for i in range(len(parent))]


def first_rows(keys: Iterable[Hashable]) -> list[int]:
    """Return the numbers of the rows whose key no earlier row has."""
    first: dict[Hashable, int] = {}
    for i, key in enumerate(keys):
        first.setdefault(key, i)
    return list(first.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Copies:
    """Rows that repeat an earlier row with the same label, and rows whose text has another label too."""

    copies: int
    conflicting: int

    def to_dict(self) -> dict[str, int]:
        """Return the counts as JSON."""
        return asdict(self)


def count_copies(keys: Sequence[Hashable], labels: Sequence[Hashable]) -> Copies:
    """Count the copies among rows with `keys` (of `text_key`) and `labels`."""
    of: dict[Hashable, set[Hashable]] = {}
    for key, label in zip(keys, labels, strict=True):
        of.setdefault(key, set()).add(label)
    return Copies(copies=len(keys) - sum(map(len, of.values())), conflicting=sum(len(of[key]) > 1 for key in keys))


def _plain(label: str) -> str:
    return unicodedata.normalize("NFC", label.strip())


def near_equal_labels(labels: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the groups of labels that differ only in case, whitespace or Unicode form."""
    groups: dict[Any, set[str]] = {}
    for label in labels:
        groups.setdefault(text_key(label), set()).add(label)
    return sorted(tuple(sorted(group)) for group in groups.values() if len(group) > 1)


def join_labels(labels: Sequence[str], known: Iterable[str] = ()) -> list[str]:
    """Return `labels`, those that are nearly equal in one spelling: the one in `known`, or else the most frequent."""
    counts = Counter(labels)
    spelling: Mapping[Any, str] = {
        text_key(label): label
        for label in sorted(sorted(counts, reverse=True), key=lambda label: (counts[label], label == _plain(label)))
    } | {text_key(label): label for label in known}
    exact = set(known)
    return [label if label in exact else spelling[text_key(label)] for label in labels]
