"""New heads on the device: texts and labels in, a head out, in seconds, with NumPy alone.

The student stays as it is; a head is a multinomial logistic regression on its fields. With `x (n, inputs)` and `v` the
mean variance of the inputs it minimises

    mean_i( -log softmax(x_i W + b)[y_i] ) + strength * v / n / 2 * |W|^2

Inputs are not standardised: the variances of a field are nearly even. `strength` and the temperature of the head are
chosen by cross-validation, see `fieldrun.heads.selection`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Hashable, Sequence
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ..errors import InputTextError, LabelError, UsageError
from ..evaluation.caveats import caveats, listed
from ..evaluation.copies import count_copies, first_rows, join_labels, numbered, text_key
from ..evaluation.rows import Labels, Texts, check_labels, run_located, split_texts
from ..formats.progress import Progress, silent
from ..formats.tensors import Array
from .blas import one_thread
from .head import RESERVED, Head, pair_features
from .logistic import Basis
from .selection import Problem, choose, in_percent

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
    model: Encoder,
    texts: Texts,
    labels: Labels,
    *,
    name: str = "custom",
    weigh_copies: bool = False,
    join_labels: bool = False,
    progress: Progress = silent,
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
        weigh_copies: let a text that is given `k` times with the same label weigh `k` times. By default it weighs once.
            Copies are texts that are equal but for case, whitespace and Unicode form; they never stand on both sides of
            a split of the cross-validation.
        join_labels: treat labels that are equal but for case, whitespace and Unicode form as one.
        progress: called with (phase, done, total).

    Returns:
        The head. Its `about` has `n` (rows that it learnt from), `labels` (rows of each), `copies` (rows that repeat
        another), `conflicting` (rows whose text has another label too), `strength`, `warnings` (sentences), and `cv`:
        held-out `n` (texts), `accuracy`, `ci95` (Wilson), `balanced_accuracy`, `balanced_ci95`, `never_held_out`
        (labels of one text, which no figure covers), `log_loss`, `folds`, `repeats`, or None where no label has two
        texts.

    Raises:
        LabelError: there is not one label for each text, only one label, or one that is empty or of another type.
        InputTextError, TextTooLong: the model refuses a text; the message has its index.
        UsageError: the name has other characters.
    """
    trainer = HeadTrainer(model, name=name, weigh_copies=weigh_copies, join_labels=join_labels, progress=progress)
    return trainer.add(texts, labels).fit()


class HeadTrainer:
    """Labelled examples of one task, kept as fields, and the head that they give.

    A head does not contain its examples. Keep the trainer to add some later, with a new label too:

        trainer = HeadTrainer(model, name="my-task").add(texts, labels)
        model.attach(trainer.fit())
        trainer.add(["where is my parcel"], ["delivery"])
        model.attach(trainer.fit(), replace=True)

    Texts are encoded once, when they are added: 1 kB a text, 2 kB a pair. Rows that are added twice count as copies,
    see `fit_head`. Not safe to use from several threads.
    """

    def __init__(
        self,
        model: Encoder,
        *,
        name: str = "custom",
        weigh_copies: bool = False,
        join_labels: bool = False,
        progress: Progress = silent,
    ) -> None:
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
        self._weigh_copies = weigh_copies
        self._join_labels = join_labels
        self._fields: list[Array] = []
        self._keys: list[Hashable] = []
        self._labels: list[str] = []

    def __len__(self) -> int:
        """Return the number of examples, copies included."""
        return len(self._labels)

    @property
    def keys(self) -> frozenset[Hashable]:
        """What `fieldrun.evaluation.copies.text_key` returns for the examples."""
        return frozenset(self._keys)

    @property
    def labels(self) -> tuple[str, ...]:
        """The different labels so far, sorted, which is their order in the head."""
        return tuple(sorted(set(self._named())))

    def _named(self) -> list[str]:
        return join_labels(self._labels) if self._join_labels else self._labels

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
        self._keys += [text_key(row) for row in (sides[0] if kind == "single" else zip(*sides, strict=True))]
        self.kind, self.cut, self.dropped = kind, self.cut + int(cut.sum()), self.dropped + dropped
        return self

    def fit(self) -> Head:
        """Return the head of all examples so far; raises `LabelError` with less than two different labels."""
        fields = np.concatenate(self._fields) if self._fields else np.zeros((0, 1, 1), np.float32)
        inputs = pair_features(fields[:, 0], fields[:, 1]) if self.kind == "pair" else fields[:, 0]
        return fit_fields(
            inputs,
            self._named(),
            name=self.name,
            kind=self.kind or "single",
            keys=self._keys,
            weigh_copies=self._weigh_copies,
            progress=self._report,
        )


def fit_fields(
    inputs: Array,
    labels: Labels,
    *,
    name: str = "custom",
    kind: str = "single",
    keys: Sequence[Hashable] | None = None,
    weigh_copies: bool = False,
    progress: Progress = silent,
) -> Head:
    """Train a head on `inputs (n, inputs) float32`: fields, or `pair_features` of two fields with `kind="pair"`.

    `keys` are equal for rows that are copies of each other; by default, those are the rows with equal inputs. Returns
    the head of `fit_head`, and raises `LabelError` as it does; `UsageError` for inputs that are not finite or not one
    row a label.
    """
    names = check_labels(labels, len(inputs))
    x = np.ascontiguousarray(inputs, np.float32)
    if len(names) and (x.ndim != 2 or not np.isfinite(x).all()):
        raise UsageError(f"inputs must be finite and (n, inputs), not of shape {x.shape}")
    digests = [hashlib.blake2b(row.tobytes(), digest_size=8).digest() for row in x]
    own = digests if keys is None else list(keys)
    classes = sorted(set(names))
    if len(classes) < 2:
        found = f"all {len(names)} are {classes[0]!r}" if classes else "there are no examples"
        raise LabelError(f"a head needs at least two labels, and {found}; add examples of another label")
    # sorted by their content: the same rows in another order are the same problem, with the same folds
    order = sorted(range(len(x)), key=lambda i: (digests[i], names[i]))
    if not weigh_copies:
        order = [order[k] for k in first_rows((own[i], names[i]) for i in order)]
    index = {label: k for k, label in enumerate(classes)}
    with one_thread():
        basis = Basis.of(x[order])
        problem = Problem(
            z=basis.rotate(x[order]),
            y=np.array([index[names[i]] for i in order]),
            groups=np.array(numbered([own[i] for i in order], [digests[i] for i in order])),
            classes=len(classes),
            variance=basis.variance,
            scale=float(basis.variance.sum()) / x.shape[1],
        )
        choice = choose(problem, progress)
        last = in_percent(progress, "solve")
        theta = problem.solve(choice.strength, start=choice.start, tolerance=1e-8, report=last)
        progress("solve", 100, 100)
        weight, bias = basis.restore(theta)
    counts = dict(zip(classes, np.bincount(problem.y).tolist(), strict=True))
    cv = choice.cv and choice.cv | {"never_held_out": [classes[k] for k in choice.cv["never_held_out"]]}
    copies = count_copies(own, names)
    about: dict[str, Any] = {"n": len(order), "labels": counts, **copies.to_dict()}
    warnings = caveats(counts, copies, weigh="each of them weighs" if weigh_copies else "copies weigh once")
    if cv is not None and cv["never_held_out"]:
        warnings.append(f"never held out, so that no accuracy covers them: {listed(cv['never_held_out'])}")
    return Head(
        name=name,
        kind=kind,
        labels=tuple(classes),
        weight=weight.astype(np.float32),
        bias=bias.astype(np.float32),
        temperature=choice.temperature,
        about=about | {"strength": choice.strength, "cv": cv, "warnings": warnings},
    )


def _kinds(kind: str | None) -> str:
    return "pairs" if kind == "pair" else "single texts"
