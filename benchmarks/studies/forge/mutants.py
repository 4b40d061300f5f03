"""One forged bundle for each number: a change of one file or two, drawn from the number, under right hashes."""

from __future__ import annotations

import json
import os
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from fieldrun.formats.bundle import MANIFEST, seal
from fieldrun.formats.storage import sha256_bytes
from fieldrun.formats.tensors import tensors_in, write_tensors

__all__ = ["forge"]

_WEIGHTS = "weights.safetensors"
_PLAIN: tuple[Any, ...] = (
    *(-1, 0, 1, 2, 255, 1 << 20, 1 << 31, (1 << 31) - 1, 1 << 63, 10**30, 10**9, -(1 << 31)),
    *(0.5, -0.5, 1e308, -1e-320, float("nan"), float("inf")),
    *(
        True,
        False,
        None,
        "",
        "a",
        "../x",
        "/etc/passwd",
        "\x1b[2J\x1b]0;x\x07",
        "\0",
        "\ud800",
        "x" * 100_000,
        "[MASK]",
    ),
    *([], {}, [0], {"a": 1}, [[]], [None]),
)
_HUGE = 1 << 28
_KINDS = ("Whitespace", "ByteLevel", "Metaspace", "Split", "Sequence", "Digits", "Punctuation", "BertPreTokenizer")


def forge(source: Path, folder: Path, number: int) -> str:
    """Write the forged bundle `number` of the bundle `source` to `folder`, and return what was changed."""
    draw = random.Random(number)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for path in source.iterdir():
        os.link(path, folder / path.name)
    done = []
    for _ in range(draw.choice((1, 1, 1, 2))):
        change = draw.choices(list(_CHANGES), [weight for _, weight in _CHANGES.values()])[0]
        done.append(f"{change}: {_CHANGES[change][0](folder, draw)}")
    return "; ".join(done)


def _seal(folder: Path, change: Callable[[dict[str, Any]], None] | None = None) -> None:
    """Make the manifest agree with the files, and change something else in it."""
    try:
        manifest = json.loads(_read(folder / MANIFEST))
        for name in list(manifest["files"]):
            path = folder / name
            if path.is_file() and path.stat().st_size < _HUGE:
                data = path.read_bytes()
                manifest["files"][name] = {"bytes": len(data), "sha256": sha256_bytes(data)}
    except (AttributeError, KeyError, OSError, TypeError, ValueError):
        return  # an earlier change left no manifest to seal
    if change is not None:
        change(manifest)
    try:
        text = json.dumps(seal(manifest)).encode("utf-8", "surrogatepass")
    except RecursionError:
        return
    _write(folder / MANIFEST, text)


def _read(path: Path) -> bytes:
    """Return the bytes of a file, none of one that an earlier change made huge or something else."""
    return path.read_bytes() if path.is_file() and path.stat().st_size < _HUGE else b""


def _write(path: Path, data: bytes) -> None:
    path.unlink(missing_ok=True)  # a hard link to the source
    path.write_bytes(data)


def _manifest(folder: Path, draw: random.Random) -> str:
    said = ["nothing"]

    def change(manifest: dict[str, Any]) -> None:
        said[0] = _spoil(manifest, draw)

    _seal(folder, change)
    return said[0]


def _json(name: str) -> Callable[[Path, random.Random], str]:
    def change(folder: Path, draw: random.Random) -> str:
        try:
            value = json.loads(_read(folder / name))
        except (OSError, ValueError):
            return "nothing"
        said = _spoil(value, draw)
        _write(folder / name, json.dumps(value).encode("utf-8", "surrogatepass"))
        _seal(folder)
        return said

    return change


def _tokenizer(folder: Path, draw: random.Random) -> str:
    try:
        value = json.loads(_read(folder / "tokenizer.json"))
        vocab = value["model"]["vocab"]
        kind = draw.randrange(8)
        if kind == 0:
            vocab[draw.choice(list(vocab))] = draw.choice(_PLAIN)
        elif kind == 1:
            del vocab[draw.choice(["[UNK]", "[CLS]", "[SEP]", "[PAD]"])]
        elif kind == 2:
            value["pre_tokenizer"] = {
                "type": draw.choice(_KINDS),
                "pattern": {"Regex": "(a+)+$("},
                "behavior": "Isolated",
            }
        elif kind == 3:
            value["model"]["max_input_chars_per_word"] = draw.choice((0, -1, 10**9, 2**63, 1.5, "x"))
        elif kind == 4:
            value["model"]["continuing_subword_prefix"] = draw.choice((1, None, "", "a", [], "\x1b"))
        elif kind == 5:
            value["post_processor"] = draw.choice(
                (None, {"type": "BertProcessing", "sep": ["[SEP]", 2**31], "cls": ["[CLS]", 2]}, {"type": "ByteLevel"})
            )
        elif kind == 6:
            value["normalizer"] = draw.choice((None, {"type": "Precompiled", "precompiled_charsmap": "AAAA"}, {}))
        else:
            value["truncation"] = {"max_length": 0, "stride": 10, "strategy": "LongestFirst", "direction": "Right"}
            value["padding"] = {"strategy": {"Fixed": 10**9}, "direction": "Left", "pad_id": 2**31, "pad_type_id": 0}
    except (KeyError, OSError, TypeError, ValueError, AttributeError):
        return "nothing"
    _write(folder / "tokenizer.json", json.dumps(value).encode("utf-8", "surrogatepass"))
    _seal(folder)
    return f"kind {kind}"


def _weights(folder: Path, draw: random.Random) -> str:
    try:
        tensors = {name: np.array(tensor) for name, tensor in tensors_in(_read(folder / _WEIGHTS), _WEIGHTS).items()}
    except (OSError, ValueError):
        return "nothing"
    name = draw.choice(sorted(tensors))
    tensor, kind = tensors[name], draw.randrange(7)
    if kind == 0:
        del tensors[name]
    elif kind == 1:
        tensors[name] = tensor.reshape(-1)[: draw.randrange(tensor.size + 1)].copy()
    elif kind == 2:
        tensors[name] = tensor.astype(draw.choice((np.float32, np.float16, np.int8, np.int32, np.int64)))
    elif kind == 3:
        tensors["x"] = tensors.pop(name)
    elif kind == 4 and tensor.ndim == 2:
        tensors[name] = np.ascontiguousarray(tensor.T)
    elif tensor.size:
        flat = tensor.reshape(-1)
        at = draw.randrange(tensor.size) if kind == 5 else slice(None)
        if tensor.dtype.kind == "f":
            flat[at] = draw.choice((np.nan, np.inf, -np.inf, 0, -1, 6e4))
        else:
            info = np.iinfo(tensor.dtype)
            flat[at] = draw.choice((info.min, info.max, 0, -1 if info.min else 1))
    with np.errstate(all="ignore"):
        _write(folder / _WEIGHTS, write_tensors(tensors))
    _seal(folder)
    return f"{name} {kind}"


def _graph(folder: Path, draw: random.Random) -> str:
    path = draw.choice(sorted(folder.glob("*.onnx")))
    data = bytearray(_read(path))
    kind = draw.randrange(4)
    if not data:
        return "nothing"
    if kind == 0:
        data = bytearray(
            data.replace(b"weights.safetensors", draw.choice((b"../../../etc/passwd", b"golden.json\0\0\0\0\0\0\0\0")))
        )
    elif kind == 1:
        del data[draw.randrange(len(data)) :]
    else:
        for _ in range(draw.randrange(1, 9)):
            data[draw.randrange(len(data))] = draw.randrange(256)
    _write(path, bytes(data))
    _seal(folder)
    return f"{path.name} {kind}"


def _bytes(folder: Path, draw: random.Random) -> str:
    path = draw.choice(sorted(path for path in folder.iterdir() if path.is_file()))
    data = bytearray(_read(path))
    if not data:
        return "nothing"
    at, much = draw.randrange(len(data)), draw.choice((1, 1, 8, 64))
    data[at : at + much] = draw.randbytes(much) if draw.random() < 0.7 else b""
    _write(path, bytes(data))
    _seal(folder)
    return f"{path.name} at {at}"


def _file(folder: Path, draw: random.Random) -> str:
    path = draw.choice([folder / MANIFEST, *sorted(folder.iterdir())])
    kind = draw.choice(("fifo", "zero", "sparse", "folder", "empty", "missing", "null"))
    path.unlink(missing_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    elif kind in ("zero", "null"):
        path.symlink_to(f"/dev/{kind}")
    elif kind == "sparse":
        with path.open("wb") as file:
            file.truncate(200 << 30)
    elif kind == "folder":
        path.mkdir()
    elif kind == "empty":
        path.write_bytes(b"")

    def change(manifest: dict[str, Any]) -> None:
        if kind == "sparse" and path.name in manifest["files"]:
            manifest["files"][path.name]["bytes"] = 200 << 30

    if path.name != MANIFEST:
        _seal(folder, change)
    return f"{path.name} {kind}"


def _spoil(value: Any, draw: random.Random) -> str:
    """Change a random place in a JSON value, and say which."""
    holder, key = value, None
    trail = []
    while isinstance(holder, dict | list) and holder:
        key = draw.choice(list(holder)) if isinstance(holder, dict) else draw.randrange(len(holder))
        trail.append(str(key)[:20])
        inside = holder[key]
        if not isinstance(inside, dict | list) or not inside or draw.random() < 0.25:
            break
        holder = inside
    if key is None:
        return "nothing"
    kind = draw.randrange(6)
    if kind == 0:
        del holder[key]
    elif kind == 1 and isinstance(holder, list):
        holder.extend([holder[key]] * draw.choice((1, 1000, 20_000)))
    elif kind == 2 and isinstance(holder, dict):
        holder[draw.choice(("", "x", "\x1b[31m", "__class__"))] = holder[key]
    elif kind == 3:
        nested: Any = []
        for _ in range(draw.choice((40, 900))):
            nested = [nested] if draw.random() < 0.5 else {"a": nested}
        holder[key] = nested
    else:
        holder[key] = draw.choice(_PLAIN)
    return f"{'.'.join(trail)} {kind}"


_CHANGES: dict[str, tuple[Callable[[Path, random.Random], str], int]] = {
    "manifest": (_manifest, 8),
    "tokenizer": (_tokenizer, 4),
    "tokenizer.json": (_json("tokenizer.json"), 3),
    "golden.json": (_json("golden.json"), 2),
    "weights": (_weights, 5),
    "graph": (_graph, 3),
    "bytes": (_bytes, 3),
    "file": (_file, 3),
}
