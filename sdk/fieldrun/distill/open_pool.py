"""The open pool: millions of free texts in a weighted order, without any text that something is judged on.

A text is *held back* when its words are those of a cell of a held-back file, or of some sentences in a row there.
Case, punctuation, blanks and Unicode form make no difference. Sentences end at `.`, `!` and `?`.

The order is a weighted race: a text comes at the time `exponential / weight` (Efraimidis and Spirakis 2006). So every
prefix is a weighted sample without replacement of the whole. The exponential is drawn from a hash of text and seed: the
order of two texts does not depend on the other texts.
"""

from __future__ import annotations

import hashlib
import lzma
import math
import mmap
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast, overload

import numpy as np
import numpy.typing as npt

from fieldrun.errors import DatasetError, RecipeError, TrainingError
from fieldrun.evaluation.copies import text_key
from fieldrun.evaluation.tables import Columns, open_table
from fieldrun.formats.progress import Progress, silent
from fieldrun.formats.storage import new_folder, sha256_file, write_json

from .recipe import PoolRecipe
from .state import load_json

__all__ = ["Lines", "OpenPool", "SourceCount", "open_pool"]

_LEAST_WORDS = 3  # of a sentence that is held back
_SENTENCES = 4  # in a row, held back as one text: "The U.S. won." is three pieces between full stops
_LINES = (".txt", ".tsv")
_NO_WORD = re.compile(r"[\W_]+")
_NO_ASCII_WORD = re.compile(r"[^a-z0-9]+")
_END = re.compile(r"[.!?]+")
_END_AND_BLANK = re.compile(r"[.!?]+\s")


@dataclass(frozen=True, slots=True, kw_only=True)
class SourceCount:
    """What became of the texts of a source: `kept`, left out as `copies` of earlier ones, or `held_back`."""

    file: str
    kept: int = 0
    copies: int = 0
    held_back: int = 0


class Lines(Sequence[str]):
    """The lines of a UTF-8 file that stays on the disk. A slice is a list."""

    def __init__(self, path: Path) -> None:
        self._path = path
        with path.open("rb") as file:
            self._data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        self._ends = np.flatnonzero(np.frombuffer(self._data, np.uint8) == ord("\n"))

    def __len__(self) -> int:
        return len(self._ends)

    def __iter__(self) -> Iterator[str]:
        with self._path.open(encoding="utf-8", newline="\n") as file:
            for line in file:
                yield line[:-1]

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> list[str]: ...
    def __getitem__(self, index: int | slice) -> str | list[str]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        i = range(len(self))[index]
        return self._data[self._ends[i - 1] + 1 if i else 0 : self._ends[i]].decode("utf-8")


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenPool:
    """The `texts` in the order of the race, and the number of each one's source, `(len(texts),) uint16`."""

    texts: Lines
    sources: npt.NDArray[np.uint16]
    counts: tuple[SourceCount, ...]


def open_pool(recipe: PoolRecipe, data: Path, out: Path, *, seed: int = 0, progress: Progress = silent) -> OpenPool:
    """Build the pool of `recipe` from the folder `data` in the folder `out`, or open it if it is there.

    `out` gets `texts.txt` (a text a line), `sources.npy` and `pool.json` (licences, hashes and counts). It is written
    whole or not at all. Three and a half million texts need about 1.5 GB of memory.

    Raises:
        DatasetError: a file is missing or not valid, or nothing is left.
        RecipeError: a glob matches no file, or a source is held back.
        TrainingError: `out` is the pool of something else.
        StorageError: `out` cannot be written.
    """
    held = _held_back(recipe, data)
    for path in (data / source.file for source in recipe.sources):
        if not path.is_file():
            raise DatasetError(f"the source {path} does not exist; add it to the data folder")
    identity = {
        "seed": seed,
        "sources": [{**asdict(source), "sha256": sha256_file(data / source.file)} for source in recipe.sources],
        "held_back": {path.relative_to(data).as_posix(): sha256_file(path) for path in held},
    }
    about = out / "pool.json"
    if out.exists():
        found = load_json(about, {})
        differ = [key for key, value in identity.items() if not isinstance(found, dict) or found.get(key) != value]
        if differ:
            raise TrainingError(f"{out} is another pool (different {', '.join(differ)}); delete it or choose another")
    else:
        with new_folder(out) as folder:
            counts = _write(folder, recipe, data, held, seed, progress)
            write_json(folder / about.name, {**identity, "counts": [asdict(count) for count in counts]})
        found = load_json(about, {})
    counts = [SourceCount(**count) for count in found["counts"]]
    return OpenPool(texts=Lines(out / "texts.txt"), sources=np.load(out / "sources.npy"), counts=tuple(counts))


def _held_back(recipe: PoolRecipe, data: Path) -> list[Path]:
    """Return the files that are held back."""
    sources = {data / source.file for source in recipe.sources}
    held: set[Path] = set()
    for glob in recipe.held_back:
        found = {path for path in data.glob(glob) if path.is_file()}
        if not found:
            raise RecipeError(f"no file of {data} matches {glob!r} of pool.held_back; correct the glob")
        if both := sorted(found & sources):
            raise RecipeError(f"pool.held_back has {glob!r}, but {both[0]} is a source; remove one of them")
        held |= found
    return sorted(held)


def _write(
    folder: Path, recipe: PoolRecipe, data: Path, held: Sequence[Path], seed: int, progress: Progress
) -> list[SourceCount]:
    steps = len(held) + len(recipe.sources)
    hidden: set[bytes] = set()
    for step, path in enumerate(held):
        progress("open pool", step, steps)
        for cell in _cells(path):
            hidden.update(map(_digest, _hidden_forms(cell)))
    seen: set[bytes] = set()
    texts: list[bytes] = []
    times, sources, counts = array("d"), array("H"), []
    salt = seed.to_bytes(8, "little")
    for number, source in enumerate(recipe.sources):
        progress("open pool", len(held) + number, steps)
        before, copies, kept_back = len(texts), 0, 0
        for given in _texts(data / source.file):
            text = " ".join(given.split())
            key = str(text_key(text))
            if not key:
                continue
            digest = _digest(key, salt)
            if digest in seen:
                copies += 1
            elif any(_digest(form) in hidden for form in _forms(key)):
                kept_back += 1
            else:
                seen.add(digest)
                texts.append(text.encode("utf-8"))
                sources.append(number)
                uniform = (int.from_bytes(digest[:8], "little") + 0.5) / 2**64
                times.append(-math.log(uniform) / source.weight)
        kept = len(texts) - before
        counts.append(SourceCount(file=source.file, kept=kept, copies=copies, held_back=kept_back))
    if not texts:
        raise DatasetError(f"no source in {data} has a text that is not held back; add other sources")
    order = np.argsort(np.frombuffer(times), kind="stable")
    with (folder / "texts.txt").open("wb") as file:
        file.writelines(texts[i] + b"\n" for i in order)
    np.save(folder / "sources.npy", np.frombuffer(sources, np.uint16)[order])
    progress("open pool", steps, steps)
    return counts


def _digest(key: str, salt: bytes = b"") -> bytes:
    """Return 128 bits for `key`: a third of the memory of the text, and no two keys of a pool share them."""
    return hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=16, key=salt).digest()


def _forms(key: str) -> Iterator[str]:
    """Yield the words of a text's key without punctuation, or the key if it has none; then its ASCII words.

    The latter find a text whose accents were lost on the way, if they are enough to know it by.
    """
    words = _NO_WORD.sub(" ", key).strip() or key
    yield words
    if not words.isascii():
        plain = _NO_ASCII_WORD.sub(" ", words).strip()
        if _count(plain) >= _LEAST_WORDS:
            yield plain


def _hidden_forms(cell: str) -> Iterator[str]:
    """Yield the forms of a held-back text, and of every few sentences in a row that have enough words."""
    key = str(text_key(cell))
    if not key:
        return
    yield from _forms(key)
    pieces = [words for piece in _END.split(key) if (words := _NO_WORD.sub(" ", piece).strip())]
    runs = (pieces[i : i + size] for size in range(1, _SENTENCES + 1) for i in range(len(pieces) + 1 - size))
    for sentence in (*map(" ".join, runs), *_END_AND_BLANK.split(key)):
        words = _NO_WORD.sub(" ", sentence).strip()
        if _count(words) >= _LEAST_WORDS:
            yield from _forms(words)


def _count(words: str) -> int:
    return words.count(" ") + 1


def _open(path: Path) -> BinaryIO:
    return cast(BinaryIO, lzma.open(path)) if path.suffix == ".xz" else path.open("rb")


def _texts(path: Path) -> Iterator[str]:
    """Yield the texts of a source, one after the other."""
    plain = path.with_suffix("") if path.suffix == ".xz" else path
    if plain.suffix == ".txt":
        yield from _lines(path)
        return
    try:
        with _open(path) as file:
            table = open_table(file, plain, Columns(), labelled=False)
            for row in table.rows:
                if row.error is not None:
                    raise DatasetError(f"{path}, {table.unit} {row.line}: {row.error}")
                yield from (row.text,) if isinstance(row.text, str) else row.text
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise _unreadable(path, error) from error


def _cells(path: Path) -> Iterator[str]:
    """Yield the texts of a held-back file; of lines with tabs every cell, whatever its column is called."""
    plain = path.with_suffix("") if path.suffix == ".xz" else path
    if plain.suffix in _LINES:
        for line in _lines(path):
            yield from line.split("\t")
    else:
        yield from _texts(path)


def _lines(path: Path) -> Iterator[str]:
    try:
        with _open(path) as file:
            for number, line in enumerate(file, 1):
                try:
                    yield line.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise DatasetError(f"{path}, line {number}: not valid UTF-8; convert the file to UTF-8") from error
    except (OSError, EOFError, lzma.LZMAError) as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Any) -> DatasetError:
    return DatasetError(f"cannot read {path}: {getattr(error, 'strerror', None) or error}; copy it again")
