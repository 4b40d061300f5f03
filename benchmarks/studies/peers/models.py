"""The peers: other ways from a text to a label, made offline from a local encoder and kept in a work folder.

| Peer | Made by | Its vector |
|---|---|---|
| `model2vec` | `model2vec.distill(pca_dims=256)` from gte-small | `StaticModel.encode` |
| `gte-small-fp32`, `minilm-l6-fp32` | `torch.onnx.export`, run by ONNX Runtime | mean over tokens, L2 norm |
| `gte-small-int8`, `minilm-l6-int8` | the same, then `quantize_dynamic`: int8 per channel, MatMul and Gemm | same |

Each has a linear head per task, fitted by scikit-learn on at most `HEAD_ROWS` rows of the task's train file, its
penalty chosen on a fifth of them; in use a head is one NumPy product. Once the peers are made, measuring them needs
neither torch, transformers nor scikit-learn.
"""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fieldrun.errors import DatasetError, ExportError, MissingDependency
from fieldrun.evaluation.dataset import Dataset
from fieldrun.formats.storage import new_folder, read_json, sha256_file, write_json

__all__ = [
    "HEAD_PROGRAM",
    "PEERS",
    "Answer",
    "LinearHead",
    "PeerSpec",
    "answer",
    "fit_head",
    "head_rows",
    "need",
    "prepare_peer",
    "read_head",
    "read_json_or_nothing",
    "write_head",
]

Floats = npt.NDArray[np.float32]
Vectors = Callable[[Sequence[str]], Floats]
Answer = Callable[[Sequence[str]], list[str]]

HEAD_ROWS = 5000
HEAD_PROGRAM = """
import json
import numpy as np
head = json.load(open({folder!r} + "/head-{task}.json"))
head["labels"][int((x @ np.array(head["weight"]) + head["bias"]).argmax())]
"""
"""The end of a peer's program: from the vector `x` to a label."""

_PENALTIES = (1.0, 10.0, 100.0, 1000.0)  # scikit-learn's C
_MAX_TOKENS = 512
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


@dataclass(frozen=True, slots=True, kw_only=True)
class PeerSpec:
    """How one peer is made: `build(source, folder)` writes its files, `start(folder)` gives its vectors.

    `source` says of which encoder it is made, `gte` or `minilm`; `made_with` names the packages whose versions matter,
    `needs` those that it runs with; `program` is Python that puts the vector of one text into `x`, from `{folder}`.
    """

    name: str
    source: str
    build: Callable[[Path, Path], None]
    start: Callable[[Path], Vectors]
    settings: str
    made_with: tuple[str, ...]
    needs: tuple[str, ...]
    program: str


class _Encoder:
    """An encoder's ONNX graph on one thread of ONNX Runtime: mean over the tokens, L2 norm, one text at a time."""

    def __init__(self, folder: Path) -> None:
        ort = need("onnxruntime")
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        options.log_severity_level = 3
        providers = ["CPUExecutionProvider"]
        self._run = ort.InferenceSession(str(folder / "model.onnx"), options, providers=providers).run
        self._tokenizer = need("tokenizers").Tokenizer.from_file(str(folder / "tokenizer.json"))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(_MAX_TOKENS)

    def __call__(self, texts: Sequence[str]) -> Floats:
        """Return one unit vector a text, `(n, d)`."""
        return np.concatenate([self._one(text) for text in texts])

    def _one(self, text: str) -> Floats:
        ids = np.array([self._tokenizer.encode_batch_fast([text])[0].ids], np.int64)
        hidden = self._run(None, {"ids": ids, "mask": np.ones_like(ids)})[0]
        mean: Floats = hidden.mean(1)
        mean /= np.sqrt((mean * mean).sum())
        return mean


def prepare_peer(key: str, source: Path, work: Path, train: Mapping[str, Dataset], say: Callable[[str], None]) -> Path:
    """Make peer `key` from the encoder folder `source`, and its heads, unless `work` has them; return its folder.

    Raises:
        MissingDependency: what makes it is not installed.
        DatasetError: a train file holds pairs, or `source` is no encoder folder.
        ExportError: the exported graph differs from its encoder, or was not quantized.
    """
    spec, folder, weights = PEERS[key], work / key, source / "model.safetensors"
    if not weights.is_file() or not (source / "tokenizer.json").is_file():
        raise DatasetError(f"{source} has no model.safetensors and tokenizer.json; give an encoder's folder")
    wanted = {"source_sha256": sha256_file(weights), "settings": spec.settings, "schema": 2}
    if read_json_or_nothing(folder / "peer.json").get("key") != wanted:
        say(f"making {spec.name}")
        with new_folder(folder, replace=folder.exists()) as partial:
            spec.build(source, partial)
            about = {
                "key": wanted,
                "answer": "studies.peers.models:answer",
                "program": spec.program + HEAD_PROGRAM,
                "needs": spec.needs,
                "made_with": {name: _version(name) for name in spec.made_with},
            }
            write_json(partial / "peer.json", about)
    vectors: Vectors | None = None
    for task, data in train.items():
        path = folder / f"head-{task}.json"
        key_of_head = {"train_sha256": data.sha256, "rows": HEAD_ROWS}
        if read_json_or_nothing(path).get("key") == key_of_head:
            continue
        if data.kind != "single":
            raise DatasetError(f"{data.path} holds pairs; the peers are measured on single texts")
        say(f"fitting {key}'s head of {task}")
        vectors = vectors or spec.start(folder)
        texts, labels = head_rows(data)
        write_head(path, fit_head(vectors(texts), labels), key=key_of_head)
    return folder


def answer(folder: Path, task: str) -> Answer:
    """Return the function from texts to labels of the peer that was made in `folder`."""
    vectors, head = PEERS[folder.name].start(folder), read_head(folder / f"head-{task}.json")
    return lambda texts: head(vectors(texts))


def head_rows(data: Dataset) -> tuple[list[str], list[str]]:
    """Return the texts and labels that a head is fitted on, in random order."""
    rows = np.random.default_rng(0).permutation(len(data))[:HEAD_ROWS].tolist()
    return [str(data.texts[i]) for i in rows], [data.labels[i] for i in rows]


def write_head(path: Path, head: LinearHead, **more: Any) -> None:
    """Write a head as JSON, with `more` beside it."""
    write_json(path, {**more, "labels": head.labels, "weight": head.weight.tolist(), "bias": head.bias.tolist()})


def read_head(path: Path) -> LinearHead:
    """Read a head that `write_head` wrote."""
    stored = read_json(path)
    weight, bias = (np.array(stored[name], np.float32) for name in ("weight", "bias"))
    return LinearHead(weight=weight, bias=bias, labels=tuple(stored["labels"]))


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


def _build_static(source: Path, folder: Path) -> None:
    need("model2vec.distill").distill(str(source), pca_dims=256, device="cpu").save_pretrained(str(folder))


def _start_static(folder: Path) -> Vectors:
    model = need("model2vec").StaticModel.from_pretrained(str(folder), force_download=False)
    encode: Vectors = model.encode
    return encode


def _build_fp32(source: Path, folder: Path) -> None:
    """Export the encoder of `source` with dynamic shapes: ids, mask `(batch, length) int64` -> hidden states."""
    torch, transformers = need("torch"), need("transformers")
    encoder = transformers.AutoModel.from_pretrained(
        str(source),
        local_files_only=True,
        trust_remote_code=False,
        add_pooling_layer=False,
        attn_implementation="eager",
        dtype=torch.float32,
    )

    def forward(self: Any, ids: Any, mask: Any) -> Any:
        return self.encoder(input_ids=ids, attention_mask=mask).last_hidden_state

    model = type("HiddenStates", (torch.nn.Module,), {"forward": forward})()  # no static base class
    model.encoder = encoder
    model.eval()
    axes = {0: "batch", 1: "length"}
    target = folder / "model.onnx"
    ids = torch.arange(1000, 1014).reshape(2, 7)
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # this exporter is deprecated; the newer one needs another package
        torch.onnx.export(
            model,
            (ids, torch.ones_like(ids)),
            str(target),
            input_names=["ids", "mask"],
            output_names=["hidden"],
            dynamic_axes={"ids": axes, "mask": axes, "hidden": axes},
            opset_version=17,
            dynamo=False,
        )
        (folder / "tokenizer.json").write_bytes((source / "tokenizer.json").read_bytes())
        other = torch.arange(2000, 2031).reshape(1, 31)
        want = model(other, torch.ones_like(other)).numpy()
    session = need("onnxruntime").InferenceSession(str(target), providers=["CPUExecutionProvider"])
    got = session.run(None, {"ids": other.numpy(), "mask": np.ones_like(other.numpy())})[0]
    if not np.allclose(got, want, atol=1e-3):
        raise ExportError(
            f"the graph exported from {source} differs from its encoder by {np.abs(got - want).max():.2g}"
        )


def _build_int8(source: Path, folder: Path) -> None:
    onnx, quantization = need("onnx"), need("onnxruntime.quantization")
    _build_fp32(source, folder)
    target, plain = folder / "model.onnx", folder / "plain.onnx"
    target.rename(plain)
    model = onnx.load(str(plain))
    del model.graph.value_info[:]  # facts that quantizing contradicts
    quantization.quantize_dynamic(
        model,
        str(target),
        weight_type=quantization.QuantType.QInt8,
        per_channel=True,
        op_types_to_quantize=["MatMul", "Gemm"],
    )
    plain.unlink()
    layers = json.loads((source / "config.json").read_text("utf-8"))["num_hidden_layers"]
    count = sum(node.op_type == "MatMulInteger" for node in onnx.load(str(target)).graph.node)
    if count < 6 * layers:  # query, key, value, output and two of the feed-forward block: quantisers fail in silence
        raise ExportError(f"only {count} of {6 * layers} products of {source} were quantized")


_EXPORTED = "torch.onnx.export, opset 17, dynamic shapes; "
_QUANTIZED = "quantize_dynamic QInt8 per channel, MatMul and Gemm; "
_ENCODER_PROGRAM = """
import numpy as np, onnxruntime
from tokenizers import Tokenizer
session = onnxruntime.InferenceSession({folder!r} + "/model.onnx", providers=["CPUExecutionProvider"])
ids = np.array([Tokenizer.from_file({folder!r} + "/tokenizer.json").encode("a gripping film").ids])
x = session.run(None, {{"ids": ids, "mask": np.ones_like(ids)}})[0].mean(1)
x /= np.linalg.norm(x)
"""


def _encoder(name: str, source: str, *, int8: bool) -> PeerSpec:
    return PeerSpec(
        name=name,
        source=source,
        build=_build_int8 if int8 else _build_fp32,
        start=_Encoder,
        settings=f"{_EXPORTED}{_QUANTIZED if int8 else ''}mean over tokens, L2 norm",
        made_with=("onnx", "onnxruntime", "torch", "transformers"),
        needs=("numpy", "onnxruntime", "tokenizers"),
        program=_ENCODER_PROGRAM,
    )


PEERS = {
    "model2vec": PeerSpec(
        name="model2vec",
        source="gte",
        build=_build_static,
        start=_start_static,
        settings="model2vec.distill from gte-small, pca_dims=256, float16; encode with its defaults",
        made_with=("model2vec", "torch", "transformers"),
        needs=("model2vec",),
        program="""
from model2vec import StaticModel
x = StaticModel.from_pretrained({folder!r}).encode(["a gripping film"])
""",
    ),
    "minilm-l6-int8": _encoder("MiniLM-L6 int8", "minilm", int8=True),
    "minilm-l6-fp32": _encoder("MiniLM-L6 fp32", "minilm", int8=False),
    "gte-small-int8": _encoder("gte-small int8", "gte", int8=True),
    "gte-small-fp32": _encoder("gte-small fp32", "gte", int8=False),
}


def read_json_or_nothing(path: Path) -> dict[str, Any]:
    """Return the JSON object in a file, or an empty one where it cannot be read."""
    try:
        value = read_json(path)
    except (OSError, ValueError):
        return {}
    return value if isinstance(value, dict) else {}


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
