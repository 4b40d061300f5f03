"""Read a Hugging Face folder of the BERT family: sizes, weights, licence, hashes.

Nothing is unpickled, and no code of the folder is run. `settings` has what becomes of every setting.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from fieldrun.errors import CheckpointError
from fieldrun.formats.storage import sha256_file
from fieldrun.formats.tensors import Array, read_tensors

from .sentence import SENTENCE_FILES, Sentence
from .settings import check_settings, read_object
from .tokenization import TOKENIZER_FILES

__all__ = ["hashes_of", "read_licence", "read_settings", "read_weights", "source_hashes"]

_DEFAULTS: Mapping[str, Any] = {  # of transformers.BertConfig, which leaves out what equals them
    "model_type": None,
    "hidden_act": "gelu",
    "pad_token_id": 0,
    "layer_norm_eps": 1e-12,
}
_SIZES = {
    "vocab_size": "vocab_size",
    "hidden": "hidden_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
    "max_positions": "max_position_embeddings",
}
_LAYER = re.compile(r"encoder\.layer\.(\d+)\.(.+)\.(weight|bias)")
_MAPS = {
    "attention.self.query": "query",
    "attention.self.key": "key",
    "attention.self.value": "value",
    "attention.output.dense": "attention",
    "attention.output.LayerNorm": "attention_norm",
    "intermediate.dense": "up",
    "output.dense": "down",
    "output.LayerNorm": "output_norm",
}
_EMBEDDINGS = {
    "embeddings.word_embeddings.weight": "embeddings.word",
    "embeddings.position_embeddings.weight": "embeddings.position",
    "embeddings.LayerNorm.weight": "embeddings.norm.weight",
    "embeddings.LayerNorm.bias": "embeddings.norm.bias",
}
_TYPES = "embeddings.token_type_embeddings.weight"
_IGNORED = ("pooler.", "cls.", "embeddings.position_ids", "embeddings.token_type_ids")
_LICENCE = re.compile(r"^licen[sc]e:[ \t]*['\"]?([^'\"\s#]+)", re.MULTILINE)


def read_settings(folder: Path) -> dict[str, Any]:
    """Return the sizes and the epsilon of `config.json`, under the names of `EncoderConfig`.

    Raises:
        CheckpointError: the file is missing or corrupt, lacks a setting, or has one that is not BERT's.
    """
    config = {**_DEFAULTS, **read_object(folder / "config.json")}
    check_settings(folder, "config.json", config)
    settings: dict[str, Any] = {}
    for ours, name in _SIZES.items():
        value = config.get(name)
        if type(value) is not int or value < 1:
            raise CheckpointError(f"{folder}: config.json must have {name}, a positive integer, not {value!r}")
        settings[ours] = value
    if settings["hidden"] % settings["heads"]:
        raise CheckpointError(f"{folder}: config.json has a hidden_size that num_attention_heads does not divide")
    epsilon = config["layer_norm_eps"]
    if not isinstance(epsilon, int | float) or not 0 < epsilon < 1:
        raise CheckpointError(f"{folder}: config.json must have layer_norm_eps within 0..1, not {epsilon!r}")
    return settings | {"epsilon": float(epsilon)}


def read_weights(folder: Path, layers: int) -> dict[str, Array]:
    """Return the weights of `model.safetensors` or of all its shards, float32, under the names of `Encoder`.

    Linear weights are transposed to (inputs, outputs). A `bert.` prefix is removed; pooler and heads are left out.

    Raises:
        CheckpointError: a file is missing or corrupt, or a tensor is missing, unknown or not float.
    """
    stored: dict[str, Array] = {}
    for file in _weight_files(folder):
        try:
            stored |= read_tensors(file)
        except (ValueError, OSError) as error:
            raise CheckpointError(f"{folder}: {error}; download it again") from error
    stored = {name.removeprefix("bert."): tensor for name, tensor in stored.items()}
    tensors: dict[str, Array] = {}
    for name, tensor in stored.items():
        found = _LAYER.fullmatch(name)
        if name in _EMBEDDINGS:
            target, value = _EMBEDDINGS[name], tensor
        elif name == _TYPES:
            if tensor.ndim != 2 or not len(tensor):
                raise CheckpointError(f"{folder}: {name} has the shape {tensor.shape}, not a row for each type of text")
            target, value = "embeddings.type", tensor[:1].reshape(-1)  # a single text is all of type 0
        elif found is not None and found[2] in _MAPS:
            target = f"layer{int(found[1])}.{_MAPS[found[2]]}.{found[3]}"
            value = tensor.T if tensor.ndim == 2 else tensor
        elif name.startswith(_IGNORED):
            continue
        else:
            raise CheckpointError(
                f"{folder}: the weights have the tensor {name!r}, which a BERT encoder does not have; a head is not "
                "imported: save the encoder alone, and fit a head on its fields with 'fieldrun fit'"
            )
        if tensor.dtype.kind != "f":
            raise CheckpointError(f"{folder}: tensor {name!r} has dtype {tensor.dtype}, expected a float")
        tensors[target] = np.ascontiguousarray(value, np.float32)
    beyond = [n for n in tensors if n.startswith("layer") and int(n[5:].split(".")[0]) >= layers]
    if beyond:
        raise CheckpointError(f"{folder}: the weights have {beyond[0]!r}, config.json only {layers} layers")
    return tensors


def _weight_files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if (folder / "model.safetensors").is_file():
        return [folder / "model.safetensors"]
    if index.is_file():
        shards = read_object(index).get("weight_map")
        if not isinstance(shards, dict) or not shards or not all(isinstance(n, str) for n in shards.values()):
            raise CheckpointError(f"{index} has no weight_map; download it again")
        names = sorted(set(shards.values()))
        for name in names:
            if PurePosixPath(name).name != name or not (folder / name).is_file():
                raise CheckpointError(f"{folder} lacks the shard {name!r} that {index.name} lists; download it")
        return [folder / name for name in names]
    if any(folder.glob("*.bin")):
        raise CheckpointError(f"{folder} has its weights as a pickle, which can run code; convert them to safetensors")
    raise CheckpointError(f"{folder} has no model.safetensors; give a Hugging Face folder with one")


def read_licence(folder: Path) -> str:
    """Return the licence that the model card's metadata (`README.md`, YAML front matter) states, else `"unstated"`."""
    try:
        text = (folder / "README.md").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return "unstated"
    parts = text.split("---", 2)
    found = _LICENCE.search(parts[1]) if len(parts) == 3 and not parts[0].strip() else None
    return found[1] if found else "unstated"


def source_hashes(folder: Path, sentence: Sentence) -> dict[str, str]:
    """Return the sha256 of every file that an import reads, by its name."""
    names = {"config.json", "README.md", "model.safetensors.index.json", *SENTENCE_FILES, *TOKENIZER_FILES}
    return hashes_of(folder, names | {*sentence.files, *(path.name for path in _weight_files(folder))})


def hashes_of(folder: Path, names: Iterable[str], before: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return the sha256 of those files `names` that are in `folder`, by name.

    Raises:
        CheckpointError: they are not those of `before`, so that it is not known what was read in between.
    """
    found = {name: sha256_file(folder / name) for name in sorted(set(names)) if (folder / name).is_file()}
    if before is not None and found != before:
        raise CheckpointError(f"{folder} was changed while it was read; try again when it is complete")
    return found
