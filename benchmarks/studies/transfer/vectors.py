"""One vector a text: of a bundle, or of a peer, whose vectors are kept on the disk.

A peer runs in the interpreter that has its package. It writes a file for every thousand texts, so that a run that was
stopped goes on where it was. This module runs there too: it may import what `studies.peers.models` may.
"""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fieldrun.errors import FieldrunError, UsageError
from fieldrun.formats.storage import read_json, write_json
from fieldrun_benchmarks.harness.worker_process import link_packages, worker_environment

from ..peers.heads import Floats, Vectors
from ..peers.models import PEERS, prepare
from ..peers.models import vectors as open_vectors

__all__ = ["OURS", "STATIC", "SUBJECTS", "Subject", "kept", "main", "open_peer"]

OURS = "fieldrun"
_CHUNK = 1000  # texts a file


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Something that is measured: `about` names the artifact, `vectors` gives `(n, d) float32` for n texts."""

    about: Mapping[str, Any]
    vectors: Vectors


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    """A peer of `studies.peers`, and the encoder that it is made from: `gte`, `minilm`, or none."""

    key: str
    source: str = ""


_PEERS = {
    "model2vec (gte-small)": _Made(key="model2vec", source="gte"),
    "model2vec (MiniLM-L6)": _Made(key="model2vec", source="minilm"),
    "wordllama": _Made(key="wordllama"),
    "MiniLM-L6": _Made(key="minilm-l6-fp32", source="minilm"),
    "gte-small": _Made(key="gte-small-fp32", source="gte"),
}
SUBJECTS = (OURS, *_PEERS)
"""Every subject, in the order of the tables."""
STATIC = ("model2vec (gte-small)", "model2vec (MiniLM-L6)", "wordllama")
"""The peers without a transformer, which are as fast as a student."""


def open_peer(name: str, sources: Mapping[str, Path], cache: Path, say: Callable[[str], None]) -> Subject:
    """Make the peer `name` in `cache`, unless it is there, and return it.

    Args:
        name: one of `SUBJECTS` but the first.
        sources: the folders of the encoders `gte` and `minilm`.
        cache: the folder that keeps the peers and their vectors.
        say: called with a line when the peer is made.

    Raises:
        UsageError: it is made from an encoder that `sources` lacks.
        MissingDependency, DatasetError, ExportError: as `studies.peers.models.prepare`.
    """
    made = _PEERS[name]
    if made.source and made.source not in sources:
        raise UsageError(f"{name} is made from an encoder; give its folder with --{made.source}")
    work = cache / made.source if made.source else cache
    folder = prepare(made.key, sources.get(made.source, cache), work, {}, say)
    stored = read_json(folder / "peer.json")
    about = {"key": stored["key"], "made_with": stored["made_with"], "needs": PEERS[made.key].needs}
    return Subject(about=about, vectors=lambda texts: kept(folder, texts, cache / "vectors" / made.source / made.key))


def kept(folder: Path, texts: Sequence[str], place: Path) -> Floats:
    """Return the vectors `(n, d)` of the peer in `folder`; those that `place` lacks are computed and written there.

    Raises:
        FieldrunError: the peer's process fails.
    """
    stored = read_json(folder / "peer.json")
    chunks = [list(texts[start : start + _CHUNK]) for start in range(0, len(texts), _CHUNK)]
    files = [place / f"{_digest([stored['key'], chunk])}.npy" for chunk in chunks]
    missing = {str(path): chunk for path, chunk in zip(files, chunks, strict=True) if not path.is_file()}
    if missing:
        place.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory() as scratch:
            todo, links = Path(scratch) / "texts.json", Path(scratch) / "packages"
            links.mkdir()
            write_json(todo, missing)
            command = [stored["python"], "-m", __name__, str(folder), str(todo)]
            done = subprocess.run(command, env=worker_environment(link_packages(links, "studies")), check=False)
        if done.returncode:
            raise FieldrunError(f"the process of {folder.name} ended with exit code {done.returncode}; see its output")
    return np.concatenate([np.load(path) for path in files])


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:32]


def main(folder: str, todo: str) -> None:
    """Write the vectors of the texts in the file `todo`, JSON by the names of the files, with the peer in `folder`."""
    encode, chunks, told = open_vectors(Path(folder)), read_json(Path(todo)), time.monotonic()
    for done, (name, texts) in enumerate(chunks.items(), 1):
        target = Path(name)
        partial = target.with_suffix(".partial")
        with partial.open("wb") as file:
            np.save(file, np.asarray(encode(texts), np.float32))
        partial.replace(target)
        if time.monotonic() - told > 30:
            told = time.monotonic()
            sys.stderr.write(f"  {done} of {len(chunks)} thousand texts\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
