r"""Peers whose packages do not go together with ours, each in an environment of its own, and any peer as a subject.

| Peer | Environment | Answers by |
|---|---|---|
| `wordllama` | wordllama, scikit-learn | `WordLlama.embed`, 256-d, and a linear head as in `peer_models` |
| `fasttext` | fasttext (built from source), numpy < 2 | its own classifier: bigrams, 100-d, one model per task |

    python -m studies.peers.measure --prepare --data DATA --gte FOLDER --minilm FOLDER --work WORK
    fieldrun bench reference tokenizer:reference peer:WORK/fasttext#sst2 peer:WORK/wordllama#sst2 \
        --workload DATA/sst2/dev.tsv --data sst2=DATA/sst2/dev.tsv --report OUT

A peer's environment runs this module to make it, and `worker` to measure it; of fieldrun it sees links to two packages.
In its folder `head-TASK.json` has at least the labels of each task.
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
from typing import Any

import numpy as np

from fieldrun.errors import DatasetError, ExportError, UnknownName
from fieldrun.evaluation.dataset import read_tsv
from fieldrun.formats.storage import new_folder, read_json, sha256_file, write_json
from fieldrun_benchmarks.harness.worker_process import link_packages, worker_environment
from fieldrun_benchmarks.subjects.subject import SubjectSpec

from .models import HEAD_ROWS, PEERS, fit_head, need, read_head, write_head

__all__ = ["ISOLATED", "PeerSubject", "prepare_isolated"]

Answer = Callable[[Sequence[str]], list[str]]


@dataclass(frozen=True, slots=True, kw_only=True)
class IsolatedPeer:
    """How a peer is made and opened; `build` and `start` run in its own environment.

    `needs` names the packages that it runs with, `program` is the shortest Python that gives one label, from `{folder}`
    and `{task}`.
    """

    name: str
    requirements: tuple[str, ...]
    needs: tuple[str, ...]
    build: Callable[[Path, Mapping[str, Path]], None]
    start: Callable[[Path, str], Answer]
    program: str


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
            _call([str(python), "-m", "studies.peers.isolated", key, str(partial), *tasks], variables)
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
    """A peer that was prepared, as a subject that answers one task: `peer:FOLDER#TASK`, else its first task."""

    def __init__(self, spec: SubjectSpec) -> None:
        self._folder, self._task = Path(spec.place), _task(spec)
        self._labels: list[str] = read_json(self._folder / f"head-{self._task}.json")["labels"]
        key = _known(self._folder)
        self._answer = (
            ISOLATED[key].start(self._folder, self._task)
            if key in ISOLATED
            else _headed(self._folder, self._task, PEERS[key].start(self._folder))
        )

    @staticmethod
    def program(spec: SubjectSpec) -> str:
        """Return the shortest program that gives one label with the peer's own packages."""
        key = _known(Path(spec.place))
        program = ISOLATED[key].program if key in ISOLATED else PEERS[key].program + _HEAD_PROGRAM
        return program.format(folder=spec.place, task=_task(spec))

    @staticmethod
    def packages(spec: SubjectSpec) -> tuple[str, ...]:
        """Return the packages that it runs with."""
        key = _known(Path(spec.place))
        return ISOLATED[key].needs if key in ISOLATED else PEERS[key].needs

    def run(self, texts: list[str]) -> object:
        """Return the labels of its task."""
        return self._answer(texts)

    def stages(self, text: str) -> Mapping[str, Callable[[], object]]:
        """Return nothing: its inside is its own."""
        del text
        return {}

    def tokens(self, texts: Sequence[str]) -> list[int] | None:
        """Return None: each counts otherwise."""
        del texts
        return None

    def tasks(self) -> Mapping[str, Sequence[str]]:
        """Return its task."""
        return {self._task: self._labels}

    def predict(self, texts: list[str], task: str) -> list[str]:
        """Return the labels of its task."""
        if task != self._task:
            raise UnknownName("task", task, [self._task])
        return self._answer(texts)

    def about(self) -> dict[str, Any]:
        """Return the files that its task needs, and what it was made with."""
        others = {f"{start}{task}" for task in _tasks(self._folder) if task != self._task for start in ("", "head-")}
        found = [path for path in sorted(self._folder.rglob("*")) if path.is_file() and path.name != "peer.json"]
        files = [path for path in found if path.stem not in others]
        return {
            "artifact": {
                "name": self._folder.name,
                "bytes": sum(path.stat().st_size for path in files),
                "sha256": {path.name: sha256_file(path) for path in files},
            },
            "answers": f"the label of one task, {self._task}",
            "made_with": _about(self._folder).get("made_with"),
        }

    def close(self) -> None:
        """Do nothing."""


def _known(folder: Path) -> str:
    if folder.name not in ISOLATED and folder.name not in PEERS:
        raise UnknownName("peer", folder.name, sorted([*ISOLATED, *PEERS]))
    return folder.name


def _tasks(folder: Path) -> list[str]:
    return [path.stem.removeprefix("head-") for path in sorted(folder.glob("head-*.json"))]


def _task(spec: SubjectSpec) -> str:
    tasks = _tasks(Path(spec.place))
    if not tasks:
        raise DatasetError(f"{spec.place} has no heads; make it again with studies.peers.measure --prepare")
    if spec.task and spec.task not in tasks:
        raise UnknownName("task", spec.task, tasks)
    return spec.task or tasks[0]


def _headed(folder: Path, task: str, vectors: Callable[[Sequence[str]], Any]) -> Answer:
    head = read_head(folder / f"head-{task}.json")
    return lambda texts: head(vectors(texts))


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
        write_head(folder / f"head-{task}.json", head)


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
        write_json(folder / f"head-{task}.json", {"labels": names})
        lines.unlink()


def _start_fasttext(folder: Path, task: str) -> Answer:
    model = need("fasttext").load_model(str(folder / f"{task}.bin"))
    names = read_json(folder / f"head-{task}.json")["labels"]

    def labels_of(texts: Sequence[str]) -> list[str]:
        found, _ = model.predict([text.replace("\n", " ") for text in texts])
        return [names[int(best[0].removeprefix("__label__"))] for best in found]

    return labels_of


_HEAD_PROGRAM = """
import json
import numpy as np
head = json.load(open({folder!r} + "/head-{task}.json"))
head["labels"][int((x @ np.array(head["weight"]) + head["bias"]).argmax())]
"""

ISOLATED = {
    "fasttext": IsolatedPeer(
        name="fastText",
        requirements=("fasttext==0.9.3", "numpy<2"),
        needs=("fasttext",),
        build=_build_fasttext,
        start=_start_fasttext,
        program='import fasttext\nfasttext.load_model({folder!r} + "/{task}.bin").predict("a gripping film")\n',
    ),
    "wordllama": IsolatedPeer(
        name="wordllama",
        requirements=("wordllama==0.4.0.post1", "scikit-learn>=1.5"),
        needs=("wordllama",),
        build=_build_wordllama,
        start=lambda folder, task: _headed(folder, task, _wordllama(folder)),
        program="from wordllama import WordLlama\n"
        "model = WordLlama.load(cache_dir={folder!r}, dim=256, disable_download=True)\n"
        'x = model.embed(["a gripping film"], norm=True)\n' + _HEAD_PROGRAM,
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
