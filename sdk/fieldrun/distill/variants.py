"""Cheap variants of a text that mean the same: as people type it, with the teacher's vector of the clean text.

| Kind | What it changes |
|---|---|
| `typos` | one or two words of four or more letters: letters swapped, or one left out, doubled or missed |
| `case` | the case of letters: all small, all capital, or a small first letter |
| `punctuation` | the marks at the ends of words are left out, and half the time the apostrophes inside them |
| `telegraphic` | function words are left out; never a negation, a question word, or the last two other words |
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence

__all__ = ["VARIANTS", "vary"]

_SECOND = 0.3  # of the variants are of two kinds, as in "wheres my card" for "Where's my card?"
_WORD = re.compile(r"[^\W\d_]{4,}")
_ROWS = ("qwertyuiop", "asdfghjkl", "zxcvbnm")
_NEIGHBOURS: Mapping[str, str] = {
    letter: row[max(0, i - 1) : i] + row[i + 1 : i + 2] for row in _ROWS for i, letter in enumerate(row)
}
_FUNCTION = """
a an the this that these those some any i you he it she we they me him her us them my your his its our their
am is are was were be been being do does did have has had will would shall should can could may might must
of to in on at for as into about and so then there here just also please
i'm i'd i've i'll it's that's there's you're we're they're
"""
_FUNCTION_WORDS = frozenset(_FUNCTION.split())
_EDGES = re.compile(r"(?<!\w)[^\w\s$€£#@%+\-]+|[^\w\s$€£#@%+]+(?!\w)")
_APOSTROPHES = re.compile(r"(?<=\w)['\u2019](?=\w)")


def vary(text: str, seed: int, kinds: Sequence[str] = ("typos", "case", "punctuation", "telegraphic")) -> str:
    """Return a variant of `text` by one of `kinds`, sometimes two, that applies to it; the same for the same `seed`.

    It is never blank unless `text` is. A text to which no kind applies ("7") is returned as it is.
    """
    rng = random.Random(f"{seed} ".encode() + text.encode("utf-8", "surrogatepass"))
    wanted = 1 + (rng.random() < _SECOND)
    varied = text
    for kind in rng.sample(kinds, len(kinds)):
        new = VARIANTS[kind](varied, rng)
        if new != varied and new.strip():
            varied, wanted = new, wanted - 1
        if not wanted:
            break
    return varied


def _typos(text: str, rng: random.Random) -> str:
    words = list(_WORD.finditer(text))
    chosen = rng.sample(words, min(len(words), 1 + (len(words) > 3 and rng.random() < _SECOND)))
    for word in sorted(chosen, key=re.Match.start, reverse=True):
        text = text[: word.start()] + _typo(word[0], rng) + text[word.end() :]
    return text


def _typo(word: str, rng: random.Random) -> str:
    """Return `word` with one typo; its first letter stays."""
    i = rng.randrange(1, len(word))
    way = rng.randrange(4)
    neighbours = _NEIGHBOURS.get(word[i].lower(), "")
    if way == 0 and word[i - 1] != word[i] and i > 1:
        return word[: i - 1] + word[i] + word[i - 1] + word[i + 1 :]
    if way == 1 and neighbours:
        near = rng.choice(neighbours)
        return word[:i] + (near.upper() if word[i].isupper() else near) + word[i + 1 :]
    if way == 2:
        return word[:i] + word[i] + word[i:]
    return word[:i] + word[i + 1 :]


def _case(text: str, rng: random.Random) -> str:
    ways = [text.lower(), text.upper(), text[:1].lower() + text[1:]]
    new = [way for way, weight in zip(ways, (5, 1, 2), strict=True) if way != text for _ in range(weight)]
    return rng.choice(new) if new else text


def _punctuation(text: str, rng: random.Random) -> str:
    new = _EDGES.sub("", text)
    if rng.random() < 0.5:
        new = _APOSTROPHES.sub("", new)
    return " ".join(new.split()) if new != text else text


def _telegraphic(text: str, rng: random.Random) -> str:
    del rng
    words = text.split()
    kept = [word for word in words if word.lower().replace("\u2019", "'").strip(".,;:!?\"'()") not in _FUNCTION_WORDS]
    return " ".join(kept) if 2 <= len(kept) < len(words) else text


VARIANTS: Mapping[str, Callable[[str, random.Random], str]] = {
    "typos": _typos,
    "case": _case,
    "punctuation": _punctuation,
    "telegraphic": _telegraphic,
}
"""Each kind as a function of the text and a source of randomness; it returns the text if it does not apply."""
