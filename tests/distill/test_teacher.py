"""The raw field: what it is, that a killed extraction goes on, and which folders can teach."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from tokenizers import Tokenizer

from fieldrun.distill import teacher as module
from fieldrun.distill.teacher import (
    default_layers,
    extract_raw_field,
    load_teacher,
    load_tokenizer,
    teacher_hashes,
    teacher_shape,
    token_vectors,
    tokenize,
)
from fieldrun.errors import TrainingError

TEXTS = [
    "a good film",
    "it was very wet",
    "i have no cash and no card, what will you do?",
    "transfer",
    "the best answer to this is rain",
    "x9",
    *(f"remember {'the rain and ' * n}work" for n in range(12)),
]


class Killed(BaseException):
    """Stands for the end of the process."""


def die_at(row: int) -> Any:
    def progress(done: int, total: int) -> None:
        if done >= row:
            raise Killed

    return progress


def test_layers_are_spread_evenly_and_one_is_the_last() -> None:
    assert default_layers(12, 7) == (0, 2, 4, 6, 8, 10, 12)
    assert default_layers(24, 7) == (0, 4, 8, 12, 16, 20, 24)
    assert default_layers(6, 7) == (0, 1, 2, 3, 4, 5, 6)
    assert default_layers(4, 7) == (0, 1, 2, 3, 4)
    assert default_layers(12, 3) == (0, 6, 12)
    assert default_layers(12, 1) == (12,)


@pytest.mark.parametrize("layers", [7, 1, (4,), (0, 3)])
def test_raw_field_is_the_masked_mean_of_every_layer(
    teacher: Path, tmp_path: Path, layers: int | tuple[int, ...]
) -> None:
    from transformers import BertModel

    raw = extract_raw_field(TEXTS, teacher, tmp_path / "raw.npy", layers=layers, tokens_per_batch=64)
    chosen = {7: (0, 1, 2, 3, 4), 1: (4,)}[layers] if isinstance(layers, int) else layers
    assert raw.dtype == np.float16
    assert raw.shape == (len(TEXTS), 32 * len(chosen))
    assert not raw.flags.writeable
    model = BertModel.from_pretrained(str(teacher)).eval()
    tokenizer = Tokenizer.from_file(str(teacher / "tokenizer.json"))
    for text, row in zip(TEXTS, raw, strict=True):
        with torch.inference_mode():
            states = model(torch.tensor([tokenizer.encode(text).ids]), output_hidden_states=True).hidden_states
        expected = torch.cat([states[layer][0].mean(0) for layer in chosen]).numpy()
        np.testing.assert_allclose(row, expected, rtol=2e-3, atol=1e-3)


def test_longer_texts_are_cut_with_their_last_special_token(teacher: Path, tmp_path: Path) -> None:
    cut = extract_raw_field(["rain " * 40], teacher, tmp_path / "cut.npy", max_tokens=8)
    same = extract_raw_field(["rain " * 6], teacher, tmp_path / "same.npy", max_tokens=8)
    np.testing.assert_array_equal(cut, same)


def test_extraction_goes_on_where_it_was_killed(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = extract_raw_field(TEXTS, teacher, tmp_path / "whole.npy", tokens_per_batch=32)
    monkeypatch.setattr(module, "_ROWS_PER_SYNC", 3)
    with pytest.raises(Killed):
        extract_raw_field(TEXTS, teacher, tmp_path / "raw.npy", tokens_per_batch=32, progress=die_at(8))
    done = json.loads((tmp_path / "raw.npy.json").read_text("utf-8"))["done"]
    assert 0 < done < len(TEXTS)
    seen: list[int] = []
    resumed = extract_raw_field(
        TEXTS, teacher, tmp_path / "raw.npy", tokens_per_batch=32, progress=lambda done, total: seen.append(done)
    )
    assert seen[0] > done
    assert seen[-1] == len(TEXTS)
    np.testing.assert_array_equal(resumed, whole)
    assert (tmp_path / "raw.npy").read_bytes() == (tmp_path / "whole.npy").read_bytes()


def test_a_finished_raw_field_is_not_computed_again(
    teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = extract_raw_field(TEXTS, teacher, tmp_path / "raw.npy")
    monkeypatch.setattr(module, "load_teacher", lambda *_: pytest.fail("the teacher was loaded"))
    np.testing.assert_array_equal(extract_raw_field(TEXTS, teacher, tmp_path / "raw.npy"), first)


def test_the_raw_field_of_something_else_is_refused(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "raw.npy"
    extract_raw_field(TEXTS, teacher, out)
    before = out.read_bytes()
    for texts, changes in ((TEXTS[1:], {}), (TEXTS, {"layers": (1,)}), (TEXTS, {"max_tokens": 16})):
        with pytest.raises(TrainingError, match="other texts or another teacher; delete it"):
            extract_raw_field(texts, teacher, out, **changes)
    other = tmp_path / "other"
    shutil.copytree(teacher, other)
    tokenizer = Tokenizer.from_file(str(other / "tokenizer.json"))
    tokenizer.add_tokens(["sunshine"])
    tokenizer.save(str(other / "tokenizer.json"))
    with pytest.raises(TrainingError, match="another teacher"):
        extract_raw_field(TEXTS, other, out)
    assert out.read_bytes() == before


def test_token_vectors_are_the_mean_of_the_last_layer(teacher: Path) -> None:
    tokenizer = load_tokenizer(teacher)
    more = tokenizer.get_vocab_size() + 5  # tokens that the teacher may not know
    vectors, model = token_vectors(teacher, more), cast(Any, load_teacher(teacher, torch.float32))
    known = model.get_input_embeddings().num_embeddings
    frame = tokenizer.encode("").ids
    for token in (0, 7, known - 1):
        states = model(input_ids=torch.tensor([[frame[0], token, frame[1]]])).last_hidden_state
        np.testing.assert_allclose(vectors[token], states[0].mean(0).numpy(), atol=1e-5)
    assert len(vectors) == more
    assert not vectors[known:].any()


def test_texts_without_a_token(teacher: Path, tmp_path: Path) -> None:
    bare = tmp_path / "bare"
    shutil.copytree(teacher, bare)
    tokenizer = json.loads((bare / "tokenizer.json").read_text("utf-8"))
    (bare / "tokenizer.json").write_text(json.dumps(tokenizer | {"post_processor": None}), "utf-8")
    raw = extract_raw_field(["good", "", "\u200b"], bare, tmp_path / "raw.npy")
    assert np.abs(raw[0]).sum() > 0
    np.testing.assert_array_equal(raw[1:], 0)
    np.testing.assert_array_equal(extract_raw_field([""], bare, tmp_path / "blank.npy"), 0)
    assert json.loads((tmp_path / "blank.npy.json").read_text("utf-8"))["done"] == 1


def test_tokenize_is_the_tokenizer(teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_TEXTS_PER_CALL", 4)
    tokenizer = load_tokenizer(teacher)
    assert [list(ids) for ids in tokenize(tokenizer, TEXTS)] == [tokenizer.encode(text).ids for text in TEXTS]


def test_damaged_files_are_named(teacher: Path, tmp_path: Path) -> None:
    out = tmp_path / "raw.npy"
    extract_raw_field(TEXTS, teacher, out)
    with out.open("r+b") as file:
        file.truncate(100)
    with pytest.raises(TrainingError, match=r"raw\.npy is corrupt; delete it"):
        extract_raw_field(TEXTS, teacher, out)
    out.with_suffix(".npy.json").write_text("{", "utf-8")
    with pytest.raises(TrainingError, match=r"raw\.npy\.json is corrupt"):
        extract_raw_field(TEXTS, teacher, out)


def test_hidden_states_too_large_for_float16(teacher: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def loud(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
        model = load_teacher(folder, dtype)
        next(p for n, p in model.named_parameters() if n.endswith("LayerNorm.bias")).fill_(1e5)
        return model

    monkeypatch.setattr(module, "load_teacher", loud)
    with pytest.raises(TrainingError, match="is too large for float16"):
        extract_raw_field(TEXTS, teacher, tmp_path / "raw.npy")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"layers": (5,)}, r"layers \[5\] are not within 0\.\.4"),
        ({"layers": ()}, "are not within"),
        ({"max_tokens": 129}, "takes at most 128 tokens; lower teacher.max_tokens"),
    ],
)
def test_settings_that_the_teacher_does_not_have(
    teacher: Path, tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(TrainingError, match=message):
        extract_raw_field(TEXTS, teacher, tmp_path / "raw.npy", **settings)
    assert list(tmp_path.iterdir()) == []


def test_missing_files_say_where_to_get_them(teacher: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    with pytest.raises(TrainingError, match=r"lacks config\.json, .*give a Hugging Face encoder folder"):
        teacher_hashes(folder)
    shutil.copytree(teacher, folder / "0_Transformer")
    (folder / "modules.json").write_text("[]", "utf-8")
    with pytest.raises(TrainingError, match="0_Transformer, the encoder inside it"):
        teacher_hashes(folder)
    folder = tmp_path / "pickled"
    folder.mkdir()
    shutil.copy(teacher / "config.json", folder)
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(TrainingError) as caught:
        teacher_hashes(folder)
    message = str(caught.value)
    assert f"AutoModel.from_pretrained('{folder}').save_pretrained('{folder}')" in message
    assert f"AutoTokenizer.from_pretrained('{folder}')" in message


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("config.json", b"{", "does not describe a supported encoder"),
        ("config.json", b'{"model_type": "nobody-knows"}', "does not describe a supported encoder"),
        ("model.safetensors", b"\x08\0\0\0", "cannot load the teacher"),
        ("tokenizer.json", b"{}", "is not a tokenizer"),
    ],
)
def test_files_that_cannot_be_used(teacher: Path, tmp_path: Path, name: str, content: bytes, message: str) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(teacher, folder)
    (folder / name).write_bytes(content)
    with pytest.raises(TrainingError, match=message) as caught:
        extract_raw_field(TEXTS, folder, tmp_path / "raw.npy")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_shape_of_other_encoders(tmp_path: Path) -> None:
    # DistilBERT calls them n_layers and dim
    config = {"model_type": "distilbert", "n_layers": 3, "dim": 48, "n_heads": 4, "max_position_embeddings": 77}
    (tmp_path / "config.json").write_text(json.dumps(config), "utf-8")
    assert teacher_shape(tmp_path) == (3, 48, 77)
