"""Variants of texts: the same for the same seed, never blank, and each kind changes what it says and nothing else."""

from __future__ import annotations

import random
import string
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldrun.distill.variants import VARIANTS, vary

ENGLISH = "How is the exchange rate doing? I don't know, and she isn't in the U.S. office: ask Mr. O'Neill (3.5 %)!"
WORDS = st.sampled_from([*ENGLISH.split(), "not", "no", "never", "what", "a", "7", "$5", "—", "éÉ"])
TEXTS = st.lists(WORDS, min_size=1, max_size=12).map(" ".join)
ANY = st.text(max_size=40)
SEEDS = st.integers(0, 1000)


@given(text=st.one_of(TEXTS, ANY), seed=SEEDS, kinds=st.lists(st.sampled_from(list(VARIANTS)), min_size=1, unique=True))
def test_a_variant_is_deterministic_and_not_blank(text: str, seed: int, kinds: list[str]) -> None:
    variant = vary(text, seed, kinds)
    assert vary(text, seed, kinds) == variant
    assert bool(variant.strip()) == bool(text.strip())


def test_another_process_makes_the_same_variants() -> None:
    code = f"from fieldrun.distill.variants import vary\nprint([vary({ENGLISH!r}, seed) for seed in range(20)])"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert other == repr([vary(ENGLISH, seed) for seed in range(20)])


def test_seeds_give_different_variants_and_english_always_changes() -> None:
    variants = [vary(ENGLISH, seed) for seed in range(100)]
    assert ENGLISH not in variants
    assert len(set(variants)) > 30


@pytest.mark.parametrize("kind", VARIANTS)
def test_every_kind_is_used_and_applies_to_english(kind: str) -> None:
    assert vary(ENGLISH, 0, (kind,)) != ENGLISH
    alone = {vary(ENGLISH, seed, (kind,)) for seed in range(50)} | {VARIANTS[kind](ENGLISH, random.Random(1))}
    assert alone & {vary(ENGLISH, seed) for seed in range(400)}


@given(text=TEXTS, seed=SEEDS)
def test_typos_change_one_or_two_words_and_no_first_letter(text: str, seed: int) -> None:
    old, new = text.split(), vary(text, seed, ("typos",)).split()
    assert len(old) == len(new)
    changed = [(a, b) for a, b in zip(old, new, strict=True) if a != b]
    assert len(changed) <= 2
    assert bool(changed) == any(sum(map(str.isalpha, word)) >= 4 for word in old if word.strip("?:!,.()").isalpha())
    for a, b in changed:
        assert a[0] == b[0]
        assert abs(len(a) - len(b)) <= 1
        assert edits(a, b) <= 2  # two letters swapped are two edits


def edits(a: str, b: str) -> int:
    """The edit distance (Levenshtein)."""
    row = list(range(len(b) + 1))
    for i, x in enumerate(a, 1):
        last, row[0] = row[0], i
        for j, y in enumerate(b, 1):
            last, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, last + (x != y))
    return row[-1]


@given(text=TEXTS, seed=SEEDS)
def test_case_changes_nothing_but_case(text: str, seed: int) -> None:
    variant = vary(text, seed, ("case",))
    assert variant.casefold() == text.casefold()
    assert (variant == text) == (text.lower() == text.upper())


@given(text=TEXTS, seed=SEEDS)
def test_punctuation_leaves_every_letter_digit_and_sign(text: str, seed: int) -> None:
    variant = vary(text, seed, ("punctuation",))
    assert [c for c in variant if c.isalnum() or c in "$%"] == [c for c in text if c.isalnum() or c in "$%"]
    assert not variant.strip() or not any(word[-1] in ".,:;!?)" for word in variant.split()) or variant == text
    for whole in ("3.5", "$5"):
        assert (whole in variant) == (whole in text)


@given(text=TEXTS, seed=SEEDS)
def test_telegraphic_leaves_out_words_but_no_negation_and_no_question(text: str, seed: int) -> None:
    old, new = text.split(), vary(text, seed, ("telegraphic",)).split()
    rest = iter(old)
    assert all(word in rest for word in new)  # in their order
    assert len(new) >= min(2, len(old))
    for word in ("not", "no", "never", "don't", "isn't", "what", "How", "exchange", "rate"):
        assert new.count(word) == old.count(word)


def test_telegraphic_is_a_query() -> None:
    assert vary("How is the exchange rate doing?", 0, ("telegraphic",)) == "How exchange rate doing?"
    assert vary("It is", 0, ("telegraphic",)) == "It is"


def test_what_nothing_applies_to_is_returned() -> None:
    for text in ("", "7", " ", "日本", string.digits):
        assert vary(text, 3) == text
