"""The teacher's vectors of millions of texts: a file of float16 for every 16,384 texts.

A shard is written beside its place and renamed, so a process may be killed at any moment: the shards that are there are
whole, and the next call goes on with the first that is missing.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from fieldrun.errors import TrainingError
from fieldrun.formats.storage import locked_folder, sha256_bytes, write_bytes, write_json

from .state import load_json
from .teacher import TeacherReader, texts_digest
from .training import arithmetic

__all__ = ["SHARD_TEXTS", "Projection", "extract_shards", "read_shards"]

SHARD_TEXTS = 16_384
"""Texts in a shard; the last one may have fewer."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Projection:
    """The map `(raw - centre) @ basis`, from `(raw width,) float32` by `(raw width, width) float32`."""

    centre: npt.NDArray[np.float32]
    basis: npt.NDArray[np.float32]


def extract_shards(
    texts: Sequence[str],
    folder: Path,
    out: Path,
    *,
    layers: int | Sequence[int] = 1,
    projection: Projection | None = None,
    max_tokens: int = 128,
    tokens_per_batch: int = 4096,
    dtype: str = "auto",
    stop: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> list[npt.NDArray[np.float16]]:
    """Write the teacher's vectors of `texts` to the folder `out`, a shard at a time, and return the shards.

    Args:
        texts: the texts; `OpenPool.texts` stay on the disk.
        folder: the teacher, as for `TeacherReader`.
        out: gets `00000.npy`, `00001.npy`, ... and `shards.json`, which says what they are of.
        layers: the mean of how many layers, spread evenly (one is the last), or of which; several are concatenated.
        projection: stored in place of the raw field.
        max_tokens: longer texts are cut, special tokens included.
        tokens_per_batch: padded tokens per forward pass; a GPU likes some ten times as many as a CPU.
        dtype: `float32`, `bfloat16`, or `auto`: bfloat16 where the machine has it.
        stop: how many texts are enough; the shard of the last of them is written whole. A later call may go further.
        progress: called with (texts done, texts in total) after every batch.

    Returns:
        What `read_shards` returns.

    Raises:
        TrainingError: the teacher cannot be used, `projection` does not fit it, or `out` has the shards of something
            else; the message says what differs.
        StorageError: `out` cannot be written.
    """
    reader = TeacherReader(folder, layers, max_tokens, arithmetic(dtype))
    if projection is not None:
        inputs, width = projection.basis.shape
        if inputs != reader.width or projection.centre.shape != (inputs,):
            raise TrainingError(
                f"the projection takes {inputs} numbers, the teacher in {folder} gives {reader.width}; fit it again"
            )
    else:
        width = reader.width
    setting = {
        "texts": {"sha256": texts_digest(texts), "count": len(texts)},
        **reader.setting,
        "projection": None if projection is None else _digest(projection),
        "shard_texts": SHARD_TEXTS,
        "width": width,
    }
    total = len(texts) if stop is None else min(len(texts), -(-stop // SHARD_TEXTS) * SHARD_TEXTS)
    out.mkdir(parents=True, exist_ok=True)
    with locked_folder(out):
        _check_same(out, setting)
        for start in range(0, total, SHARD_TEXTS):
            path = out / f"{start // SHARD_TEXTS:05d}.npy"
            members = texts[start : min(start + SHARD_TEXTS, len(texts))]
            if _is_whole(path, len(members), width):
                continue
            rows, done = np.empty((len(members), width), np.float16), start
            for numbers, raw in reader.read(members, tokens_per_batch):
                rows[numbers] = reader.half(raw if projection is None else _project(raw, projection))
                done += len(numbers)
                if progress is not None:
                    progress(done, total)
            buffer = io.BytesIO()
            np.save(buffer, rows)
            write_bytes(path, buffer.getbuffer())
    return read_shards(out)


def read_shards(out: Path) -> list[npt.NDArray[np.float16]]:
    """Return the shards of `out` from the first on, each `(texts, width) float16` on the disk, read-only.

    Another process may be extracting: the list ends before the first shard that is missing.
    """
    setting = load_json(out / "shards.json", None)
    if setting is None:
        raise TrainingError(f"{out} has no shards.json; extract the teacher's vectors first")
    shards: list[npt.NDArray[np.float16]] = []
    for start in range(0, setting["texts"]["count"], setting["shard_texts"]):
        path = out / f"{len(shards):05d}.npy"
        if not _is_whole(path, min(setting["shard_texts"], setting["texts"]["count"] - start), setting["width"]):
            break
        shards.append(np.load(path, mmap_mode="r"))
    return shards


def _check_same(out: Path, setting: dict[str, object]) -> None:
    """Refuse the shards of something else, and delete what a killed process left."""
    path = out / "shards.json"
    if path.exists():
        found = load_json(path, None)
        differ = [key for key in setting if not isinstance(found, dict) or found.get(key) != setting[key]]
        if differ:
            raise TrainingError(
                f"{out} has the shards of something else (different {', '.join(differ)}); delete it or choose another"
            )
    elif any(out.glob("*.npy")):
        raise TrainingError(f"{out} has shards but no shards.json; delete it or choose another folder")
    for partial in (*out.glob(".[0-9]*.npy.*"), *out.glob(f".{path.name}.*")):
        partial.unlink(missing_ok=True)
    if not path.exists():
        write_json(path, setting)


def _is_whole(path: Path, rows: int, width: int) -> bool:
    try:
        found = np.load(path, mmap_mode="r")
    except (OSError, ValueError, EOFError):  # there is none, or the machine lost power while it was copied here
        return False
    return bool(found.dtype == np.float16 and found.shape == (rows, width))


def _project(raw: torch.Tensor, projection: Projection) -> torch.Tensor:
    centre, basis = (torch.from_numpy(part).to(raw.device) for part in (projection.centre, projection.basis))
    return (raw - centre) @ basis


def _digest(projection: Projection) -> str:
    return sha256_bytes(projection.centre.tobytes() + projection.basis.tobytes())
