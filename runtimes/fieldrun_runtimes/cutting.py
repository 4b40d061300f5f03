"""Where a long text may be cut before it is tokenized: its parts have the tokens of the whole, in order.

A tokenizer takes time and memory for every character, and most of a long text is cut off afterwards. BERT's tokenizer
treats words apart, so a text may be cut

- after white space, which belongs to no word and to no special token;
- between two Chinese characters, each of which is a word;
- between two ASCII punctuation marks, each of which is a word, if no special token starts shortly before.

A word of more letters than the model takes is one unknown token whatever its end is, so the end can be left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

__all__ = ["Cutter"]

_CHINESE = "\u4e00-\u9fff\u3400-\u4dbf\uf900-\ufaff\U00020000-\U0002a6df\U0002a700-\U0002ceaf\U0002f800-\U0002fa1f"
_MARKS = re.escape("!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~")
_SPACE = re.compile(r"[ \t\r\n]")
_BETWEEN = re.compile("(?<=[\u4e00-\u9fff])(?=[\u4e00-\u9fff])")
_BETWEEN_MARKS = re.compile(f"(?<=[{_MARKS}])(?=[{_MARKS}])")


class Cutter:
    """Cuts texts for one tokenizer of BERT's kind."""

    def __init__(self, longest_word: int, starts: str, longest_special: int, *, chinese: bool) -> None:
        self._long_word = re.compile(f"[^\\W_{_CHINESE}]{{{longest_word + 1},}}")
        self._keep = longest_word + 1
        self._starts, self._before = {*starts.lower(), *starts.upper()}, longest_special
        self._chinese = chinese

    @classmethod
    def of(cls, value: Mapping[str, Any]) -> Cutter | None:
        """Return the cutter for the JSON of a tokenizer that was checked; None if it is of another kind."""
        try:
            normalizer, model = value["normalizer"], value["model"]
            special = [token["content"] for token in value.get("added_tokens") or []]
            if (
                normalizer["type"] != "BertNormalizer"
                or value["pre_tokenizer"]["type"] != "BertPreTokenizer"
                or model["type"] != "WordPiece"
                or not all(content.isascii() and content.isprintable() and " " not in content for content in special)
            ):
                return None
            starts, longest = "".join(content[0] for content in special), max(map(len, special), default=0)
            chinese = normalizer.get("handle_chinese_chars") is True
            return cls(model["max_input_chars_per_word"], starts, longest, chinese=chinese)
        except (AttributeError, KeyError, TypeError, ValueError):
            return None

    def parts(self, text: str, size: int) -> Iterator[str]:
        """Yield the parts of `text`, of about `size` characters each where it can be cut."""
        text = self._long_word.sub(lambda word: word[0][: self._keep], text)
        start = 0
        while start < len(text):
            stop = len(text) if len(text) - start <= size else self._next(text, start, start + size)
            yield text[start:stop]
            start = stop

    def _next(self, text: str, start: int, stop: int) -> int:
        """Return the last place to cut between `start` and `stop`, or else the first one after `stop`."""
        space = max(text.rfind(each, start, stop) for each in " \t\r\n") + 1
        if space > start:
            return space
        places = [len(text)]
        found = _SPACE.search(text, stop)
        if found is not None:
            places.append(found.end())
        between = _BETWEEN.search(text, stop, places[-1]) if self._chinese else None
        if between is not None:
            places.append(between.start())
        for mark in _BETWEEN_MARKS.finditer(text, stop, min(places)):
            if self._starts.isdisjoint(text[max(0, mark.start() - self._before) : mark.start()]):
                places.append(mark.start())
                break
        return min(places)
