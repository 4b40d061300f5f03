"""New heads on the device: texts and labels in, a head out, in seconds, with NumPy alone.

The student stays as it is; a head is a multinomial logistic regression on its fields. With `x (n, inputs)` and `v` the
mean variance of the inputs it minimises

    mean_i( -log softmax(x_i W + b)[y_i] ) + strength * v / n / 2 * |W|^2

Inputs are not standardised one by one: the variances of a field are nearly even. `strength` is chosen by
stratified cross-validation: the largest of `STRENGTHS` whose held-out log-loss, each at its best temperature, is within
two standard errors of the lowest. The temperature of the head comes from the same held-out logits. The rule was fixed
on the shipped student's tasks, their report files among the texts: what it reaches on these is a little optimistic.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import InputTextError, LabelError, TextTooLong, UsageError
from ..evaluation.metrics import wilson_interval
from ..formats.progress import Progress, silent
from ..formats.tensors import Array
from .head import Head, pair_features
from .logistic import Basis, solve

__all__ = ["STRENGTHS", "Encoder", "HeadTrainer", "fit_fields", "fit_head"]

STRENGTHS = tuple(10 ** (k / 2) for k in range(6, -5, -1))
"""The penalties that are tried, strongest first: 1000, 316, 100, ... 0.01."""

_UNTRIED = 10**1.5  # what one example a label gets, where nothing can be held out
_FOLDS = 5
_REPEATS = 3  # of the cross-validation, when there are less than
_FEW_ROWS = 1000
_SEARCH_ROWS = 4000  # rows that strengths are compared on; more are only used by the last fits
_BATCH = 2048  # texts in one call of the encoder

Texts = Sequence[str] | Sequence[tuple[str, str]]


class _Encoding(Protocol):
    @property
    def field(self) -> npt.NDArray[np.float32]: ...
    @property
    def dropped(self) -> npt.NDArray[np.int64]: ...


class Encoder(Protocol):
    """What a head is trained on top of: a loaded model, or anything that encodes texts as one does."""

    def forward(self, texts: Sequence[str]) -> _Encoding:
        """Return the fields `(n, dim) float32` of `texts`, and how many tokens each lost."""
        ...


def fit_head(
    model: Encoder, texts: Texts, labels: Sequence[str], *, name: str = "custom", progress: Progress | None = None
) -> Head:
    """Train a head called `name` on labelled `texts`, or on pairs of texts; attach it with `model.attach(head)`.

    One example a label is enough to get a head, eight a label to get a useful one. The same rows in another order give
    the same head. To add examples or labels later, keep a `HeadTrainer`.

    Args:
        model: a loaded model, whose fields are used as they are.
        texts: strings, or pairs `(a, b)` for a head of pairs.
        labels: one string for each text; at least two different ones.
        name: the task's name: letters, digits, `-` and `_`.
        progress: called with (phase, done, total).

    Returns:
        The head; `about` has `n`, `labels` (rows of each), `strength` and `cv`: held-out `n`, `accuracy`, `ci95`
        (Wilson), `log_loss`, `folds`, `repeats`, or None where no label has two rows.

    Raises:
        LabelError: not as many labels as texts, less than two different ones, or one that is empty or no string.
        InputTextError, TextTooLong: a text that the model refuses; the message has its index.
        UsageError: a name with other characters.
    """
    return HeadTrainer(model, name=name, progress=progress).add(texts, labels).fit()


class HeadTrainer:
    """Labelled examples of one task, kept as fields, and the head that they give.

    A head does not hold its examples, so whoever wants to add some later, a new label among them, keeps this:

        trainer = HeadTrainer(model, name="my-task").add(texts, labels)
        model.attach(trainer.fit())
        trainer.add(["where is my parcel"], ["delivery"])
        model.attach(trainer.fit(), replace=True)

    Texts are encoded once, when they are added: 1 kB a text, 2 kB a pair. Not for several threads at once.
    """

    def __init__(self, model: Encoder, *, name: str = "custom", progress: Progress | None = None) -> None:
        if not isinstance(name, str) or not name or not all(c.isalnum() or c in "-_" for c in name):
            raise UsageError(f"a head's name must be letters, digits, '-' and '_', not {name!r}")
        self.name = name
        self.kind: str | None = None
        """`"single"` or `"pair"`, None as long as there are no examples."""
        self.cut = 0
        """Texts that were too long and lost tokens."""
        self.dropped = 0
        """Tokens that they lost."""
        self._model = model
        self._report = progress or silent
        self._fields: list[Array] = []
        self._labels: list[str] = []

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._labels)

    @property
    def labels(self) -> tuple[str, ...]:
        """The different labels so far, sorted, which is their order in the head."""
        return tuple(sorted(set(self._labels)))

    def add(self, texts: Texts, labels: Sequence[str]) -> HeadTrainer:
        """Encode `texts` and keep them with their `labels`; all or, after an error, nothing. Returns itself.

        Raises:
            LabelError: not as many labels as texts, or one that is empty or no string.
            InputTextError, TextTooLong: a text that the model refuses, or pairs among single texts.
        """
        kind, sides = _split(texts)
        checked = _check_labels(labels, len(sides[0]))
        if self.kind not in (None, kind):
            raise InputTextError(f"the head {self.name!r} takes {_kinds(self.kind)}, and these are {_kinds(kind)}")
        parts: list[list[Array]] = [[] for _ in sides]
        cut = np.zeros(len(checked), bool)
        dropped = 0
        for start in range(0, len(checked), _BATCH):
            for side, part in zip(sides, parts, strict=True):
                encoding = _encode(self._model, side, start)
                part.append(encoding.field)
                cut[start : start + _BATCH] |= encoding.dropped > 0
                dropped += int(encoding.dropped.sum())
            self._report("encode", min(start + _BATCH, len(checked)), len(checked))
        self._fields.append(np.stack([np.concatenate(part) for part in parts], axis=1))
        self._labels += checked
        self.kind, self.cut, self.dropped = kind, self.cut + int(cut.sum()), self.dropped + dropped
        return self

    def fit(self) -> Head:
        """Return the head of all examples so far; raises `LabelError` with less than two different labels."""
        fields = np.concatenate(self._fields) if self._fields else np.zeros((0, 1, 1), np.float32)
        inputs = pair_features(fields[:, 0], fields[:, 1]) if self.kind == "pair" else fields[:, 0]
        return fit_fields(inputs, self._labels, name=self.name, kind=self.kind or "single", progress=self._report)


def fit_fields(
    inputs: Array,
    labels: Sequence[str],
    *,
    name: str = "custom",
    kind: str = "single",
    progress: Progress | None = None,
) -> Head:
    """Train a head on `inputs (n, inputs) float32`: fields, or `pair_features` of two fields with `kind="pair"`.

    Returns the head of `fit_head`, and raises `LabelError` as it does; `UsageError` for inputs that are not finite or
    not one row a label.
    """
    names = _check_labels(labels, len(inputs))
    classes = sorted(set(names))
    if len(classes) < 2:
        found = f"all {len(names)} are {classes[0]!r}" if classes else "there are no examples"
        raise LabelError(f"a head tells at least two labels apart, and {found}; add examples of another label")
    x = np.ascontiguousarray(inputs, np.float32)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise UsageError(f"inputs must be finite and (n, inputs), not of shape {x.shape}")
    order = sorted(range(len(x)), key=lambda i: (hashlib.blake2b(x[i].tobytes(), digest_size=8).digest(), names[i]))
    index = {label: k for k, label in enumerate(classes)}
    y = np.array([index[names[i]] for i in order])
    x = x[order]  # by what they hold: another order of the same rows is the same problem, with the same folds
    basis = Basis.of(x)
    problem = _Problem(
        z=basis.rotate(x),
        y=y,
        classes=len(classes),
        variance=basis.variance,
        scale=float(basis.variance.sum()) / x.shape[1],
    )
    choice = _choose(problem, progress or silent)
    theta = problem.solve(choice.strength, tolerance=1e-8)
    weight, bias = basis.restore(theta)
    return Head(
        name=name,
        kind=kind,
        labels=tuple(classes),
        weight=weight.astype(np.float32),
        bias=bias.astype(np.float32),
        temperature=choice.temperature,
        about={
            "n": len(y),
            "labels": dict(zip(classes, np.bincount(y).tolist(), strict=True)),
            "strength": choice.strength,
            "cv": choice.cv,
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Problem:
    """Rows in the eigenbasis of their inputs, `z (n, rank + 1) float32`, and their classes `y (n,)`."""

    z: Array
    y: Array
    classes: int
    variance: Array
    scale: float

    def solve(
        self, strength: float, *, rows: Array | None = None, start: Array | None = None, tolerance: float
    ) -> Array:
        z, y = (self.z, self.y) if rows is None else (self.z[rows], self.y[rows])
        penalty = strength * self.scale / len(y)
        return solve(z, y, self.classes, penalty, variance=self.variance, start=start, tolerance=tolerance)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Choice:
    strength: float
    temperature: float
    cv: dict[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _HeldOut:
    """Logits of rows by models that did not see them, the rows' classes, and the losses at the best temperature."""

    logits: Array
    y: Array
    temperature: float
    losses: Array

    @classmethod
    def of(cls, logits: Array, y: Array) -> _HeldOut:
        temperature = best_temperature(logits, y)
        return cls(logits=logits, y=y, temperature=temperature, losses=_losses(logits / np.float32(temperature), y))


def _choose(problem: _Problem, report: Progress) -> _Choice:
    counts = np.bincount(problem.y)
    if counts.max() < 2:
        return _Choice(strength=_UNTRIED, temperature=1.0, cv=None)
    searched = _sample(problem.y, _SEARCH_ROWS)
    whole = len(searched) == len(problem.y)
    folds = min(_FOLDS, int(np.bincount(problem.y[searched]).max()))
    repeats = _REPEATS if len(searched) < _FEW_ROWS else 1
    splits = [split for turn in range(repeats) for split in _splits(problem.y, searched, folds, turn)]
    strength, held = _search(problem, splits, repeats, report)
    if not whole:  # what a model of all rows is worth, and its temperature, is measured on a fifth of all rows
        repeats, splits = 1, list(_splits(problem.y, np.arange(len(problem.y)), _FOLDS, 0))[:1]
        trained, out = splits[0]
        theta = problem.solve(strength, rows=trained, tolerance=1e-6)
        held = _HeldOut.of(problem.z[out] @ theta.astype(np.float32), problem.y[out])
        report("fit", 1, 1)
    n = len(held.y) // repeats
    share = float((held.logits.argmax(1) == held.y).mean())
    cv = {"n": n, "accuracy": round(share, 5), "ci95": [round(end, 5) for end in wilson_interval(round(share * n), n)]}
    cv |= {"log_loss": round(float(held.losses.mean()), 5), "folds": len(splits) // repeats, "repeats": repeats}
    return _Choice(strength=strength, temperature=held.temperature, cv=cv)


def _search(
    problem: _Problem, splits: list[tuple[Array, Array]], repeats: int, report: Progress
) -> tuple[float, _HeldOut]:
    """Follow the strengths from the strongest, each fold from its last solution, until they have become too weak."""
    held_out = np.concatenate([out for _, out in splits])
    truth, order = problem.y[held_out], np.argsort(held_out, kind="stable")
    starts: list[Array | None] = [None] * len(splits)
    tried: list[_HeldOut] = []
    best = 0
    for k, strength in enumerate(STRENGTHS):
        logits = []
        for s, (trained, out) in enumerate(splits):
            theta = problem.solve(strength, rows=trained, start=starts[s], tolerance=1e-5)
            starts[s] = theta
            logits.append(problem.z[out] @ theta.astype(np.float32))
            report("fit", k * len(splits) + s + 1, len(STRENGTHS) * len(splits))
        tried.append(_HeldOut.of(np.concatenate(logits), truth))
        best = k if tried[k].losses.mean() < tried[best].losses.mean() else best
        if k >= best + 3:
            break
    report("fit", len(STRENGTHS) * len(splits), len(STRENGTHS) * len(splits))
    for strength, held in zip(STRENGTHS, tried, strict=False):
        worse = (held.losses - tried[best].losses)[order].reshape(-1, repeats).mean(1)  # of each row
        if worse.mean() <= 2 * worse.std() / math.sqrt(len(worse)):
            return strength, held
    return STRENGTHS[best], tried[best]


def _sample(y: Array, limit: int) -> Array:
    """Return at most about `limit` rows, the first of each class in proportion, at least as many as folds."""
    if len(y) <= limit:
        return np.arange(len(y))
    taken = [rows[: max(_FOLDS, round(len(rows) * limit / len(y)))] for rows in _by_class(y)]
    return np.sort(np.concatenate(taken))


def _splits(y: Array, rows: Array, folds: int, turn: int) -> Iterator[tuple[Array, Array]]:
    """Yield (trained, held out) rows: each class is dealt to the folds; a class of one row is never held out."""
    fold = np.full(len(y), -1)
    dealt, shuffle = 0, np.random.default_rng(turn)
    for own in sorted(_by_class(y[rows]), key=lambda own: int(own[0])):
        if len(own) > 1:
            fold[rows[shuffle.permutation(own)]] = (dealt + np.arange(len(own))) % folds
            dealt += len(own)
    for k in range(folds):
        yield rows[fold[rows] != k], rows[fold[rows] == k]


def _by_class(y: Array) -> list[Array]:
    return np.split(np.argsort(y, kind="stable"), np.cumsum(np.bincount(y))[:-1])


def best_temperature(logits: Array, y: Array) -> float:
    """Return the temperature at which `softmax(logits (n, c) / temperature)` has the lowest mean log-loss on `y`.

    The targets are smoothed by 1 / (n + 2), after Platt, "Probabilistic outputs for support vector machines" (1999):
    without a single error among few rows, no finite temperature would be the best.
    """
    smooth = 1 / (len(y) + 2)
    wanted = (1 - smooth) * logits[np.arange(len(y)), y] + smooth * logits.mean(1)
    target = float(wanted.mean(dtype=np.float64))
    spread = float(logits.std(1).mean(dtype=np.float64))
    if not spread > 0:
        return 1.0
    low, high = 1e-3 / spread, 1e4 / spread
    inverse = 1 / spread
    for _ in range(60):  # Newton on a convex function of 1 / temperature, kept within a shrinking bracket
        p = logits * np.float32(inverse)
        p -= p.max(1, keepdims=True)
        np.exp(p, out=p)
        p /= p.sum(1, keepdims=True)
        mean = (p * logits).sum(1)
        slope = float(mean.mean(dtype=np.float64)) - target
        curve = float(((p * logits * logits).sum(1) - mean * mean).mean(dtype=np.float64))
        low, high = (low, inverse) if slope > 0 else (inverse, high)
        step = inverse - slope / curve if curve > 0 else 0.0
        following = step if low < step < high else math.sqrt(low * high)
        if abs(following - inverse) <= 1e-4 * inverse:
            break
        inverse = following
    return min(max(1 / inverse, 1e-3), 999.0)


def _losses(logits: Array, y: Array) -> Array:
    shifted = logits - logits.max(1, keepdims=True)
    losses = np.log(np.exp(shifted).sum(1)) - shifted[np.arange(len(y)), y]
    return np.asarray(losses, np.float64)


def _split(texts: object) -> tuple[str, list[list[str]]]:
    """Return the kind of `texts` and their sides: one list of strings, or the first and the second of each pair."""
    if isinstance(texts, str | bytes) or not isinstance(texts, Iterable):
        raise InputTextError("texts must be a list of strings, or of pairs of strings")
    items = list(texts)
    if not items:
        raise InputTextError("texts is empty; give at least one text with its label")
    paired = not isinstance(items[0], str | bytes) and isinstance(items[0], Sequence)
    sides: list[list[str]] = [[], []] if paired else [[]]
    for i, item in enumerate(items):
        if paired and (isinstance(item, str | bytes) or not isinstance(item, Sequence) or len(item) != 2):
            raise InputTextError(f"text 0 is a pair and text {i} is not; give pairs (a, b), or single texts")
        for text, side in zip(item if paired else [item], sides, strict=True):
            if not isinstance(text, str):
                raise InputTextError(f"text {i} is {type(text).__name__}, not a string")
            if not text or text.isspace():
                raise InputTextError(f"text {i} is empty or only whitespace; leave it out, and its label")
            side.append(text)
    return ("pair" if paired else "single"), sides


def _check_labels(labels: object, n: int) -> list[str]:
    if isinstance(labels, str | bytes) or not isinstance(labels, Iterable):
        raise LabelError("labels must be a list of strings, one for each text")
    checked = list(labels)
    if len(checked) != n:
        raise LabelError(f"{n} texts and {len(checked)} labels; give one label for each text")
    for i, label in enumerate(checked):
        if not isinstance(label, str):
            raise LabelError(f"label {i} is {type(label).__name__}, not a string; write str(label)")
        if not label.strip():
            raise LabelError(f"label {i} is empty; give text {i} a label or leave it out")
    return [str(label) for label in checked]


def _encode(model: Encoder, texts: list[str], start: int) -> _Encoding:
    batch = texts[start : start + _BATCH]
    try:
        return model.forward(batch)
    except (InputTextError, TextTooLong):
        for i, text in enumerate(batch, start):
            try:
                model.forward([text])
            except (InputTextError, TextTooLong) as error:
                raise type(error)(str(error).replace("text 0", f"text {i}", 1)) from error
        raise


def _kinds(kind: str | None) -> str:
    return "pairs" if kind == "pair" else "single texts"
