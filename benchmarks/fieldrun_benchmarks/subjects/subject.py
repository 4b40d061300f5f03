"""A subject: what is measured. The harness knows nothing of models, it loads, runs and closes.

A subject is named on the command line: `KIND:PLACE@VARIANT#TASK`, each part but one optional. `reference` and any
folder are a bundle (`@native`, `@numpy`, ... its engine; with `#TASK` it answers this task alone), `null` is nothing at
all, `tokenizer:BUNDLE` the Rust tokenizer alone, `peer:FOLDER` what `studies.peers.measure --prepare` left there,
`python:MODULE:CLASS` a class of your own. The classes are found by name and imported by the process that runs them.
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
    "NullSubject",
    "Subject",
    "SubjectSpec",
    "open_subject",
    "packages_of",
    "parse_subject",
    "program_of",
]

SUBJECTS = {
    "bundle": "fieldrun_benchmarks.subjects.bundle:BundleSubject",
    "null": "fieldrun_benchmarks.subjects.subject:NullSubject",
    "peer": "studies.peers.isolated:PeerSubject",
    "tokenizer": "fieldrun_benchmarks.subjects.bundle:TokenizerSubject",
}


class Subject(Protocol):
    """What can be measured: text in, answer out."""

    def run(self, texts: list[str]) -> object:
        """Answer `texts`, of which there may be one or many."""
        ...

    def stages(self, text: str) -> Mapping[str, Callable[[], object]]:
        """Return the inner parts of answering `text` that can be timed alone, by name; none when there are none."""
        ...

    def tokens(self, texts: Sequence[str]) -> list[int] | None:
        """Return each text's number of tokens; None for a subject that has none."""
        ...

    def tasks(self) -> Mapping[str, Sequence[str]]:
        """Return the tasks that it answers for single texts, with their labels."""
        ...

    def predict(self, texts: list[str], task: str) -> list[str]:
        """Return one label a text."""
        ...

    def about(self) -> dict[str, Any]:
        """Return what a record says of it: artifact, sizes, hashes, engine."""
        ...

    def close(self) -> None:
        """Let go of everything."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class SubjectSpec:
    """A subject as the command line names it; `python` is the interpreter of the environment that it runs in."""

    name: str
    kind: str
    place: str = ""
    variant: str = "auto"
    task: str = ""
    threads: int = 1
    python: str = field(default_factory=lambda: sys.executable)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON object that a process is started with."""
        return {name: getattr(self, name) for name in self.__slots__}


def parse_subject(text: str, *, engine: str = "auto", threads: int = 1) -> SubjectSpec:
    """Read a subject's name; `engine` is for bundles that name none.

    Raises:
        UnknownName: no such kind.
        UsageError: a kind that needs a place has none, or a peer's folder says nothing.
    """
    kind, colon, rest = text.partition(":")
    if kind == "python" and colon:
        return SubjectSpec(name=rest, kind=kind, place=rest, threads=threads)
    if text == "null":
        return SubjectSpec(name=text, kind=text)
    if not colon or kind not in SUBJECTS:
        if colon and "/" not in kind and not Path(text).is_dir():
            raise UnknownName("kind of subject", kind, [*sorted(SUBJECTS), "python"])
        kind, rest = "bundle", text
    rest, task = _cut(rest, "#")
    place, variant = _cut(rest, "@")
    if not place:
        raise UsageError(f"the subject {text!r} names no place; write {kind}:FOLDER")
    if place != "reference":
        place = str(Path(place).absolute())
    python = sys.executable
    if kind == "peer":
        python = str(_peer(Path(place)).get("python") or python)
    shown = f"{Path(place).name}{f'@{variant}' if variant else ''}{f'#{task}' if task else ''}"
    return SubjectSpec(
        name=shown if kind in ("bundle", "peer") else f"{kind}:{shown}",
        kind=kind,
        place=place,
        variant=variant or engine,
        task=task,
        threads=threads,
        python=python,
    )


def _cut(text: str, mark: str) -> tuple[str, str]:
    """Cut at the last `mark`, unless it is in the name of a folder."""
    before, found, after = text.rpartition(mark)
    return (before, after) if found and "/" not in after else (text, "")


def _peer(folder: Path) -> dict[str, Any]:
    try:
        found = read_json(folder / "peer.json")
    except (OSError, ValueError) as error:
        raise UsageError(f"{folder} has no peer.json; make it with studies.peers.measure --prepare") from error
    return found if isinstance(found, dict) else {}


def open_subject(spec: SubjectSpec) -> Subject:
    """Import the class of the subject and load it; raises what that raises."""
    found: Subject = _class(spec)(spec)
    return found


def program_of(spec: SubjectSpec) -> str | None:
    """Return the shortest program that a user would write to get one answer, None for a subject that has none."""
    program: Callable[[SubjectSpec], str] | None = getattr(_class(spec), "program", None)
    return None if program is None else program(spec)


def packages_of(spec: SubjectSpec) -> Sequence[str] | None:
    """Return the requirements that a user would install to run the subject, None where it does not say."""
    packages: Callable[[SubjectSpec], Sequence[str]] | None = getattr(_class(spec), "packages", None)
    return None if packages is None else packages(spec)


def _class(spec: SubjectSpec) -> Any:
    if spec.kind != "python" and spec.kind not in SUBJECTS:
        raise UnknownName("kind of subject", spec.kind, [*sorted(SUBJECTS), "python"])
    module, _, name = (spec.place if spec.kind == "python" else SUBJECTS[spec.kind]).partition(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        if spec.kind != "python":
            raise
        raise UsageError(
            f"the subject {spec.place!r} cannot be imported ({error}); write python:MODULE:CLASS"
        ) from error


class NullSubject:
    """Does nothing: what is measured of it is the harness itself."""

    def __init__(self, spec: SubjectSpec) -> None:
        del spec

    def run(self, texts: list[str]) -> object:
        """Return the texts."""
        return texts

    def stages(self, text: str) -> Mapping[str, Callable[[], object]]:
        """Return nothing."""
        del text
        return {}

    def tokens(self, texts: Sequence[str]) -> list[int] | None:
        """Return None."""
        del texts
        return None

    def tasks(self) -> Mapping[str, Sequence[str]]:
        """Return nothing."""
        return {}

    def predict(self, texts: list[str], task: str) -> list[str]:
        """Raise, for there is no task."""
        del texts
        raise UnknownName("task", task, [])

    def about(self) -> dict[str, Any]:
        """Return that there is no artifact."""
        return {"artifact": {"unavailable": "the null subject has none"}}

    def close(self) -> None:
        """Do nothing."""
