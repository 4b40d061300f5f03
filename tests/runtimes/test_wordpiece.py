"""The word table gives the ids of the Rust tokenizer, or none at all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

import fieldrun_benchmarks
from fieldrun.evaluation.dataset import read_tsv
from fieldrun.formats.bundle import REFERENCE_BUNDLE
from fieldrun_runtimes.tokenization import TextTokenizer
from fieldrun_runtimes.wordpiece import WordTable
from tests.toy import toy_tokenizer

SAMPLES = Path(fieldrun_benchmarks.__file__).parent / "data"
SHIPPED = (REFERENCE_BUNDLE / "tokenizer.json").read_bytes()
RUST = Tokenizer.from_str(SHIPPED.decode("utf-8"))
RUST.no_padding()
RUST.no_truncation()
ASCII = st.text(st.characters(max_codepoint=127), max_size=80)
WORDLIKE = st.lists(
    st.sampled_from(["un", "believ", "able", "7", "don't", "[CLS]", "[", "Zq", " ", "\t", "_", "x" * 99, "##ing"])
)


def table() -> WordTable:
    found = WordTable.of(json.loads(SHIPPED))
    assert found is not None
    return found


TABLE = table()


@settings(max_examples=400)
@given(st.one_of(ASCII, WORDLIKE.map("".join), st.text(max_size=40)))
def test_any_text_gives_the_ids_of_the_rust_tokenizer(text: str) -> None:
    ids = TABLE.ids(text)
    if ids is None:
        assert not text.isascii() or not text.isprintable() or "[" in text
    else:
        assert ids == RUST.encode(text).ids


@pytest.mark.parametrize("name", ["banking77", "clinc150"])
def test_real_text_gives_the_ids_of_the_rust_tokenizer(name: str) -> None:
    texts = [str(text) for text in read_tsv(SAMPLES / f"{name}.tsv").texts]
    found = [TABLE.ids(text) for text in texts]
    assert sum(ids is None for ids in found) < len(texts) / 20
    for text, ids in zip(texts, found, strict=True):
        assert ids in (None, RUST.encode(text).ids)


@given(st.text(min_size=1, max_size=60))
def test_both_ways_meet_in_one_tokenizer(text: str) -> None:
    toy = toy_tokenizer()
    want = toy.encode(text).ids
    tokenize = TextTokenizer(toy.to_str().encode("utf-8"), 500, "error")
    assert tokenize.one(text) == (want if len(want) > 2 else None)


CHANGES: list[tuple[str, Any]] = [
    ("normalizer", None),
    ("normalizer", {"type": "BertNormalizer", "clean_text": True, "handle_chinese_chars": True, "lowercase": False}),
    ("normalizer", {"type": "Lowercase"}),
    ("pre_tokenizer", {"type": "Whitespace"}),
    ("pre_tokenizer", None),
    ("model", {"type": "BPE", "vocab": {}, "merges": []}),
    ("added_tokens", [{"id": 5, "content": "film"}]),
    ("post_processor", {"type": "RobertaProcessing"}),
]


@pytest.mark.parametrize(("part", "value"), CHANGES)
def test_another_kind_of_tokenizer_has_no_table(part: str, value: Any) -> None:
    changed = json.loads(SHIPPED) | {part: value}
    assert WordTable.of(changed) is None


def test_without_special_tokens_the_frame_is_empty() -> None:
    bare = toy_tokenizer()
    bare.post_processor = None
    found = WordTable.of(json.loads(bare.to_str()))
    assert found is not None
    assert found.frame == ((), ())
    assert found.ids("a good film") == bare.encode("a good film").ids
