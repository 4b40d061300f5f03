"""The limits of everything in a bundle, in one place. Loading refuses what exceeds them, in bounded time and memory.

The hashes prove that a bundle is whole, not that it means well: whoever makes a bundle also makes its hashes. So every
size, number and name that decides how much is allocated, computed or printed has a limit here. Limits leave ample room
for any text classifier: the largest bundle so far has a tenth of the nearest one.
"""

from __future__ import annotations

import math
import unicodedata
from typing import Any

from ..errors import BundleError

__all__ = [
    "BATCH",
    "BLOCKS",
    "BUCKETS",
    "FIELD_DIM",
    "JSON_DEPTH",
    "KERNEL",
    "LABELS",
    "LENGTH",
    "RUN",
    "SCRATCH",
    "SHIFT",
    "TABLE_BYTES",
    "VOCABULARY",
    "WIDTH",
    "WORD",
    "check_json",
    "check_size",
    "check_text",
    "most_bytes",
]

VOCABULARY = 1 << 22
"""Token ids of a vocabulary."""

WIDTH = 1 << 14
"""Columns of a table or of a dense layer's output."""

FIELD_DIM = 1 << 14
"""Numbers of a field."""

LABELS = 1 << 16
"""Labels of all tasks together."""

LENGTH = 1 << 13
"""Tokens of a bucket."""

BATCH = 1 << 10
"""Texts of a bucket."""

BUCKETS = 1 << 9
"""Buckets of a bundle."""

KERNEL = 64
"""Positions that the mixer joins."""

SHIFT = 64
"""Positions between a token and another one that its row is computed from, and the number of such positions."""

BLOCKS = 256
"""Table rows of one token."""

SCRATCH = 1 << 28
"""Bytes that one call may need beside its output."""

TABLE_BYTES = 1 << 31
"""Bytes of a matrix that is stored packed, once it is expanded."""

RUN = 64
"""Numbers that one code of a packed matrix stands for."""

WORD = 10_000
"""`max_input_chars_per_word` of a tokenizer."""

JSON_DEPTH = 32
"""Objects and lists inside each other in the manifest."""

_MIB = 1 << 20
_MOST = {"manifest.json": 16, "CARD.md": 16, "report.json": 64, "golden.json": 256, "tokenizer.json": 256}


def most_bytes(name: str) -> int:
    """Return the most bytes that the file `name` of a bundle may have."""
    if name.endswith(".safetensors"):
        return 8192 * _MIB
    return _MOST.get(name, 2048) * _MIB


def check_size(value: object, most: int, what: str, *, least: int = 1) -> None:
    """Check that `value` is a whole number, and no bool, from `least` to `most`; `BundleError` names `what`."""
    if type(value) is not int or not least <= value <= most:
        raise BundleError(f"{what} must be a whole number from {least} to {most}, not {_shown(value)}")


def check_text(value: object, what: str) -> None:
    """Check that `value` is a string that a terminal can print: no control characters and no lone surrogates.

    Raises:
        BundleError: it is not; the message shows it escaped.
    """
    if not isinstance(value, str):
        raise BundleError(f"{what} must be a string, not {_shown(value)}")
    if not value.isprintable() and any(unicodedata.category(c) in ("Cc", "Cs") for c in value):
        raise BundleError(f"{what} has control characters: {value[:80]!a}; do not use this copy")


def check_json(value: object, what: str) -> None:
    """Check the nesting and the numbers of a JSON value: at most `JSON_DEPTH` levels, finite, integers of 64 bits.

    Raises:
        BundleError: it is nested deeper, or has another number.
    """
    level: list[Any] = [value]
    for _ in range(JSON_DEPTH):
        inside: list[Any] = []
        for each in level:
            if isinstance(each, dict):
                inside += each.values()
            elif isinstance(each, list):
                inside += each
            elif isinstance(each, float) and not math.isfinite(each):
                raise BundleError(f"{what} has a number that is not finite; restore the file")
            elif type(each) is int and not -(1 << 63) <= each < 1 << 63:
                raise BundleError(f"{what} has an integer of more than 64 bits; restore the file")
        level = inside
        if not level:
            return
    raise BundleError(f"{what} is nested deeper than {JSON_DEPTH} levels; restore the file")


def _shown(value: object) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
