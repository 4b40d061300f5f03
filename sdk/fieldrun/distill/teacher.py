"""Extract the raw field of a frozen Hugging Face encoder.

The raw field of a text is the concatenation, over the chosen layers, of the mean of that layer's hidden states over
the non-padding tokens (as in AN1 by Anima Core). It is written row by row into a memory-mapped `.npy` file, so that
an interrupted extraction can be resumed.
"""

from __future__ import annotations

import hashlib
import os
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from fieldrun.errors import TrainingError
from fieldrun.formats.storage import sha256_file, write_json
from fieldrun.student.windows import pad_ids

from .state import load_json, reason

__all__ = [
    "TeacherReader",
    "default_layers",
    "extract_raw_field",
    "load_teacher",
    "load_tokenizer",
    "teacher_hashes",
    "teacher_shape",
    "texts_digest",
    "token_vectors",
    "tokenize",
]

_MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")
_TEXTS_PER_CALL = 4096
_ROWS_PER_SYNC = 4096


def teacher_hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of the teacher's config, weights and tokenizer; `TrainingError` if one is missing."""
    missing = [name for name in _MODEL_FILES if not (folder / name).is_file()]
    if missing:
        raise TrainingError(f"the teacher folder {folder} lacks {', '.join(missing)}; {_next_step(folder, missing)}")
    return {name: sha256_file(folder / name) for name in _MODEL_FILES}


def _next_step(folder: Path, missing: Sequence[str]) -> str:
    """Say how to make the missing files."""
    inner = folder / "0_Transformer"
    if all((inner / name).is_file() for name in _MODEL_FILES):
        return f"give {inner}, the encoder inside it"
    made_by = {"model.safetensors": "AutoModel", "tokenizer.json": "AutoTokenizer"}
    if (folder / "config.json").is_file() and any((folder / n).is_file() for n in ("pytorch_model.bin", "vocab.txt")):
        steps = [f"{made_by[n]}.from_pretrained('{folder}').save_pretrained('{folder}')" for n in missing]
        return f"write it with transformers: {'; '.join(steps)}"
    return f"give a Hugging Face encoder folder with {', '.join(_MODEL_FILES)}"


def teacher_shape(folder: Path) -> tuple[int, int, int]:
    """Return the number of hidden layers, the hidden size and the largest number of tokens of the encoder in `folder`.

    Raises:
        TrainingError: the installed transformers does not know the encoder that `config.json` describes.
    """
    from transformers import AutoConfig

    try:
        config: Any = AutoConfig.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        tokens = getattr(config, "max_position_embeddings", None)
        return int(config.num_hidden_layers), int(config.hidden_size), int(tokens or 1 << 20)
    except Exception as error:  # transformers raises many kinds; all mean the same to the caller
        raise TrainingError(
            f"{folder / 'config.json'} does not describe a supported encoder: {reason(error)}; use a BERT-like one"
        ) from error


def default_layers(hidden_layers: int, count: int) -> tuple[int, ...]:
    """Return `count` layers spread evenly from the embeddings (0) to the last layer, as hidden-state indices.

    One layer is the last.
    """
    if count == 1:
        return (hidden_layers,)
    return tuple(dict.fromkeys(int(i) for i in np.linspace(0, hidden_layers, count).round()))


def load_teacher(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """Load the frozen encoder of `folder` in `dtype`, on the GPU if there is one, else on the CPU.

    Nothing is downloaded, unpickled or executed from the folder. Raises `TrainingError` if it cannot be loaded.
    """
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model: Any = AutoModel.from_pretrained(
            str(folder), local_files_only=True, trust_remote_code=False, use_safetensors=True, dtype=dtype
        )
    except Exception as error:  # transformers raises many kinds; all mean the same to the caller
        raise TrainingError(f"cannot load the teacher in {folder}: {reason(error)}; restore its files") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher: torch.nn.Module = model.to(device).eval().requires_grad_(False)
    return teacher


def load_tokenizer(folder: Path) -> Tokenizer:
    """Load `tokenizer.json` of `folder` without padding and truncation; `TrainingError` if it is not one."""
    try:
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    except Exception as error:  # tokenizers raises plain Exception
        raise TrainingError(f"{folder / 'tokenizer.json'} is not a tokenizer: {reason(error)}; restore it") from error
    tokenizer.no_padding()
    tokenizer.no_truncation()
    return tokenizer


def tokenize(tokenizer: Tokenizer, texts: Sequence[str]) -> list[array[int]]:
    """Return the token ids of every text as 32-bit integers; some thousand texts at a time, to save memory."""
    ids: list[array[int]] = []
    for start in range(0, len(texts), _TEXTS_PER_CALL):
        encodings = tokenizer.encode_batch_fast(list(texts[start : start + _TEXTS_PER_CALL]))
        ids += [array("i", encoding.ids) for encoding in encodings]
    return ids


def token_vectors(folder: Path, vocab_size: int) -> npt.NDArray[np.float32]:
    """Return the teacher's vector of every single token, `(vocab_size, hidden) float32`.

    It is the mean of the last layer over [CLS], the token and [SEP], as static embeddings are distilled (model2vec,
    MinishLab 2024), and says more about a token's meaning than the teacher's input embedding. Tokens without an input
    embedding are zero.
    """
    frame = load_tokenizer(folder).encode("").ids
    teacher: Any = load_teacher(folder, torch.float32)
    device, known = next(teacher.parameters()).device, teacher.get_input_embeddings().num_embeddings
    out = np.zeros((vocab_size, teacher_shape(folder)[1]), np.float32)
    for start in range(0, min(vocab_size, known), 512):
        tokens = torch.arange(start, min(start + 512, vocab_size, known))[:, None]
        parts = [torch.full_like(tokens, frame[0]), tokens, torch.full_like(tokens, frame[-1])]
        ids = torch.cat(parts, dim=1).to(device)
        with torch.inference_mode():
            states = teacher(input_ids=ids, attention_mask=torch.ones_like(ids)).last_hidden_state
        out[start : start + len(tokens)] = states.float().mean(1).cpu().numpy()
    return out


def texts_digest(texts: Sequence[str]) -> str:
    """Return the sha256 of `texts` in their order, which identifies the texts of a raw field."""
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    return digest.hexdigest()


class TeacherReader:
    """Reads the raw field of texts with the frozen encoder in `folder`, which is loaded when it is first needed.

    Args:
        folder: the teacher, a Hugging Face encoder folder with `tokenizer.json` and `model.safetensors`.
        layers: how many layers, spread evenly (one is the last), or hidden-state indices, 0 = embeddings.
        max_tokens: longer texts are cut, special tokens included.
        dtype: `float32` or `bfloat16`, the teacher's arithmetic.

    Raises:
        TrainingError: the teacher cannot be used, or does not have these layers or take so many tokens.
    """

    def __init__(self, folder: Path, layers: int | Sequence[int], max_tokens: int, dtype: str) -> None:
        hashes = teacher_hashes(folder)
        depth, hidden, longest = teacher_shape(folder)
        layers = default_layers(depth, layers) if isinstance(layers, int) else layers
        if not layers or any(not 0 <= layer <= depth for layer in layers):
            raise TrainingError(
                f"layers {list(layers)} are not within 0..{depth}, the hidden states of {folder}; "
                "correct teacher.layers"
            )
        if max_tokens > longest:
            raise TrainingError(f"the teacher in {folder} takes at most {longest} tokens; lower teacher.max_tokens")
        self.folder, self.layers, self.width = folder, tuple(layers), len(layers) * hidden
        self.setting: dict[str, Any] = {
            "teacher": hashes,
            "layers": list(layers),
            "max_tokens": max_tokens,
            "dtype": dtype,
        }
        self._loaded: tuple[Tokenizer, Any] | None = None

    def read(
        self, texts: Sequence[str], tokens_per_batch: int, done: int = 0
    ) -> Iterator[tuple[npt.NDArray[np.int64], torch.Tensor]]:
        """Yield the numbers of some texts, and their raw field `(n, width) float32`, shortest texts first.

        The first `done` texts in this order are left out. A batch has at most `tokens_per_batch` tokens with its
        padding, or one text. A text without any token has a raw field of zeros.
        """
        tokenizer, teacher = self._load()
        device = next(teacher.parameters()).device
        sequences = tokenize(tokenizer, texts)
        lengths = np.array([len(ids) for ids in sequences], np.int64)
        order = np.argsort(lengths, kind="stable")
        start, blank = done, int((lengths == 0).sum())
        if start < blank:
            yield order[start:blank], torch.zeros(blank - start, self.width)
            start = blank
        while start < len(order):
            stop = start + 1
            while stop < len(order) and lengths[order[stop]] * (stop + 1 - start) <= tokens_per_batch:
                stop += 1
            members = order[start:stop]
            ids = torch.from_numpy(pad_ids([sequences[i] for i in members]))
            mask = (torch.arange(ids.shape[1]) < torch.from_numpy(lengths[members])[:, None]).long()
            with torch.inference_mode():
                states = teacher(
                    input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=True
                ).hidden_states
                weight = (mask / mask.sum(1, keepdim=True)).unsqueeze(1).float().to(device)
                raw = torch.cat([torch.bmm(weight, states[layer].float()).squeeze(1) for layer in self.layers], dim=1)
            yield members, raw
            start = stop

    def half(self, raw: torch.Tensor) -> npt.NDArray[np.float16]:
        """Return what `read` yielded as float16 on the CPU; `TrainingError` if a number is too large for that."""
        stored = raw.half().cpu()
        if not bool(torch.isfinite(stored).all()):
            raise TrainingError(
                f"a hidden state of the teacher in {self.folder} is too large for float16; leave out its layer"
            )
        rows: npt.NDArray[np.float16] = stored.numpy()
        return rows

    def _load(self) -> tuple[Tokenizer, Any]:
        if self._loaded is None:
            tokenizer = load_tokenizer(self.folder)
            tokenizer.enable_truncation(self.setting["max_tokens"])
            self._loaded = tokenizer, load_teacher(self.folder, getattr(torch, self.setting["dtype"]))
        return self._loaded


def extract_raw_field(
    texts: Sequence[str],
    folder: Path,
    out: Path,
    *,
    layers: int | Sequence[int] = 7,
    max_tokens: int = 128,
    tokens_per_batch: int = 4096,
    dtype: str = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.float16]:
    """Write the raw field of `texts` to `out` and return it, memory-mapped.

    Args:
        texts: the texts, in the order of the rows. A text without any token has a raw field of zeros.
        folder: the teacher, a Hugging Face encoder folder with `tokenizer.json` and `model.safetensors`.
        out: a `.npy` file; `<out>.json` beside it records its contents and the number of finished rows.
        layers: how many layers, spread evenly, or hidden-state indices, 0 = embeddings.
        max_tokens: longer texts are cut, special tokens included.
        tokens_per_batch: padded tokens per forward pass.
        dtype: `float32` or `bfloat16`, the teacher's arithmetic. Rows are stored as float16.
        progress: called with (rows done, rows in total).

    Returns:
        `(len(texts), len(layers) * hidden) float16`, read-only.

    Raises:
        TrainingError: the teacher cannot be loaded, or `out` is the raw field of other texts or another teacher.
        OSError: `out` does not fit on the disk.
    """
    reader = TeacherReader(folder, layers, max_tokens, dtype)
    identity = {"texts_sha256": texts_digest(texts), **reader.setting, "shape": [len(texts), reader.width]}
    file = _RawFile(out, identity)
    if file.done < len(texts):
        done = file.done
        for members, raw in reader.read(texts, tokens_per_batch, done):
            file.rows[members] = reader.half(raw)
            done += len(members)
            if done - file.done >= _ROWS_PER_SYNC or done == len(texts):
                file.save(done)
            if progress is not None:
                progress(done, len(texts))
    return file.read()


class _RawFile:
    """The `.npy` file and its state: its contents, and how many rows, shortest text first, are finished."""

    def __init__(self, path: Path, identity: Mapping[str, Any]) -> None:
        self.path, self.identity, self.done = path, identity, 0
        self._state = path.with_suffix(path.suffix + ".json")
        shape = tuple(identity["shape"])
        if self._state.exists() and path.exists():
            state = load_json(self._state, {})
            self.done = int(state.pop("done", 0))
            if state != identity:
                raise TrainingError(f"{path} is the raw field of other texts or another teacher; delete it")
            try:
                self.rows = np.lib.format.open_memmap(path, mode="r+")
            except ValueError as error:
                raise TrainingError(f"{path} is corrupt; delete it to extract it again") from error
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        self._state.unlink(missing_ok=True)
        self.rows = np.lib.format.open_memmap(path, mode="w+", dtype=np.float16, shape=shape)
        if hasattr(os, "posix_fallocate"):  # a full disk is an error here and not a SIGBUS at a later row
            with path.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
        self.save(0)

    def save(self, done: int) -> None:
        """Write the rows and then their number to disk."""
        self.rows.flush()
        write_json(self._state, {**self.identity, "done": done})
        self.done = done

    def read(self) -> npt.NDArray[np.float16]:
        """Close the file for writing and map it for reading."""
        del self.rows
        rows: npt.NDArray[np.float16] = np.load(self.path, mmap_mode="r")
        return rows
