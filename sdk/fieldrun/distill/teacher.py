"""Extract the raw field of a frozen Hugging Face encoder.

The raw field of a text is the concatenation, over the chosen layers, of the mean of that layer's hidden states over
the non-padding tokens (AN1, methods.md section 1). It is written row by row into a memory-mapped `.npy` file, so that
a killed extraction goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from tokenizers import Tokenizer

from fieldrun.errors import TrainingError
from fieldrun.storage import sha256_file, write_json

__all__ = ["default_layers", "extract_raw_field", "load_teacher", "teacher_hashes"]

_MODEL_FILES = ("config.json", "model.safetensors", "tokenizer.json")


def teacher_hashes(folder: Path) -> dict[str, str]:
    """Return the sha256 of the teacher's config, weights and tokenizer; `TrainingError` when one is missing."""
    missing = [name for name in _MODEL_FILES if not (folder / name).is_file()]
    if missing:
        raise TrainingError(
            f"teacher folder {folder} lacks {', '.join(missing)}; give a Hugging Face encoder folder with "
            f"{', '.join(_MODEL_FILES)}"
        )
    return {name: sha256_file(folder / name) for name in _MODEL_FILES}


def default_layers(hidden_layers: int, count: int = 7) -> tuple[int, ...]:
    """Return `count` layers spread evenly from the embeddings (0) to the last layer, as hidden-state indices."""
    return tuple(dict.fromkeys(int(i) for i in np.linspace(0, hidden_layers, count).round()))


def load_teacher(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    """Load the frozen encoder of `folder` (no network) in `dtype` on the GPU if there is one, else on the CPU."""
    from transformers import AutoModel
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        model = AutoModel.from_pretrained(str(folder), local_files_only=True, dtype=dtype)
    except Exception as error:  # transformers raises many kinds; all mean the same to the caller
        raise TrainingError(f"cannot load the teacher in {folder}: {error}") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    teacher: torch.nn.Module = model.to(device).eval().requires_grad_(False)
    return teacher


def extract_raw_field(
    texts: Sequence[str],
    folder: Path,
    out: Path,
    *,
    layers: Sequence[int] | None = None,
    max_tokens: int = 128,
    tokens_per_batch: int = 4096,
    dtype: str = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> npt.NDArray[np.float16]:
    """Write the raw field of `texts` to `out` and return it, memory-mapped.

    Args:
        texts: the texts, in the order of the rows.
        folder: the teacher, a Hugging Face encoder folder with `tokenizer.json` and `model.safetensors`.
        out: a `.npy` file; `<out>.json` beside it records what it holds and how far it is.
        layers: hidden-state indices, 0 = embeddings; seven spread evenly when None.
        max_tokens: longer texts are cut, special tokens included.
        tokens_per_batch: padded tokens per forward pass.
        dtype: `float32` or `bfloat16`, the teacher's arithmetic. Rows are stored as float16.
        progress: called with (rows done, rows in all).

    Returns:
        `(len(texts), len(layers) * hidden) float16`, read-only.

    Raises:
        TrainingError: the teacher cannot be loaded, or `out` holds the raw field of something else.
    """
    hashes = teacher_hashes(folder)
    config = json.loads((folder / "config.json").read_text("utf-8"))
    depth, hidden = int(config["num_hidden_layers"]), int(config["hidden_size"])
    chosen = tuple(layers) if layers is not None else default_layers(depth)
    if not chosen or any(not 0 <= layer <= depth for layer in chosen):
        raise TrainingError(f"layers {list(chosen)} are not within 0..{depth}, the hidden states of {folder}")
    digest = hashlib.sha256()
    for text in texts:
        digest.update(text.encode("utf-8", "surrogatepass") + b"\0")
    identity = {
        "texts_sha256": digest.hexdigest(),
        "teacher": hashes,
        "layers": list(chosen),
        "max_tokens": max_tokens,
        "dtype": dtype,
        "shape": [len(texts), len(chosen) * hidden],
    }
    state_path = out.with_suffix(out.suffix + ".json")
    done = 0
    if state_path.exists() and out.exists():
        state = json.loads(state_path.read_text("utf-8"))
        done = int(state.pop("done"))
        if state != identity:
            raise TrainingError(f"{out} holds the raw field of other texts or another teacher; delete it or use a new work folder")
        rows = np.lib.format.open_memmap(out, mode="r+")
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        rows = np.lib.format.open_memmap(out, mode="w+", dtype=np.float16, shape=(len(texts), len(chosen) * hidden))
        write_json(state_path, {**identity, "done": 0})
    if done < len(texts):
        _fill(rows, texts, folder, chosen, max_tokens, tokens_per_batch, dtype, done, identity, state_path, progress)
    del rows
    return np.load(out, mmap_mode="r")


def _fill(
    rows: npt.NDArray[np.float16],
    texts: Sequence[str],
    folder: Path,
    layers: Sequence[int],
    max_tokens: int,
    tokens_per_batch: int,
    dtype: str,
    done: int,
    identity: dict[str, object],
    state_path: Path,
    progress: Callable[[int, int], None] | None,
) -> None:
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_tokens)
    teacher = load_teacher(folder, getattr(torch, dtype))
    device = next(teacher.parameters()).device
    encodings = [e.ids for e in tokenizer.encode_batch_fast(list(texts))]
    order = sorted(range(len(texts)), key=lambda i: (len(encodings[i]), i))
    start, since_sync = done, 0
    while start < len(order):
        stop = start + 1
        while stop < len(order) and len(encodings[order[stop]]) * (stop + 1 - start) <= tokens_per_batch:
            stop += 1
        members = order[start:stop]
        length = len(encodings[members[-1]])
        ids = torch.zeros((len(members), length), dtype=torch.long)
        mask = torch.zeros((len(members), length), dtype=torch.long)
        for row, member in enumerate(members):
            n = len(encodings[member])
            ids[row, :n] = torch.tensor(encodings[member])
            mask[row, :n] = 1
        with torch.inference_mode():
            states = teacher(
                input_ids=ids.to(device), attention_mask=mask.to(device), output_hidden_states=True
            ).hidden_states
            weight = (mask / mask.sum(1, keepdim=True)).unsqueeze(1).float().to(device)
            pooled = torch.cat([torch.bmm(weight, states[layer].float()).squeeze(1) for layer in layers], dim=1)
        rows[members] = pooled.cpu().numpy().astype(np.float16)
        since_sync += stop - start
        start = stop
        if since_sync >= 4096 or start == len(order):
            rows.flush()  # type: ignore[attr-defined]
            write_json(state_path, {**identity, "done": start})
            since_sync = 0
        if progress is not None:
            progress(start, len(order))
    os.sync()
