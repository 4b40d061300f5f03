"""The bundle: an exported student with its heads, ready for a device, and its proof.

| File | Holds |
|---|---|
| `manifest.json` | schema, recipe, network, buckets, tasks, licence, provenance, sha256 of itself and of every file |
| `weights.safetensors` | every weight once: external data of the graphs, and what the other engines read |
| `b<batch>-l<length>.onnx` | ids (see `frame`) -> field and logits in one, `(batch, dim + labels) float32` |
| `pair-b<batch>.onnx` | a, b `(batch, 256) float32` -> logits `(batch, pair labels) float32`; only with pair tasks |
| `trt-*.onnx` | the same graphs in TensorRT's spelling, over the same weights; only with a recipe for it |
| `tokenizer.json` | the Rust tokenizer |
| `golden.json` | texts with the fields and scores that the export measured |
| `report.json` | parity per bucket, sizes, what each pass changed |
| `CARD.md` | what the model is, in words |
| `heads.safetensors` | weight and bias of heads that were attached after the export; only with such heads |

No file is used before its hash is checked.
"""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import BundleError, IntegrityError, UnknownName
from . import limits
from .integrity import FileEntry, from_mapping, open_folder, read_files, read_schema
from .limits import check_size, check_text
from .storage import is_folder, read_bytes, sha256_bytes
from .tensors import Array, tensors_in

__all__ = [
    "HEADS_FILE",
    "MANIFEST",
    "REFERENCE_BUNDLE",
    "SCHEMA",
    "TYPICAL_QUANTILE",
    "Bucket",
    "Bundle",
    "GraphNetwork",
    "Manifest",
    "Network",
    "TaskSpec",
    "TensorrtGraphs",
    "resolve_bundle",
    "seal",
]

SCHEMA = 2
MANIFEST = "manifest.json"
HEADS_FILE = "heads.safetensors"
TYPICAL_QUANTILE = 0.25
"""This share of a deep int8 network's golden texts, the least moved by rounding, is held to a tolerance of its own."""
_TURNS = 3  # reading a folder that is replaced again and again
REFERENCE_BUNDLE = Path(__file__).parents[1] / "data" / "reference"


def resolve_bundle(path: str | Path) -> Path:
    """Return the folder of a bundle; the string `"reference"` is the shipped one, whatever the current folder has.

    Warns:
        UserWarning: the current folder has a bundle of the name too; `"./reference"` is that one.

    Raises:
        BundleError: there is no folder at `path`, or the shipped bundle is not there.
    """
    if path == "reference":
        if Path("reference", MANIFEST).is_file():
            warnings.warn("'reference' is the shipped bundle; write ./reference for the folder here", stacklevel=2)
        if not is_folder(REFERENCE_BUNDLE):
            raise BundleError(
                f"the shipped bundle is not at {REFERENCE_BUNDLE}: fieldrun is in a zip file or was packed without its "
                "data; unpack it, or give the folder of a bundle"
            )
        return REFERENCE_BUNDLE
    folder = Path(path)
    if not is_folder(folder):
        raise BundleError(f"no bundle at {folder}: give 'reference' or a folder made by 'fieldrun export'")
    return folder


def seal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest's JSON object with `sha256`, the hash of the other keys as sorted JSON without spaces."""
    rest = {key: value for key, value in manifest.items() if key != "sha256"}
    text = json.dumps(rest, sort_keys=True, separators=(",", ":"), default=list)
    return rest | {"sha256": sha256_bytes(text.encode("utf-8"))}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bucket:
    """One fixed shape: `batch` texts of `length` tokens, and the graph compiled for it."""

    batch: int
    length: int
    graph: str

    def __post_init__(self) -> None:
        check_text(self.graph, "a bucket's graph")
        check_size(self.batch, limits.BATCH, f"the batch of bucket {self.graph!r}")
        check_size(self.length, limits.LENGTH, f"the length of bucket {self.graph!r}")


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """One task: its labels, and where its logits start in the output of the graph of its kind.

    A task that was attached after the export is not in a graph: its head is in `heads.safetensors`, and `start` is 0.
    """

    name: str
    kind: str
    labels: tuple[str, ...]
    start: int
    temperature: float
    attached: bool = False

    def __post_init__(self) -> None:
        check_text(self.name, "a task's name")
        if not isinstance(self.labels, list | tuple):
            raise BundleError(f"task {self.name!r}: labels must be a list of strings")
        for label in self.labels:
            check_text(label, f"a label of task {self.name!r}")
        object.__setattr__(self, "labels", tuple(self.labels))
        if len(self.labels) < 2:
            raise BundleError(f"task {self.name!r} needs at least two labels")
        if self.kind not in ("single", "pair"):
            raise BundleError(f"task {self.name!r}: kind must be 'single' or 'pair'")
        check_size(self.start, limits.LABELS, f"the start of task {self.name!r}", least=0)
        check_size(len(self.labels), limits.LABELS, f"the number of labels of task {self.name!r}")
        if type(self.temperature) not in (int, float) or not 1e-6 < self.temperature < 1e6:
            raise BundleError(f"task {self.name!r}: temperature must be within 1e-6..1e6, not {self.temperature!r}")
        if not isinstance(self.attached, bool) or (self.attached and self.start):
            raise BundleError(f"task {self.name!r}: attached must be true or false, and start 0 if true")


class _Framed:
    """How token ids are laid out for a graph."""

    __slots__ = ()

    @property
    def pad_id(self) -> int:
        """The token id of padding."""
        return 0

    @property
    def margins(self) -> tuple[int, int]:
        """The padding positions before and after the tokens of a graph's input."""
        return 0, 0

    def frame(self, sequences: Sequence[Sequence[int]], batch: int, length: int) -> Array:
        """Return token ids as a graph of `length` tokens takes them, `(batch, left + length + right) int32`.

        They start after the left margin; the rest is padding. Rows that `sequences` does not fill are copies of its
        first one. No sequence may be longer than `length`.
        """
        left, right = self.margins
        pad = [self.pad_id]
        rows = [[*pad * left, *ids, *pad * (length - len(ids) + right)] for ids in sequences]
        return np.array(rows + rows[:1] * (batch - len(rows)), np.int32)


@dataclass(frozen=True, slots=True, kw_only=True)
class Network(_Framed):
    """The deployed student's shape: `shifts` are the token positions a row index is computed from, in order.

    `hidden`, `mixer_kernel` and `mixer_width` are 0 for a student without that layer.
    """

    vocab_size: int
    width: int
    shifts: tuple[int, ...]
    mixer_kernel: int
    mixer_width: int
    mean: bool
    hidden: int
    field_dim: int
    parameters: int

    def __post_init__(self) -> None:
        if not isinstance(self.shifts, list | tuple):
            raise BundleError("network.shifts must be a list of integers")
        check_size(len(self.shifts), limits.SHIFT, "the number of network.shifts")
        for shift in self.shifts:
            check_size(shift, limits.SHIFT, "a shift", least=-limits.SHIFT)
        object.__setattr__(self, "shifts", tuple(self.shifts))
        if 0 not in self.shifts:
            raise BundleError("network.shifts must contain 0")
        _check_common(self)
        check_size(self.width, limits.WIDTH, "network.width")
        check_size(self.mixer_kernel, limits.KERNEL, "network.mixer_kernel", least=0)
        check_size(self.mixer_width, limits.WIDTH, "network.mixer_width", least=0)
        check_size(self.hidden, limits.WIDTH, "network.hidden", least=0)
        if bool(self.mixer_kernel) != bool(self.mixer_width):
            raise BundleError("network.mixer_kernel and network.mixer_width must both be 0 or neither")
        if not isinstance(self.mean, bool):
            raise BundleError("network.mean must be true or false")

    @property
    def margins(self) -> tuple[int, int]:
        """The padding positions before and after the tokens of a graph's input."""
        return _margins(self.shifts, self.mixer_kernel)


@cache  # asked for with every call of a graph
def _margins(shifts: tuple[int, ...], kernel: int) -> tuple[int, int]:
    return max(0, -min(shifts)), max(0, max(shifts)) + max(1, kernel) - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class GraphNetwork(_Framed):
    """Any network that only its graphs describe, such as an imported encoder: ids -> field, without margins."""

    form: str = "graph"
    vocab_size: int
    field_dim: int
    parameters: int
    pad_id: int = 0

    def __post_init__(self) -> None:
        if self.form != "graph":
            raise BundleError(f"network.form must be 'graph', not {self.form!r}; upgrade fieldrun or export again")
        _check_common(self)
        if type(self.pad_id) is not int or not 0 <= self.pad_id < self.vocab_size:
            raise BundleError(f"network.pad_id must be within the vocabulary, not {self.pad_id!r}")


def _check_common(network: Network | GraphNetwork) -> None:
    check_size(network.vocab_size, limits.VOCABULARY, "network.vocab_size")
    check_size(network.field_dim, limits.FIELD_DIM, "network.field_dim")
    check_size(network.parameters, 1 << 48, "network.parameters")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorrtGraphs:
    """The graphs that TensorRT's parser takes, one for each of the manifest's buckets and pair graphs.

    `golden_tolerance` is the largest absolute difference of a golden field or score when a GPU replays it: its sums are
    added in another order, and an int8 input on a rounding boundary may go the other way.
    """

    buckets: tuple[Bucket, ...]
    pair_graphs: Mapping[int, str]
    golden_tolerance: float

    def __post_init__(self) -> None:
        if type(self.golden_tolerance) is not float or not 0 < self.golden_tolerance < 1:
            raise BundleError(f"tensorrt.golden_tolerance must be within 0..1, not {self.golden_tolerance!r}")

    def names(self) -> tuple[str, ...]:
        """Return the file names of all graphs."""
        return (*(bucket.graph for bucket in self.buckets), *self.pair_graphs.values())

    @classmethod
    def from_dict(cls, value: Mapping[str, Any]) -> TensorrtGraphs:
        """Read the manifest's `tensorrt`. `TypeError`, `AttributeError` or `BundleError` if it is not valid."""
        value = dict(value)
        value["buckets"] = _buckets(value["buckets"], "manifest.tensorrt")
        value["pair_graphs"] = _pair_graphs(value["pair_graphs"])
        found: TensorrtGraphs = from_mapping(cls, value, "manifest.tensorrt", BundleError)
        return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """What `manifest.json` says, in the order of its keys; `tensorrt` is left out if there are no such graphs."""

    schema: int
    name: str
    fieldrun: str
    recipe: Mapping[str, Any]
    network: Network | GraphNetwork
    buckets: tuple[Bucket, ...]
    pair_graphs: Mapping[int, str]
    tasks: tuple[TaskSpec, ...]
    golden_tolerance: float
    licence: str
    provenance: Mapping[str, Any]
    files: Mapping[str, FileEntry]
    tensorrt: TensorrtGraphs | None = None

    def __post_init__(self) -> None:
        for key in ("name", "fieldrun", "licence"):
            check_text(getattr(self, key), f"the manifest's {key}")
        if not isinstance(self.provenance, Mapping):
            raise BundleError("the manifest's provenance must be an object")
        for name in (*self.files, *self.pair_graphs.values()):
            check_text(name, "a file name")
        if not self.buckets:
            raise BundleError("a bundle needs at least one bucket")
        shapes = sorted((bucket.batch, bucket.length) for bucket in self.buckets)
        batches, lengths = sorted({batch for batch, _ in shapes}), sorted({length for _, length in shapes})
        check_size(len(shapes), limits.BUCKETS, "the number of buckets")
        check_size(batches[-1] * lengths[-1], limits.SCRATCH >> 8, "the tokens of the largest bucket")
        if isinstance(self.network, Network):
            net, texts = self.network, 64  # the texts that the native engine takes together
            wide = 2 * (net.width + net.mixer_width) + net.hidden + net.field_dim
            floats = (lengths[-1] + net.mixer_kernel) * max(1, net.mixer_kernel) * (net.width + net.mixer_width)
            check_size(4 * (floats + texts * wide), limits.SCRATCH, "the bytes that one text needs")
        if batches[0] != 1 or shapes != [(batch, length) for batch in batches for length in lengths]:
            raise BundleError(f"buckets must be every batch with every length once, 1 among the batches, not {shapes}")
        exported = [task for task in self.tasks if not task.attached]
        if set(self.pair_graphs) != (set(batches) if any(task.kind == "pair" for task in exported) else set()):
            raise BundleError(f"pair graphs have the batches {sorted(self.pair_graphs)}, buckets {batches}")
        if not isinstance(self.recipe, Mapping):
            raise BundleError("the manifest's recipe must be an object with a name")
        check_text(self.recipe.get("name"), "the recipe's name")
        if not 0 < self.golden_tolerance < 1:
            raise BundleError(f"golden_tolerance must be within 0..1, not {self.golden_tolerance!r}")
        named = {bucket.graph for bucket in self.buckets} | set(self.pair_graphs.values())
        named |= {"weights.safetensors", "tokenizer.json", "golden.json", "report.json", "CARD.md"}
        if self.tensorrt is not None:
            same = [(bucket.batch, bucket.length) for bucket in self.tensorrt.buckets]
            if sorted(same) != shapes or set(self.tensorrt.pair_graphs) != set(self.pair_graphs):
                raise BundleError("the TensorRT graphs do not have the buckets of the manifest")
            named |= set(self.tensorrt.names())
        named |= {HEADS_FILE} if len(exported) < len(self.tasks) else set()
        if set(self.files) != named:
            raise BundleError(
                f"the manifest's list of files does not match its graphs: {sorted(set(self.files) ^ named)}"
            )
        if len({task.name for task in self.tasks}) != len(self.tasks):
            raise BundleError("two tasks have the same name")
        for kind in ("single", "pair"):
            stop = 0
            for task in (task for task in exported if task.kind == kind):
                if task.start != stop:
                    raise BundleError(f"task {task.name!r} starts at logit {task.start}, the one before ends at {stop}")
                stop += len(task.labels)

    def task(self, name: object) -> TaskSpec:
        """Return the task `name`. `UnknownName` lists the known ones."""
        for task in self.tasks:
            if task.name == name:
                return task
        raise UnknownName("task", name, [task.name for task in self.tasks])

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object that `read` reads."""
        value = asdict(self)
        value["pair_graphs"] = {str(batch): graph for batch, graph in self.pair_graphs.items()}
        if self.tensorrt is None:
            del value["tensorrt"]
        else:
            graphs = self.tensorrt.pair_graphs
            value["tensorrt"]["pair_graphs"] = {str(batch): graph for batch, graph in graphs.items()}
        return seal(value)

    @classmethod
    def read(cls, path: Path, data: memoryview | None = None) -> Manifest:
        """Read and check `manifest.json` at `path`, or its bytes `data` if they were read before.

        Raises:
            SchemaTooNew: it was written by a newer fieldrun.
            IntegrityError: it was changed after the export.
            BundleError: it is missing or not JSON, a key is unknown or missing, or a value is not valid.
        """
        keys = [name for name in cls.__slots__ if name != "tensorrt"]
        value = read_schema(path, SCHEMA, (*keys, "sha256"), BundleError, optional=("tensorrt",), data=data)
        if seal(value) != value:
            raise IntegrityError(f"{path} was changed after the export; copy it again or export again")
        del value["sha256"]
        try:
            form = GraphNetwork if "form" in value["network"] else Network  # a look-up network names no form
            value["network"] = from_mapping(form, value["network"], "manifest.network", BundleError)
            value["buckets"] = _buckets(value["buckets"], "manifest.buckets")
            value["tasks"] = tuple(from_mapping(TaskSpec, t, "manifest.tasks", BundleError) for t in value["tasks"])
            value["pair_graphs"] = _pair_graphs(value["pair_graphs"])
            value["files"] = {n: FileEntry.from_dict(n, e, BundleError) for n, e in value["files"].items()}
            if type(value["golden_tolerance"]) is not float:
                raise BundleError(f"golden_tolerance must be a number, not {value['golden_tolerance']!r}")
            if "tensorrt" in value:
                value["tensorrt"] = TensorrtGraphs.from_dict(value["tensorrt"])
        except (TypeError, AttributeError, KeyError, ValueError, OverflowError) as error:
            if isinstance(error, BundleError):
                raise
            raise BundleError(f"{path} has a value of the wrong type: {error}; restore the file") from error
        return cls(**value)


def _buckets(values: Sequence[Any], what: str) -> tuple[Bucket, ...]:
    check_size(len(values), limits.BUCKETS, f"the number of {what}")
    return tuple(from_mapping(Bucket, value, what, BundleError) for value in values)


def _pair_graphs(value: Mapping[str, Any]) -> dict[int, str]:
    for batch, graph in value.items():
        check_text(graph, "a pair graph")
        if not batch.isascii() or not batch.isdecimal() or not 1 <= int(batch[:9]) <= limits.BATCH:
            raise BundleError(f"a pair graph has the batch {batch[:20]!r}, not a number from 1 to {limits.BATCH}")
    return {int(batch): graph for batch, graph in value.items()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """A bundle that was read: `contents` are the very bytes whose hashes were checked, the manifest's among them.

    `path` is the folder, absolute and without links. Nothing is read from it again: what happens to the folder later
    changes nothing for a bundle that was loaded.
    """

    path: Path
    manifest: Manifest
    contents: Mapping[str, memoryview] = field(repr=False, compare=False)

    @classmethod
    def load(cls, path: str | Path = "reference") -> Bundle:
        """Read the bundle at `path` (or `"reference"`) once, and check every file's size and sha256.

        A folder that is replaced meanwhile is read again: the bundle is the old one or the new one, never a mixture.

        Raises:
            BundleError: there is no bundle, its manifest is not valid, or it exceeds `fieldrun.formats.limits`.
            SchemaTooNew: it was written by a newer fieldrun.
            IntegrityError: a file is missing, truncated or changed.
        """
        for turn in range(_TURNS):
            folder = resolve_bundle(path).resolve()
            with open_folder(folder, BundleError) as handle:
                try:
                    return cls._read(folder, handle)
                except IntegrityError:
                    if turn == _TURNS - 1 or _is_same(folder, handle):
                        raise
        raise AssertionError("the last turn returns or raises")

    @classmethod
    def _read(cls, folder: Path, handle: int) -> Bundle:
        try:
            data, _ = read_bytes(MANIFEST, limits.most_bytes(MANIFEST), inside=handle)
        except FileNotFoundError as error:
            if not _is_same(folder, handle):
                raise IntegrityError(f"{folder} was replaced while it was read; load it again") from error
            raise BundleError(f"{folder} has no {MANIFEST}; it is not a bundle, or an incomplete copy") from error
        except (OSError, ValueError) as error:
            raise BundleError(f"{folder}: {MANIFEST} cannot be read ({error}); restore the file") from error
        manifest = Manifest.read(folder / MANIFEST, data)
        found = read_files(folder, manifest.files, IntegrityError, inside=handle, most=limits.most_bytes)
        return cls(path=folder, manifest=manifest, contents=found | {MANIFEST: data})

    def tensors(self, name: str = "weights.safetensors") -> dict[str, Array]:
        """Return the tensors of the file `name`, which share its bytes; `ValueError` if it is not what it says."""
        return tensors_in(self.contents[name], name)

    def exported(self) -> Bundle:
        """Return the bundle as the export wrote it, without the heads that were attached later."""
        tasks = tuple(task for task in self.manifest.tasks if not task.attached)
        files = {name: entry for name, entry in self.manifest.files.items() if name != HEADS_FILE}
        return replace(self, manifest=replace(self.manifest, tasks=tasks, files=files))

    def total_bytes(self) -> int:
        """Return the size of the whole bundle, manifest included."""
        return sum(entry.bytes for entry in self.manifest.files.values()) + len(self.contents[MANIFEST])

    def about(self) -> dict[str, Any]:
        """Return what the bundle is, as JSON: what `fieldrun info` prints."""
        manifest = self.manifest
        return {
            "path": str(self.path),
            "name": manifest.name,
            "bytes": self.total_bytes(),
            "parameters": manifest.network.parameters,
            "recipe": manifest.recipe["name"],
            "buckets": [{"batch": bucket.batch, "length": bucket.length} for bucket in manifest.buckets],
            "tasks": {task.name: {"kind": task.kind, "labels": len(task.labels)} for task in manifest.tasks},
            "hashes": {name: entry.sha256 for name, entry in manifest.files.items()},
            "licence": manifest.licence,
            "settings": dict(manifest.recipe),
            "provenance": dict(manifest.provenance),
            "fieldrun": manifest.fieldrun,
        }


def _is_same(folder: Path, handle: int) -> bool:
    """Return whether `folder` is still the folder that is open as `handle`."""
    try:
        return os.path.samestat(folder.stat(), os.fstat(handle))
    except OSError:
        return False
