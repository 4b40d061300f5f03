"""Text in, field or labels out: the model that `fieldrun.load` returns."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Generic, Literal, NamedTuple, cast, overload

import numpy as np
import numpy.typing as npt

from fieldrun.errors import BundleError, InputTextError, IntegrityError, StorageError, UnknownName, UsageError
from fieldrun.evaluation.rows import Texts, check_texts, split_pairs
from fieldrun.formats.bundle import MANIFEST, REFERENCE_BUNDLE, Bundle, Manifest
from fieldrun.formats.storage import sha256_bytes
from fieldrun.formats.tensors import Array
from fieldrun.heads.head import Head, head_logits, pair_features, softmax

from .encoding import Encoding, pool_windows
from .engines import Engine
from .engines.choice import choose_engine
from .sentences import SentenceEncoder
from .tasks import Task, Tasks
from .tokenization import TextTokenizer

if TYPE_CHECKING:
    from typing_extensions import TypeVar  # of type checkers; the one of Python 3.10 has no default

    Label = TypeVar("Label", bound=str | None, default=str, covariant=True)
else:
    from typing import TypeVar

    Label = TypeVar("Label")

__all__ = ["REJECTED", "UNKNOWNS", "Encoding", "FieldModel", "Scored", "load"]

_TOGETHER = 4096  # texts whose fields are in memory at once, where only scores or labels are asked for
Floats = npt.NDArray[np.float32]
Integers = npt.NDArray[np.int64]


UNKNOWNS = ("answer", "reject", "error")
"""What a text without a known token gets, see `load`."""

REJECTED = 1.0
"""The rejection of a text that `unknown="reject"` refuses; that of all others is at most 0."""

_NOTHING_KNOWN = "text {} has no known token (another script, emoji or very long words); leave it out"


class Scored(NamedTuple):
    """A label and its probability."""

    label: str
    score: float


@overload
def load(
    path: str | Path = "reference",
    *,
    engine: str = "auto",
    provider: str | None = None,
    threads: int = 1,
    overflow: str = "truncate",
    unknown: Literal["answer", "error"] = "answer",
) -> FieldModel: ...
@overload
def load(
    path: str | Path = "reference",
    *,
    engine: str = "auto",
    provider: str | None = None,
    threads: int = 1,
    overflow: str = "truncate",
    unknown: str,
) -> FieldModel[str | None]: ...
def load(
    path: str | Path = "reference",
    *,
    engine: str = "auto",
    provider: str | None = None,
    threads: int = 1,
    overflow: str = "truncate",
    unknown: str = "answer",
) -> FieldModel[str | None]:
    """Open a bundle.

    Args:
        path: a bundle folder, or `"reference"`, the one inside the package.
        engine: `"native"`, `"onnxruntime"`, `"numpy"`, `"null"`, or `"auto"`: the native one where it was compiled,
            else the faster one of ONNX Runtime, where it is installed, and NumPy. `"tensorrt"` and `"tensorrt-rtx"` run
            what `fieldrun build` made on this machine of a bundle with TensorRT graphs.
        provider: what ONNX Runtime runs on: `"cpu"`, `"cuda"`, or `"cuda-graph"`, which launches a whole call at once.
            A GPU that is asked for and not there is an error.
        threads: CPU threads of one call. The native engine splits a batch over them, a single text runs on one; ONNX
            Runtime runs each graph on them. NumPy and the GPU engines use one thread and refuse more. With 1 none is
            started; above 1, texts that are not plain ASCII are tokenized on all cores.
        overflow: a text longer than the largest bucket is an `"error"`, is cut (`"truncate"`, the count is in
            `Encoding.dropped`), or is encoded in several windows whose fields are averaged (`"window"`).
        unknown: a text without a single known token (another script, emoji, very long words), or a pair with one, is
            given the labels of the field that all such texts share (`"answer"`), the label None and a rejection of
            `REJECTED`, larger than that of any other text (`"reject"`), or is an `"error"`. `predict_proba` and fields
            are the same with `"answer"` and `"reject"`. To a type checker, labels are `str | None` with `"reject"`, and
            with a policy that it does not know; else they are `str`.

    Raises:
        BundleError, IntegrityError, SchemaTooNew: the bundle is not what it says.
        UnknownName, MissingDependency, EngineError: the engine or a policy is unknown, not installed, or cannot run.
        UsageError: `threads` is not a positive integer, or above 1 for an engine that uses one; or a provider for an
            engine that has none.
    """
    return FieldModel(
        Bundle.load(path), engine=engine, provider=provider, threads=threads, overflow=overflow, unknown=unknown
    )


class FieldModel(SentenceEncoder, Generic[Label]):
    """A loaded bundle. Every method is safe to call from several threads at once.

    `FieldModel` is short for `FieldModel[str]`; one that may reject texts is a `FieldModel[str | None]`, see `load`.

    `manifest` describes the folder that was loaded; heads attached later are in `tasks`, `labels` and `attached` only.
    A call that runs while another thread attaches or detaches a head uses either the old heads or the new ones.
    """

    def __init__(
        self,
        bundle: Bundle,
        *,
        engine: str = "auto",
        provider: str | None = None,
        threads: int = 1,
        overflow: str = "truncate",
        unknown: str = "answer",
    ) -> None:
        if unknown not in UNKNOWNS:
            raise UnknownName("unknown", unknown, UNKNOWNS)
        self._unknown = unknown
        self.path: Path = bundle.path
        self.manifest: Manifest = bundle.manifest
        longest = max(bucket.length for bucket in bundle.manifest.buckets)
        vocabulary = bundle.manifest.network.vocab_size
        try:
            tokenizer = bytes(bundle.contents["tokenizer.json"])
            self._tokenize = TextTokenizer(tokenizer, longest, overflow, vocabulary, threads)
            choice = choose_engine(bundle.exported(), engine, threads, provider)
        except MemoryError as error:
            raise BundleError(f"{bundle.path} needs more memory than this process may have: {error}") from error
        self.engine: str = choice.name
        self.engine_reason: str = choice.reason
        self._engine: Engine = choice.engine
        self._bundle = bundle
        self._tasks = Tasks(bundle)
        self._settings: dict[str, Any] = {
            "engine": engine,
            "provider": provider,
            "threads": threads,
            "overflow": overflow,
            "unknown": unknown,
        }

    @property
    def tasks(self) -> tuple[str, ...]:
        """The names of the tasks, those of attached heads last."""
        return tuple(task.spec.name for task in self._tasks)

    @property
    def attached(self) -> Mapping[str, Head]:
        """The attached heads by name; those in the exported graphs are not among them."""
        return self._tasks.attached

    @property
    def max_seq_length(self) -> int:
        """The tokens of the longest text that fits, special tokens included; `overflow` decides about longer ones."""
        return self._tokenize.longest

    @property
    def tokenizer(self) -> TextTokenizer:
        """What turns texts into token ids."""
        return self._tokenize

    def get_embedding_dimension(self) -> int:
        """Return the length of a field."""
        return self.manifest.network.field_dim

    def labels(self, task: str | None = None) -> tuple[str, ...]:
        """Return the labels of `task`, in the order of its probabilities."""
        return self._tasks.find(task).spec.labels

    def kind(self, task: str | None = None) -> str:
        """Return `"single"` if `task` takes texts, `"pair"` if it takes pairs of texts."""
        return self._tasks.find(task).spec.kind

    def attach(self, head: Head, *, replace: bool = False) -> None:
        """Add the task `head.name`, from a head that `fieldrun.fit_head` returned; its tensors are copied.

        `replace` replaces an attached head of the same name. `save` writes the bundle with it.

        Raises:
            NameTaken: the model has a task of this name.
            HeadMismatch: the head's tensors do not fit this model's field.
        """
        self._tasks.attach(head, replace=replace)

    def detach(self, name: str) -> Head:
        """Remove the attached head `name` and return it.

        Raises:
            UnknownName: no head of this name is attached; those in the exported graphs cannot be removed.
        """
        return self._tasks.detach(name)

    def save(self, path: str | Path, *, overwrite: bool = False) -> Path:
        """Write the bundle with the attached heads to the folder `path`, and return the folder.

        An error leaves nothing behind. Manifest, hashes, card and golden answers include the heads, so `fieldrun
        verify` checks them too. `overwrite` replaces a bundle, even the one that was loaded.

        Raises:
            OutputExists: `path` exists and is not a bundle, or is one and `overwrite` is not set, or it is inside the
                installed package.
            BundleError, IntegrityError: the loaded bundle has changed on disk.
            StorageError: the folder cannot be written.
        """
        from fieldrun.heads.saved import save_bundle

        try:
            target = Path(path)
        except TypeError as error:
            raise StorageError(f"cannot save to {path!r}; give the path of a folder") from error
        save_bundle(self._bundle, self.attached, target, overwrite=overwrite)
        return target

    def forward(self, texts: Iterable[str], *, dim: int | None = None) -> Encoding:
        """Run `texts` once and return fields, logits of all exported single tasks, and token counts.

        `dim` keeps the first numbers of each field, for smaller indexes; attached heads and pair tasks need all.

        Raises:
            InputTextError: `texts` is empty or not a list, or a text is blank or not a string.
            TextTooLong: a text does not fit and `overflow` is `"error"`.
            UsageError: `dim` is not between 1 and the length of the field.
        """
        if dim is not None:
            self._check_dim(dim)
            whole = self.forward(texts)
            return replace(whole, field=np.ascontiguousarray(whole.field[:, :dim]))
        return self._forward(check_texts(texts))

    def _forward(self, checked: list[str], start: int = 0) -> Encoding:
        """Run checked texts, which messages count from `start`."""
        ids = self._tokenize.one(checked[0]) if len(checked) == 1 else None
        if ids is not None:  # the common case, one text of one window
            known = self._tokenize.known(ids)
            if not known and self._unknown == "error":
                raise InputTextError(_NOTHING_KNOWN.format(start))
            field, logits = self._engine.run([ids])
            counts = {"tokens": np.array((len(ids),)), "dropped": np.array((0,))}
            return Encoding(field=field, logits=logits, known=np.array((known,), np.float32), **counts)
        tokenized = self._tokenize(checked, start)
        if self._unknown == "error" and not min(tokenized.known):
            raise InputTextError(_NOTHING_KNOWN.format(start + tokenized.known.index(0)))
        field, logits = self._engine.run(tokenized.ids)
        if len(tokenized.ids) > len(checked):
            weights = [len(ids) for ids in tokenized.ids]
            field = pool_windows(field, weights, tokenized.owners, len(checked))
            logits = pool_windows(logits, weights, tokenized.owners, len(checked))
        return Encoding(
            field=field,
            logits=logits,
            tokens=np.array(tokenized.tokens, np.int64),
            dropped=np.array(tokenized.dropped, np.int64),
            known=np.array(tokenized.known, np.float32),
        )

    def scores_of(self, encoding: Encoding, task: str | None, other: Encoding | None = None) -> Floats:
        """Return the probabilities `(n, labels) float32` of `task` for texts that were encoded before.

        A pair task takes the second texts' encoding as `other`; a single task takes none.
        """
        found = self._tasks.find(task)
        scores: Floats = softmax(self._logits_of(encoding, found, other), found.spec.temperature)
        return scores

    def best_of(
        self, encoding: Encoding, task: str | None, other: Encoding | None = None, *, k: int | None = None
    ) -> tuple[Integers, Floats]:
        """Return the positions in `labels(task)` of the `k` best labels, or all, and their probabilities, best first.

        Both are `(n, k)`, for texts that were encoded before, `rejected` ones too; encodings as in `scores_of`.
        """
        found = self._tasks.find(task)
        return _best(self._logits_of(encoding, found, other), found.spec.temperature, k)

    def rejection_of(self, encoding: Encoding, task: str | None, other: Encoding | None = None) -> Floats:
        """Return `rejection` for texts that were encoded before; encodings as in `scores_of`."""
        found = self._tasks.find(task)
        values = _rejection(self._logits_of(encoding, found, other), found.spec.temperature)
        values[self.rejected(encoding, other)] = REJECTED
        return values

    def rejected(self, encoding: Encoding, other: Encoding | None = None) -> npt.NDArray[np.bool_]:
        """Return which texts, or pairs, get no label: with `unknown="reject"`, those with nothing known."""
        if self._unknown != "reject":
            return np.zeros(len(encoding), bool)
        nothing: npt.NDArray[np.bool_] = encoding.known == 0
        return nothing if other is None else nothing | (other.known == 0)

    def field(self, texts: Iterable[str], *, dim: int | None = None) -> Floats:
        """Return the meaning field of each text, `(n, dim) float32`; arguments and errors are those of `forward`."""
        return self.forward(texts, dim=dim).field

    def predict_proba(self, texts: Texts, task: str | None = None) -> Floats:
        """Return each text's probabilities over `labels(task)`, `(n, labels) float32`; rows sum to 1.

        `texts` are strings, or pairs of strings for a pair task. The task may be left out if the model has only one.
        Raises as `forward` does, and `UnknownName` for a task that the model does not have.
        """
        found = self._tasks.find(task)
        blocks = [softmax(logits, found.spec.temperature) for logits, _ in self._logits(texts, found)]
        scores: Floats = np.concatenate(blocks)
        return scores

    def predict(
        self,
        texts: Texts,
        task: str | None = None,
        *,
        allow: Collection[str] | None = None,
        deny: Collection[str] | None = None,
    ) -> list[Label]:
        """Return the best label of each text, of those in `allow` or of those not in `deny`.

        It is None for a text that `unknown="reject"` refuses. Of equal logits, the first label is the best.

        Raises as `predict_proba` does, `UnknownName` for a label that the task does not have, and `UsageError` if both
        lists are given or no label is left.
        """
        found = self._tasks.find(task)
        labels, chosen = found.spec.labels, None
        if allow is not None or deny is not None:
            chosen = found.chosen(allow, deny)
            labels = tuple(labels[i] for i in chosen)
        best: list[Label] = []
        for logits, rejected in self._logits(texts, found):
            best += self._labelled(logits if chosen is None else logits[:, chosen], labels, rejected)
        return best

    def top_k(
        self,
        texts: Texts,
        task: str | None = None,
        *,
        k: int = 5,
        threshold: float = 0.0,
        allow: Collection[str] | None = None,
        deny: Collection[str] | None = None,
    ) -> list[list[Scored]]:
        """Return the `k` best labels of each text with their probabilities, best first.

        Labels with a probability below `threshold`, not in `allow` or in `deny` are left out: a list may be short or
        empty (always for a text that `unknown="reject"` refuses), and the probabilities of the other labels do not
        change. Raises as `predict` does.
        """
        if not isinstance(k, int) or isinstance(k, bool) or k < 1:
            raise UsageError(f"k must be a positive integer, not {k!r}")
        found = self._tasks.find(task)
        chosen, labels = np.array(found.chosen(allow, deny)), found.spec.labels
        rows: list[list[Scored]] = []
        for logits, rejected in self._logits(texts, found):
            order, scores = _best(logits, found.spec.temperature, k, chosen)
            shown = (scores >= threshold) & ~rejected[:, None]
            for each in zip(order.tolist(), scores.tolist(), shown.tolist(), strict=True):
                rows.append([Scored(labels[i], score) for i, score, kept in zip(*each, strict=True) if kept])
        return rows

    def predict_all(self, texts: Iterable[str]) -> dict[str, list[Label]]:
        """Return the best label of each text for every single task, from one forward pass; raises as `forward` does."""
        encoding = self.forward(texts)
        rejected = self.rejected(encoding)
        row = encoding.logits[0] if len(encoding.logits) == 1 and not rejected[0] else None
        found: dict[str, list[Label]] = {}
        for task in self._tasks:
            spec = task.spec
            if spec.kind != "single":
                continue
            if row is not None and task.head is None:  # the common case, one text, in half the time
                label = spec.labels[row[spec.start : spec.start + len(spec.labels)].argmax()]
                found[spec.name] = [cast("Label", label)]
            else:
                found[spec.name] = self._labelled(self._logits_of(encoding, task, None), spec.labels, rejected)
        return found

    def rejection(self, texts: Texts, task: str | None = None) -> Floats:
        """Return how likely each text is outside all labels of `task`, `(n,) float32`, larger for more likely.

        It is the mean of the calibrated logits minus the largest one, the maximum logit of Hendrycks et al., "Scaling
        out-of-distribution detection for real-world settings", ICML 2022. It is not a probability: choose a threshold
        on your own texts. If a label stands for everything out of scope, use that label's probability instead; with
        two labels it only says how close the decision is. It was chosen on CLINC150's dev file, so results there are
        a little optimistic. Raises as `predict_proba` does.
        """
        found = self._tasks.find(task)
        blocks = []
        for logits, rejected in self._logits(texts, found):
            values = _rejection(logits, found.spec.temperature)
            values[rejected] = REJECTED
            blocks.append(values)
        rejections: Floats = np.concatenate(blocks)
        return rejections

    @staticmethod
    def _labelled(logits: Floats, labels: Sequence[str], rejected: npt.NDArray[np.bool_]) -> list[Label]:
        """Return the best label of each row, None for a rejected one."""
        found: list[Any] = [labels[i] for i in logits.argmax(1).tolist()]
        for i in np.flatnonzero(rejected).tolist():
            found[i] = None
        return found

    def _check_dim(self, dim: int) -> None:
        whole = self.manifest.network.field_dim
        if not isinstance(dim, int) or isinstance(dim, bool) or not 1 <= dim <= whole:
            raise UsageError(f"dim must be a whole number from 1 to {whole}, the length of the field, not {dim!r}")

    def _logits(self, texts: Texts, task: Task) -> Iterator[tuple[Floats, npt.NDArray[np.bool_]]]:
        """Yield the logits of some texts at a time, and which of them are rejected; never all fields are in memory."""
        if task.spec.kind == "single":
            checked = check_texts(texts)
            for start in range(0, len(checked), _TOGETHER):
                encoding = self._forward(checked[start : start + _TOGETHER], start)
                yield self._logits_of(encoding, task, None), self.rejected(encoding, None)
            return
        first, second = split_pairs(texts)
        if len(first) == 1:  # in one call of the engine
            both = self._forward(first + second)
            a, b = both.part(0, 1), both.part(1, 2)
            yield self._logits_of(a, task, b), self.rejected(a, b)
            return
        for start in range(0, len(first), _TOGETHER):
            a, b = (self._forward(side[start : start + _TOGETHER], start) for side in (first, second))
            yield self._logits_of(a, task, b), self.rejected(a, b)

    def _logits_of(self, encoding: Encoding, task: Task, other: Encoding | None) -> Floats:
        """Return the logits `(n, labels) float32` of `task`, from the graphs or, for an attached head, from fields."""
        spec, head = task.spec, task.head
        if (spec.kind == "pair") != (other is not None):
            raise UsageError(f"task {spec.name!r} takes {'two encodings' if spec.kind == 'pair' else 'one encoding'}")
        if head is None and other is None:
            return encoding.logits[:, spec.start : spec.start + len(spec.labels)]
        fields = [part.field for part in (encoding, other) if part is not None]
        if any(field.shape[1] != self.manifest.network.field_dim for field in fields):
            raise UsageError(f"task {spec.name!r} needs whole fields; run forward without dim")
        if head is not None:
            return head_logits(head, fields[0] if other is None else pair_features(*fields))
        return self._engine.run_pairs(*fields)[:, spec.start : spec.start + len(spec.labels)]

    def token_ids(self, texts: Iterable[str]) -> list[list[int]]:
        """Return each text's token ids, special tokens included; windows of a long text apart. Raises as `forward`."""
        return self._tokenize(check_texts(texts)).ids

    def close(self) -> None:
        """Release the engine; the model cannot be used afterwards. It may be closed twice."""
        self._engine = _Closed()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickle the path of the bundle, how it was opened, and the attached heads; another process loads it again.

        Raises:
            UsageError: the model was closed.
        """
        if isinstance(self._engine, _Closed):
            raise UsageError("this model was closed, so it cannot be pickled; load the bundle again")
        path = "reference" if self.path == REFERENCE_BUNDLE.resolve() else str(self.path)
        heads = [replace(head, about=dict(head.about)) for head in self.attached.values()]
        return _loaded_again, (path, sha256_bytes(self._bundle.contents[MANIFEST]), self._settings, heads)

    def __enter__(self) -> FieldModel[Label]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"FieldModel({self.manifest.name!r}, recipe={self.manifest.recipe['name']!r}, engine={self.engine!r})"


def _best(logits: Floats, temperature: float, k: int | None, chosen: Integers | None = None) -> tuple[Integers, Floats]:
    """Return `FieldModel.best_of`, of the labels at the positions `chosen`.

    The logits decide, as in `predict`: two different ones may have the same probability in float32.
    """
    order = (-logits if chosen is None else -logits[:, chosen]).argsort(1, kind="stable")[:, :k]
    order = order if chosen is None else chosen[order]
    scores: Floats = softmax(logits, temperature)[np.arange(len(logits))[:, None], order]
    return order, scores


def _loaded_again(path: str, sha256: str, settings: dict[str, Any], heads: Sequence[Head]) -> FieldModel:
    """Load what `FieldModel.__reduce__` described; `IntegrityError` if another bundle is there now."""
    bundle = Bundle.load(path)
    if sha256_bytes(bundle.contents[MANIFEST]) != sha256:
        raise IntegrityError(f"{path} was replaced after the model was pickled; pickle a model of the bundle there now")
    model = FieldModel(bundle, **settings)
    for name in model.attached:
        model.detach(name)
    for head in heads:
        model.attach(head)
    return model


def _rejection(logits: Floats, temperature: float) -> Floats:
    """Return `mean - max` of each row's calibrated logits; a constant added to all of them makes no difference."""
    values: Floats = (logits.mean(1) - logits.max(1)) / np.float32(temperature)
    return values


class _Closed:
    """The engine of a closed model."""

    def run(self, sequences: Sequence[Sequence[int]]) -> tuple[Array, Array]:
        del sequences
        raise UsageError("this model was closed; load the bundle again")

    def run_pairs(self, a: Array, b: Array) -> Array:
        del a, b
        raise UsageError("this model was closed; load the bundle again")
