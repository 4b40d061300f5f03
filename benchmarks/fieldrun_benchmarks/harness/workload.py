"""A workload: the real texts that a subject is timed on, their sources and their lengths."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fieldrun.errors import DatasetError
from fieldrun.evaluation.dataset import read_tsv
from fieldrun.evaluation.tables import Columns, is_table
from fieldrun.formats.storage import sha256_bytes

__all__ = ["SAMPLES", "Workload", "read_workload", "sample_files"]

SAMPLES = Path(__file__).parents[1] / "data"
_EDGES = (0, 10, 20, 30, 40, 50, 60, 80, 100, 150, 200, 300, 500, 1000)


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Texts in the order in which they are sent, drawn with `seed`.

    `sources` has `{file, sha256, texts}` of each file: its name without folders, its hash, the number of its texts.
    """

    texts: tuple[str, ...]
    sources: tuple[Mapping[str, Any], ...]
    seed: int

    def to_dict(self) -> dict[str, Any]:
        """Return the workload for a record: sources, seed, and the histogram of lengths in characters."""
        lengths = [len(text) for text in self.texts]
        return {
            "sources": list(self.sources),
            "texts": len(self.texts),
            "distinct": len(set(self.texts)),
            "seed": self.seed,
            "characters": {"mean": round(sum(lengths) / len(lengths), 1), "histogram": _histogram(lengths)},
        }


def sample_files() -> dict[str, Path]:
    """Return the shipped samples by task: labelled TSV files (data/SOURCE.md)."""
    return {path.stem: path for path in sorted(SAMPLES.glob("*.tsv"))}


def read_workload(paths: Sequence[Path], *, limit: int | None = None, seed: int = 0) -> Workload:
    """Read texts from TSV files with a header (`read_tsv`; labels are not used) or from files of one text a line.

    Args:
        paths: the files; the shipped samples when empty.
        limit: at most this many texts, drawn at random.
        seed: of the order in which texts are sent, and of the draw.

    Raises:
        DatasetError: a file cannot be read, has no texts, or holds pairs.
    """
    texts: list[str] = []
    sources = []
    for path in paths or sample_files().values():
        found, sha256 = _read(path)
        texts += found
        sources.append({"file": path.name, "sha256": sha256, "texts": len(found)})
    random.Random(seed).shuffle(texts)
    return Workload(texts=tuple(texts[:limit]), sources=tuple(sources), seed=seed)


def _read(path: Path) -> tuple[list[str], str]:
    if path.suffix == ".tsv" or is_table(path, Columns()):
        data = read_tsv(path)
        if data.kind != "single":
            raise DatasetError(f"{path} holds pairs; a workload is single texts")
        return [str(text) for text in data.texts], data.sha256 or ""
    try:
        raw = path.read_bytes()
        lines = raw.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DatasetError(f"{path}: not valid UTF-8; convert the file to UTF-8") from error
    except OSError as error:
        raise DatasetError(f"cannot read {path}: {error.strerror}; check the path") from error
    texts = [line.strip() for line in lines if line.strip()]
    if not texts:
        raise DatasetError(f"{path} has no texts; give one text a line, or a TSV file with a header")
    return texts, sha256_bytes(raw)


def _histogram(lengths: Sequence[int]) -> list[dict[str, int]]:
    """Count lengths in fixed classes `low <= length < high`, from the first class with texts to the last."""
    edges = [*_EDGES, max(_EDGES[-1], *lengths) + 1]
    counts = [sum(low <= n < high for n in lengths) for low, high in itertools.pairwise(edges)]
    filled = [i for i, count in enumerate(counts) if count]
    return [{"low": edges[i], "high": edges[i + 1], "texts": counts[i]} for i in range(filled[0], filled[-1] + 1)]
