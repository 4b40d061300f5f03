r"""Peers whose packages do not go together with ours, each in an environment of its own, and any peer as a subject.

| Peer | Environment | Answers by |
|---|---|---|
| `wordllama` | wordllama, scikit-learn | `WordLlama.embed`, 256-d, and a linear head as in `peer_models` |
| `fasttext` | fasttext (built from source), numpy < 2 | its own classifier: bigrams, 100-d, one model per task |

    python -m fieldrun_benchmarks.peers --prepare --isolated fasttext --isolated wordllama --data DATA --work WORK ...
    fieldrun bench reference tokenizer:reference peer:WORK/fasttext@sst2 peer:WORK/wordllama@sst2 --interleave \
        --workload DATA/sst2/dev.tsv --data sst2=DATA/sst2/dev.tsv --report OUT

A peer's environment runs this module to make it, and `worker` to measure it; of fieldrun it sees links to two packages.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from fieldrun.dataset import read_tsv
from fieldrun.errors import DatasetError, ExportError, UnknownName
from fieldrun.storage import new_folder, read_json, sha256_file, write_json

from .peer_models import HEAD_ROWS, PEERS, LinearHead, fit_head, need
from .subject import SubjectSpec
from .worker_process import link_packages, worker_environment

__all__ = ["ISOLATED", "PeerSubject", "prepare_isolated"]

Answer = Callable[[Sequence[str]], list[str]]


class _Opened(Protocol):
    """A peer of this module, opened: its tasks with their labels, and who answers each."""

    labels: Mapping[str, Sequence[str]]
    answers: Mapping[str, Answer]


@dataclass(frozen=True, slots=True, kw_only=True)
class IsolatedPeer:
    """How a peer is made and opened; `build` and `start` run in its own environment."""

    requirements: tuple[str, ...]
    build: Callable[[Path, Mapping[str, Path]], None]
    start: Callable[[Path], _Opened]
    program: str
    """The shortest program that a user would write, with `{folder}` and `{task}`."""


@dataclass(slots=True, kw_only=True, eq=False)
class _Peer:
    labels: Mapping[str, Sequence[str]]
    answers: Mapping[str, Answer]


def prepare_isolated(key: str, work: Path, train: Mapping[str, Path], say: Callable[[str], None]) -> Path:
    """Make the environment and the models of a peer in `work` unless they are there; return the peer's folder.

    Raises:
        UnknownName: no such peer.
        ExportError: its packages cannot be installed, or it cannot be made; the message has the last line said.
    """
    if key not in ISOLATED:
        raise UnknownName("isolated peer", key, sorted(ISOLATED))
    folder, environment = work / key, work / f"env-{key}"
    python = environment / "bin" / "python"
    made_of = {task: sha256_file(path) for task, path in train.items()}
    wanted = {"requirements": list(ISOLATED[key].requirements), "train_sha256": made_of}
    if _about(folder).get("key") == wanted and python.is_file():
        return folder
    say(f"installing {', '.join(ISOLATED[key].requirements)} into {environment.name}")
    with tempfile.TemporaryDirectory() as links:
        variables = worker_environment(link_packages(Path(links)))
        _call([sys.executable, "-m", "venv", "--clear", str(environment)], None)
        _call([str(python), "-m", "pip", "install", "--quiet", *ISOLATED[key].requirements], None)
        say(f"making {key}")
        with new_folder(folder, replace=folder.exists()) as partial:
            tasks = [f"{task}={path}" for task, path in train.items()]
            _call([str(python), "-m", "fieldrun_benchmarks.isolated_peers", key, str(partial), *tasks], variables)
            made_with = _about(partial)["made_with"]
            write_json(partial / "peer.json", {"key": wanted, "python": str(python), "made_with": made_with})
    return folder


def _call(command: list[str], environment: Mapping[str, str] | None) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it printed nothing"]
        raise ExportError(f"{' '.join(command[:4])} ended with exit code {done.returncode}: {lines[-1]}")


def _about(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / "peer.json")
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class PeerSubject:
    """A peer that was prepared, as a subject that answers one task: `peer:FOLDER@TASK`, else its first task."""

    def __init__(self, spec: SubjectSpec) -> None:
        self._folder = Path(spec.place)
        self._peer = _open(self._folder)
        self._task = next(iter(self._peer.labels)) if spec.variant == "auto" else spec.variant
        if self._task not in self._peer.labels:
            raise UnknownName("task", self._task, sorted(self._peer.labels))

    @staticmethod
    def program(spec: SubjectSpec) -> str | None:
        """Return the shortest program that answers with the peer's own package, None where it has none."""
        folder = Path(spec.place)
        key = folder.name
        task = spec.variant if spec.variant != "auto" else next((p.stem for p in sorted(folder.glob("*.bin"))), "")
        return ISOLATED[key].program.format(folder=str(folder), task=task) if key in ISOLATED else None

    def run(self, texts: list[str]) -> object:
        """Return the labels of its task."""
        return self._peer.answers[self._task](texts)

    def stages(self, text: str) -> Mapping[str, Callable[[], object]]:
        """Return nothing: its inside is its own."""
        del text
        return {}

    def tokens(self, texts: Sequence[str]) -> list[int] | None:
        """Return None: peers count differently, so they are compared by characters."""
        del texts
        return None

    def tasks(self) -> Mapping[str, Sequence[str]]:
        """Return its tasks."""
        return self._peer.labels

    def predict(self, texts: list[str], task: str) -> list[str]:
        """Return the labels of one task."""
        return self._peer.answers[task](texts)

    def about(self) -> dict[str, Any]:
        """Return its files, what it was made with, and the size of an environment of its own."""
        found = _about(self._folder)
        files = [path for path in sorted(self._folder.rglob("*")) if path.is_file() and path.name != "peer.json"]
        about: dict[str, Any] = {
            "artifact": {
                "name": self._folder.name,
                "bytes": sum(path.stat().st_size for path in files),
                "sha256": {path.name: sha256_file(path) for path in files},
            },
            "answers": f"the label of one task, {self._task}",
            "made_with": found.get("made_with"),
        }
        if "python" in found:
            packages = (path for path in Path(sys.prefix).rglob("*") if path.is_file() and not path.is_symlink())
            about["environment_bytes"] = sum(path.stat().st_size for path in packages)
        return about

    def close(self) -> None:
        """Do nothing."""


def _open(folder: Path) -> _Opened:
    if folder.name in ISOLATED:
        return ISOLATED[folder.name].start(folder)
    spec = next((spec for spec in PEERS.values() if spec.slug == folder.name), None)
    if spec is None:
        raise UnknownName("peer", folder.name, sorted([*ISOLATED, *(spec.slug for spec in PEERS.values())]))
    return _with_heads(folder, spec.start(folder))


def _with_heads(folder: Path, vectors: Callable[[Sequence[str]], Any]) -> _Peer:
    labels: dict[str, Sequence[str]] = {}
    answers: dict[str, Answer] = {}
    for path in sorted(folder.glob("head-*.json")):
        stored = read_json(path)
        weight, bias = (np.array(stored[name], np.float32) for name in ("weight", "bias"))
        head = LinearHead(weight=weight, bias=bias, labels=tuple(stored["labels"]))
        task = path.stem.removeprefix("head-")
        labels[task] = head.labels
        answers[task] = lambda texts, head=head: head(vectors(texts))  # type: ignore[misc]
    if not labels:
        raise DatasetError(f"{folder} has no heads; make it again with fieldrun_benchmarks.peers --prepare")
    return _Peer(labels=labels, answers=answers)


def _wordllama(folder: Path) -> Callable[[Sequence[str]], Any]:
    model = need("wordllama").WordLlama.load(cache_dir=folder, dim=256, disable_download=True)
    return lambda texts: model.embed(list(texts), norm=True)


def _build_wordllama(folder: Path, train: Mapping[str, Path]) -> None:
    package = Path(str(need("wordllama").__file__)).parent
    for name in ("tokenizers", "weights"):  # where it looks before it would download them
        kept = [path for path in sorted((package / name).iterdir()) if path.suffix in (".json", ".safetensors")]
        (folder / name).mkdir()
        for path in kept:
            shutil.copy(path, folder / name / path.name)
    vectors = _wordllama(folder)
    for task, path in train.items():
        data = read_tsv(path)
        rows = np.random.default_rng(0).permutation(len(data))[:HEAD_ROWS].tolist()
        head = fit_head(vectors([str(data.texts[i]) for i in rows]), [data.labels[i] for i in rows])
        stored = {"labels": head.labels, "weight": head.weight.tolist(), "bias": head.bias.tolist()}
        write_json(folder / f"head-{task}.json", stored)


def _build_fasttext(folder: Path, train: Mapping[str, Path]) -> None:
    fasttext = need("fasttext")
    for task, path in train.items():
        data = read_tsv(path)
        names = sorted(set(data.labels))
        lines = folder / "train.txt"
        rows = zip(data.texts, data.labels, strict=True)
        lines.write_text("".join(f"__label__{names.index(label)} {text}\n" for text, label in rows), "utf-8")
        model = fasttext.train_supervised(str(lines), wordNgrams=2, epoch=25, lr=0.5, thread=1, seed=0, verbose=0)
        model.save_model(str(folder / f"{task}.bin"))
        write_json(folder / f"{task}.json", names)
        lines.unlink()


def _start_fasttext(folder: Path) -> _Opened:
    fasttext = need("fasttext")
    labels = {path.stem: read_json(path) for path in sorted(folder.glob("*.json")) if path.name != "peer.json"}

    def answer(task: str) -> Answer:
        model, names = fasttext.load_model(str(folder / f"{task}.bin")), labels[task]

        def labels_of(texts: Sequence[str]) -> list[str]:
            found, _ = model.predict([text.replace("\n", " ") for text in texts])
            return [names[int(best[0].removeprefix("__label__"))] for best in found]

        return labels_of

    return _Peer(labels=labels, answers={task: answer(task) for task in labels})


ISOLATED = {
    "fasttext": IsolatedPeer(
        requirements=("fasttext==0.9.3", "numpy<2"),
        build=_build_fasttext,
        start=_start_fasttext,
        program='import fasttext\nfasttext.load_model("{folder}/{task}.bin").predict("a gripping film")\n',
    ),
    "wordllama": IsolatedPeer(
        requirements=("wordllama==0.4.0.post1", "scikit-learn>=1.5"),
        build=_build_wordllama,
        start=lambda folder: _with_heads(folder, _wordllama(folder)),
        program="from wordllama import WordLlama\n"
        'WordLlama.load(cache_dir="{folder}", dim=256, disable_download=True).embed(["a gripping film"])\n',
    ),
}


def main(arguments: Sequence[str]) -> None:
    """Make a peer here, in its own environment: KEY FOLDER TASK=FILE..."""
    key, folder, *tasks = arguments
    os.environ["HF_HUB_OFFLINE"] = "1"
    train = {task: Path(path) for task, _, path in (option.partition("=") for option in tasks)}
    ISOLATED[key].build(Path(folder), train)
    packages = [
        requirement.replace(">", "=").replace("<", "=").partition("=")[0] for requirement in ISOLATED[key].requirements
    ]
    write_json(Path(folder) / "peer.json", {"made_with": {package: version(package) for package in packages}})


if __name__ == "__main__":
    main(sys.argv[1:])
