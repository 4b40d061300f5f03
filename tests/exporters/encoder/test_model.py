"""Reading encoders and their forward pass, against transformers, `math` and SciPy's definitions."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import save_file
from transformers import BertConfig, BertModel

from fieldrun.errors import CheckpointError, OutputExists
from fieldrun.formats.tensors import Array
from fieldrun_exporters.encoder import importing
from fieldrun_exporters.encoder.gelu import erf, gelu
from fieldrun_exporters.encoder.huggingface import read_weights
from fieldrun_exporters.encoder.importing import import_encoder, load_encoder
from fieldrun_exporters.encoder.model import Encoder, forward
from tests.tiny_bert import CONFIG, bert_weights, write_bert


def token_ids(rows: int = 5, length: int = 12, seed: int = 1) -> Array:
    """Rows of random tokens of different lengths, padded with 0."""
    rng = np.random.default_rng(seed)
    ids = rng.integers(1, CONFIG["vocab_size"], (rows, length))
    for row, used in enumerate(np.linspace(2, length, rows).astype(int)):
        ids[row, used:] = 0
    return ids


def peer_states(folder: Path, ids: Array) -> Array:
    """The last hidden states that transformers' BertModel gives, `(batch, length, hidden)`."""
    model = BertModel.from_pretrained(folder, add_pooling_layer=False, attn_implementation="eager").eval()
    with torch.inference_mode():
        tokens = torch.from_numpy(ids)
        states: Array = model(tokens, attention_mask=(tokens != 0).long()).last_hidden_state.numpy()
    return states


def mean_of(states: Array, ids: Array) -> Array:
    return np.stack([row[used != 0].mean(0) for row, used in zip(states, ids, strict=True)])


def test_erf_and_gelu_are_exact_to_a_ten_millionth() -> None:
    x = np.concatenate([np.linspace(-7, 7, 40_001), [0, 1e-30, -1e-8, 1e4, -1e4]]).astype(np.float32)
    assert np.abs(erf(x) - np.array([math.erf(v) for v in x])).max() < 1e-7
    assert erf(x).dtype == np.float32
    assert erf(x.reshape(2, -1)).shape == (2, len(x) // 2)
    want = torch.nn.functional.gelu(torch.from_numpy(x).double()).numpy()
    assert np.abs(gelu(x) - want).max() / 7 < 1e-7


def test_the_forward_pass_is_transformers_bert(bert_folder: Path) -> None:
    ids = token_ids()
    want = mean_of(peer_states(bert_folder, ids), ids)
    assert np.abs(forward(load_encoder(bert_folder), ids) - want).max() < 1e-5


def test_cls_pooling_and_normalising(bert_folder: Path) -> None:
    ids = token_ids()
    first = peer_states(bert_folder, ids)[:, 0]
    encoder = load_encoder(bert_folder, pooling="cls", normalize=True)
    assert np.abs(forward(encoder, ids) - first / np.linalg.norm(first, axis=1, keepdims=True)).max() < 1e-5


def test_padding_changes_nothing(bert_folder: Path) -> None:
    encoder, ids = load_encoder(bert_folder), token_ids()
    wide = np.pad(ids, ((0, 2), (0, 9)))
    assert np.abs(forward(encoder, wide)[: len(ids)] - forward(encoder, ids)).max() < 1e-6
    assert np.isfinite(forward(encoder, wide)).all()


def test_the_hook_sees_the_input_of_every_map(bert_folder: Path) -> None:
    encoder, ids = load_encoder(bert_folder), token_ids()
    seen: dict[str, Array] = {}
    forward(encoder, ids, hook=seen.__setitem__)
    tokens, heads = int((ids != 0).sum()), encoder.config.heads
    assert list(seen) == [
        f"layer{k}.{name}" for k in range(2) for name in ("query", "context", "attention", "up", "down")
    ]
    assert {x.shape[0] for x in seen.values()} == {tokens}
    # the value-side input P and the input of the attention map are one through the value map, whose bias softmax keeps
    weight, bias = encoder.tensors["layer1.value.weight"], encoder.tensors["layer1.value.bias"]
    by_head = seen["layer1.context"].reshape(tokens, heads, -1)
    parts = [by_head[:, h] @ weight.reshape(len(weight), heads, -1)[:, h] for h in range(heads)]
    assert np.abs(np.concatenate(parts, 1) + bias - seen["layer1.attention"]).max() < 1e-5
    states = peer_states(bert_folder, ids)[ids != 0]
    down = seen["layer1.down"] @ encoder.tensors["layer1.down.weight"] + encoder.tensors["layer1.down.bias"]
    x = down + seen["layer1.up"]
    x = (x - x.mean(1, keepdims=True)) / x.std(1, keepdims=True)
    last = x * encoder.tensors["layer1.output_norm.weight"] + encoder.tensors["layer1.output_norm.bias"]
    assert np.abs(last - states).max() < 1e-5


def test_too_many_tokens_for_the_positions(bert_folder: Path) -> None:
    with pytest.raises(ValueError, match="40 positions"):
        forward(load_encoder(bert_folder), np.ones((1, 41), int))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_weights_are_read(tmp_path: Path, dtype: str) -> None:
    from safetensors.torch import save_file as save_torch

    folder = write_bert(tmp_path / "half")
    stored = {n: torch.from_numpy(t).to(getattr(torch, dtype)) for n, t in bert_weights().items()}
    save_torch(stored, folder / "model.safetensors")
    encoder = load_encoder(folder)
    assert encoder.tensors["embeddings.word"].dtype == np.float32
    name = "encoder.layer.1.intermediate.dense.weight"
    assert np.array_equal(encoder.tensors["layer1.up.weight"], stored[name].float().numpy().T)


@pytest.mark.parametrize("shape", [(), (16,), (0, 16)])
def test_types_of_text_of_another_shape_are_refused(tmp_path: Path, shape: tuple[int, ...]) -> None:
    weights = bert_weights() | {"embeddings.token_type_embeddings.weight": np.zeros(shape, np.float32)}
    with pytest.raises(CheckpointError, match=r"token_type_embeddings.weight has the shape .*, not a row for each"):
        load_encoder(write_bert(tmp_path / "odd", weights))


def test_a_prefix_a_pooler_and_heads_are_left_out(tmp_path: Path, bert_folder: Path) -> None:
    weights = {f"bert.{name}": tensor for name, tensor in bert_weights().items()}
    weights["bert.pooler.dense.weight"] = weights["cls.predictions.bias"] = np.zeros((2, 2), np.float32)
    weights["bert.embeddings.position_ids"] = np.arange(40)[None]
    encoder, plain = load_encoder(write_bert(tmp_path / "prefixed", weights)), load_encoder(bert_folder)
    assert _equal(encoder, plain)


def test_shards_are_read_together(tmp_path: Path, bert_folder: Path) -> None:
    folder, weights = write_bert(tmp_path / "sharded"), bert_weights()
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for shard, members in shards.items():
        save_file({name: weights[name] for name in members}, folder / shard)
    where = {name: shard for shard, members in shards.items() for name in members}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": where}))
    assert _equal(load_encoder(folder), load_encoder(bert_folder))
    (folder / "b.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"lacks the shard 'b\.safetensors'"):
        load_encoder(folder)


def _equal(a: Encoder, b: Encoder) -> bool:
    return set(a.tensors) == set(b.tensors) and all(np.array_equal(a.tensors[n], b.tensors[n]) for n in a.tensors)


def write_modules(folder: Path, pooling: dict[str, Any] | None, kinds: tuple[str, ...]) -> None:
    modules = [
        {"idx": i, "path": f"{i}_{k}" if i else "", "type": f"sentence_transformers.models.{k}"}
        for i, k in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(modules))
    if pooling is not None:
        (folder / "1_Pooling").mkdir(exist_ok=True)
        (folder / "1_Pooling" / "config.json").write_text(json.dumps(pooling))


def test_sentence_transformers_modules_say_how_to_pool(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "st")
    write_modules(
        folder,
        {"word_embedding_dimension": 32, "pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False},
        ("Transformer", "Pooling", "Normalize"),
    )
    config = load_encoder(folder).config
    assert (config.pooling, config.normalize) == ("cls", True)
    assert load_encoder(folder, pooling="mean", normalize=False).config.pooling == "mean"
    write_modules(folder, {"pooling_mode_max_tokens": True}, ("Transformer", "Pooling"))
    with pytest.raises(CheckpointError, match="pools by max_tokens"):
        load_encoder(folder)
    write_modules(folder, None, ("Transformer", "Pooling", "Dense"))
    with pytest.raises(CheckpointError, match=r"modules\.json has Transformer, Pooling, Dense"):
        load_encoder(folder)


def test_the_licence_and_the_hashes_of_the_source(tmp_path: Path) -> None:
    folder = write_bert(tmp_path / "licensed")
    assert load_encoder(folder).licence == "unstated"
    (folder / "README.md").write_text("---\nlanguage: en\nlicense: mit\n---\n# A model\nlicense: other\n")
    encoder = load_encoder(folder)
    assert encoder.licence == "mit"
    assert sorted(encoder.provenance["source"]["sha256"]) == [
        "README.md",
        "config.json",
        "model.safetensors",
        "tokenizer.json",
    ]


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_source_that_changes_while_it_is_read_is_refused(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_bert(tmp_path / "copied")

    def read(*arguments: Any) -> Any:
        found = read_weights(*arguments)
        (folder / name).write_bytes((folder / name).read_bytes() + b" ")
        return found

    monkeypatch.setattr(importing, "read_weights", read)
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        load_encoder(folder)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberta"}, "model_type 'roberta'"),
        ({"hidden_act": "gelu_new"}, "hidden_act 'gelu_new'"),
        ({"position_embedding_type": "relative_key"}, "position_embedding_type 'relative_key'"),
        ({"is_decoder": True}, "is_decoder True"),
        ({"pad_token_id": 1}, "pad_token_id 1"),
        ({"hidden_size": "32"}, "hidden_size, a positive integer"),
        ({"num_attention_heads": None}, "num_attention_heads, a positive integer"),
        ({"num_attention_heads": 5}, "num_attention_heads does not divide"),
        ({"layer_norm_eps": 0}, "layer_norm_eps"),
        ({"auto_map": {}}, "auto_map"),
        ({"num_hidden_layers": 1}, "only 1 layers"),
        ({"num_hidden_layers": 3}, "inner size of 0|lacks the tensor"),
        ({"vocab_size": 5}, "expected"),
    ],
)
def test_what_is_not_bert_is_refused_by_name(tmp_path: Path, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_encoder(write_bert(tmp_path / "wrong", **changes))


def test_damaged_folders(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="no folder"):
        load_encoder(tmp_path / "nowhere")
    folder = write_bert(tmp_path / "damaged")
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json"):
        load_encoder(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="not a tokenizer"):
        load_encoder(folder)
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(CheckpointError, match="pickle"):
        load_encoder(folder)
    weights = bert_weights()
    weights["encoder.layer.0.attention.self.distance_embedding.weight"] = weights["embeddings.LayerNorm.bias"]
    with pytest.raises(CheckpointError, match="distance_embedding"):
        load_encoder(write_bert(folder, weights))
    weights = bert_weights()
    weights["embeddings.LayerNorm.bias"][3] = np.nan
    with pytest.raises(CheckpointError, match="NaN"):
        load_encoder(write_bert(folder, weights))
    del weights["embeddings.LayerNorm.bias"]
    with pytest.raises(CheckpointError, match=r"embeddings\.norm\.bias"):
        load_encoder(write_bert(folder, weights))


def test_transformers_reads_the_fixture_as_this_does(bert_folder: Path) -> None:
    config = BertConfig.from_pretrained(bert_folder)
    assert config.num_attention_heads == load_encoder(bert_folder).config.heads


def test_an_import_is_a_checkpoint_and_a_report(bert_folder: Path, tmp_path: Path) -> None:
    report = import_encoder(bert_folder, tmp_path / "c", pooling="cls", normalize=True)
    encoder = Encoder.load(tmp_path / "c")
    assert report.path == tmp_path / "c"
    assert (report.layers, report.field_dim, report.max_tokens) == (2, 32, 40)
    assert (report.pooling, report.normalize, report.licence) == ("cls", True, encoder.licence)
    assert report.parameters == encoder.parameters()
    assert json.loads(json.dumps(report.to_dict()))["path"] == str(tmp_path / "c")
    with pytest.raises(OutputExists):
        import_encoder(bert_folder, tmp_path / "c")
