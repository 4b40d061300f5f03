"""Texts that cannot be encoded are refused with their place; long ones are refused, cut or windowed as asked."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import processors

from fieldrun.errors import BundleError, InputTextError, TextTooLong, UnknownName
from fieldrun.evaluation.rows import check_texts
from fieldrun_runtimes.tokenization import OVERFLOWS, TextTokenizer
from tests.toy import WORDS, toy_tokenizer

JSON = toy_tokenizer().to_str().encode("utf-8")
MODES = {overflow: TextTokenizer(JSON, 8, overflow) for overflow in OVERFLOWS}
CLS, SEP = toy_tokenizer().token_to_id("[CLS]"), toy_tokenizer().token_to_id("[SEP]")
TEXTS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=30).map(" ".join), min_size=1, max_size=6)


@pytest.mark.parametrize("text", ["\x00", "\x01\x02\x03", "\u200b\u200d", "\ufeff", "\x7f"])
def test_control_characters_alone_are_no_text(text: str) -> None:
    with pytest.raises(InputTextError, match="text 1 has no token: only control characters"):
        MODES["truncate"](check_texts(["a film", text]))
    assert MODES["truncate"]([f"a{text} film"]).tokens[0] > 2


@given(st.lists(st.text(min_size=1, max_size=40), min_size=1, max_size=4))
def test_any_text_is_encoded_or_refused(texts: list[str]) -> None:
    try:
        encoded = MODES["window"](check_texts(texts))
    except InputTextError:
        return
    assert encoded.owners == sorted(encoded.owners)
    assert set(encoded.owners) == set(range(len(texts)))
    assert all(3 <= len(ids) <= 8 for ids in encoded.ids)


@given(TEXTS)
def test_short_texts_are_untouched_and_long_ones_counted(texts: list[str]) -> None:
    whole = [encoding.ids for encoding in toy_tokenizer().encode_batch(texts)]
    for overflow, tokenize in MODES.items():
        long = [i for i, ids in enumerate(whole) if len(ids) > 8]
        if overflow == "error" and long:
            with pytest.raises(TextTooLong, match=f"text {long[0]} has {len(whole[long[0]])} tokens, .* takes 8") as e:
                tokenize(texts)
            assert e.value.exit_code == 10
            continue
        encoded = tokenize(texts)
        assert encoded.tokens == [len(ids) for ids in whole]
        for i, ids in enumerate(whole):
            pieces = [piece for piece, owner in zip(encoded.ids, encoded.owners, strict=True) if owner == i]
            assert all(len(piece) <= 8 for piece in pieces)
            assert all((piece[0], piece[-1]) == (CLS, SEP) for piece in pieces)
            inner = [token for piece in pieces for token in piece[1:-1]]
            if overflow == "truncate":
                assert len(pieces) == 1
                assert inner == ids[1:-1][:6]
                assert encoded.dropped[i] == len(ids) - len(pieces[0])
            else:
                assert inner == ids[1:-1], "every token once, in order"
                assert encoded.dropped[i] == 0


def test_a_megabyte_of_text() -> None:
    text = "rain " * 200_000
    with pytest.raises(TextTooLong):
        MODES["error"]([text])
    cut = MODES["truncate"]([text])
    assert (cut.tokens, cut.dropped, len(cut.ids)) == ([104], [96], 1)  # of the beginning, which is read
    windows = MODES["window"]([text])
    assert sum(len(ids) - 2 for ids in windows.ids) == 200_000
    assert MODES["error"](["x" * 1_000_000]).tokens == [3], "one word, however long, is one unknown token"


def test_a_tokenizer_without_special_tokens() -> None:
    bare = toy_tokenizer()
    bare.post_processor = None
    windows = TextTokenizer(bare.to_str().encode("utf-8"), 4, "window")(["a good film to remember it is"])
    assert [len(ids) for ids in windows.ids] == [4, 3]


@pytest.mark.parametrize("overflow", ["cut", "", None, ["error"]])
def test_an_unknown_overflow_lists_the_known_ones(overflow: Any) -> None:
    with pytest.raises(UnknownName, match="known: error, truncate, window"):
        TextTokenizer(JSON, 8, overflow)


@pytest.mark.parametrize("content", [b"", b"{}", b"\xff", b"null"])
def test_a_tokenizer_that_cannot_be_used(content: bytes) -> None:
    with pytest.raises(BundleError, match=r"tokenizer\.json cannot be used") as caught:
        TextTokenizer(content, 8, "truncate")
    assert "\n" not in str(caught.value)


def test_the_padding_and_truncation_of_the_file_are_ignored() -> None:
    tokenizer = toy_tokenizer()
    tokenizer.enable_padding(length=32)
    tokenizer.enable_truncation(4)
    tokens = TextTokenizer(tokenizer.to_str().encode("utf-8"), 8, "truncate")(["a good film", "rain"]).tokens
    assert tokens == [5, 3]


@pytest.mark.parametrize("single", ["[CLS] $A", "$A [SEP]", "[CLS] [CLS] $A [SEP]", "$A"])
def test_windows_keep_whatever_frame_the_tokenizer_has(single: str) -> None:
    tokenizer = toy_tokenizer()
    tokenizer.normalizer = None  # only the Rust tokenizer knows this one
    special = [("[CLS]", CLS), ("[SEP]", SEP)]
    tokenizer.post_processor = processors.TemplateProcessing(single=single, special_tokens=special)
    first, last = (part.count("[") for part in single.split("$A"))
    text = " ".join(WORDS[:20])
    inner = tokenizer.encode(text, add_special_tokens=False).ids
    room = 8 - first - last
    cut = TextTokenizer(tokenizer.to_str().encode("utf-8"), 8, "truncate")([text])
    assert cut.ids == [[CLS] * first + inner[:room] + [SEP] * last]
    windows = TextTokenizer(tokenizer.to_str().encode("utf-8"), 8, "window")([text])
    want = [inner[k : k + room] for k in range(0, len(inner), room)]
    assert windows.ids == [[CLS] * first + part + [SEP] * last for part in want]
