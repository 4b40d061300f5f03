"""New heads on the device: texts and labels in, a head out, in seconds, with NumPy alone.

The student stays as it is; a head is a multinomial logistic regression on its fields. With `x (n, inputs)` and `v` the
mean variance of the inputs it minimises

    mean_i( -log softmax(x_i W + b)[y_i] ) + strength * v / n / 2 * |W|^2

Inputs are not standardised: the variances of a field are nearly even. `strength` and the temperature of the head are
chosen by cross-validation, see `fieldrun.heads.selection`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ..errors import InputTextError, LabelError, UsageError
from ..evaluation.rows import Labels, Texts, check_labels, run_located, split_texts
from ..formats.progress import Progress, silent
from ..formats.tensors import Array
from .head import RESERVED, Head, pair_features
from .logistic import Basis
from .selection import Problem, choose

__all__ = ["Encoder", "HeadTrainer", "fit_fields", "fit_head"]

_BATCH = 2048  # texts in one call of the encoder


class _Encoding(Protocol):
    @property
    def field(self) -> npt.NDArray[np.float32]: ...
    @property
    def dropped(self) -> npt.NDArray[np.int64]: ...


class Encoder(Protocol):
    """What a head is trained on: a loaded model, or anything else with its `forward`."""

    def forward(self, texts: Sequence[str]) -> _Encoding:
        """Return the fields `(n, dim) float32` of `texts`, and how many tokens each lost."""
        ...


def fit_head(
    model: Encoder, texts: Texts, labels: Labels, *, name: str = "custom", progress: Progress = silent
) -> Head:
    """Train a head called `name` on labelled `texts`, or on pairs of texts; attach it with `model.attach(head)`.

    One example of each label is enough to get a head, eight to get a useful one. The same rows in another order give
    the same head. To add examples or labels later, keep a `HeadTrainer`.

    Args:
        model: a loaded model, whose fields are used as they are.
        texts: strings, or pairs `(a, b)` for a head of pairs.
        labels: one for each text, at least two different ones. Strings, ints, bools or NumPy's: the head has them as
            strings, `str(label)`.
        name: the task's name: letters, digits, `-` and `_`.
        progress: called with (phase, done, total).

    Returns:
        The head; `about` has `n`, `labels` (rows of each), `strength` and `cv`: held-out `n`, `accuracy`, `ci95`
        (Wilson), `log_loss`, `folds`, `repeats`, or None where no label has two rows.

    Raises:
        LabelError: there is not one label for each text, only one label, or one that is empty or of another type.
        InputTextError, TextTooLong: the model refuses a text; the message has its index.
        UsageError: the name has other characters.
    """
    return HeadTrainer(model, name=name, progress=progress).add(texts, labels).fit()


class HeadTrainer:
    """Labelled examples of one task, kept as fields, and the head that they give.

    A head does not contain its examples. Keep the trainer to add some later, with a new label too:

        trainer = HeadTrainer(model, name="my-task").add(texts, labels)
        model.attach(trainer.fit())
        trainer.add(["where is my parcel"], ["delivery"])
        model.attach(trainer.fit(), replace=True)

    Texts are encoded once, when they are added: 1 kB a text, 2 kB a pair. Not safe to use from several threads.
    """

    def __init__(self, model: Encoder, *, name: str = "custom", progress: Progress = silent) -> None:
        if not isinstance(name, str) or not name or not all(c.isalnum() or c in "-_" for c in name):
            raise UsageError(f"a head's name must be letters, digits, '-' and '_', not {name!r}")
        if name in RESERVED:
            raise UsageError(f"the name {name!r} stands for all tasks; choose another name")
        self.name = name
        self.kind: str | None = None
        """`"single"` or `"pair"`; None before the first example."""
        self.cut = 0
        """Texts that were too long and lost tokens."""
        self.dropped = 0
        """Tokens that they lost."""
        self._model = model
        self._report = progress
        self._fields: list[Array] = []
        self._labels: list[str] = []

    def __len__(self) -> int:
        """Return the number of examples."""
        return len(self._labels)

    @property
    def labels(self) -> tuple[str, ...]:
        """The different labels so far, sorted, which is their order in the head."""
        return tuple(sorted(set(self._labels)))

    def add(self, texts: Texts, labels: Labels) -> HeadTrainer:
        """Encode `texts` and keep them with their `labels`; after an error nothing has changed. Returns itself.

        Raises:
            LabelError, InputTextError, TextTooLong: as `fit_head`.
            InputTextError: pairs after single texts, or the other way round.
        """
        kind, sides = split_texts(texts)
        checked = check_labels(labels, len(sides[0]))
        if self.kind not in (None, kind):
            raise InputTextError(f"the head {self.name!r} takes {_kinds(self.kind)}, and these are {_kinds(kind)}")
        parts: list[list[Array]] = [[] for _ in sides]
        cut = np.zeros(len(checked), bool)
        dropped = 0
        for start in range(0, len(checked), _BATCH):
            rows = slice(start, start + _BATCH)
            for side, part in zip(sides, parts, strict=True):
                encoding = run_located(self._model.forward, side[rows], "text {}".format, start=start)
                part.append(encoding.field)
                cut[rows] |= encoding.dropped > 0
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
    inputs: Array, labels: Labels, *, name: str = "custom", kind: str = "single", progress: Progress = silent
) -> Head:
    """Train a head on `inputs (n, inputs) float32`: fields, or `pair_features` of two fields with `kind="pair"`.

    Returns the head of `fit_head`, and raises `LabelError` as it does; `UsageError` for inputs that are not finite or
    not one row a label.
    """
    names = check_labels(labels, len(inputs))
    classes = sorted(set(names))
    if len(classes) < 2:
        found = f"all {len(names)} are {classes[0]!r}" if classes else "there are no examples"
        raise LabelError(f"a head needs at least two labels, and {found}; add examples of another label")
    x = np.ascontiguousarray(inputs, np.float32)
    if x.ndim != 2 or not np.isfinite(x).all():
        raise UsageError(f"inputs must be finite and (n, inputs), not of shape {x.shape}")
    # sorted by their content: the same rows in another order are the same problem, with the same folds
    order = sorted(range(len(x)), key=lambda i: (hashlib.blake2b(x[i].tobytes(), digest_size=8).digest(), names[i]))
    index = {label: k for k, label in enumerate(classes)}
    basis = Basis.of(x[order])
    problem = Problem(
        z=basis.rotate(x[order]),
        y=np.array([index[names[i]] for i in order]),
        classes=len(classes),
        variance=basis.variance,
        scale=float(basis.variance.sum()) / x.shape[1],
    )
    choice = choose(problem, progress)
    weight, bias = basis.restore(problem.solve(choice.strength, tolerance=1e-8))
    counts = dict(zip(classes, np.bincount(problem.y).tolist(), strict=True))
    return Head(
        name=name,
        kind=kind,
        labels=tuple(classes),
        weight=weight.astype(np.float32),
        bias=bias.astype(np.float32),
        temperature=choice.temperature,
        about={"n": len(names), "labels": counts, "strength": choice.strength, "cv": choice.cv},
    )


def _kinds(kind: str | None) -> str:
    return "pairs" if kind == "pair" else "single texts"
