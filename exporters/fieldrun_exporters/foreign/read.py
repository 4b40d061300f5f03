"""Read a folder with a foreign `model.onnx` and its `tokenizer.json`, and refuse what cannot become a bundle.

The graph takes token ids `(batch, length)`, perhaps with `attention_mask` and `token_type_ids`. It gives a field
`(batch, dim)`, or token states `(batch, length, dim)`, which are pooled as `1_Pooling/config.json` says, else by their
mean over the tokens without padding.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import onnx
from onnx import TensorProto, inliner

from fieldrun.errors import CheckpointError, ExportError
from fieldrun.formats.storage import is_folder, read_json, sha256_bytes

from ..calibrate import largest_id, open_tokenizer
from ..encoder.huggingface import hashes_of, read_licence
from ..encoder.sentence import SENTENCE_FILES, Sentence, read_sentence
from ..encoder.tokenization import TOKENIZER_FILES, read_tokenizer, with_sentence
from ..parity import one_line

__all__ = ["ForeignModel", "Input", "read_foreign"]

_ROLES = {"attention_mask": "mask", "input_mask": "mask", "token_type_ids": "types", "segment_ids": "types"}
_OUTPUTS = ("field", "sentence_embedding", "last_hidden_state", "token_embeddings")
_INTEGERS = (TensorProto.INT32, TensorProto.INT64)
_CONTROL = ("If", "Loop", "Scan")
_OPSET = 13  # the first whose DequantizeLinear takes a scale per channel


@dataclass(frozen=True, slots=True, kw_only=True)
class Input:
    """One input of the graph: its name, its element type (of `onnx.TensorProto`) and its role: ids, mask or types."""

    name: str
    dtype: int
    role: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class ForeignModel:
    """A foreign graph and what an export needs to know about it.

    `batch` and `length` are None if they are free. `max_tokens` is where the original cuts a text, None if it does not
    say.
    """

    name: str
    path: Path
    model: onnx.ModelProto
    inputs: tuple[Input, ...]
    batch: int | None
    length: int | None
    output: str
    pooling: str
    normalize: bool
    tokenizer: bytes
    vocab_size: int
    pad_id: int
    max_tokens: int | None
    licence: str
    provenance: Mapping[str, Any]

    def parameters(self) -> int:
        """Return how many float weights the graph has."""
        kinds = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)
        return max(1, sum(int(math.prod(t.dims)) for t in self.model.graph.initializer if t.data_type in kinds))


def read_foreign(folder: Path) -> ForeignModel:
    """Read and check `folder`.

    Raises:
        CheckpointError: a file is missing or corrupt, or the tokenizer has ids beyond the graph's table.
        ExportError: a graph that cannot be exported; names the reason and what to do.
    """
    if not is_folder(folder):
        raise CheckpointError(f"no folder {folder}; give one with model.onnx and tokenizer.json")
    path = folder / "model.onnx"
    try:
        data = path.read_bytes()
        model = onnx.load_model_from_string(data)
        others = ["config.json", *TOKENIZER_FILES, *SENTENCE_FILES, *_external_files(folder, model)]
        hashes = {"model.onnx": sha256_bytes(data)} | hashes_of(folder, others)
        onnx.load_external_data_for_model(model, str(folder))
        if model.functions:
            model = inliner.inline_local_functions(model)
    except (CheckpointError, ExportError):
        raise
    except Exception as error:  # protobuf and onnx raise many kinds; all mean the same here
        raise CheckpointError(f"{path} cannot be read as ONNX: {one_line(error)}; export it again") from error
    _check_nodes(model)
    inputs, batch, length = _inputs(model)
    sentence = read_sentence(folder)
    hashes |= hashes_of(folder, sentence.files)
    tokenizer, vocab_size, pad_id = _tokenizer(folder, sentence)
    rows = _table_rows(model, next(each.name for each in inputs if each.role == "ids"))
    if rows is not None and rows < vocab_size:
        raise CheckpointError(
            f"{folder}: tokenizer.json has token id {vocab_size - 1}, the graph's table only {rows} rows; "
            "give the tokenizer that the model was trained with"
        )
    hashes_of(folder, hashes, hashes)
    return ForeignModel(
        name=folder.resolve().name,
        path=path,
        model=model,
        inputs=inputs,
        batch=batch,
        length=length,
        output=_output(model),
        pooling=sentence.pooling,
        normalize=sentence.normalize,
        tokenizer=tokenizer,
        vocab_size=max(vocab_size, rows or 0),
        pad_id=pad_id,
        max_tokens=sentence.max_tokens,
        licence=read_licence(folder),
        provenance={"source": {"name": folder.resolve().name, "sha256": hashes}},
    )


def _external_files(folder: Path, model: onnx.ModelProto) -> list[str]:
    names: dict[str, None] = {}
    for tensor in model.graph.initializer:
        if tensor.data_location != TensorProto.EXTERNAL:
            continue
        location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
        pure = PurePosixPath(location)
        inside = (folder / location).resolve().is_relative_to(folder.resolve()) if location else False
        if not location or pure.is_absolute() or ".." in pure.parts or not inside:
            raise ExportError(
                f"{folder}: tensor {tensor.name!r} has its data in {location!r}, outside the folder; "
                "save the model with its data beside it"
            )
        if not (folder / location).is_file():
            raise CheckpointError(f"{folder} lacks {location}, the data of model.onnx; copy it too")
        names[location] = None
    return list(names)


def _check_nodes(model: onnx.ModelProto) -> None:
    opset = max((each.version for each in model.opset_import if each.domain in ("", "ai.onnx")), default=0)
    if opset < _OPSET:
        raise ExportError(f"model.onnx is of opset {opset}; export it with opset {_OPSET} or later")
    for node in model.graph.node:
        if node.domain not in ("", "ai.onnx"):
            raise ExportError(
                f"model.onnx has the operator {node.domain}.{node.op_type}, which is not a standard operator; "
                "export the model before it is optimised or quantized"
            )
        if node.op_type in _CONTROL:
            raise ExportError(
                f"model.onnx has the operator {node.op_type}, control flow that depends on data; export without it"
            )
        if node.op_type == "DynamicQuantizeLinear":
            raise ExportError(
                "model.onnx is quantized dynamically, so a text's field depends on the other texts of its batch; "
                "give the float model"
            )


def _inputs(model: onnx.ModelProto) -> tuple[tuple[Input, ...], int | None, int | None]:
    weights = {tensor.name for tensor in model.graph.initializer}
    found: list[Input] = []
    shape: list[int | None] = [None, None]
    for value in model.graph.input:
        if value.name in weights:
            continue
        kind = value.type.tensor_type
        role = _ROLES.get(value.name)
        if role is None and (kind.elem_type not in _INTEGERS or any(each.role == "ids" for each in found)):
            known = ", ".join(_ROLES)
            names = ", ".join(each.name for each in model.graph.input if each.name not in weights)
            raise ExportError(
                f"model.onnx has the inputs {names}; only integer token ids and {known} are known: "
                f"{value.name!r} is neither"
            )
        if kind.HasField("shape"):
            if len(kind.shape.dim) != 2:
                raise ExportError(
                    f"model.onnx has the input {value.name!r} of rank {len(kind.shape.dim)}; it must be (batch, length)"
                )
            for axis, dim in enumerate(kind.shape.dim):
                shape[axis] = dim.dim_value or shape[axis]
        found.append(Input(name=value.name, dtype=kind.elem_type, role=role or "ids"))
    if not any(each.role == "ids" for each in found):
        names = ", ".join(each.name for each in found) or "none"
        raise ExportError(f"model.onnx has no integer input for token ids; its inputs: {names}")
    return tuple(found), shape[0], shape[1]


def _output(model: onnx.ModelProto) -> str:
    names = [value.name for value in model.graph.output]
    chosen = names[0] if len(names) == 1 else next((name for name in _OUTPUTS if name in names), None)
    if chosen is None:
        raise ExportError(
            f"model.onnx has the outputs {', '.join(names)}; name the field 'field' or 'sentence_embedding', or the "
            "token states 'last_hidden_state'"
        )
    return chosen


def _table_rows(model: onnx.ModelProto, ids: str) -> int | None:
    """Return the number of rows of the table that the token ids index, None if it cannot be told."""
    shapes = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    same = {ids}
    rows = []
    for node in model.graph.node:
        if node.op_type in ("Cast", "Identity") and node.input[0] in same:
            same.add(node.output[0])
        if node.op_type == "Gather" and node.input[1] in same and len(shapes.get(node.input[0], ())) == 2:
            rows.append(shapes[node.input[0]][0])
    return min(rows, default=None)


def _tokenizer(folder: Path, sentence: Sentence) -> tuple[bytes, int, int]:
    """Return a `tokenizer.json` that does what the folder's files say, the size of its vocabulary, and the padding id.

    The padding id is 0 if it is not stated and token 0 is a pad.
    """
    try:
        stored = (folder / "tokenizer.json").read_bytes()
        config = read_json(folder / "config.json") if (folder / "config.json").is_file() else {}
        stated, is_bert = config.get("pad_token_id"), config.get("model_type") == "bert"
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} has no tokenizer.json; copy the model's tokenizer beside model.onnx"
        ) from error
    except (OSError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder}: tokenizer.json or config.json cannot be read ({one_line(error)})") from error
    stored = read_tokenizer(folder, sentence) if is_bert else with_sentence(folder, stored, sentence)
    size, tokenizer = 1 + largest_id(stored), open_tokenizer(stored)
    pad_id = tokenizer.padding["pad_id"] if tokenizer.padding else stated
    if pad_id is None:
        first = str(tokenizer.id_to_token(0))
        if "pad" not in first.lower():
            raise CheckpointError(
                f"{folder} does not say how to pad, and token 0 is {first!r}; enable padding in tokenizer.json, or set "
                "pad_token_id in config.json"
            )
        pad_id = 0
    if type(pad_id) is not int or not 0 <= pad_id < size:
        raise CheckpointError(f"{folder}: the padding id {pad_id!r} is not in the vocabulary of {size}")
    return stored, size, pad_id
