"""WordPiece for printable ASCII text: one look-up per word, where the Rust tokenizer takes two microseconds per token.

At batch 1 that tokenizer alone takes half as long as a whole label does (benchmarks/records/peers.json). Most English
text needs only a dictionary: a word of BERT's uncased pre-tokenizer is a run of letters and digits or one punctuation
mark, and its tokens do not depend on its neighbours. The Rust tokenizer does the rest: other characters, control
characters, the text of a special token, other kinds of tokenizer. Tests compare the two id by id.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from itertools import chain
from typing import Any

__all__ = ["WordTable"]

_WORDS = re.compile(r"[a-z0-9]+|[!-/:-@\[-`{-~]").findall
_UNCASED = {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": True}


class WordTable(dict[str, tuple[int, ...]]):
    """The token ids of every word; a word that is not in the vocabulary is split into pieces when asked for."""

    def __init__(self, vocab: Mapping[str, int], prefix: str, unknown: int, longest: int) -> None:
        super().__init__({piece: (number,) for piece, number in vocab.items() if len(piece) <= longest})
        self._pieces, self._prefix, self._unknown, self._longest = vocab, prefix, (unknown,), longest
        self._reach = max(map(len, vocab), default=0)  # no piece is longer, so none is looked for
        self._first: tuple[int, ...] = ()
        self._last: tuple[int, ...] = ()

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> WordTable | None:
        """Return the table of an uncased BERT WordPiece tokenizer, from the JSON of its file; None for any other."""
        try:
            model, normalizer = value["model"], value["normalizer"]
            uncased = {key: normalizer.get(key) for key in _UNCASED} == _UNCASED
            special = [token["content"] for token in value["added_tokens"]]
            if (
                not uncased
                or value["pre_tokenizer"] != {"type": "BertPreTokenizer"}
                or model["type"] != "WordPiece"
                or not all(content.startswith("[") for content in special)
            ):
                return None
            vocab: dict[str, int] = model["vocab"]
            if not isinstance(model["continuing_subword_prefix"], str):
                return None
            table = cls(
                vocab, model["continuing_subword_prefix"], vocab[model["unk_token"]], model["max_input_chars_per_word"]
            )
            table._first, table._last = _template(value["post_processor"])
        except (AttributeError, KeyError, TypeError, ValueError):
            return None
        return table

    @property
    def frame(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The special tokens before and after a text."""
        return self._first, self._last

    @property
    def unknown(self) -> int:
        """The id of the token for a word that has no pieces."""
        return self._unknown[0]

    def ids(self, text: str) -> list[int] | None:
        """Return the ids of `text` with its special tokens, or None if the text needs the Rust tokenizer."""
        if not text.isascii() or "[" in text or not text.isprintable():
            return None
        words = _WORDS(text.lower())
        return [*self._first, *chain.from_iterable(map(self.__getitem__, words)), *self._last]

    def __missing__(self, word: str) -> tuple[int, ...]:
        """Return the longest pieces from the left, as WordPiece does; nothing is cached, so memory does not grow."""
        n = len(word)
        if n > self._longest:
            return self._unknown
        found: list[int] = []
        start, pieces = 0, self._pieces
        while start < n:
            prefix = self._prefix if start else ""
            for end in range(min(n, start + self._reach), start, -1):
                number = pieces.get(prefix + word[start:end])
                if number is not None:
                    found.append(number)
                    start = end
                    break
            else:
                return self._unknown
        return tuple(found)


def _template(processor: Any) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the ids that a `TemplateProcessing` adds before and after one text; empty without a processor."""
    if processor is None:
        return (), ()
    if processor["type"] != "TemplateProcessing":
        raise ValueError(processor["type"])
    sides: tuple[list[int], list[int]] = ([], [])
    seen = 0
    for part in processor["single"]:
        if "Sequence" in part:
            seen += 1
        else:
            sides[seen].extend(processor["special_tokens"][part["SpecialToken"]["id"]]["ids"])
    if seen != 1:
        raise ValueError("not one sequence")
    return tuple(sides[0]), tuple(sides[1])
