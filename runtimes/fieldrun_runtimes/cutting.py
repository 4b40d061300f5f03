"""Where a long text may be cut before it is tokenized: its parts have the tokens of the whole, in order.

A tokenizer takes time and memory for every character, and most of a long text is cut off afterwards. BERT's tokenizer
treats words apart, so a text may be cut

- before white space, which belongs to no word and to no special token;
- before and after a Chinese character, which is a word;
- before and after a punctuation mark, which is a word, if that is not inside a special token.

A word of more letters than the model takes is one unknown token whatever its end is, so the end can be left out. Much
white space is as good as one blank, and accents that the tokenizer removes can be removed before.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any
from unicodedata import category

__all__ = ["Cutter"]

_CHINESE = "\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f"
_BLANKS = " \t\r\n\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"
_ASCII_MARKS = re.escape("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_MARKS = (  # some of Unicode's punctuation, those of long texts
    "\u00a1\u00a7\u00ab\u00b6\u00b7\u00bb\u00bf\u060c\u061b\u061f\u06d4\u0964\u0965\u2010-\u2027\u2030-\u2043"
    "\u2045-\u2051\u2053-\u205e\u3001-\u3003\u3008-\u3011\u3014-\u301f\uff01-\uff03\uff05-\uff0a\uff0c-\uff0f"
    "\uff1a\uff1b\uff1f\uff20\uff3b-\uff3d\uff3f\uff5b\uff5d\uff5f-\uff65"
)
_ACCENTS = "\u0300-\u036f"
_LOOK = 1 << 16  # characters among which the letters of a word are counted
_MUCH = 64  # characters in a row that are worth a replacement

_SPACE = re.compile(f"[{_BLANKS}]")
_MUCH_SPACE = re.compile(f"[{_BLANKS}]{{{_MUCH},}}")
_MANY_ACCENTS = re.compile(f"([{_ACCENTS}])[{_ACCENTS}]{{{_MUCH},}}")
_ANY_CHINESE = re.compile(f"[{_CHINESE}]")
_MOST_CHINESE = re.compile("[\u4e00-\u9fff]")
_MARK = re.compile(f"[{_ASCII_MARKS}{_MARKS}]")


class Cutter:
    """Cuts texts for one tokenizer of BERT's kind."""

    def __init__(self, longest_word: int, special: Sequence[str], *, chinese: bool, strips: bool) -> None:
        self._enough = longest_word + 1
        self._special = special
        self._chinese, self._strips = chinese, strips

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Cutter | None:
        """Return the cutter for the JSON of a tokenizer that was checked; None if it is of another kind."""
        try:
            normalizer, model, added = value["normalizer"], value["model"], value.get("added_tokens") or []
            special = [token["content"] for token in added]
            if (
                normalizer["type"] != "BertNormalizer"
                or value["pre_tokenizer"]["type"] != "BertPreTokenizer"
                or model["type"] != "WordPiece"
                or not all(content.isascii() and content.isprintable() and " " not in content for content in special)
                # such tokens are found by more than their own characters
                or any(token.get("single_word") or token.get("normalized") for token in added)
            ):
                return None
            strips = normalizer.get("strip_accents")
            strips = normalizer.get("lowercase") is True if strips is None else strips is True
            chinese = normalizer.get("handle_chinese_chars") is True
            return cls(model["max_input_chars_per_word"], special, chinese=chinese, strips=strips)
        except (AttributeError, KeyError, TypeError, ValueError):
            return None

    def parts(self, text: str, size: int) -> Iterator[str]:
        """Yield the parts of `text`, of about `size` characters each where it can be cut."""
        text = _MUCH_SPACE.sub(" ", text)
        if self._strips and not text.isascii():
            text = _MANY_ACCENTS.sub(r"\1", text)  # one stays: without any, a special token could come about
        start = 0
        while start < len(text):
            if len(text) - start <= size:
                yield text[start:]
                return
            stop = self._next(text, start, start + size)
            yield text[start : min(stop, self._end_of_word(text, start + size, stop))]
            start = stop

    def _next(self, text: str, start: int, stop: int) -> int:
        """Return the last place to cut between `start` and `stop`, or else the first one after `stop`."""
        space = max(text.rfind(each, start, stop) for each in " \t\r\n") + 1
        if space > start:
            return space
        places = [len(text)]
        found = _SPACE.search(text, stop)
        if found is not None:
            places.append(found.start())
        between = _MOST_CHINESE.search(text, stop - 1, places[-1]) if self._chinese else None
        if between is not None:
            places.append(max(between.start(), stop))
        marks = (place for mark in _MARK.finditer(text, stop - 1, min(places)) for place in mark.span())
        places += islice((place for place in marks if place >= stop and not self._in_special(text, place)), 1)
        return min(places)

    def _end_of_word(self, text: str, start: int, stop: int) -> int:
        """Return where between `start` and `stop`, if all of that is of one word, the word is too long already."""
        if stop - start < _MUCH + self._enough or not all(map(_in_word, set(text[start:stop]))):
            return stop
        letters = (i for i in range(start, min(stop, start + _LOOK)) if category(text[i])[0] in "LNS")
        last = next(islice(letters, self._enough - 1, None), None)
        return stop if last is None else last + 1

    def _in_special(self, text: str, place: int) -> bool:
        """Return whether a special token begins before `place` and ends behind it."""
        return any(each in text[max(0, place - len(each) + 1) : place + len(each) - 1] for each in self._special)


def _in_word(character: str) -> bool:
    """Return whether the tokenizer takes `character` for a part of a word, or for nothing at all."""
    kind = category(character)
    if kind[0] in "LN":
        return _ANY_CHINESE.match(character) is None
    # older versions of Unicode call some symbols punctuation, before the arrows; U+FFFD is removed
    return kind[0] == "M" or kind == "Cf" or (kind[0] == "S" and character >= "\u2190" and character != "\ufffd")
