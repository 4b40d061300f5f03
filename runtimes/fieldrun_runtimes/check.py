"""What is wrong with labelled files, and what is in them, before anything is trained on them: `fieldrun check`."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from fieldrun.errors import DatasetError
from fieldrun.evaluation.caveats import caveats
from fieldrun.evaluation.copies import count_copies, near_equal_labels, text_key
from fieldrun.evaluation.dataset import read_bytes
from fieldrun.evaluation.tables import Columns, Row, open_table
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.progress import Progress, silent

from .tokenization import TextTokenizer

__all__ = ["CheckReport", "check", "looks_english", "text_warnings"]

_BATCH = 1024
_SOME = 0.05  # the share of texts from which on they are worth a warning
_COMMON = """
a about all an and are as at be but by can do for from get go had has have he her his how i if in is it like me my no
not of on one or our out she so that the their them there they this to up was we what when where which who why will
with would you your
"""
_COMMON_WORDS = frozenset(_COMMON.split())
_WORDS = 6  # a text of fewer words may do without a common one


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckReport:
    """What `check` found in files of labelled rows.

    `bad` has the place of every row that cannot be used, and why; the other `n` rows are counted: `labels` (rows of
    each), `near_equal` (groups of labels), `copies` and `conflicts` (the places of rows that repeat an earlier one, and
    of those whose text has another label too). Of their texts (two of a pair): `tokens` (`min`, `median`, `p95`,
    `max`), `too_long` (for the bundle), `with_unknown` (texts with an unknown token), `nothing_known` (texts without a
    known one), `not_english` (texts that do not look English, see `looks_english`). `warnings` are sentences.
    """

    files: tuple[Path, ...]
    kind: str
    n: int
    texts: int
    bad: tuple[tuple[str, str], ...]
    labels: dict[str, int]
    near_equal: tuple[tuple[str, ...], ...]
    copies: tuple[str, ...]
    conflicts: tuple[str, ...]
    tokens: dict[str, int]
    too_long: int
    with_unknown: int
    nothing_known: int
    not_english: int
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as JSON."""
        return asdict(self) | {"files": [str(path) for path in self.files]}


def check(
    files: Sequence[str | Path] | str | Path,
    *,
    bundle: str | Path = "reference",
    text_column: str | None = None,
    label_column: str | None = None,
    text_b_column: str | None = None,
) -> CheckReport:
    """Read labelled files as `fieldrun.fit` does, and report every row that cannot be used and what deceives.

    Args:
        files: TSV, CSV, JSON lines or Parquet files, see `fieldrun.evaluation.tables`; counted as one set.
        bundle: the bundle whose tokens are counted.
        text_column, label_column, text_b_column: other names of the columns.

    Raises:
        DatasetError: a file cannot be read, lacks a column, or not all have texts or all pairs.
        BundleError: the bundle cannot be read.
    """
    paths = tuple(Path(path) for path in ([files] if isinstance(files, str | os.PathLike) else files))
    columns = Columns(text=text_column, label=label_column, text_b=text_b_column)
    bad: list[tuple[str, str]] = []
    rows: list[tuple[str, Row]] = []
    kinds = set()
    for path in paths:
        table = open_table(io.BytesIO(read_bytes(path)), path, columns)
        kinds.add(table.kind)
        for row in table.rows:
            where = f"{path}, {table.unit} {row.line}"
            if row.error is None:
                rows.append((where, row))
            else:
                bad.append((where, row.error))
    if len(kinds) != 1:
        raise DatasetError("the files have single texts and pairs; check them separately")
    opened = Bundle.load(bundle)
    longest = max(bucket.length for bucket in opened.manifest.buckets)
    tokenizer = TextTokenizer(bytes(opened.contents["tokenizer.json"]), longest, "truncate")
    return _report(paths, kinds.pop(), rows, bad, tokenizer)


def _report(
    paths: tuple[Path, ...],
    kind: str,
    rows: list[tuple[str, Row]],
    bad: list[tuple[str, str]],
    tokenizer: TextTokenizer,
) -> CheckReport:
    tokens: list[int] = []
    known: list[float] = []
    empty: set[int] = set()
    texts = [(i, text) for i, (_, row) in enumerate(rows) for text in _sides(row)]
    for start in range(0, len(texts), _BATCH):
        part = texts[start : start + _BATCH]
        found = tokenizer.count([text for _, text in part])
        empty |= {i for (i, _), (count, _) in zip(part, found, strict=True) if count == 0}
        tokens += [count for count, _ in found if count]
        known += [share for count, share in found if count]
    bad += [(rows[i][0], "the text has no token: only control characters") for i in sorted(empty)]
    rows = [row for i, row in enumerate(rows) if i not in empty]
    keys, labels = [text_key(row.text) for _, row in rows], [row.label for _, row in rows]
    of: dict[Any, set[str]] = {}
    copies = []
    for (where, row), key in zip(rows, keys, strict=True):
        known_labels = of.setdefault(key, set())
        if row.label in known_labels:
            copies.append(where)
        known_labels.add(row.label)
    counts = dict(sorted(Counter(labels).items()))
    shares = {"min": 0, "median": 50, "p95": 95, "max": 100}
    facts = _facts([text for _, row in rows for text in _sides(row)], tokens, known, tokenizer.longest)
    return CheckReport(
        files=paths,
        kind=kind,
        n=len(rows),
        texts=len(tokens),
        bad=tuple(bad),
        labels=counts,
        near_equal=tuple(near_equal_labels(counts)),
        copies=tuple(copies),
        conflicts=tuple(where for (where, _), key in zip(rows, keys, strict=True) if len(of[key]) > 1),
        tokens={name: int(np.percentile(tokens, share)) for name, share in shares.items()} if tokens else {},
        warnings=(*caveats(counts, count_copies(keys, labels)), *_of_texts(facts, len(tokens))),
        **facts,
    )


def text_warnings(
    texts: Sequence[str | tuple[str, str]], tokenizer: TextTokenizer, progress: Progress = silent
) -> list[str]:
    """Return the warnings of `check` that are about texts, or pairs of texts, not about labels."""
    sides = [part for text in texts for part in ((text,) if isinstance(text, str) else text)]
    found: list[tuple[int, float]] = []
    for start in range(0, len(sides), _BATCH):
        found += tokenizer.count(sides[start : start + _BATCH])
        progress("check", len(found), len(sides))
    tokens, known = [count for count, _ in found], [share for _, share in found]
    return [*_of_texts(_facts(sides, tokens, known, tokenizer.longest), len(sides))]


def _facts(texts: Sequence[str], tokens: Sequence[int], known: Sequence[float], longest: int) -> dict[str, int]:
    return {
        "too_long": sum(count > longest for count in tokens),
        "with_unknown": sum(share < 1 for share in known),
        "nothing_known": sum(share == 0 for share in known),
        "not_english": sum(not looks_english(text) for text in texts),
    }


def _of_texts(facts: dict[str, int], total: int) -> Iterable[str]:
    """Yield what the texts themselves make doubtful."""
    if facts["nothing_known"]:
        yield f"{facts['nothing_known']} of {total} texts have no known token; what a model says of them means nothing"
    if facts["not_english"] > _SOME * total:
        yield f"{facts['not_english']} of {total} texts do not look English; the shipped student knows English alone"
    if facts["too_long"] > _SOME * total:
        yield f"{facts['too_long']} of {total} texts are too long for the bundle; --overflow window reads them whole"


def looks_english(text: str) -> bool:
    """Return whether `text` looks English: most letters are ASCII, and six words or more have a very common one.

    It is a rough guess: short texts of other languages in ASCII pass, and lists of names do not.
    """
    letters = [] if text.isascii() else [c for c in text if c.isalpha()]
    if letters and sum(c.isascii() for c in letters) < 0.8 * len(letters):
        return False
    words = "".join(c if c.isalnum() else " " for c in text.lower()).split()
    return len(words) < _WORDS or not _COMMON_WORDS.isdisjoint(words)


def _sides(row: Row) -> tuple[str, ...]:
    return (row.text,) if isinstance(row.text, str) else row.text
