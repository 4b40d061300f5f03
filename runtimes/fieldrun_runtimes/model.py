"""Text in, field or labels out: the model that `fieldrun.load` returns."""

from __future__ import annotations

import json
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import overload

import numpy as np
import numpy.typing as npt

from fieldrun.errors import (
    CheckpointError,
    HeadMismatch,
    InputTextError,
    NameTaken,
    StorageError,
    UnknownName,
    UsageError,
)
from fieldrun.formats.bundle import Bundle, Manifest, TaskSpec
from fieldrun.formats.tensors import Array
from fieldrun.heads.head import Head, attached_task, head_logits, pair_features, softmax

from .engines import Engine
from .engines.choice import choose_engine
from .tokenization import TextTokenizer, check_texts

__all__ = ["Encoding", "FieldModel", "load"]

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Texts = Sequence[str] | Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """What one forward pass gives for `n` texts.

    `field (n, dim)` and `logits (n, labels of all exported single tasks)` are float32; the logits of attached heads are
    worked out from the field when they are asked for. `tokens (n,)` counts each text's tokens,
    special tokens included; `dropped (n,)` those that were cut off, 0 unless the text was too long and
    `overflow="truncate"`.
    """

    field: Floats
    logits: Floats
    tokens: Integers
    dropped: Integers

    def __len__(self) -> int:
        return len(self.field)

    def part(self, start: int, stop: int) -> Encoding:
        """Return the texts `start` to `stop` (excluded) of this encoding."""
        rows = slice(start, stop)
        return Encoding(
            field=self.field[rows], logits=self.logits[rows], tokens=self.tokens[rows], dropped=self.dropped[rows]
        )


def load(
    path: str | Path = "reference",
    *,
    engine: str = "auto",
    provider: str | None = None,
    threads: int = 1,
    overflow: str = "truncate",
) -> FieldModel:
    """Open a bundle.

    Args:
        path: a bundle folder, or `"reference"`, the one inside the package.
        engine: `"native"`, `"onnxruntime"`, `"numpy"`, `"null"`, or `"auto"`: the native one where it was compiled,
            else the faster one of ONNX Runtime, where it is installed, and NumPy. `"tensorrt"` and `"tensorrt-rtx"` run
            what `fieldrun build` made on this machine of a bundle with TensorRT graphs.
        provider: what ONNX Runtime runs on: `"cpu"`, `"cuda"`, or `"cuda-graph"`, which launches a whole call at once.
            A GPU that is asked for and not there is an error.
        threads: CPU threads of one call. The native engine splits a batch over them, a single text runs on one; ONNX
            Runtime runs each graph on them. NumPy and the GPU engines use one thread and refuse more.
        overflow: a text longer than the largest bucket is an `"error"`, is cut (`"truncate"`, the count is in
            `Encoding.dropped`), or is encoded in several windows whose fields are averaged (`"window"`).

    Raises:
        BundleError, IntegrityError, SchemaTooNew: the bundle is not what it says.
        UnknownName, MissingDependency, EngineError: the engine is unknown, not installed, or cannot run.
        UsageError: `threads` is not a positive integer, or a provider for an engine that has none.
    """
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise UsageError(f"threads must be a positive integer, not {threads!r}")
    return FieldModel(Bundle.load(path), engine=engine, provider=provider, threads=threads, overflow=overflow)


class FieldModel:
    """A loaded bundle. Every method is safe to call from several threads at once.

    `manifest` is what the bundle's folder says; heads attached since are in `tasks`, `labels` and `attached` alone. A
    call that runs while another thread attaches or detaches a head sees the heads from before or from after.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        engine: str = "auto",
        provider: str | None = None,
        threads: int = 1,
        overflow: str = "truncate",
    ) -> None:
        self.path: Path = bundle.path
        self.manifest: Manifest = bundle.manifest
        longest = max(bucket.length for bucket in bundle.manifest.buckets)
        self._tokenize = TextTokenizer((bundle.path / "tokenizer.json").read_bytes(), longest, overflow)
        choice = choose_engine(bundle.exported(), engine, threads, provider)
        self.engine: str = choice.name
        self.engine_reason: str = choice.reason
        self._engine: Engine = choice.engine
        self._bundle = bundle
        self._lock = threading.Lock()  # held by who changes the heads; they are replaced whole, never changed
        self._tasks: dict[str, _Task] = {
            task.name: _Task(spec=task, head=None) for task in bundle.manifest.tasks if not task.attached
        }
        if len(self._tasks) < len(bundle.manifest.tasks):
            from fieldrun.heads.saved import read_heads

            self._tasks |= {name: _task_of(head) for name, head in read_heads(bundle).items()}

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks that this model answers, those of attached heads last."""
        return tuple(self._tasks)

    @property
    def attached(self) -> Mapping[str, Head]:
        """The heads that are not in the exported graphs, by name: those that can be detached."""
        heads = {name: task.head for name, task in self._tasks.items() if task.head is not None}
        return MappingProxyType(heads)

    def labels(self, task: str) -> tuple[str, ...]:
        """Return the labels of `task`, in the order of its scores."""
        return self._task(task).spec.labels

    def kind(self, task: str) -> str:
        """Return `"single"` if `task` takes texts, `"pair"` if it takes pairs of texts."""
        return self._task(task).spec.kind

    def attach(self, head: Head, *, replace: bool = False) -> None:
        """Answer one more task, `head.name`, from now on; its tensors are copied.

        `replace` lets it take the place of an attached head of the same name. See `fieldrun.fit_head`; `save` keeps it.

        Raises:
            NameTaken: the model answers a task of this name.
            HeadMismatch: the head's tensors do not fit this model's field.
        """
        task = _task_of(_checked(head, self.manifest.network.field_dim))
        with self._lock:
            taken = self._tasks.get(head.name)
            if taken is not None and taken.head is None:
                raise NameTaken(f"the task {head.name!r} is part of the exported bundle; name the head otherwise")
            if taken is not None and not replace:
                raise NameTaken(
                    f"a head {head.name!r} is attached; name this one otherwise, or attach with replace=True"
                )
            self._tasks = self._tasks | {head.name: task}

    def detach(self, name: str) -> Head:
        """Take the attached head `name` away again and return it.

        Raises:
            UnknownName: no head of this name is attached; the exported ones cannot be taken away.
        """
        with self._lock:
            heads = self.attached
            if name not in heads:
                raise UnknownName("attached head", name, list(heads))
            self._tasks = {key: task for key, task in self._tasks.items() if key != name}
            return heads[name]

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the bundle with the attached heads to the folder `path`, whole or not at all, and return the folder.

        Manifest, hashes, card and golden answers include the heads: `fieldrun verify` proves the new bundle, and
        loading it gives the same scores. `overwrite` replaces a bundle that is there, also the one that was loaded.

        Raises:
            OutputExists: `path` is taken by something else than a bundle, by a bundle without `overwrite`, or belongs
                to the installed package.
            BundleError, IntegrityError: the loaded bundle has changed on disk.
            StorageError: the place cannot be written.
        """
        from fieldrun.heads.saved import save_bundle

        try:
            target = Path(path)
        except TypeError as error:
            raise StorageError(f"cannot save to {path!r}; give the path of a folder") from error
        with self._lock:
            save_bundle(self._bundle, self.attached, target, overwrite=overwrite)
        return target

    def encode(self, texts: Sequence[str], *, dim: int | None = None) -> Encoding:
        """Run `texts` once and return fields, logits of all exported single tasks, and token counts.

        `dim` keeps the first `dim` numbers of each field, for smaller indexes; attached heads and pair tasks need the
        whole field.

        Raises:
            InputTextError: not a non-empty list of non-blank strings.
            TextTooLong: a text is too long and `overflow` is `"error"`.
            UsageError: `dim` is not within 1 and the field's length.
        """
        if dim is not None:
            self._check_dim(dim)
            whole = self.encode(texts)
            return replace(whole, field=np.ascontiguousarray(whole.field[:, :dim]))
        checked = check_texts(texts)
        if len(checked) == 1:
            ids = self._tokenize.one(checked[0])
            if ids is not None:
                field, logits = self._engine.run([ids])
                return Encoding(field=field, logits=logits, tokens=np.array((len(ids),)), dropped=np.array((0,)))
        tokenized = self._tokenize(checked)
        field, logits = self._engine.run(tokenized.ids)
        if len(tokenized.ids) > len(checked):
            weights = [len(ids) for ids in tokenized.ids]
            field = _pool_windows(field, weights, tokenized.owners, len(checked))
            logits = _pool_windows(logits, weights, tokenized.owners, len(checked))
        return Encoding(
            field=field,
            logits=logits,
            tokens=np.array(tokenized.tokens, np.int64),
            dropped=np.array(tokenized.dropped, np.int64),
        )

    def scores_of(self, encoding: Encoding, task: str, other: Encoding | None = None) -> Floats:
        """Return the probabilities `(n, labels) float32` of `task` for texts that were encoded before.

        A pair task takes the second texts' encoding as `other`; a single task takes none.
        """
        found = self._task(task)
        scores: Floats = softmax(self._logits_of(encoding, found, other), found.spec.temperature)
        return scores

    def rejection_of(self, encoding: Encoding, task: str, other: Encoding | None = None) -> Floats:
        """Return `rejection` for texts that were encoded before; encodings as in `scores_of`."""
        found = self._task(task)
        return _rejection(self._logits_of(encoding, found, other), found.spec.temperature)

    def field(self, texts: Sequence[str], *, dim: int | None = None) -> Floats:
        """Return the meaning field of each text, `(n, dim) float32`; arguments and errors as of `encode`."""
        return self.encode(texts, dim=dim).field

    @overload
    def similarity(self, a: str, b: str, *, dim: int | None = None) -> float: ...  # type: ignore[overload-overlap]
    @overload
    def similarity(self, a: Sequence[str], b: Sequence[str], *, dim: int | None = None) -> Floats: ...
    def similarity(self, a: str | Sequence[str], b: str | Sequence[str], *, dim: int | None = None) -> float | Floats:
        """Return the cosine of the fields of `a` and `b`: a float for two texts, `(n,) float32` for two lists.

        The texts of two lists are compared in order. `dim` compares only the first `dim` numbers of each field.
        Raises as `encode` does, and `InputTextError` for a text against a list, or lists of different lengths.
        """
        if isinstance(a, str) != isinstance(b, str):
            raise InputTextError("similarity compares two texts, or two lists of texts; make both the same")
        first = check_texts([a] if isinstance(a, str) else a, "first text")
        second = check_texts([b] if isinstance(b, str) else b, "second text")
        if len(first) != len(second):
            raise InputTextError(f"{len(first)} texts against {len(second)}; similarity compares them in order")
        both = self.field(first + second, dim=dim)
        x, y = both[: len(first)], both[len(first) :]
        norms = np.sqrt((x * x).sum(1) * (y * y).sum(1))
        cosine: Floats = np.clip((x * y).sum(1) / np.maximum(norms, np.finfo(np.float32).tiny), -1, 1)
        return float(cosine[0]) if isinstance(a, str) else cosine

    def scores(self, texts: Texts, task: str) -> Floats:
        """Return each text's probabilities over `labels(task)`, `(n, labels) float32`; rows sum to 1.

        `texts` are strings for a single task and pairs of strings for a pair task. Raises as `encode` does, and
        `UnknownName` for a task that the bundle does not have.
        """
        found = self._task(task)
        scores: Floats = softmax(self._logits(texts, found), found.spec.temperature)
        return scores

    def predict(self, texts: Texts, task: str) -> list[str]:
        """Return the best label of each text; raises as `scores` does."""
        found = self._task(task)
        return [found.spec.labels[i] for i in self._logits(texts, found).argmax(1).tolist()]

    def predict_all(self, texts: Sequence[str]) -> dict[str, list[str]]:
        """Return the best label of each text for every single task, from one forward pass; raises as `encode` does."""
        encoding = self.encode(texts)
        row = encoding.logits[0] if len(encoding.logits) == 1 else None
        found: dict[str, list[str]] = {}
        for name, task in self._tasks.items():
            spec = task.spec
            if spec.kind != "single":
                continue
            if row is not None and task.head is None:  # one text: its row as it is
                found[name] = [spec.labels[row[spec.start : spec.start + len(spec.labels)].argmax()]]
            else:
                found[name] = [spec.labels[i] for i in self._logits_of(encoding, task, None).argmax(1).tolist()]
        return found

    def rejection(self, texts: Texts, task: str) -> Floats:
        """Return how little each text looks like any label of `task`, `(n,) float32`; raises as `scores` does.

        Larger is more likely out of scope: minus the calibrated logit of the best label, over the mean of all labels.
        (Hendrycks et al., "Scaling out-of-distribution detection for real-world settings", ICML 2022, the maximum
        logit.) It is not a probability: choose its threshold on texts of your own. With a label of its own for what is
        out of scope, use that label's probability. With two labels it only says how close the call is.
        The score was chosen among others on CLINC150's dev file, so what it reaches there is no fresh test.
        """
        found = self._task(task)
        return _rejection(self._logits(texts, found), found.spec.temperature)

    def _task(self, name: object) -> _Task:
        tasks = self._tasks
        found = tasks.get(name) if isinstance(name, str) else None
        if found is None:
            raise UnknownName("task", name, list(tasks))
        return found

    def _check_dim(self, dim: int) -> None:
        whole = self.manifest.network.field_dim
        if not isinstance(dim, int) or isinstance(dim, bool) or not 1 <= dim <= whole:
            raise UsageError(f"dim must be a whole number from 1 to {whole}, the length of the field, not {dim!r}")

    def _logits(self, texts: Texts, task: _Task) -> Floats:
        if task.spec.kind == "single":
            return self._logits_of(self.encode(texts), task, None)  # type: ignore[arg-type]
        first, second = _split_pairs(texts, task.spec.name)
        both = self.encode(check_texts(first, "first text") + check_texts(second, "second text"))
        return self._logits_of(both.part(0, len(first)), task, both.part(len(first), len(both)))

    def _logits_of(self, encoding: Encoding, task: _Task, other: Encoding | None) -> Floats:
        """Return the logits `(n, labels) float32` of `task`, from the graphs or, for an attached head, from fields."""
        spec, head = task.spec, task.head
        if (spec.kind == "pair") != (other is not None):
            raise UsageError(f"task {spec.name!r} takes {'two encodings' if spec.kind == 'pair' else 'one encoding'}")
        if head is None and other is None:
            return encoding.logits[:, spec.start : spec.start + len(spec.labels)]
        fields = [part.field for part in (encoding, other) if part is not None]
        if any(field.shape[1] != self.manifest.network.field_dim for field in fields):
            raise UsageError(f"task {spec.name!r} needs whole fields; encode the texts without dim")
        if head is not None:
            return head_logits(head, fields[0] if other is None else pair_features(*fields))
        return self._engine.run_pairs(*fields)[:, spec.start : spec.start + len(spec.labels)]

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's token ids, special tokens included; windows of a long text apart. Raises as `encode`."""
        return self._tokenize(check_texts(texts)).ids

    def close(self) -> None:
        """Let go of the engine; the model cannot be used afterwards. Closing twice is no error."""
        self._engine = _Closed()

    def __enter__(self) -> FieldModel:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"FieldModel({self.manifest.name!r}, recipe={self.manifest.recipe['name']!r}, engine={self.engine!r})"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Task:
    """One task, and its head unless that is in the graphs."""

    spec: TaskSpec
    head: Head | None


def _task_of(head: Head) -> _Task:
    return _Task(spec=attached_task(head), head=head)


def _checked(head: Head, field_dim: int) -> Head:
    """Return a copy of `head` in float32 that nobody else can change; `HeadMismatch` when it does not fit."""
    if not isinstance(head, Head):
        raise HeadMismatch(f"attach takes a head, as fit_head returns it, not {type(head).__name__}")
    try:
        head.validate(field_dim)
        json.dumps(dict(head.about), allow_nan=False)
    except (AttributeError, CheckpointError, TypeError, ValueError) as error:
        raise HeadMismatch(f"{error}; train the head on the fields of this model") from error
    weight, bias = np.array(head.weight, np.float32, order="C"), np.array(head.bias, np.float32)
    weight.flags.writeable = bias.flags.writeable = False
    return replace(head, weight=weight, bias=bias)


def _rejection(logits: Floats, temperature: float) -> Floats:
    """Return `mean - max` of each row's calibrated logits: what softmax does not see, a common constant, drops out."""
    values: Floats = (logits.mean(1) - logits.max(1)) / np.float32(temperature)
    return values


class _Closed:
    """What a closed model has in place of an engine."""

    def run(self, sequences: Sequence[Sequence[int]]) -> tuple[Array, Array]:
        del sequences
        raise UsageError("this model was closed; load the bundle again")

    def run_pairs(self, a: Array, b: Array) -> Array:
        del a, b
        raise UsageError("this model was closed; load the bundle again")


def _split_pairs(texts: object, task: str) -> tuple[list[str], list[str]]:
    if isinstance(texts, str | bytes) or not isinstance(texts, Sequence):
        raise InputTextError(f"task {task!r} takes a list of pairs of texts: [(text_a, text_b), ...]")
    first, second = [], []
    for i, pair in enumerate(texts):
        if isinstance(pair, str | bytes) or not isinstance(pair, Sequence) or len(pair) != 2:
            raise InputTextError(f"item {i} is not a pair, and task {task!r} takes pairs: [(text_a, text_b), ...]")
        first.append(pair[0])
        second.append(pair[1])
    return first, second


def _pool_windows(values: Floats, weights: Sequence[int], owners: Sequence[int], n: int) -> Floats:
    """Return the mean over each owner's windows, weighted by their tokens, `(n, columns) float32`."""
    weight = np.array(weights, np.float32)[:, None]
    total = np.zeros((n, values.shape[1]), np.float32)
    share = np.zeros((n, 1), np.float32)
    np.add.at(total, owners, values * weight)
    np.add.at(share, owners, weight)
    pooled: Floats = total / share
    return pooled
