"""Text in, field or labels out: the model that `fieldrun.load` returns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

import numpy as np
import numpy.typing as npt

from fieldrun.bundle import Bucket, Bundle, Manifest, TaskSpec
from fieldrun.errors import InputTextError, UsageError
from fieldrun.reference import softmax
from fieldrun.tensors import Array

from .choose import choose_engine
from .engines import Engine
from .plan import BucketPlan, fill
from .tokenization import TextTokenizer, check_texts

__all__ = ["Encoding", "FieldModel", "load"]

Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]
Texts = Sequence[str] | Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoding:
    """What one forward pass gives for `n` texts.

    `field (n, dim)` and `logits (n, labels of all single tasks)` are float32; `tokens (n,)` counts each text's tokens,
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
    path: str | Path = "reference", *, engine: str = "auto", threads: int = 1, overflow: str = "truncate"
) -> FieldModel:
    """Open a bundle.

    Args:
        path: a bundle folder, or `"reference"`, the one inside the package.
        engine: `"onnxruntime"`, `"numpy"`, `"null"`, or `"auto"`: ONNX Runtime where it is installed and faster here.
        threads: CPU threads of one forward pass in ONNX Runtime; the NumPy engine uses those of NumPy's BLAS.
        overflow: a text longer than the largest bucket is an `"error"`, is cut (`"truncate"`, the count is in
            `Encoding.dropped`), or is encoded in several windows whose fields are averaged (`"window"`).

    Raises:
        BundleError, IntegrityError, SchemaTooNew: the bundle is not what it says.
        UnknownName, MissingDependency, EngineError: the engine is unknown, not installed, or cannot run.
        UsageError: `threads` is not a positive integer.
    """
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise UsageError(f"threads must be a positive integer, not {threads!r}")
    return FieldModel(Bundle.load(path), engine=engine, threads=threads, overflow=overflow)


class FieldModel:
    """A loaded bundle. Every method is safe to call from several threads at once."""

    def __init__(self, bundle: Bundle, *, engine: str = "auto", threads: int = 1, overflow: str = "truncate") -> None:
        self.path: Path = bundle.path
        self.manifest: Manifest = bundle.manifest
        self._plan = BucketPlan(bundle.manifest.buckets)
        tokenizer = (bundle.path / "tokenizer.json").read_bytes()
        self._tokenize = TextTokenizer(tokenizer, self._plan.longest, overflow)
        choice = choose_engine(bundle, engine, threads)
        self.engine: str = choice.name
        self.engine_reason: str = choice.reason
        self._engine: Engine = choice.engine

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks that this bundle answers."""
        return tuple(task.name for task in self.manifest.tasks)

    def labels(self, task: str) -> tuple[str, ...]:
        """Return the labels of `task`, in the order of its scores."""
        return self.manifest.task(task).labels

    def kind(self, task: str) -> str:
        """Return `"single"` if `task` takes texts, `"pair"` if it takes pairs of texts."""
        return self.manifest.task(task).kind

    def encode(self, texts: Sequence[str]) -> Encoding:
        """Run `texts` once and return fields, logits of all single tasks, and token counts.

        Raises:
            InputTextError: not a non-empty list of non-blank strings.
            TextTooLong: a text is too long and `overflow` is `"error"`.
        """
        checked = check_texts(texts)
        tokenized = self._tokenize(checked)
        n = len(tokenized.ids)
        if n == 1:
            chunk = next(self._plan.chunks(tokenized.ids))
            field, logits = self._engine.run(chunk.ids)
        else:
            field = logits = np.zeros((0, 0), np.float32)
            for chunk in self._plan.chunks(tokenized.ids):
                part, part_logits = self._engine.run(chunk.ids)
                if not len(field):
                    field = np.empty((n, part.shape[1]), np.float32)
                    logits = np.empty((n, part_logits.shape[1]), np.float32)
                field[chunk.rows] = part[: len(chunk.rows)]
                logits[chunk.rows] = part_logits[: len(chunk.rows)]
        if n > len(checked):
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
        spec = self.manifest.task(task)
        if (spec.kind == "pair") != (other is not None):
            raise UsageError(f"task {task!r} takes {'two encodings' if spec.kind == 'pair' else 'one encoding'}")
        logits = encoding.logits if other is None else self._pair_logits(encoding.field, other.field)
        scores: Floats = softmax(logits[:, spec.start : spec.start + len(spec.labels)], spec.temperature)
        return scores

    def field(self, texts: Sequence[str]) -> Floats:
        """Return the meaning field of each text, `(n, dim) float32`; raises as `encode` does."""
        return self.encode(texts).field

    def scores(self, texts: Texts, task: str) -> Floats:
        """Return each text's probabilities over `labels(task)`, `(n, labels) float32`; rows sum to 1.

        `texts` are strings for a single task and pairs of strings for a pair task. Raises as `encode` does, and
        `UnknownName` for a task that the bundle does not have.
        """
        spec = self.manifest.task(task)
        scores: Floats = softmax(self._logits(texts, spec), spec.temperature)
        return scores

    def predict(self, texts: Texts, task: str) -> list[str]:
        """Return the best label of each text; raises as `scores` does."""
        spec = self.manifest.task(task)
        return [spec.labels[i] for i in self._logits(texts, spec).argmax(1).tolist()]

    def _logits(self, texts: Texts, spec: TaskSpec) -> Floats:
        columns = slice(spec.start, spec.start + len(spec.labels))
        if spec.kind == "single":
            return self.encode(texts).logits[:, columns]  # type: ignore[arg-type]
        first, second = _split_pairs(texts, spec.name)
        both = self.encode(check_texts(first, "first text") + check_texts(second, "second text"))
        return self._pair_logits(both.field[: len(first)], both.field[len(first) :])[:, columns]

    def token_ids(self, texts: Sequence[str]) -> list[list[int]]:
        """Return each text's token ids, special tokens included; windows of a long text apart. Raises as `encode`."""
        return self._tokenize(check_texts(texts)).ids

    def replay(self, sequences: Sequence[Sequence[int]], bucket: Bucket) -> Floats:
        """Return the fields `(n, dim)` of token ids that fit `bucket`, run in it whatever else would fit."""
        chunks = (sequences[i : i + bucket.batch] for i in range(0, len(sequences), bucket.batch))
        return np.concatenate(
            [self._engine.run(fill(part, bucket.batch, bucket.length))[0][: len(part)] for part in chunks]
        )

    def replay_pairs(self, a: Floats, b: Floats, batch: int) -> Floats:
        """Return all pair tasks' logits `(n, labels)` of fields `a`, `b` `(n, dim)`, run in batches of `batch`."""
        parts = []
        for start in range(0, len(a), batch):
            rows = np.minimum(np.arange(start, start + batch), len(a) - 1)
            parts.append(self._engine.run_pairs(a[rows], b[rows])[: len(a) - start])
        return np.concatenate(parts)

    def _pair_logits(self, a: Floats, b: Floats) -> Floats:
        parts = []
        start = 0
        while start < len(a):
            batch = self._plan.batch_for(len(a) - start)
            parts.append(self.replay_pairs(a[start : start + batch], b[start : start + batch], batch))
            start += batch
        return np.concatenate(parts)

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


class _Closed:
    """What a closed model has in place of an engine."""

    def run(self, ids: Array) -> tuple[Array, Array]:
        del ids
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
