"""The peers: other ways from a text to a label, made offline and kept in a work folder.

| Peer | Made by | Answers by |
|---|---|---|
| `fasttext` | `train_supervised` (built from source) | its own classifier: bigrams, 100-d, one model per task |
| `wordllama` | its own 256-d vectors | `WordLlama.embed` and a linear head |
| `model2vec` | `model2vec.distill(pca_dims=256)` from gte-small | `StaticModel.encode` and a linear head |
| `gte-small-fp32`, `minilm-l6-fp32` | `torch.onnx.export`, ONNX Runtime | mean over tokens, L2 norm, linear head |
| `gte-small-int8`, `minilm-l6-int8` | `quantize_dynamic`: int8 per channel, MatMul, Gemm | the same |

The packages of fastText and wordllama clash with ours, so each has an environment of its own. This module runs there
too, where only `fieldrun`, `fieldrun_benchmarks` and `studies` are importable of our packages. Once the peers are made,
measuring them needs neither torch, transformers nor scikit-learn.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np

from fieldrun.errors import DatasetError, ExportError
from fieldrun.evaluation.dataset import read_tsv
from fieldrun.formats.storage import new_folder, read_json, sha256_file, write_json
from fieldrun_benchmarks.harness.worker_process import link_packages, worker_environment

from .heads import Floats, LinearHead, Vectors, need, train_head

__all__ = ["PEERS", "Peer", "answer", "build", "headed", "main", "prepare", "vectors"]

Answer = Callable[[Sequence[str]], list[str]]

_MAX_TOKENS = 256  # MiniLM-L6's own limit; the sentences and questions of the bench are shorter


@dataclass(frozen=True, slots=True, kw_only=True)
class Peer:
    """How one peer is made and asked.

    Attributes:
        name: as records show it.
        build: writes its files and `head-TASK.json`: encoder's folder, folder to fill, train files by task.
        answer: opens a folder for one task.
        program: the shortest source that gives one label, from `{folder}` and `{task}`.
        needs: the packages that a user installs to run it.
        made_with: the packages whose versions the record names.
        source: the encoder it is made from, `gte` or `minilm`, or none.
        settings: how it is made; another value makes it again.
        requirements: the packages of an environment of its own, or none for this one.
        vectors: opens a folder; its function gives one vector a text. None where the peer has labels alone.
    """

    name: str
    build: Callable[[Path, Path, Mapping[str, Path]], None]
    answer: Callable[[Path, str], Answer]
    program: str
    needs: tuple[str, ...]
    made_with: tuple[str, ...]
    source: str = ""
    settings: str = ""
    requirements: tuple[str, ...] = ()
    vectors: Callable[[Path], Vectors] | None = None


def prepare(key: str, source: Path, work: Path, train: Mapping[str, Path], say: Callable[[str], None]) -> Path:
    """Make peer `key` in `work` unless it is there, and return its folder, which holds what `bench` needs to know.

    Raises:
        MissingDependency: what makes it is not installed.
        DatasetError: a train file holds pairs, or `source` is not the folder of an encoder.
        ExportError: it cannot be made, or its environment cannot; or the graph differs from its encoder.
    """
    peer, folder, python = PEERS[key], work / key, Path(sys.executable)
    made_of = {task: sha256_file(path) for task, path in train.items()}
    if peer.source:
        weights = source / "model.safetensors"
        if not weights.is_file() or not (source / "tokenizer.json").is_file():
            raise DatasetError(f"{source} has no model.safetensors and tokenizer.json; give an encoder's folder")
        made_of[peer.source] = sha256_file(weights)
    wanted = {"settings": peer.settings, "requirements": list(peer.requirements), "sha256": made_of}
    if peer.requirements:
        python = work / f"env-{key}" / "bin" / "python"
    if python.is_file() and (folder / "peer.json").is_file() and read_json(folder / "peer.json").get("key") == wanted:
        return folder
    if peer.requirements:
        say(f"installing {', '.join(peer.requirements)} into {python.parents[1].name}")
        _call([sys.executable, "-m", "venv", "--clear", str(python.parents[1])], None)
        _call([str(python), "-m", "pip", "install", "--quiet", *peer.requirements], None)
    say(f"making {peer.name}")
    with new_folder(folder, replace=folder.exists()) as partial:
        if peer.requirements:
            tasks = [f"{task}={path}" for task, path in train.items()]
            command = [str(python), "-m", "studies.peers.models", key, str(source), str(partial), *tasks]
            with tempfile.TemporaryDirectory() as links:
                _call(command, worker_environment(link_packages(Path(links), "studies")))
        else:
            build(key, source, partial, train)
        about = {
            "key": wanted,
            "python": str(python),
            "answer": "studies.peers.models:answer",
            "program": peer.program,
            "needs": peer.needs,
        }
        write_json(partial / "peer.json", about | read_json(partial / "peer.json"))
    return folder


def build(key: str, source: Path, folder: Path, train: Mapping[str, Path]) -> None:
    """Make peer `key` in the empty `folder`, with this interpreter."""
    PEERS[key].build(source, folder, train)
    write_json(folder / "peer.json", {"made_with": {name: _version(name) for name in PEERS[key].made_with}})


def answer(folder: Path, task: str) -> Answer:
    """Return the function from texts to labels of the peer that was made in `folder`."""
    return PEERS[folder.name].answer(folder, task)


def vectors(folder: Path) -> Vectors:
    """Return the function from texts to vectors of the peer in `folder`; `DatasetError` where it has labels alone."""
    start = PEERS[folder.name].vectors
    if start is None:
        raise DatasetError(f"{folder.name} gives labels, and no vectors")
    return start(folder)


def _call(command: list[str], environment: Mapping[str, str] | None) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it printed nothing"]
        raise ExportError(f"{' '.join(command[:4])} ended with exit code {done.returncode}: {lines[-1]}")


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def headed(name: str, make: Callable[[Path, Path], None], start: Callable[[Path], Vectors], **more: Any) -> Peer:
    """Return a peer that answers by linear heads on the vectors of `start(folder)`; `make` writes its files.

    Its program puts the vector of one text into `x`.
    """

    def heads(source: Path, folder: Path, train: Mapping[str, Path]) -> None:
        make(source, folder)
        vectors = start(folder)
        for task, path in train.items():
            train_head(path, vectors).write(folder / f"head-{task}.json")

    def label(folder: Path, task: str) -> Answer:
        head, vectors = LinearHead.read(folder / f"head-{task}.json"), start(folder)
        return lambda texts: head(vectors(texts))

    program = more["program"] + _HEAD_PROGRAM
    return Peer(name=name, build=heads, answer=label, vectors=start, **{**more, "program": program})


_HEAD_PROGRAM = """
import json
import numpy as np
with open({folder!r} + "/head-{task}.json") as file:
    head = json.load(file)
head["labels"][int((x @ np.array(head["weight"]) + head["bias"]).argmax())]
"""


def _build_fasttext(_: Path, folder: Path, train: Mapping[str, Path]) -> None:
    fasttext = need("fasttext")
    for task, path in train.items():
        data = read_tsv(path)
        names = sorted(set(data.labels))
        lines = folder / "train.txt"
        rows = zip(data.texts, data.labels, strict=True)
        lines.write_text("".join(f"__label__{names.index(label)} {text}\n" for text, label in rows), "utf-8")
        model = fasttext.train_supervised(str(lines), wordNgrams=2, epoch=25, lr=0.5, thread=1, seed=0, verbose=0)
        model.save_model(str(folder / f"{task}.bin"))
        write_json(folder / f"head-{task}.json", {"labels": names})
        lines.unlink()


def _ask_fasttext(folder: Path, task: str) -> Answer:
    model = need("fasttext").load_model(str(folder / f"{task}.bin"))
    names = read_json(folder / f"head-{task}.json")["labels"]

    def labels_of(texts: Sequence[str]) -> list[str]:
        found, _ = model.predict([text.replace("\n", " ") for text in texts])
        return [names[int(best[0].removeprefix("__label__"))] for best in found]

    return labels_of


def _copy_wordllama(_: Path, folder: Path) -> None:
    package = Path(str(need("wordllama").__file__)).parent
    for name in ("tokenizers", "weights"):  # where it looks before it downloads them
        (folder / name).mkdir()
        for path in sorted((package / name).iterdir()):
            if path.suffix in (".json", ".safetensors"):
                shutil.copy(path, folder / name / path.name)


def _start_wordllama(folder: Path) -> Vectors:
    model = need("wordllama").WordLlama.load(cache_dir=folder, dim=256, disable_download=True)
    return lambda texts: model.embed(list(texts), norm=True)


def _distill_static(source: Path, folder: Path) -> None:
    need("model2vec.distill").distill(str(source), pca_dims=256, device="cpu").save_pretrained(str(folder))


def _start_static(folder: Path) -> Vectors:
    encode: Vectors = need("model2vec").StaticModel.from_pretrained(str(folder), force_download=False).encode
    return encode


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


def _export(source: Path, folder: Path) -> None:
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


def _quantize(source: Path, folder: Path) -> None:
    onnx, quantization = need("onnx"), need("onnxruntime.quantization")
    _export(source, folder)
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


def _encoder(name: str, source: str, *, int8: bool) -> Peer:
    quantized = "quantize_dynamic QInt8 per channel, MatMul and Gemm; " if int8 else ""
    return headed(
        name,
        _quantize if int8 else _export,
        _Encoder,
        source=source,
        settings=f"torch.onnx.export, opset 17, dynamic shapes; {quantized}mean over tokens, L2 norm",
        made_with=("onnx", "onnxruntime", "torch", "transformers"),
        needs=("numpy", "onnxruntime", "tokenizers"),
        program="""
import numpy as np, onnxruntime
from tokenizers import Tokenizer
session = onnxruntime.InferenceSession({folder!r} + "/model.onnx", providers=["CPUExecutionProvider"])
ids = np.array([Tokenizer.from_file({folder!r} + "/tokenizer.json").encode("a gripping film").ids])
x = session.run(None, {{"ids": ids, "mask": np.ones_like(ids)}})[0].mean(1)
x /= np.linalg.norm(x)
""",
    )


PEERS = {
    "fasttext": Peer(
        name="fastText",
        build=_build_fasttext,
        answer=_ask_fasttext,
        program='import fasttext\nfasttext.load_model({folder!r} + "/{task}.bin").predict("a gripping film")\n',
        needs=("fasttext",),
        made_with=("fasttext", "numpy"),
        requirements=("fasttext==0.9.3", "numpy<2"),
    ),
    "wordllama": headed(
        "wordllama",
        _copy_wordllama,
        _start_wordllama,
        needs=("wordllama",),
        made_with=("wordllama", "scikit-learn"),
        requirements=("wordllama==0.4.0.post1", "scikit-learn>=1.5"),
        program="""
from wordllama import WordLlama
model = WordLlama.load(cache_dir={folder!r}, dim=256, disable_download=True)
x = model.embed(["a gripping film"], norm=True)
""",
    ),
    "model2vec": headed(
        "model2vec",
        _distill_static,
        _start_static,
        source="gte",
        settings="model2vec.distill, pca_dims=256, float16; encode with its defaults",
        needs=("model2vec",),
        made_with=("model2vec", "torch", "transformers"),
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


def main(arguments: Sequence[str]) -> None:
    """Make a peer in its own environment: KEY SOURCE FOLDER TASK=FILE..."""
    key, source, folder, *tasks = arguments
    os.environ["HF_HUB_OFFLINE"] = "1"
    train = {task: Path(path) for task, _, path in (option.partition("=") for option in tasks)}
    build(key, Path(source), Path(folder), train)


if __name__ == "__main__":
    main(sys.argv[1:])
