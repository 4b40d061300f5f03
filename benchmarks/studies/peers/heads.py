"""Linear heads on the vectors of the peers, and the packages that only the peers use."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fieldrun.errors import DatasetError, MissingDependency
from fieldrun.evaluation.dataset import read_tsv
from fieldrun.formats.storage import read_json, write_json

__all__ = ["Floats", "LinearHead", "Vectors", "fit_head", "need", "train_head"]

Floats = npt.NDArray[np.float32]
Vectors = Callable[[Sequence[str]], Floats]
_ROWS = 5000  # of a train file, at most
_PENALTIES = (1.0, 10.0, 100.0, 1000.0)  # scikit-learn's C
_EXTRAS = {"model2vec.distill": "model2vec[distill]", "sklearn.linear_model": "scikit-learn"}


def need(module: str) -> Any:
    """Import a module of a package that only the peers use.

    Raises:
        MissingDependency: it is not installed; the message has the command that brings it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingDependency(_EXTRAS.get(module, module.partition(".")[0]), "peers") from error


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class LinearHead:
    """`argmax(x @ weight + bias)`: `weight (d, labels)` and `bias (labels,)` float32."""

    weight: Floats
    bias: Floats
    labels: tuple[str, ...]

    def __call__(self, x: npt.NDArray[Any]) -> list[str]:
        """Return the labels of vectors `(n, d)`."""
        return [self.labels[i] for i in (x @ self.weight + self.bias).argmax(1).tolist()]

    def write(self, path: Path) -> None:
        """Write the head as JSON."""
        write_json(path, {"labels": self.labels, "weight": self.weight.tolist(), "bias": self.bias.tolist()})

    @classmethod
    def read(cls, path: Path) -> LinearHead:
        """Read what `write` wrote."""
        stored = read_json(path)
        weight, bias = (np.array(stored[name], np.float32) for name in ("weight", "bias"))
        return cls(weight=weight, bias=bias, labels=tuple(stored["labels"]))


def train_head(path: Path, vectors: Vectors) -> LinearHead:
    """Return a head fitted on the vectors of at most 5,000 rows of a train file; `DatasetError` for one of pairs."""
    data = read_tsv(path)
    if data.kind != "single":
        raise DatasetError(f"{path} holds pairs; the peers are measured on single texts")
    rows = np.random.default_rng(0).permutation(len(data))[:_ROWS].tolist()
    return fit_head(vectors([str(data.texts[i]) for i in rows]), [data.labels[i] for i in rows])


def fit_head(x: npt.NDArray[Any], labels: Sequence[str]) -> LinearHead:
    """Fit a logistic regression to vectors `(n, d)` in random order; the first fifth chooses its penalty."""
    regression = need("sklearn.linear_model").LogisticRegression
    x, names = np.asarray(x, np.float32), tuple(sorted(set(labels)))
    y, cut = np.array([names.index(label) for label in labels]), len(x) // 5
    tried = {c: regression(C=c, max_iter=2000).fit(x[cut:], y[cut:]).score(x[:cut], y[:cut]) for c in _PENALTIES}
    best = regression(C=max(tried, key=lambda c: tried[c]), max_iter=2000).fit(x, y)
    weight, bias = best.coef_.T, best.intercept_
    if weight.shape[1] == 1:  # two labels: scikit-learn keeps the logit of the second alone
        weight, bias = np.hstack([np.zeros_like(weight), weight]), np.hstack([np.zeros_like(bias), bias])
    return LinearHead(weight=weight.astype(np.float32), bias=bias.astype(np.float32), labels=names)
