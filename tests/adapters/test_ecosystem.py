"""Packages that are written for sentence-transformers take a model as it is, or with the lines that they document."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import fieldrun
from fieldrun_runtimes.model import FieldModel

TEXTS = ["a good film", "nothing works", "how do i transfer cash to the card", "a good good film", "rain"]


@pytest.fixture(scope="module")
def model(toy_bundle: Path) -> Iterator[FieldModel]:
    with fieldrun.load(toy_bundle, engine="numpy") as opened:
        yield opened


def need(name: str) -> Any:
    if importlib.util.find_spec(name.partition(".")[0]) is None:
        pytest.skip(f"{name} is not installed")
    return importlib.import_module(name)


def test_semhash_finds_duplicates_with_a_model(model: FieldModel) -> None:
    semhash = need("semhash").SemHash.from_records(records=TEXTS, model=model)
    cosines = np.tril(model.similarity(TEXTS, TEXTS), -1)
    threshold = float(np.sort(cosines.max(1))[-1]) - 1e-3
    found = semhash.self_deduplicate(threshold=threshold)
    assert len(found.selected) == 4
    pair = {found.filtered[0].record, found.filtered[0].duplicate_of}
    assert pair == {TEXTS[i] for i in np.unravel_index(cosines.argmax(), cosines.shape)}


def test_sentence_transformers_mines_and_searches_with_a_model(model: FieldModel) -> None:
    util = need("sentence_transformers.util")
    pairs = util.paraphrase_mining(model, TEXTS, top_k=1)
    cosines = np.triu(model.similarity(TEXTS, TEXTS), 1)
    score, *best = pairs[0]
    assert sorted(best) == [*np.unravel_index(cosines.argmax(), cosines.shape)]
    assert score == pytest.approx(float(cosines.max()), abs=1e-5)
    (hits,) = util.semantic_search(
        model.encode_query(TEXTS[:1], convert_to_tensor=True), model.encode_document(TEXTS, convert_to_tensor=True)
    )
    assert hits[0]["corpus_id"] == 0


def test_keybert_takes_a_model_in_a_backend(model: FieldModel) -> None:
    keybert, backend = need("keybert"), need("keybert.backend")

    class Fields(backend.BaseEmbedder):  # type: ignore[misc, name-defined]
        def embed(self, documents: list[str], verbose: bool = False) -> Any:
            return self.embedding_model.encode(documents, show_progress_bar=verbose)

    found = keybert.KeyBERT(model=Fields(model)).extract_keywords(TEXTS[2], stop_words=None, top_n=3)
    words = sorted({word for word in TEXTS[2].split() if len(word) > 1})
    cosines = model.similarity(TEXTS[2], words)[0]
    assert [word for word, _ in found] == [words[i] for i in np.argsort(-cosines)[:3]]
    assert found[0][1] == pytest.approx(float(cosines.max()), abs=1e-3)


def test_a_setfit_style_loop(model: FieldModel) -> None:
    head = need("sklearn.linear_model").LogisticRegression(C=1e4)
    settings: dict[str, Any] = {"batch_size": 2, "show_progress_bar": False, "normalize_embeddings": True}
    head.fit(model.encode(TEXTS, convert_to_tensor=False, **settings), [1, 0, 0, 1, 0])
    assert head.predict(model.encode(["a good film"], **settings)).tolist() == [1]


def test_langchain_needs_four_lines(model: FieldModel) -> None:
    class Embeddings:
        def embed_documents(self, texts: list[str]) -> list[list[float]]:
            return model.encode_document(texts).tolist()  # type: ignore[no-any-return]

        def embed_query(self, text: str) -> list[float]:
            return model.encode_query(text).tolist()  # type: ignore[no-any-return]

    rows = Embeddings().embed_documents(TEXTS)
    assert [len(row) for row in rows] == [32] * 5
    np.testing.assert_allclose(Embeddings().embed_query(TEXTS[4]), rows[4], rtol=0, atol=1e-5)
