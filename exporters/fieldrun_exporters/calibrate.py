"""Calibration: real text through the deployed form in float32, to see how large the input of every layer gets."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from tokenizers import Tokenizer

from fieldrun.errors import CheckpointError, ExportError, InputTextError
from fieldrun.formats.storage import sha256_bytes
from fieldrun.formats.tensors import Array
from fieldrun.heads.head import pair_features

from .student.deployed import Deployed
from .student.simulate import outputs

__all__ = ["SHIPPED_TEXT", "CalibrationText", "choose_texts", "input_ranges", "tokenize"]

_ENOUGH = 64
SHIPPED_TEXT = Path(__file__).parent / "data" / "calibration.txt"


class _Tokenized(Protocol):
    @property
    def tokenizer(self) -> bytes: ...


def choose_texts(texts: Sequence[str] | None, count: int) -> list[str]:
    """Return at most `count` different texts of `texts`, spread evenly; of the shipped sample when None.

    Raises:
        InputTextError: not a list of strings, or fewer than 16 different texts.
    """
    if texts is None:
        texts = SHIPPED_TEXT.read_text("utf-8").splitlines()
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise InputTextError("calibration must be a list of strings, one text each")
    texts = list(texts)
    for i, text in enumerate(texts):
        if not isinstance(text, str):
            raise InputTextError(f"calibration must be a list of strings; item {i} is {type(text).__name__}")
        if any("\ud800" <= c <= "\udfff" for c in text):
            raise InputTextError(f"calibration text {i} holds a lone surrogate; decode it as UTF-8 first")
    different = [text for text in dict.fromkeys(text.strip() for text in texts) if text]
    if len(different) < 16:
        raise InputTextError(f"calibration has {len(different)} different texts; give at least 16 like those to come")
    step = max(1.0, len(different) / count)
    return [different[int(i * step)] for i in range(min(count, len(different)))]


class CalibrationText:
    """The texts of an export: some to calibrate on, some held back to prove on, and all others for passes that learn.

    Every fourth of the chosen texts, the shortest first, is held back and no pass sees it. Of fewer than 64 texts none
    is: they are proven on, too, and `held_back` is False.
    """

    def __init__(self, texts: Sequence[str] | None, count: int) -> None:
        listed = isinstance(texts, Iterable) and not isinstance(texts, str | bytes)
        self._given = list(texts) if texts is not None and listed else texts  # read twice, and checked below
        self.chosen = choose_texts(self._given, count)
        self.held_back = len(self.chosen) >= _ENOUGH
        self._hidden = set(sorted(self.chosen, key=len)[::4]) if self.held_back else set()
        self.proof = [text for text in self.chosen if text in self._hidden] if self.held_back else self.chosen
        self.calibration = self._seen(self.chosen)

    def learning(self, count: int) -> list[str]:
        """Return at most `count` texts that are not held back."""
        return self._seen(choose_texts(self._given, count))

    def facts(self) -> dict[str, Any]:
        """Return what a bundle's report says of the texts, as JSON."""
        return {
            "texts": len(self.calibration),
            "proven_on": len(self.proof),
            "held_back": self.held_back,
            "sha256": sha256_bytes("\n".join(self.chosen).encode("utf-8")),
        }

    def _seen(self, texts: Sequence[str]) -> list[str]:
        return [text for text in texts if text not in self._hidden]


def tokenize(checkpoint: _Tokenized, texts: Sequence[str], max_length: int) -> list[list[int]]:
    """Return the token ids of `texts`, special tokens included, cut to `max_length`.

    Raises:
        CheckpointError: the checkpoint's tokenizer cannot be used.
    """
    try:
        tokenizer = Tokenizer.from_str(checkpoint.tokenizer.decode("utf-8"))
    except Exception as error:  # tokenizers raises plain Exception
        raise CheckpointError(f"tokenizer.json cannot be used: {error}; restore it") from error
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    return [encoding.ids for encoding in tokenizer.encode_batch_fast(list(texts))]


def input_ranges(deployed: Deployed, sequences: Sequence[Sequence[int]], percentile: float) -> dict[str, float]:
    """Return the `percentile` of the absolute input of every layer of the float `deployed` over `sequences`.

    `mean` is that of the half of the pooled vector that is the mean over the tokens.

    Raises:
        ExportError: fewer than 16 sequences.
    """
    if len(sequences) < 16:
        raise ExportError(f"calibration needs at least 16 texts, not {len(sequences)}")
    seen: dict[str, list[Array]] = {}
    net = deployed.network
    found = outputs(deployed, sequences, lambda name, x: seen.setdefault(name, []).append(np.abs(x)))
    field = found[:, : net.field_dim]
    seen["pairs"] = [np.abs(pair_features(field, np.roll(field, 1, axis=0)))]
    if net.mean:
        half = net.mixer_width or net.width
        seen["mean"] = [part[:, :half] for part in seen["hidden" if net.hidden else "output"]]
    return {
        name: float(np.percentile(np.concatenate([part.ravel() for part in parts]), percentile))
        for name, parts in seen.items()
    }
