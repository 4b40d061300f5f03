"""A bundle as scikit-learn estimators: a transformer of texts to fields, and a classifier of texts.

    from fieldrun.sklearn import FieldClassifier, FieldEncoder

    FieldClassifier().fit(texts, labels).predict(["where is my card?"])
    make_pipeline(FieldEncoder(normalize=True), LogisticRegression()).fit(texts, labels)

Both work in pipelines, grid searches and cross-validation. They are copied and pickled as the path of the bundle and
their settings: the bundle must be at the same path where they are loaded. Install `fieldrun[sklearn]`.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Set
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

from fieldrun.errors import InputTextError, LabelError, MissingDependency, UnknownName
from fieldrun.evaluation.copies import Key, text_key
from fieldrun.evaluation.rows import Texts, as_list, split_texts
from fieldrun.heads.fit import fit_fields
from fieldrun.heads.head import Head, pair_features
from fieldrun.heads.saved import head_scores
from fieldrun_runtimes.model import FieldModel, load

try:
    from sklearn.base import BaseEstimator, ClassifierMixin, ClassNamePrefixFeaturesOutMixin, TransformerMixin
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_is_fitted, column_or_1d, validate_data
except ImportError as error:
    raise MissingDependency("scikit-learn", "sklearn") from error

__all__ = ["FieldClassifier", "FieldEncoder"]

_UNKNOWNS = ("answer", "error")  # an estimator has no label for what it rejects
Fields = npt.NDArray[np.float32]
C = TypeVar("C", bound="FieldClassifier")
E = TypeVar("E", bound="FieldEncoder")


class _OnBundle(BaseEstimator):  # type: ignore[misc]
    """Opens the bundle when it is first needed, and never stores more of it than its path."""

    def __init__(
        self,
        bundle: str | Path = "reference",
        *,
        engine: str = "auto",
        threads: int = 1,
        overflow: str = "truncate",
        unknown: str = "answer",
    ) -> None:
        self.bundle = bundle
        self.engine = engine
        self.threads = threads
        self.overflow = overflow
        self.unknown = unknown

    def _open(self) -> FieldModel:
        settings: dict[str, Any] = {
            "engine": self.engine,
            "threads": self.threads,
            "overflow": self.overflow,
            "unknown": self.unknown,
        }
        opened: tuple[Any, FieldModel] | None = getattr(self, "_opened", None)
        if opened is None or opened[0] != (self.bundle, settings):
            if self.unknown not in _UNKNOWNS:
                raise UnknownName("unknown", self.unknown, _UNKNOWNS)
            opened = (self.bundle, settings), load(self.bundle, **settings)
            self._opened = opened
        return opened[1]

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in super().__getstate__().items() if name != "_opened"}


class FieldEncoder(ClassNamePrefixFeaturesOutMixin, TransformerMixin, _OnBundle):  # type: ignore[misc]
    """Turns texts into their fields, `(n, dim) float32`.

    Args:
        bundle: a bundle folder, or `"reference"`.
        engine, threads, overflow: as `fieldrun.load`.
        unknown: a text without a known token has the field that all such texts share (`"answer"`), or is an `"error"`.
        dim: keep the first numbers of each field.
        normalize: scale each field to length 1.
    """

    def __init__(
        self,
        bundle: str | Path = "reference",
        *,
        engine: str = "auto",
        threads: int = 1,
        overflow: str = "truncate",
        unknown: str = "answer",
        dim: int | None = None,
        normalize: bool = False,
    ) -> None:
        super().__init__(bundle, engine=engine, threads=threads, overflow=overflow, unknown=unknown)
        self.dim = dim
        self.normalize = normalize

    def fit(self: E, X: Iterable[str], y: object = None) -> E:
        """Open the bundle; there is nothing to learn."""
        del X, y
        self._open()
        return self

    def transform(self, X: Iterable[str]) -> Fields:
        """Return the field of each text; raises as `FieldModel.encode` does."""
        return self._open().encode(X, normalize_embeddings=self.normalize, truncate_dim=self.dim)

    @property
    def _n_features_out(self) -> int:
        return self.dim or self._open().get_embedding_dimension()

    def __sklearn_is_fitted__(self) -> bool:
        return True

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string, tags.input_tags.two_d_array = True, False
        tags.requires_fit = False
        return tags


class FieldClassifier(ClassifierMixin, _OnBundle):  # type: ignore[misc]
    """A head on a bundle's fields, fitted as `fieldrun.fit_head` does.

    `X` is texts or pairs of texts, in any list, array, column or iterator, or an array or table `(n, inputs)` of
    fields, as `FieldEncoder` gives them.

    Args:
        bundle: a bundle folder, or `"reference"`; not opened for fields.
        engine, threads, overflow: as `fieldrun.load`.
        unknown: a text without a known token is answered like all such texts (`"answer"`), or is an `"error"`.
        name: the name of the head.
        weigh_copies: let rows that are there several times weigh as often, see `fieldrun.fit_head`.

    Attributes:
        classes_: the labels, in the order of the probabilities.
        head_: the head; `model.attach(classifier.head_)` answers with it, and saves it in a bundle.
    """

    classes_: npt.NDArray[Any]
    head_: Head

    def __init__(
        self,
        bundle: str | Path = "reference",
        *,
        engine: str = "auto",
        threads: int = 1,
        overflow: str = "truncate",
        unknown: str = "answer",
        name: str = "custom",
        weigh_copies: bool = False,
    ) -> None:
        super().__init__(bundle, engine=engine, threads=threads, overflow=overflow, unknown=unknown)
        self.name = name
        self.weigh_copies = weigh_copies

    def fit(self: C, X: Texts | npt.ArrayLike, y: npt.ArrayLike) -> C:
        """Fit the head on labelled rows; raises as `fieldrun.fit_head` does."""
        kind, inputs, labels, keys = self._inputs(X, y)
        check_classification_targets(labels)
        classes = np.unique(labels)
        if len(classes) < 2:
            raise LabelError(f"FieldClassifier needs two classes or more; y has 1 class, {str(classes[0])!r}")
        self.classes_ = classes
        names = [str(label) for label in labels]
        self.head_ = fit_fields(inputs, names, name=self.name, kind=kind, keys=keys, weigh_copies=self.weigh_copies)
        return self

    def predict_proba(self, X: Texts | npt.ArrayLike) -> Fields:
        """Return the probabilities `(n, labels) float32` over `classes_`."""
        check_is_fitted(self)
        kind, inputs, _, keys = self._inputs(X, None, reset=False)
        if keys is not None and kind != self.head_.kind:
            wanted = "pairs" if self.head_.kind == "pair" else "single texts"
            raise InputTextError(f"this classifier was fitted on {wanted}; give such")
        scores = head_scores(self.head_, inputs)
        order = [self.head_.labels.index(str(label)) for label in self.classes_]
        return np.asarray(scores[:, order], np.float32)

    def predict(self, X: Texts | npt.ArrayLike) -> npt.NDArray[Any]:
        """Return the best label of each row."""
        best = self.predict_proba(X).argmax(1)
        return np.asarray(self.classes_[best])

    def _inputs(self, X: Any, y: Any, *, reset: bool = True) -> tuple[str, Fields, Any, list[Key] | None]:
        """Return the head's kind, its inputs `(n, inputs)`, the labels checked, and the keys of texts or pairs."""
        rows = _texts(X)
        if rows is None:
            checked = validate_data(self, X, y if reset else "no_validation", reset=reset, dtype=np.float32)
            return ("single", *checked, None) if reset else ("single", checked, None, None)
        kind, sides = split_texts(rows)
        fields = [self._open().encode(side) for side in sides]
        if reset and y is None:
            raise ValueError("FieldClassifier requires y to be passed, but the target y is None")
        inputs = fields[0] if kind == "single" else pair_features(*fields)
        return kind, inputs, column_or_1d(y, warn=True) if reset else None, [text_key(row) for row in rows]

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.input_tags.string = True
        return tags


def _texts(X: Any) -> list[Any] | None:
    """Return the items of `X` as a list, None if they are not texts or pairs of texts: numbers, for scikit-learn."""
    if hasattr(X, "toarray") or (isinstance(X, np.ndarray) and X.dtype.kind in "biufc"):  # sparse, or numbers
        return None
    if hasattr(X, "columns"):  # a table: of fields, or of texts, which are one of its columns
        cells: Iterable[Any] = np.asarray(X[:1], object).ravel()
    elif isinstance(X, str | bytes | Mapping | Set) or hasattr(X, "column_names"):
        return as_list(X, "texts")  # refuses it
    elif not isinstance(X, Iterable) or getattr(X, "ndim", 1) == 0:
        return None
    else:
        X = cells = as_list(X, "texts")
    if any(isinstance(each, str | bytes) or _is_row_of_texts(each) for each in cells):
        return as_list(X, "texts")
    return None


def _is_row_of_texts(row: Any) -> bool:
    return isinstance(row, list | tuple | np.ndarray) and any(isinstance(each, str | bytes) for each in row)
