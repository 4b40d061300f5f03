"""A long text is cut before it is tokenized: the parts have the tokens of the whole, in bounded time and memory."""

from __future__ import annotations

import json
import tracemalloc
from itertools import chain

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import fieldrun
from fieldrun.errors import InputTextError, TextTooLong
from fieldrun.formats.bundle import REFERENCE_BUNDLE
from fieldrun_runtimes.cutting import _MARK, Cutter
from fieldrun_runtimes.tokenization import TextTokenizer
from tests.toy import toy_tokenizer

SHIPPED = (REFERENCE_BUNDLE / "tokenizer.json").read_bytes()
# fmt: off
PIECES = [
    "a", "film", "caf\u00e9", "cafe\u0301", "\u0301", "\u00a0", "\u3000", "\u2028", " ", "  ", "\t", "\n", "\r", "\x00",
    "\x7f", "\u4e2d", "\u6587", "\u4e2d\u6587\u4e2d", "\u3400", "\U00020000", "\uf900", "\ud55c\uad6d", "\u03a3",
    "[CLS]", "[", "]", "[MASK", "[UNK]", "[cls]", "!", "!!!", "...", "_", "__", "-", "'", "\u2019",
    "\u3002", "\u00bf", "\U0001f600", "\U0001f1e9\U0001f1ea", "x" * 99, "x" * 100, "x" * 101, "\u00e9" * 120, "7" * 130,
    "\u0e44\u0e17\u0e22", "ab\u0301" * 60, "\ud55c" * 110, "\u2003", "\u2014", "\uff1f", "\u2026", "\u201c", "\x85",
    "\U0001f600" * 400, "e\u0301" * 300, "\u0301" * 200, " " * 200, "\u3000" * 200, "\u0915\u094d" * 250, "\u200d",
    "x" * 700, "\U0001f469\u200d" * 300, "[C\u0301", "LS]", "\U0001e4d0" * 300, "\U00016d40" * 300, "\u166d" * 300,
    "\u2308" * 300, "\U0001d400" * 300, "\ufdfa" * 300, "\u200b" * 300, "\x01" * 300, "\ufffd" * 300,
]
# fmt: on
WITHOUT_BLANKS = [
    "caf\u00e9_",
    "a.",
    "[",
    "[CLS]",
    "[CL",
    "\u3002",
    "\u2014\u2026",
    "\u00e9\u3000",
    "\u00e9\u2028",
    "\uff1fa",
    "\u00e9",
    "e\u0301",
    "e\u0301\u0302",
    "\U0001f600",
    "\U0001f469\u200d",
    "\u0915\u094d",
    "\u4e2da",
    "x",
    "\u00a0",
    "\ud55c",
    "\U0001d400",
    "\u0e01\u0e34",
]
TEXT = st.lists(st.sampled_from(PIECES) | st.text(max_size=4), max_size=40).map("".join)


def tokenizer(*, prefix: bytes = SHIPPED, cased: bool = False) -> tuple[Tokenizer, Cutter]:
    value = json.loads(prefix)
    value["normalizer"] |= {"lowercase": not cased}
    rust = Tokenizer.from_str(json.dumps(value))
    rust.no_padding()
    rust.no_truncation()
    cutter = Cutter.of(value)
    assert cutter is not None
    return rust, cutter


UNCASED, CASED = tokenizer(), tokenizer(cased=True)


@pytest.mark.parametrize(("rust", "cutter"), [UNCASED, CASED], ids=["uncased", "cased"])
@settings(max_examples=400)
@given(text=TEXT, size=st.integers(1, 40))
def test_the_parts_have_the_tokens_of_the_whole(rust: Tokenizer, cutter: Cutter, text: str, size: int) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return  # refused before it is tokenized
    whole = rust.encode(text, add_special_tokens=False).ids
    parts = list(cutter.parts(text, size))
    assert list(chain.from_iterable(rust.encode(part, add_special_tokens=False).ids for part in parts)) == whole


@pytest.mark.parametrize("unit", ["a film ", "caf\u00e9 ", "\u4e2d\u6587", "?!", "a" * 99 + " ", "0f3a9c " * 16])
def test_parts_are_about_as_long_as_asked(unit: str) -> None:
    parts = list(UNCASED[1].parts(unit * 2000, 500))
    assert max(map(len, parts)) <= 600
    assert sum(map(len, parts)) == len(unit) * 2000


@pytest.mark.parametrize("unit", WITHOUT_BLANKS)
@pytest.mark.parametrize("rust_and_cutter", [UNCASED, CASED], ids=["uncased", "cased"])
def test_no_part_is_long_without_a_blank(rust_and_cutter: tuple[Tokenizer, Cutter], unit: str) -> None:
    rust, cutter = rust_and_cutter
    text = "a" + unit * 5000
    parts = list(cutter.parts(text, 500))
    assert max(map(len, parts)) <= 1000
    whole = rust.encode(text, add_special_tokens=False).ids
    assert list(chain.from_iterable(rust.encode(part, add_special_tokens=False).ids for part in parts)) == whole


def test_a_mark_where_a_text_is_cut_is_a_word_of_its_own() -> None:
    for character in map(chr, chain(range(0x3100), range(0xFE00, 0x10000))):
        if _MARK.fullmatch(character):
            words = UNCASED[0].pre_tokenizer.pre_tokenize_str(f"a{character}b")
            assert [word for word, _ in words] == ["a", character, "b"], ascii(character)


@pytest.mark.parametrize("overflow", ["truncate", "window"])
@given(text=TEXT)
def test_a_long_text_has_the_tokens_of_its_beginning(overflow: str, text: str) -> None:
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return
    cut = TextTokenizer(SHIPPED, 16, overflow)
    whole = UNCASED[0].encode(text * 9).ids
    try:
        found = cut([text * 9])
    except InputTextError:
        assert len(whole) == 2
        return
    if overflow == "truncate":
        expected = whole if len(whole) <= 16 else [*whole[:15], whole[-1]]
        assert found.ids == [expected]
        assert (found.dropped[0] > 0) == (len(whole) > 16)
    else:
        assert list(chain.from_iterable(ids[1:-1] for ids in found.ids)) == whole[1:-1]
        assert found.tokens == [len(whole)]


def test_another_kind_of_tokenizer_is_not_cut() -> None:
    value = json.loads(toy_tokenizer().to_str())
    assert Cutter.of(value) is not None
    for part in ("normalizer", "pre_tokenizer"):
        assert Cutter.of(value | {part: None}) is None
    spaced = {"id": 1, "content": "[a b]", "special": True}
    assert Cutter.of(value | {"added_tokens": [spaced]}) is None


HUGE = {
    "accents": "\u00e9 " * 2_500_000,
    "one word": "\u00e9" * 5_000_000,
    "Chinese": "\u4e2d" * 3_000_000,
    "hex": "0f3a9c77b2" * 10_000,
    "words of 100 letters": ("0f3a9c77b2" * 10 + " ") * 10_000,
    "marks": "?!" * 2_500_000,
    "marks between letters": "\u00e9_" * 1_500_000,
    "marks of other scripts": "\u3002" * 3_000_000,
    "blanks of other scripts": "\u00e9\u3000" * 1_500_000,
    "emoji": "\U0001f600" * 2_000_000,
    "accents apart": "e\u0301" * 1_500_000,
}


@pytest.mark.parametrize("text", HUGE.values(), ids=HUGE)
def test_of_a_huge_text_little_is_tokenized_in_little_memory(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The work of a tokenizer is bounded by the characters that it is given."""
    model = fieldrun.load(engine="null")
    model.forward(["caf\u00e9"])
    seen: list[str] = []
    whole = TextTokenizer._whole

    def noted(self: TextTokenizer, texts: list[str]) -> list[list[int]]:
        seen.extend(texts)
        return whole(self, texts)

    monkeypatch.setattr(TextTokenizer, "_whole", noted)
    tracemalloc.start()
    model.forward([text])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 8 * len(text) + (8 << 20)
    assert sum(map(len, seen)) <= 2 * 64 * model.max_seq_length
    with fieldrun.load(engine="null", overflow="error") as strict:
        if text not in (HUGE["one word"], HUGE["hex"], HUGE["emoji"], HUGE["accents apart"]):
            with pytest.raises(TextTooLong, match="text 0 has"):
                strict.forward([text])


def test_labels_of_many_texts_take_the_memory_of_some() -> None:
    model, texts = fieldrun.load(engine="null"), ["a film"] * 60_000
    model.predict(texts[:5000], "sst2")
    tracemalloc.start()
    assert len(model.predict(texts, "sst2")) == len(texts)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 25e6, "the fields alone are 61 MB"


def test_errors_count_texts_from_the_first() -> None:
    model = fieldrun.load(engine="null", overflow="error")
    with pytest.raises(TextTooLong, match="text 9000 has"):
        model.predict(["a film"] * 9000 + ["a film " * 300], "sst2")
    with pytest.raises(InputTextError, match="text 9000"):
        model.predict_proba(["a film"] * 9000 + ["\x01"], "sst2")


@pytest.mark.parametrize("engine", ["numpy", "native"])
def test_blocks_change_no_score(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    model = fieldrun.load(engine=engine)
    texts = [f"a film about {i}" for i in range(40)]
    pairs = list(zip(texts, reversed(texts), strict=True))
    expected = model.predict_proba(texts, "sst2"), model.predict_proba(pairs, "mrpc"), model.predict(texts, "trec")
    monkeypatch.setattr("fieldrun_runtimes.model._TOGETHER", 7)
    assert (model.predict_proba(texts, "sst2") == expected[0]).all()
    assert (model.predict_proba(pairs, "mrpc") == expected[1]).all()
    assert model.predict(texts, "trec") == expected[2]
    assert model.top_k(texts, "trec", k=1)[39][0].label == expected[2][39]
