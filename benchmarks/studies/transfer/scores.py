"""What is computed from vectors: similarity and its prefixes, and retrieval, alone and with BM25.

| Figure | Definition |
|---|---|
| similarity | Spearman's correlation of cosines with grades; interval of Bonett and Wright, Psychometrika 65 (2000) |
| overlap | how many of a text's ten nearest others, by cosine of prefixes, are its ten by whole vectors: a share |
| nDCG@10 | gains 2^grade - 1, discount log2(rank + 1) (Burges et al., ICML 2005); queries with a relevant document |
| BM25 | `bm25s` as it comes: k1 1.5, b 0.75, English stop words, no stemmer |
| by rank | the sum of 1 / (60 + rank) over both lists (Cormack et al., SIGIR 2009) |
| by score | the sum of both scores, each minus its mean over the documents and divided by its deviation |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fieldrun.errors import DatasetError
from fieldrun.evaluation.dataset import read_bytes
from fieldrun.evaluation.metrics import mean_difference, spearman
from fieldrun.formats.storage import sha256_bytes

from ..peers.heads import Floats, need

__all__ = [
    "FUSIONS",
    "Collection",
    "bm25",
    "by_rank",
    "by_score",
    "correlation",
    "cosines",
    "mean",
    "ndcg",
    "overlap",
    "read_collection",
]

_Scores = npt.NDArray[np.float64]
_Z95 = 1.959963984540054
_TOP = 10
_RANK_CONSTANT = 60
_FILES = ("docs.tsv", "queries.tsv", "qrels.tsv")


@dataclass(frozen=True, slots=True, kw_only=True)
class Collection:
    """Documents, queries, and for each query the grade of every document that is relevant to it, by document id."""

    ids: tuple[str, ...]
    documents: tuple[str, ...]
    queries: tuple[str, ...]
    grades: tuple[Mapping[str, int], ...]
    sha256: Mapping[str, str]


def read_collection(folder: Path) -> Collection:
    """Read `docs.tsv` and `queries.tsv` (id, text) and `qrels.tsv` (query, document, grade), all without a header.

    Documents without text are left out of the list, and stay in the grades: no method finds them.

    Raises:
        DatasetError: a file is missing, or a line has too few columns.
    """
    contents = {name: read_bytes(folder / name) for name in _FILES}
    documents, queries, judged = (_columns(folder / name, str(data, "utf-8")) for name, data in contents.items())
    grades: dict[str, dict[str, int]] = {}
    for query, document, grade in judged:
        grades.setdefault(query, {})[document] = max(int(grade), grades.get(query, {}).get(document, 0))
    documents = [row for row in documents if row[1].strip()]
    queries = [row for row in queries if any(grade > 0 for grade in grades.get(row[0], {}).values())]
    return Collection(
        ids=tuple(row[0] for row in documents),
        documents=tuple(row[1] for row in documents),
        queries=tuple(row[1] for row in queries),
        grades=tuple(grades[row[0]] for row in queries),
        sha256={name: sha256_bytes(data) for name, data in contents.items()},
    )


def _columns(path: Path, text: str) -> list[list[str]]:
    wanted = 3 if path.name == "qrels.tsv" else 2
    rows = [line.split("\t") for line in text.splitlines() if line]
    if not rows or any(len(row) != wanted for row in rows):
        raise DatasetError(f"{path} must have {wanted} columns in every line and at least one line")
    return rows


def cosines(a: Floats, b: Floats) -> _Scores:
    """Return the cosines `(n, m) float64` of the rows of `a (n, d)` with those of `b (m, d)`; 0 for a row of zeros."""
    return _unit(a) @ _unit(b).T


def _unit(x: Floats) -> _Scores:
    wide = np.asarray(x, np.float64)
    unit: _Scores = wide / np.maximum(np.linalg.norm(wide, axis=1, keepdims=True), 1e-12)
    return unit


def correlation(a: Floats, b: Floats, grades: Sequence[float]) -> dict[str, Any]:
    """Return Spearman's correlation of the cosines of `a (n, d)` and `b (n, d)`, row by row, with n grades."""
    value, n = spearman((_unit(a) * _unit(b)).sum(1), grades), len(grades)
    if abs(value) == 1 or n < 4:
        return {"value": value, "ci95": [value, value] if n >= 4 else [-1.0, 1.0]}
    half = _Z95 * math.sqrt((1 + value * value / 2) / (n - 3))
    return {"value": _r(value), "ci95": [_r(math.tanh(math.atanh(value) + side * half)) for side in (-1, 1)]}


def overlap(x: Floats, size: int) -> npt.NDArray[np.float64]:
    """Return, for each row of `x (n, d)`, the share of its ten nearest rows that its prefix of `size` finds, `(n,)`."""
    whole, prefix = (_nearest(cosines(part, part)) for part in (x, x[:, :size]))
    return np.array([len(set(a) & set(b)) / len(a) for a, b in zip(whole, prefix, strict=True)], np.float64)


def _nearest(scores: _Scores) -> list[list[int]]:
    np.fill_diagonal(scores, -np.inf)
    found: list[list[int]] = _order(scores)[:, : min(_TOP, len(scores) - 1)].tolist()
    return found


def _order(scores: _Scores) -> npt.NDArray[np.int64]:
    return np.argsort(-scores, axis=1, kind="stable")


def ndcg(scores: _Scores, collection: Collection) -> npt.NDArray[np.float64]:
    """Return the nDCG@10 of each query, `(queries,)`, from scores `(queries, documents)`; equal ones keep the order."""
    found = []
    for best, grades in zip(_order(scores)[:, :_TOP].tolist(), collection.grades, strict=True):
        ideal = sorted(grades.values(), reverse=True)[:_TOP]
        found.append(_gain([grades.get(collection.ids[i], 0) for i in best]) / _gain(ideal))
    return np.array(found, np.float64)


def _gain(grades: Sequence[int]) -> float:
    return math.fsum((2**grade - 1) / math.log2(place + 2) for place, grade in enumerate(grades))


def bm25(collection: Collection) -> _Scores:
    """Return the BM25 scores `(queries, documents)`; `MissingDependency` without bm25s."""
    package: Any = need("bm25s")
    index, quiet = package.BM25(k1=1.5, b=0.75), {"show_progress": False}
    index.index(package.tokenize(list(collection.documents), stopwords="en", **quiet), **quiet)
    words = package.tokenize(list(collection.queries), stopwords="en", return_ids=False, **quiet)
    nothing = np.zeros(len(collection.documents))
    return np.array([index.get_scores(each) if each else nothing for each in words], np.float64)


def by_rank(scores: _Scores) -> _Scores:
    """Return 1 / (60 + rank) of scores `(queries, documents)`, ranks from 1; sums of these fuse two lists."""
    ranks = np.argsort(_order(scores), axis=1) + 1
    found: _Scores = 1 / (_RANK_CONSTANT + ranks)
    return found


def by_score(scores: _Scores) -> _Scores:
    """Return scores `(queries, documents)` minus the mean of each query's, divided by their deviation."""
    spread = np.maximum(scores.std(1, keepdims=True), 1e-12)
    found: _Scores = (scores - scores.mean(1, keepdims=True)) / spread
    return found


FUSIONS: Mapping[str, Callable[[_Scores], _Scores]] = {"by_rank": by_rank, "by_score": by_score}
"""The ways to fuse two lists, both with equal weights."""


def mean(values: npt.NDArray[np.float64]) -> dict[str, Any]:
    """Return the mean of values `(n,)` and its 95 % interval, +- 1.96 standard errors."""
    value, low, high = mean_difference([values])
    return {"value": _r(value), "ci95": [_r(low), _r(high)]}


def _r(value: float) -> float:
    return round(value, 5)
