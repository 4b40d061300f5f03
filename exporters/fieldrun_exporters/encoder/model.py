"""An encoder: its shape, its tensors, its files, and its forward pass in NumPy, which graphs are compared with.

With `x (tokens, hidden)` the sum of a token's word, position and type embedding after layer norm, every layer is

    q, k, v = x Q + q, x K + k, x V + v          a = softmax(scale q k' , padding left out) v        per head
    y = norm(a O + o + x)                        x' = norm(gelu(y U + u) D + d + y)

as in BERT (Devlin et al. 2018). The inner sizes d_qk, d_vo and d_ff are read from the tensors: they may differ from
layer to layer, and `scale` stays that of the original head size whatever d_qk becomes. The field is the mean over the
tokens without padding, or the first token's state; it is divided by its length if `normalize` is set.

| Tensor | Shape |
|---|---|
| `embeddings.word`, `embeddings.position`, `embeddings.type` | `(vocab, hidden)`, `(positions, hidden)`, `(hidden,)` |
| `layer<k>.query.weight`, `layer<k>.key.weight` | `(hidden, heads * d_qk)` |
| `layer<k>.value.weight`, `layer<k>.attention.weight` | `(hidden, heads * d_vo)`, `(heads * d_vo, hidden)` |
| `layer<k>.up.weight`, `layer<k>.down.weight` | `(hidden, d_ff)`, `(d_ff, hidden)` |
| `<map>.bias` | `(outputs,)` |
| `embeddings.norm`, `layer<k>.attention_norm`, `layer<k>.output_norm`: `.weight`, `.bias` | `(hidden,)` |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fieldrun.errors import CheckpointError, SchemaTooNew
from fieldrun.formats.integrity import FileEntry, entry_of, from_mapping, read_files, read_schema
from fieldrun.formats.storage import is_folder, new_folder, write_bytes, write_json
from fieldrun.formats.tensors import Array, check_tensors, tensors_in, write_tensors

from ..calibrate import largest_id
from .gelu import gelu

__all__ = ["ENCODER_FILE", "MAPS", "Encoder", "EncoderConfig", "forward"]

ENCODER_FILE = "encoder.json"
"""The file that marks an encoder checkpoint; `encoder.safetensors` and `tokenizer.json` are beside it."""

MAPS = ("query", "key", "value", "attention", "up", "down")
"""The dense maps of a layer, each with a weight and a bias."""

_SCHEMA = 1
_KEYS = {"schema", "encoder", "licence", "provenance", "files"}
_POOLINGS = ("mean", "cls")
_MASKED = np.float32(-1e30)  # finite, so that a row of padding does not become NaN


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderConfig:
    """The shape of an encoder; `scale` is 1 / sqrt(the original head size), `epsilon` that of every layer norm."""

    name: str
    vocab_size: int
    hidden: int
    layers: int
    heads: int
    max_positions: int
    pooling: str = "mean"
    normalize: bool = False
    epsilon: float = 1e-12
    scale: float

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise CheckpointError(f"encoder.name must be a string, not {self.name!r}")
        for name in ("vocab_size", "hidden", "layers", "heads", "max_positions"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise CheckpointError(f"encoder.{name} must be a positive integer, not {value!r}")
        if self.pooling not in _POOLINGS:
            raise CheckpointError(f"encoder.pooling must be one of {', '.join(_POOLINGS)}, not {self.pooling!r}")
        if not isinstance(self.normalize, bool):
            raise CheckpointError(f"encoder.normalize must be true or false, not {self.normalize!r}")
        for name in ("epsilon", "scale"):
            value = getattr(self, name)
            if not isinstance(value, int | float) or not 0 < value < 10:
                raise CheckpointError(f"encoder.{name} must be within 0..10, not {value!r}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Encoder:
    """An encoder: shape, float32 tensors (table above) and the bytes of its `tokenizer.json`. Padding is token id 0."""

    config: EncoderConfig
    tensors: Mapping[str, Array]
    tokenizer: bytes
    licence: str = "unstated"
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def inner_sizes(self, layer: int) -> tuple[int, int, int]:
        """Return d_qk and d_vo, both per head, and d_ff of `layer`."""
        heads = self.config.heads
        names = (f"layer{layer}.query.weight", f"layer{layer}.value.weight", f"layer{layer}.up.weight")
        qk, vo, ff = (self.tensors[name].shape[-1] if name in self.tensors else 0 for name in names)
        return qk // heads, vo // heads, ff

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every tensor that this encoder must have, by its inner sizes."""
        c = self.config
        shapes: dict[str, tuple[int, ...]] = {
            "embeddings.word": (c.vocab_size, c.hidden),
            "embeddings.position": (c.max_positions, c.hidden),
            "embeddings.type": (c.hidden,),
            "embeddings.norm.weight": (c.hidden,),
            "embeddings.norm.bias": (c.hidden,),
        }
        for k in range(c.layers):
            qk, vo, ff = self.inner_sizes(k)
            sizes = {
                "query": (c.hidden, c.heads * qk),
                "key": (c.hidden, c.heads * qk),
                "value": (c.hidden, c.heads * vo),
                "attention": (c.heads * vo, c.hidden),
                "up": (c.hidden, ff),
                "down": (ff, c.hidden),
            }
            for name, size in sizes.items():
                shapes |= {f"layer{k}.{name}.weight": size, f"layer{k}.{name}.bias": size[1:]}
            for name in ("attention_norm", "output_norm"):
                shapes |= {f"layer{k}.{name}.weight": (c.hidden,), f"layer{k}.{name}.bias": (c.hidden,)}
        return shapes

    def validate(self) -> None:
        """Check every shape and value, and the tokenizer's ids; `CheckpointError` names the first that is wrong."""
        check_tensors(self.tensors, self.shapes(), "encoder")
        for k in range(self.config.layers):
            if not all(self.inner_sizes(k)):
                raise CheckpointError(f"encoder: layer {k} has an inner size of 0")
        largest = largest_id(self.tokenizer)
        if largest >= self.config.vocab_size:
            raise CheckpointError(
                f"tokenizer.json has token id {largest}, the encoder only {self.config.vocab_size} rows"
            )

    def parameters(self) -> int:
        """Return the number of all parameters."""
        return sum(tensor.size for tensor in self.tensors.values())

    @classmethod
    def load(cls, path: str | Path) -> Encoder:
        """Read and check the encoder checkpoint in the folder `path`, as `save` writes it.

        Raises:
            CheckpointError: a file is missing or corrupt, its hash does not match, or a tensor is wrong.
            SchemaTooNew: it was written by a newer fieldrun.
        """
        folder = Path(path)
        if not is_folder(folder):
            raise CheckpointError(f"no encoder checkpoint at {folder}: give a folder made by 'fieldrun import-encoder'")
        try:
            about = read_schema(folder / ENCODER_FILE, _SCHEMA, _KEYS, CheckpointError)
            if not isinstance(about["files"], dict) or not isinstance(about["provenance"], dict):
                raise CheckpointError(f"{ENCODER_FILE}: files and provenance must be objects")
            files = {n: FileEntry.from_dict(n, e, CheckpointError) for n, e in about["files"].items()}
            if set(files) != {"encoder.safetensors", "tokenizer.json"}:
                raise CheckpointError(
                    f"{ENCODER_FILE} must list encoder.safetensors and tokenizer.json, not {sorted(files)}"
                )
            config = from_mapping(EncoderConfig, about["encoder"], f"{ENCODER_FILE}: encoder")
            read = read_files(folder, files, CheckpointError)
            stored = tensors_in(read["encoder.safetensors"], "encoder.safetensors")
            encoder = cls(
                config=config,
                tensors={name: tensor.astype(np.float32) for name, tensor in stored.items()},
                tokenizer=bytes(read["tokenizer.json"]),
                licence=str(about["licence"]),
                provenance=about["provenance"],
            )
            encoder.validate()
        except SchemaTooNew:
            raise
        except (ValueError, OSError) as error:
            raise CheckpointError(f"encoder checkpoint {folder}: {error}; restore it or import it again") from error
        return encoder

    def save(self, path: str | Path) -> None:
        """Write the encoder checkpoint to the new folder `path`, whole or not at all.

        A tensor is stored as float16 if that loses nothing, as after an import of float16 weights.

        Raises:
            CheckpointError: it is not valid.
            OutputExists, StorageError: `path` is taken or cannot be written.
        """
        self.validate()
        with np.errstate(over="ignore"):
            halves = {name: tensor.astype(np.float16) for name, tensor in self.tensors.items()}
        stored = {n: halves[n] if np.array_equal(halves[n], tensor) else tensor for n, tensor in self.tensors.items()}
        with new_folder(Path(path)) as folder:
            write_bytes(folder / "encoder.safetensors", write_tensors(stored))
            write_bytes(folder / "tokenizer.json", self.tokenizer)
            files = {name: entry_of(folder / name).to_dict() for name in ("encoder.safetensors", "tokenizer.json")}
            about: dict[str, Any] = {"schema": _SCHEMA, "encoder": asdict(self.config), "licence": self.licence}
            write_json(folder / ENCODER_FILE, about | {"provenance": dict(self.provenance), "files": files})


def forward(encoder: Encoder, ids: Array, hook: Callable[[str, Array], None] | None = None) -> Array:
    """Return the fields `(batch, hidden) float32` of `ids (batch, length) int`, padded with id 0 at the end.

    `hook(name, x)` is called with the float32 input of every dense map without padding, `(tokens, features)`:
    `layer<k>.query` (also that of key and value), `layer<k>.attention`, `layer<k>.up`, `layer<k>.down`; and before
    `layer<k>.attention` with `layer<k>.context`, `(tokens, heads * hidden)`: per head softmax(.) x, the input of the
    product of value and output map (`reshape(-1, heads, hidden)`).

    Raises:
        ValueError: `ids` is longer than the encoder's positions.
    """
    config, tensors = encoder.config, encoder.tensors
    ids = np.asarray(ids)
    batch, length = ids.shape
    if length > config.max_positions:
        raise ValueError(f"{length} tokens; the encoder has {config.max_positions} positions")
    mask = ids != 0
    blocked = np.where(mask, np.float32(0), _MASKED)[:, None, None, :]

    def dense(name: str, x: Array) -> Array:
        y: Array = x @ tensors[f"{name}.weight"] + tensors[f"{name}.bias"]
        return y

    def norm(name: str, x: Array) -> Array:
        centred = x - x.mean(-1, keepdims=True)
        deviation = np.sqrt(np.square(centred).mean(-1, keepdims=True) + np.float32(config.epsilon))
        y: Array = centred / deviation * tensors[f"{name}.weight"] + tensors[f"{name}.bias"]
        return y

    def split(x: Array) -> Array:
        return x.reshape(batch, length, config.heads, -1).transpose(0, 2, 1, 3)

    def see(name: str, x: Array) -> None:
        if hook is not None:
            hook(name, x[mask])

    x = tensors["embeddings.word"][ids] + (tensors["embeddings.position"][:length] + tensors["embeddings.type"])
    x = norm("embeddings.norm", x)
    for k in range(config.layers):
        layer = f"layer{k}"
        see(f"{layer}.query", x)
        q, key, value = (split(dense(f"{layer}.{name}", x)) for name in ("query", "key", "value"))
        scores = q @ key.swapaxes(-1, -2) * np.float32(config.scale) + blocked
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        if hook is not None:
            see(f"{layer}.context", (weights @ x[:, None]).transpose(0, 2, 1, 3).reshape(batch, length, -1))
        context = (weights @ value).transpose(0, 2, 1, 3).reshape(batch, length, -1)
        see(f"{layer}.attention", context)
        x = norm(f"{layer}.attention_norm", dense(f"{layer}.attention", context) + x)
        see(f"{layer}.up", x)
        inner = gelu(dense(f"{layer}.up", x))
        see(f"{layer}.down", inner)
        x = norm(f"{layer}.output_norm", dense(f"{layer}.down", inner) + x)
    if config.pooling == "cls":
        field = x[:, 0]
    else:
        field = (x * mask[:, :, None]).sum(1) / np.maximum(mask.sum(1, keepdims=True), 1).astype(np.float32)
    if config.normalize:
        field = field / np.maximum(np.linalg.norm(field, axis=1, keepdims=True), np.float32(1e-12))
    return np.ascontiguousarray(field, np.float32)
