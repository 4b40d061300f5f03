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
from .storage import parse_json

__all__ = [
    "BATCH",
    "BLOCKS",
    "BUCKETS",
    "FIELD_DIM",
    "GOLDEN",
    "JSON_DEPTH",
    "KERNEL",
    "LABELS",
    "LENGTH",
    "NUMBER",
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
    "check_tokenizer",
    "has_control",
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

TABLE_BYTES = 1 << 30
"""Bytes of a matrix that is stored packed, once it is expanded."""

RUN = 64
"""Numbers that one code of a packed matrix stands for."""

NUMBER = 1e4
"""The largest weight, scale or bias of a look-up network; it keeps every sum within float32."""

WORD = 10_000
"""`max_input_chars_per_word` of a tokenizer."""

GOLDEN = 1024
"""Golden texts, each of which runs in every bucket."""

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
    if has_control(value):
        raise BundleError(f"{what} has control characters: {value[:80]!a}; do not use this copy")


def has_control(value: str) -> bool:
    """Return whether `value` has control characters (line ends and tabs too) or lone surrogates."""
    return not value.isprintable() and any(map(_is_control, value))


def check_json(value: object, what: str) -> None:
    """Check a JSON value: at most `JSON_DEPTH` levels, finite numbers, integers of 64 bits, no control characters.

    Raises:
        BundleError: it has something else.
    """
    level: list[Any] = [value]
    for _ in range(JSON_DEPTH):
        inside: list[Any] = []
        for each in level:
            if isinstance(each, str):
                if not each.isprintable() and any(_is_control(c) and c not in "\t\n\r" for c in each):
                    raise BundleError(f"{what} has control characters: {each[:80]!a}; do not use this copy")
            elif isinstance(each, dict):
                inside += each
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


def check_tokenizer(data: bytes | memoryview, vocabulary: int) -> dict[str, Any]:
    """Return the JSON object of a `tokenizer.json` whose token ids are all below `vocabulary`.

    Checked is what decides how much the tokenizer computes, and where its ids lead. What else it needs, the Rust
    tokenizer says itself.

    Raises:
        BundleError: it is not a tokenizer, or exceeds a limit.
    """
    try:
        value = parse_json(data, "tokenizer.json")
        model, added = value["model"], value.get("added_tokens") or []
        vocab = model["vocab"]
        ids = list(vocab.values()) if isinstance(vocab, dict) else list(range(len(vocab)))
        ids += [token["id"] for token in added]
        _check_processor(value.get("post_processor"), ids, 0)
        wrong = next((each for each in ids if type(each) is not int or not 0 <= each < vocabulary), None)
        if wrong is not None or not ids:
            raise ValueError(f"the token id {_shown(wrong)} is not in the vocabulary of {vocabulary}")
        if "max_input_chars_per_word" in model:
            check_size(model["max_input_chars_per_word"], WORD, "max_input_chars_per_word")
        for key in ("unk_token", "continuing_subword_prefix"):
            if not isinstance(model.get(key), str | None):
                raise ValueError(f"{key} must be a string, not {_shown(model[key])}")
        if model.get("type") in ("WordPiece", "WordLevel") and model.get("unk_token") not in vocab:
            raise ValueError(f"its unk_token {_shown(model.get('unk_token'))} is not in the vocabulary")
        if any(not isinstance(token["content"], str) or not token["content"] for token in added):
            raise ValueError("a special token is empty")
    except (AttributeError, BundleError, KeyError, RecursionError, TypeError, ValueError) as error:
        words = f"it has no {error}" if isinstance(error, KeyError) else error
        raise BundleError(f"tokenizer.json cannot be used: {words}; copy the bundle again") from error
    return dict(value)


def _check_processor(processor: Any, ids: list[Any], depth: int) -> None:
    """Add the token ids that `processor` adds to `ids`."""
    if processor is None:
        return
    if depth > JSON_DEPTH:
        raise ValueError("its post_processor is nested too deep")
    for each in processor.get("processors", ()):
        _check_processor(each, ids, depth + 1)
    for special in processor.get("special_tokens", {}).values():
        ids += special["ids"]
    ids += [processor[key][1] for key in ("sep", "cls") if key in processor]


def _is_control(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs")


def _shown(value: object) -> str:
    shown = ascii(value)
    return shown if len(shown) <= 60 else f"{shown[:60]}..."
