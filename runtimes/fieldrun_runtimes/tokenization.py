"""Text to token ids: look up or tokenize checked texts, and cut or split long ones as asked."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from fieldrun.errors import BundleError, FieldrunError, InputTextError, MissingDependency, TextTooLong, UnknownName
from fieldrun.formats.limits import VOCABULARY, check_tokenizer

from .cutting import Cutter
from .engines.packages import importing
from .wordpiece import WordTable

if TYPE_CHECKING:
    from tokenizers import Tokenizer

__all__ = ["OVERFLOWS", "TextTokenizer", "Tokenized"]

_TRIAL = "A caf\u00e9, 12 \u4e2d\u6587 \U0001f600 [x] don't"

_CHARACTERS = 64  # that are read for each token that fits, before the rest is asked for
OVERFLOWS = ("error", "truncate", "window")


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokenized:
    """Token ids for an engine. `owners[i]` is the text that `ids[i]` belongs to; windows of a text share an owner.

    `tokens` counts the tokens of each text, `dropped` those that were cut off. Of a text with more than 64 characters
    for each token that fits, only the beginning is read, and both count what was read. `known` is the share of a text's
    tokens, special tokens apart, that are not the unknown token.
    """

    ids: list[list[int]]
    owners: list[int]
    tokens: list[int]
    dropped: list[int]
    known: list[float]


class TextTokenizer:
    """The bundle's tokenizer with its special tokens; `longest` is the most tokens that a bucket takes.

    Token ids are below `vocabulary`.

    If the tokenizer has a `WordTable`, the Rust tokenizer is loaded with the first text that is not printable ASCII.
    With `threads` above 1 it splits a batch over all cores.

    Raises:
        UnknownName: `overflow` is not one of `OVERFLOWS`.
        BundleError: the file is not a tokenizer.
    """

    def __init__(
        self, tokenizer_json: bytes, longest: int, overflow: str, vocabulary: int = VOCABULARY, threads: int = 1
    ) -> None:
        if overflow not in OVERFLOWS:
            raise UnknownName("overflow", overflow, OVERFLOWS)
        self._json, self.longest, self._overflow = tokenizer_json, longest, overflow
        self._vocabulary, self._threads = vocabulary, threads
        value = check_tokenizer(tokenizer_json, vocabulary)
        self._words, self._cutter = WordTable.of(value), Cutter.of(value)
        self._part = _CHARACTERS * longest
        if self._words is None:
            tokenizer = self._rust
            with _refusing():
                first, last = _frame(tokenizer)
        else:
            first, last = (list(side) for side in self._words.frame)
        self._first, self._last = first, last
        self._frame = len(first) + len(last)
        if self._frame >= longest:
            raise BundleError(f"tokenizer.json cannot be used: {self._frame} special tokens leave no room for a text")
        self._unknown = _unknown(tokenizer_json) if self._words is None else self._words.unknown

    @cached_property
    def _rust(self) -> Tokenizer:
        with importing("tokenizers", MissingDependency("tokenizers", "", "pip install tokenizers")):
            from tokenizers import Tokenizer
        with _refusing():
            tokenizer = Tokenizer.from_str(self._json.decode("utf-8"))
            tokenizer.no_padding()
            tokenizer.no_truncation()
            tokenizer.encode(_TRIAL)  # what its parts refuse, they refuse here
        return tokenizer

    def _encode(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of `texts` from the Rust tokenizer, special tokens included."""
        tokenizer = self._rust
        with _refusing():
            if self._threads == 1 or len(texts) == 1:  # a batch starts a thread for every core, even one of one text
                ids: list[list[int]] = [tokenizer.encode(text).ids for text in texts]
            else:
                ids = [encoding.ids for encoding in tokenizer.encode_batch_fast(texts)]
        if max(map(max, filter(None, ids)), default=0) >= self._vocabulary:
            raise BundleError(f"tokenizer.json gives token ids beyond {self._vocabulary}; export again")
        return ids

    def whole(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text, however many; both tokenizers must agree where a text is of both."""
        rust = self._encode(texts)
        words = [None if self._words is None else self._words.ids(text) for text in texts]
        return [ids if found in (None, ids) else [] for found, ids in zip(words, rust, strict=True)]

    def _ids(self, texts: list[str]) -> list[list[int]]:
        """Return the ids of each text; of a very long one those of its beginning, more than fit, if that is enough."""
        if self._cutter is not None and max(map(len, texts)) > self._part:
            return [
                self._read(text, self._cutter) if len(text) > self._part else self._whole([text])[0] for text in texts
            ]
        return self._whole(texts)

    def _read(self, text: str, cutter: Cutter) -> list[int]:
        inner: list[int] = []
        for part in cutter.parts(text, self._part):
            ids = self._whole([part])[0]
            inner += ids[len(self._first) : len(ids) - len(self._last)]
            if self._overflow != "window" and len(inner) > self.longest:
                break
        return [*self._first, *inner, *self._last]

    def _whole(self, texts: list[str]) -> list[list[int]]:
        found = [None if self._words is None else self._words.ids(text) for text in texts]
        missing = [i for i, ids in enumerate(found) if ids is None]
        if missing:
            for i, ids in zip(missing, self._encode([texts[i] for i in missing]), strict=True):
                found[i] = ids
        return [ids for ids in found if ids is not None]

    def one(self, text: str) -> list[int] | None:
        """Return the token ids of one checked text; None if it has no token or too many, which `__call__` treats."""
        if len(text) > self._part:
            return None
        ids = None if self._words is None else self._words.ids(text)
        if ids is None:
            ids = self._encode([text])[0]
        return ids if self._frame < len(ids) <= self.longest else None

    def known(self, ids: list[int]) -> float:
        """Return the share of a text's tokens, special ones apart, that are in the vocabulary."""
        return 1 - ids.count(self._unknown) / (len(ids) - self._frame)

    def count(self, texts: list[str]) -> list[tuple[int, float]]:
        """Return each text's number of tokens, 0 if it has none but special ones, and the share of known ones."""
        return [(len(ids), self.known(ids)) if len(ids) > self._frame else (0, 0.0) for ids in self._ids(texts)]

    def __call__(self, texts: list[str], start: int = 0) -> Tokenized:
        """Tokenize checked texts, which messages count from `start`.

        Raises:
            InputTextError: a text has no token at all.
            TextTooLong: a text exceeds the largest bucket and overflow is "error".
        """
        all_ids = self._ids(texts)
        tokens = [len(ids) for ids in all_ids]
        if min(tokens) <= self._frame:
            raise InputTextError(
                f"text {start + tokens.index(min(tokens))} has no token: only control characters; leave it out"
            )
        known = [self.known(ids) for ids in all_ids]
        if max(tokens) <= self.longest:
            owners = list(range(len(texts)))
            return Tokenized(ids=all_ids, owners=owners, tokens=tokens, dropped=[0] * len(texts), known=known)
        return self._long(all_ids, tokens, known, start)

    def _long(self, all_ids: list[list[int]], tokens: list[int], known: list[float], start: int) -> Tokenized:
        out: list[list[int]] = []
        owners: list[int] = []
        dropped = [0] * len(all_ids)
        room = self.longest - self._frame
        for i, ids in enumerate(all_ids):
            if len(ids) <= self.longest:
                pieces = [ids]
            elif self._overflow == "error":
                raise TextTooLong(
                    f"text {start + i} has {len(ids)} tokens, the largest bucket takes {self.longest}; "
                    "use overflow='truncate' or 'window'"
                )
            else:
                inner = ids[len(self._first) : len(ids) - len(self._last)]
                if self._overflow == "truncate":
                    dropped[i] = len(ids) - self.longest
                    inner = inner[:room]
                pieces = [self._first + inner[k : k + room] + self._last for k in range(0, len(inner), room)]
            out += pieces
            owners += [i] * len(pieces)
        return Tokenized(ids=out, owners=owners, tokens=tokens, dropped=dropped, known=known)


def _unknown(tokenizer_json: bytes) -> int:
    """Return the id of the unknown token, -1 if there is none."""
    try:
        model = json.loads(tokenizer_json)["model"]
        found = model["unk_id"] if "unk_id" in model else model["vocab"][model["unk_token"]]
    except (KeyError, TypeError, ValueError):
        return -1
    return found if isinstance(found, int) else -1


@contextlib.contextmanager
def _refusing() -> Iterator[None]:
    """Translate the errors of the Rust tokenizer: plain Exceptions, and panics, which are not even those."""
    try:
        yield
    except BaseException as error:
        if isinstance(error, FieldrunError | MemoryError) or not (
            isinstance(error, Exception) or type(error).__name__ == "PanicException"
        ):
            raise
        words = ascii(" ".join(str(error).split())[:300])[1:-1]
        raise BundleError(f"tokenizer.json cannot be used: {words}; copy the bundle again") from error


def _frame(tokenizer: Tokenizer) -> tuple[list[int], list[int]]:
    """Return the special tokens that `tokenizer` adds before and after a text."""
    encoding = tokenizer.encode("a")
    text = [i for i, special in enumerate(encoding.special_tokens_mask) if not special]
    if not text:  # "a" has no token of its own: what is left are the special tokens, as for an empty text
        ids: list[int] = encoding.ids
        return (ids[:1], ids[1:]) if len(ids) == 2 else ([], [])
    return encoding.ids[: text[0]], encoding.ids[text[-1] + 1 :]
