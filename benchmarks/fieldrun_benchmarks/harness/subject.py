"""Subjects: what a bench measures. The harness loads one by its name, calls it and closes it; it knows no models.

| Name | Subject |
|---|---|
| `reference`, a folder | a bundle; `@ENGINE` chooses its engine, `#TASK` makes it answer one task only |
| `tokenizer:BUNDLE` | the tokenizer of a bundle alone |
| `null` | nothing: it measures the harness |
| `peer:FOLDER#TASK` | another library, as `FOLDER/peer.json` describes it |
| `python:MODULE:CLASS` | a class of your own |

The class is imported by the process that runs the subject, never by the harness.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fieldrun.errors import UnknownName, UsageError
from fieldrun.formats.storage import read_json

__all__ = [
    "SUBJECTS",
    "Subject",
    "SubjectSpec",
    "imported",
    "open_subject",
    "packages_of",
    "parse_subject",
    "program_of",
    "read_peer",
    "source_module",
]

SUBJECTS = {
    "bundle": "fieldrun_benchmarks.subjects.bundle:BundleSubject",
    "null": "fieldrun_benchmarks.subjects.null:NullSubject",
    "peer": "fieldrun_benchmarks.subjects.peer:PeerSubject",
    "tokenizer": "fieldrun_benchmarks.subjects.tokenizer:TokenizerSubject",
}


class Subject(Protocol):
    """What can be measured: text in, answer out. A subclass needs `run` and `about`; the rest has defaults.

    A subclass may have two static methods that take its `SubjectSpec`: `program`, the shortest Python source that gives
    one answer, whose cold start is measured, and `packages`, the requirements whose size on disk is measured.
    """

    def run(self, texts: list[str]) -> object:
        """Answer one text or many."""
        ...

    def about(self) -> dict[str, Any]:
        """Return what the record says about the subject: artifact, sizes, hashes, engine."""
        ...

    def stages(self, text: str) -> Mapping[str, Callable[[], object]]:
        """Return the parts of answering `text` that can be timed alone, by name."""
        del text
        return {}

    def tokens(self, texts: Sequence[str]) -> list[int] | None:
        """Return the number of tokens of each text, or None for a subject without tokens."""
        del texts
        return None

    def tasks(self) -> Mapping[str, Sequence[str]]:
        """Return the labels of each task that the subject answers for single texts."""
        return {}

    def predict(self, texts: list[str], task: str) -> list[str]:
        """Return one label per text."""
        del texts
        raise UnknownName("task", task, list(self.tasks()))

    def close(self) -> None:
        """Release what the subject holds."""
        return


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectSpec:
    """A subject as its name describes it; `python` is the interpreter of the environment that it runs in."""

    name: str
    kind: str
    place: str = ""
    variant: str = "auto"
    task: str = ""
    threads: int = 1
    python: str = field(default_factory=lambda: sys.executable)


def parse_subject(text: str, *, engine: str = "auto", threads: int = 1) -> SubjectSpec:
    """Read the name of a subject; `engine` is used for bundles that name none.

    Raises:
        UnknownName: the kind does not exist.
        UsageError: the place is missing, or a peer's folder has no readable `peer.json`.
    """
    kind, colon, rest = text.partition(":")
    if kind == "python" and colon:
        return SubjectSpec(name=rest, kind=kind, place=rest, threads=threads)
    if text == "null":
        return SubjectSpec(name=text, kind=text)
    if not colon or kind not in SUBJECTS:
        if colon and "/" not in kind and not any(Path(p).is_dir() for p in (text, _cut(_cut(text, "#")[0], "@")[0])):
            raise UnknownName("kind of subject", kind, [*sorted(SUBJECTS), "python"])
        kind, rest = "bundle", text
    rest, task = _cut(rest, "#")
    place, variant = _cut(rest, "@")
    if not place:
        raise UsageError(f"the subject {text!r} names no place; write {kind}:FOLDER")
    shown = f"{Path(place).name}{f'@{variant}' if variant else ''}{f'#{task}' if task else ''}"
    if place != "reference":
        place = str(Path(place).absolute())
    python = read_peer(Path(place)).get("python") if kind == "peer" else None
    return SubjectSpec(
        name=shown if kind in ("bundle", "peer") else f"{kind}:{shown}",
        kind=kind,
        place=place,
        variant=variant or engine,
        task=task,
        threads=threads,
        python=str(python or sys.executable),
    )


def _cut(text: str, mark: str) -> tuple[str, str]:
    """Cut at the last `mark`, unless the mark belongs to the name of a folder."""
    before, found, after = text.rpartition(mark)
    return (before, after) if found and "/" not in after else (text, "")


def read_peer(folder: Path) -> dict[str, Any]:
    """Return `peer.json` of a peer's folder: see `subjects.peer`. Raises `UsageError` when it cannot be read."""
    try:
        found = read_json(folder / "peer.json")
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} has no readable peer.json; prepare the peer first") from error
    return found if isinstance(found, dict) else {}


def open_subject(spec: SubjectSpec) -> Subject:
    """Import the class of the subject and create it; raises what that raises."""
    found: Subject = _class(spec)(spec)
    return found


def program_of(spec: SubjectSpec) -> str | None:
    """Return the shortest program that gives one answer, or None for a subject without one."""
    program: Callable[[SubjectSpec], str] | None = getattr(_class(spec), "program", None)
    return None if program is None else program(spec)


def packages_of(spec: SubjectSpec) -> Sequence[str] | None:
    """Return the requirements that a user installs to run the subject, or None when the subject does not say."""
    packages: Callable[[SubjectSpec], Sequence[str]] | None = getattr(_class(spec), "packages", None)
    return None if packages is None else packages(spec)


def source_module(spec: SubjectSpec) -> str:
    """Return the module outside this package that the subject's code is in, or an empty string."""
    place = spec.place if spec.kind == "python" else ""
    if spec.kind == "peer":
        place = str(read_peer(Path(spec.place)).get("answer", ""))
    return place.partition(":")[0]


def imported(place: str) -> Any:
    """Import `MODULE:NAME`; `UsageError` when it cannot be imported."""
    module, _, name = place.partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{place!r} cannot be imported ({error}); write MODULE:NAME") from error


def _class(spec: SubjectSpec) -> Any:
    if spec.kind not in (*SUBJECTS, "python"):
        raise UnknownName("kind of subject", spec.kind, [*sorted(SUBJECTS), "python"])
    return imported(SUBJECTS.get(spec.kind, spec.place))
