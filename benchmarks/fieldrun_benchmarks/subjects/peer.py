"""Another library as a subject, described by its folder, in an environment of its own where `peer.json` names one.

| In the folder | Holds |
|---|---|
| `peer.json`, `answer` | `MODULE:FUNCTION`; `FUNCTION(folder, task)` returns a function from texts to labels |
| `peer.json`, `python` | the interpreter that has the library; left out: this one |
| `peer.json`, `program` | the shortest source that gives one label; `{folder}` and `{task}` are filled in |
| `peer.json`, `needs` | the requirements that a user installs |
| `peer.json`, `made_with` | for the record: the packages that the folder was made with |
| `head-TASK.json`, `labels` | the labels of each task |
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fieldrun.errors import DatasetError, UnknownName, UsageError
from fieldrun.formats.storage import read_json, sha256_file

from ..harness.subject import Subject, SubjectSpec, imported, read_peer

__all__ = ["PeerSubject"]


class PeerSubject(Subject):
    """Answers one task: the one that its name gives, or the first of its folder."""

    def __init__(self, spec: SubjectSpec) -> None:
        self._folder, self._task = Path(spec.place), _task(spec)
        self._labels: list[str] = read_json(self._folder / f"head-{self._task}.json")["labels"]
        start = imported(_entry(spec, "answer"))
        self._answer: Callable[[Sequence[str]], list[str]] = start(self._folder, self._task)

    @staticmethod
    def program(spec: SubjectSpec) -> str:
        """Return the program that gives one label with the library's own packages."""
        return str(_entry(spec, "program")).format(folder=spec.place, task=_task(spec))

    @staticmethod
    def packages(spec: SubjectSpec) -> tuple[str, ...]:
        """Return the requirements that it runs with."""
        return tuple(_entry(spec, "needs"))

    def run(self, texts: list[str]) -> object:
        """Return the labels of its task."""
        return self._answer(texts)

    def tasks(self) -> Mapping[str, Sequence[str]]:
        """Return the labels of its task."""
        return {self._task: self._labels}

    def predict(self, texts: list[str], task: str) -> list[str]:
        """Return the labels of its task."""
        if task != self._task:
            raise UnknownName("task", task, [self._task])
        return self._answer(texts)

    def about(self) -> dict[str, Any]:
        """Return the files that its task needs, and what they were made with."""
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
            "made_with": read_peer(self._folder).get("made_with"),
        }


def _entry(spec: SubjectSpec, key: str) -> Any:
    peer = read_peer(Path(spec.place))
    if key not in peer:
        raise UsageError(f"peer.json in {spec.place} has no {key!r}; prepare the peer again")
    return peer[key]


def _tasks(folder: Path) -> list[str]:
    return [path.stem.removeprefix("head-") for path in sorted(folder.glob("head-*.json"))]


def _task(spec: SubjectSpec) -> str:
    tasks = _tasks(Path(spec.place))
    if not tasks:
        raise DatasetError(f"{spec.place} has no head-TASK.json; prepare the peer again")
    if spec.task and spec.task not in tasks:
        raise UnknownName("task", spec.task, tasks)
    return spec.task or tasks[0]
