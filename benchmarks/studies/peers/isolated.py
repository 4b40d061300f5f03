"""Peers whose packages clash with ours, each in an environment of its own.

| Peer | Environment | Answers by |
|---|---|---|
| `wordllama` | wordllama, scikit-learn | `WordLlama.embed`, 256-d, and a linear head as in `models` |
| `fasttext` | fasttext (built from source), numpy < 2 | its own classifier: bigrams, 100-d, one model per task |

    python -m studies.peers.measure --prepare --data DATA --gte FOLDER --minilm FOLDER --work WORK
    fieldrun bench reference peer:WORK/fasttext#sst2 --workload DATA/sst2/dev.tsv --data sst2=DATA/sst2/dev.tsv

This module also runs in the environment of a peer, where it makes the peer and answers with it; there only `fieldrun`,
`fieldrun_benchmarks` and `studies` are importable of our packages.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from fieldrun.errors import ExportError, UnknownName
from fieldrun.evaluation.dataset import read_tsv
from fieldrun.formats.storage import new_folder, read_json, sha256_file, write_json
from fieldrun_benchmarks.harness.worker_process import link_packages, worker_environment

from .models import HEAD_PROGRAM, Answer, fit_head, head_rows, need, read_head, read_json_or_nothing, write_head

__all__ = ["ISOLATED", "answer", "prepare_isolated"]


@dataclass(frozen=True, slots=True, kw_only=True)
class IsolatedPeer:
    """How a peer is made and opened; `build` and `start` run in its own environment.

    `needs` names the packages that it runs with; `program` is the shortest source that gives one label, from `{folder}`
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
        ExportError: its packages cannot be installed, or it cannot be made; the message ends with the output.
    """
    if key not in ISOLATED:
        raise UnknownName("isolated peer", key, sorted(ISOLATED))
    peer, folder, environment = ISOLATED[key], work / key, work / f"env-{key}"
    python = environment / "bin" / "python"
    made_of = {task: sha256_file(path) for task, path in train.items()}
    wanted = {"requirements": list(peer.requirements), "train_sha256": made_of, "schema": 2}
    if read_json_or_nothing(folder / "peer.json").get("key") == wanted and python.is_file():
        return folder
    say(f"installing {', '.join(peer.requirements)} into {environment.name}")
    with tempfile.TemporaryDirectory() as links:
        variables = worker_environment(link_packages(Path(links), "studies"))
        _call([sys.executable, "-m", "venv", "--clear", str(environment)], None)
        _call([str(python), "-m", "pip", "install", "--quiet", *peer.requirements], None)
        say(f"making {key}")
        with new_folder(folder, replace=folder.exists()) as partial:
            tasks = [f"{task}={path}" for task, path in train.items()]
            _call([str(python), "-m", "studies.peers.isolated", key, str(partial), *tasks], variables)
            about = {
                "key": wanted,
                "python": str(python),
                "answer": "studies.peers.isolated:answer",
                "program": peer.program,
                "needs": peer.needs,
            }
            write_json(partial / "peer.json", about | read_json(partial / "peer.json"))
    return folder


def answer(folder: Path, task: str) -> Answer:
    """Return the function from texts to labels of the peer that was made in `folder`."""
    return ISOLATED[folder.name].start(folder, task)


def _call(command: list[str], environment: Mapping[str, str] | None) -> None:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = (done.stderr or done.stdout).strip().splitlines() or ["it printed nothing"]
        raise ExportError(f"{' '.join(command[:4])} ended with exit code {done.returncode}: {lines[-1]}")


def _wordllama(folder: Path) -> Callable[[Sequence[str]], Any]:
    model = need("wordllama").WordLlama.load(cache_dir=folder, dim=256, disable_download=True)
    return lambda texts: model.embed(list(texts), norm=True)


def _build_wordllama(folder: Path, train: Mapping[str, Path]) -> None:
    package = Path(str(need("wordllama").__file__)).parent
    for name in ("tokenizers", "weights"):  # where it looks before it downloads them
        kept = [path for path in sorted((package / name).iterdir()) if path.suffix in (".json", ".safetensors")]
        (folder / name).mkdir()
        for path in kept:
            shutil.copy(path, folder / name / path.name)
    vectors = _wordllama(folder)
    for task, path in train.items():
        texts, labels = head_rows(read_tsv(path))
        write_head(folder / f"head-{task}.json", fit_head(vectors(texts), labels))


def _start_wordllama(folder: Path, task: str) -> Answer:
    vectors, head = _wordllama(folder), read_head(folder / f"head-{task}.json")
    return lambda texts: head(vectors(texts))


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
        start=_start_wordllama,
        program="from wordllama import WordLlama\n"
        "model = WordLlama.load(cache_dir={folder!r}, dim=256, disable_download=True)\n"
        'x = model.embed(["a gripping film"], norm=True)\n' + HEAD_PROGRAM,
    ),
}


def main(arguments: Sequence[str]) -> None:
    """Make a peer here, in its own environment: KEY FOLDER TASK=FILE..."""
    key, folder, *tasks = arguments
    os.environ["HF_HUB_OFFLINE"] = "1"
    ISOLATED[key].build(Path(folder), {task: Path(path) for task, _, path in (t.partition("=") for t in tasks)})
    packages = [re.split("[<>=]", requirement)[0] for requirement in ISOLATED[key].requirements]
    write_json(Path(folder) / "peer.json", {"made_with": {package: version(package) for package in packages}})


if __name__ == "__main__":
    main(sys.argv[1:])
