"""Calibration texts: which are learnt from and which prove, their token ids, and percentiles of what layers take."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from fieldrun.errors import CheckpointError, InputTextError
from fieldrun.evaluation.copies import first_rows, text_key
from fieldrun.evaluation.rows import as_list
from fieldrun.formats.storage import sha256_bytes
from fieldrun.formats.tensors import Array

__all__ = ["SHIPPED_TEXT", "CalibrationText", "Largest", "choose_texts", "largest_id", "open_tokenizer", "tokenize"]

_ENOUGH = 64
SHIPPED_TEXT = Path(__file__).parent / "data" / "calibration.txt"


class _Tokenized(Protocol):
    @property
    def tokenizer(self) -> bytes: ...


def choose_texts(texts: Sequence[str] | None, count: int) -> list[str]:
    """Return at most `count` different texts of `texts`, evenly spread; of the shipped sample when None.

    Of texts that are equal but for case, whitespace and Unicode form, only the first is taken.

    Raises:
        InputTextError: not a list of strings, or fewer than 16 different texts.
    """
    if texts is None:
        texts = SHIPPED_TEXT.read_text("utf-8").splitlines()
    texts = as_list(texts, "calibration")
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputTextError(f"calibration must be a list of strings; item {i} is {type(text).__name__}")
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise InputTextError(f"calibration text {i} holds a lone surrogate; decode it as UTF-8 first")
    stripped = [text for text in (text.strip() for text in texts) if text]
    different = [stripped[i] for i in first_rows(map(text_key, stripped))]
    if len(different) < 16:
        raise InputTextError(
            f"calibration has {len(different)} different texts; give at least 16 texts like those you will run"
        )
    step = max(1.0, len(different) / count)
    return [different[int(i * step)] for i in range(min(count, len(different)))]


class CalibrationText:
    """The texts of an export: some to calibrate on, some held back for the proof, and the rest for passes that learn.

    Of the chosen texts every fourth, sorted by length, is held back, and no pass sees it. With fewer than 64 texts
    nothing is held back: the proof uses the calibration texts, and `held_back` is False.
    """

    def __init__(self, texts: Sequence[str] | None, count: int) -> None:
        self.given = texts is not None
        self._texts = None if texts is None else as_list(texts, "calibration")  # read twice
        self.chosen = choose_texts(self._texts, count)
        self.held_back = len(self.chosen) >= _ENOUGH
        self._hidden = {text_key(text) for text in sorted(self.chosen, key=len)[::4]} if self.held_back else set()
        self.proof = [text for text in self.chosen if text_key(text) in self._hidden] or self.chosen
        self.calibration = self._seen(self.chosen)

    def learning(self, count: int) -> list[str]:
        """Return at most `count` texts that are not held back."""
        return self._seen(choose_texts(self._texts, count))

    def facts(self) -> dict[str, Any]:
        """Return what a bundle's report says of the texts, as JSON."""
        return {
            "texts": len(self.calibration),
            "proven_on": len(self.proof),
            "held_back": self.held_back,
            "sha256": sha256_bytes("\n".join(self.chosen).encode("utf-8")),
        }

    def _seen(self, texts: Sequence[str]) -> list[str]:
        return [text for text in texts if text_key(text) not in self._hidden]


def tokenize(model: _Tokenized, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Return the token ids of `texts`, special tokens included, cut to `max_length`.

    Raises:
        CheckpointError: the model's tokenizer cannot be used.
    """
    tokenizer = open_tokenizer(model.tokenizer)
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]


def open_tokenizer(stored: bytes) -> Tokenizer:
    """Return the tokenizer of the content of a `tokenizer.json`; `CheckpointError` if it cannot be used."""
    try:
        return Tokenizer.from_str(stored.decode("utf-8"))
    except Exception as error:  # tokenizers raises plain Exception
        raise CheckpointError(f"tokenizer.json cannot be used: {error}; restore it") from error


def largest_id(tokenizer: bytes) -> int:
    """Return the largest token id of a `tokenizer.json`; `CheckpointError` if it has no vocabulary."""
    try:
        value = json.loads(tokenizer.decode("utf-8"))
        vocab = value["model"]["vocab"]
        ids = list(vocab.values()) if isinstance(vocab, dict) else range(len(vocab))
        return max([*(int(i) for i in ids), *(int(added["id"]) for added in value.get("added_tokens", ()))])
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError("tokenizer.json is not a tokenizer with a vocabulary") from error


class Largest:
    """A percentile of up to `most` numbers, of which only the largest are kept; linear between ranks, as NumPy's."""

    def __init__(self, most: int, percentile: float) -> None:
        self._share = percentile / 100
        self._keep = most - int((most - 1) * self._share)
        self._kept = np.zeros(0, np.float32)
        self._count = 0

    def add(self, values: Array) -> None:
        """Take more of the numbers."""
        self._count += values.size
        both = np.concatenate([self._kept, values.ravel()])
        if len(both) > self._keep:
            both = np.partition(both, len(both) - self._keep)[len(both) - self._keep :]
        self._kept = both

    def value(self) -> float:
        """Return the percentile of all numbers taken."""
        rank = (self._count - 1) * self._share
        ordered = np.sort(self._kept).astype(np.float64)
        first = len(ordered) - (self._count - int(rank))  # where the number below the percentile stands
        above = ordered[min(first + 1, len(ordered) - 1)]
        return float(ordered[first] + (above - ordered[first]) * (rank - int(rank)))
