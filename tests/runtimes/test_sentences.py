"""The model as sentence-transformers' users call one."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import fieldrun
from fieldrun.errors import InputTextError, UsageError
from fieldrun_runtimes.model import FieldModel

TEXTS = ["a good film", "nothing works", "how do i transfer cash to the card", "rain"]


@pytest.fixture(scope="module")
def model(toy_bundle: Path) -> Iterator[FieldModel]:
    with fieldrun.load(toy_bundle, engine="numpy") as opened:
        yield opened


def test_one_text_is_a_vector_and_a_list_a_matrix(model: FieldModel) -> None:
    many = model.encode(TEXTS)
    assert many.shape == (4, 32)
    assert many.dtype == np.float32
    np.testing.assert_array_equal(many, model.field(TEXTS))
    np.testing.assert_allclose(model.encode(TEXTS[1]), many[1], rtol=0, atol=1e-5)
    assert model.encode(TEXTS[1]).shape == (32,)
    assert model.encode([]).shape == (0, 32)
    assert model.encode([], truncate_dim=8).shape == (0, 8)
    others: list[Any] = [tuple(TEXTS), np.array(TEXTS), np.array(TEXTS, object), iter(TEXTS)]
    for other in others:
        np.testing.assert_array_equal(model.encode(other), many)
    assert (model.get_embedding_dimension(), model.get_sentence_embedding_dimension()) == (32, 32)
    assert (model.max_seq_length, model.similarity_fn_name) == (256, "cosine")


def test_queries_and_documents_are_encoded_alike(model: FieldModel) -> None:
    for name in ("encode_query", "encode_document"):
        np.testing.assert_array_equal(getattr(model, name)(TEXTS, batch_size=3), model.encode(TEXTS, batch_size=3))


def test_the_settings_of_encode(model: FieldModel, capsys: pytest.CaptureFixture[str]) -> None:
    whole = model.encode(TEXTS)
    for size in (1, 3, 4, 100):
        np.testing.assert_allclose(model.encode(TEXTS, batch_size=size), whole, rtol=0, atol=1e-5)
    unit = model.encode(TEXTS, normalize_embeddings=True)
    np.testing.assert_allclose(unit, whole / np.linalg.norm(whole, axis=1, keepdims=True), rtol=1e-5)
    short = model.encode(TEXTS, truncate_dim=8, normalize_embeddings=True)
    assert short.shape == (4, 8)
    np.testing.assert_allclose(np.linalg.norm(short, axis=1), 1, rtol=1e-5)
    np.testing.assert_allclose(model.encode(["film"], prompt="a good "), whole[:1], rtol=0, atol=1e-5)
    np.testing.assert_array_equal(model.encode(TEXTS, prompt=None, prompt_name=None, device="cpu"), whole)
    assert capsys.readouterr().err == ""
    model.encode(TEXTS, batch_size=3, show_progress_bar=True)
    assert capsys.readouterr().err == "\rencode 3/4\rencode 4/4\n"


def test_torch_tensors(model: FieldModel, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = model.encode(TEXTS)
    tensor: Any = model.encode(TEXTS, convert_to_tensor=True)
    assert type(tensor) is torch.Tensor
    np.testing.assert_array_equal(tensor.numpy(), whole)
    listed = model.encode(TEXTS, convert_to_numpy=False)
    assert [row.shape for row in listed] == [(32,)] * 4
    assert model.encode(TEXTS[0], convert_to_numpy=False).shape == (32,)
    np.testing.assert_allclose(model.similarity(tensor, listed), model.similarity(whole, whole), atol=1e-6)
    monkeypatch.delitem(__import__("sys").modules, "torch")
    with pytest.raises(UsageError, match="torch is not imported; import it first"):
        model.encode(TEXTS, convert_to_tensor=True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prompt_name": "query"}, "no named prompts; give prompt="),
        ({"output_value": "token_embeddings"}, "not 'token_embeddings'"),
        ({"precision": "int8"}, "not 'sentence_embedding' in 'int8'"),
        ({"device": "cuda"}, r"fieldrun.load\(engine=..., provider=...\), not device='cuda'"),
        ({"batch_size": 0}, "batch_size must be a positive integer"),
        ({"batch_size": 8.0}, "batch_size must be a positive integer"),
        ({"truncate_dim": 33}, "dim must be a whole number from 1 to 32"),
    ],
)
def test_what_a_bundle_cannot_do_is_refused_by_name(model: FieldModel, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model.encode(TEXTS, **settings)
    with pytest.raises(TypeError, match="unexpected keyword argument 'speed'"):
        model.encode(TEXTS, speed="high")  # type: ignore[call-arg]


@pytest.mark.parametrize("texts", ["", [""], [None], None, 3, {"a": "b"}, {"a"}, b"a", [["a", "b"]]])
def test_no_text_is_refused(model: FieldModel, texts: Any) -> None:
    with pytest.raises(InputTextError):
        model.encode(texts)


def test_a_refused_text_has_its_own_index(model: FieldModel) -> None:
    with pytest.raises(InputTextError, match="text 3 has no token"):
        model.encode([*TEXTS[:3], "\x00"], batch_size=2)


def test_similarities(model: FieldModel) -> None:
    x = model.field(TEXTS).astype(np.float64)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    matrix = model.similarity(TEXTS[:2], TEXTS)
    assert matrix.shape == (2, 4)
    assert matrix.dtype == np.float32
    np.testing.assert_allclose(matrix, unit[:2] @ unit.T, rtol=0, atol=1e-5)
    assert matrix.max() <= 1
    fields = model.encode(TEXTS)
    same: list[Any] = [(fields[:2], fields), (list(fields[:2]), fields.tolist()), (tuple(TEXTS[:2]), fields)]
    for a, b in same:
        np.testing.assert_allclose(model.similarity(a, b), matrix, rtol=0, atol=1e-5)
    np.testing.assert_allclose(model.similarity(fields[0], TEXTS[1]), matrix[:1, 1:2], rtol=0, atol=1e-5)
    pairs = model.similarity_pairwise(np.array(TEXTS[:2]), fields[2:])
    assert pairs.shape == (2,)
    assert pairs.dtype == np.float32
    np.testing.assert_allclose(pairs, np.diagonal(matrix[:, 2:]), rtol=0, atol=1e-5)
    assert model.similarity(np.zeros(32), fields).tolist() == [[0] * 4]


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((2, 3)), np.zeros((2, 4)), "3 numbers against embeddings of 4"),
        (np.zeros((2, 3)), np.zeros((4, 3)), "2 embeddings against 4"),
        (np.zeros((1, 2, 3)), np.zeros((4, 3)), r"not \(1, 2, 3\)"),
        ({}, np.zeros((4, 3)), "arrays of embeddings or lists of texts"),
        ([[0.0], [1.0, 2.0]], np.zeros((4, 3)), "arrays of embeddings or lists of texts"),
    ],
)
def test_what_cannot_be_compared(model: FieldModel, a: Any, b: Any, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        model.similarity_pairwise(a, b)


def test_a_blank_text_is_not_compared(model: FieldModel) -> None:
    with pytest.raises(InputTextError, match="text 1 is empty"):
        model.similarity(["a", " "], ["b"])


def test_names_and_defaults_are_those_of_sentence_transformers() -> None:
    theirs = pytest.importorskip("sentence_transformers").SentenceTransformer
    for name in ("encode", "encode_query", "encode_document", "similarity", "similarity_pairwise"):
        expected = inspect.signature(getattr(theirs, name)).parameters
        for argument in list(inspect.signature(getattr(FieldModel, name)).parameters.values())[1:]:
            if argument.name == "sentences":  # their name until version 6, which takes both
                continue
            assert argument.default == expected[argument.name].default, f"{name}({argument.name})"
