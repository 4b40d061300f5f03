"""The disk space of a subject's packages: the files that pip installed for them and for everything they require.

The packages are found from the metadata that pip left (`Requires-Dist`, with markers and extras), their files from
`RECORD`. Compiled bytecode is not counted. The four packages of fieldrun are counted where they are imported from, so
that a checkout has the size of an install.
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Mapping, Sequence
from importlib.metadata import Distribution, distributions
from pathlib import Path
from typing import Any

from fieldrun.errors import FieldrunError, MissingDependency

__all__ = ["install_size"]

_OURS = ("fieldrun", "fieldrun_exporters", "fieldrun_runtimes", "fieldrun_benchmarks")


def install_size(requirements: Sequence[str], *, python: str = sys.executable) -> dict[str, Any]:
    """Return `{"bytes", "packages": {name: bytes}}` of requirements and all that they require, as `python` has them.

    Raises:
        MissingDependency: the package `packaging` is not installed.
        FieldrunError: a required package is not installed in that environment, or `python` does not run.
    """
    found = {_plain(one.metadata["Name"]): one for one in reversed([*distributions(path=_search_path(python))])}
    packages = {name: _bytes(name, found[name]) for name in sorted(_closure(requirements, found))}
    return {"bytes": sum(packages.values()), "packages": packages}


def _closure(requirements: Sequence[str], found: Mapping[str, Distribution]) -> set[str]:
    try:
        from packaging.requirements import Requirement
    except ImportError as error:
        raise MissingDependency("packaging", "bench") from error
    seen: set[tuple[str, str]] = set()
    asked = [(Requirement(text), "the subject") for text in requirements]
    while asked:
        requirement, by = asked.pop()
        name = _plain(requirement.name)
        if name not in found:
            raise FieldrunError(f"{by} requires {requirement}, which is not installed in that environment")
        extras = {(name, extra) for extra in ("", *requirement.extras)} - seen
        seen |= extras
        for text in found[name].requires or () if extras else ():
            inner = Requirement(text)
            if inner.marker is None or any(inner.marker.evaluate({"extra": extra}) for _, extra in extras):
                asked.append((inner, name))
    return {name for name, _ in seen}


def _bytes(name: str, distribution: Distribution) -> int:
    if name == "fieldrun":
        specs = [importlib.util.find_spec(package) for package in _OURS]
        folders = [Path(place) for spec in specs if spec for place in spec.submodule_search_locations or ()]
        paths = {path for folder in folders for path in folder.rglob("*")}
    else:
        paths = {Path(str(file.locate())) for file in distribution.files or ()}
    return sum(path.stat().st_size for path in paths if path.suffix != ".pyc" and path.is_file())


def _search_path(python: str) -> list[str]:
    if python == sys.executable:
        return sys.path
    command = [python, "-I", "-c", "import json, sys; print(json.dumps(sys.path))"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError) as error:
        raise FieldrunError(f"{python} does not say where its packages are: {error}") from error
    found: list[str] = json.loads(done.stdout)
    return found


def _plain(name: str) -> str:
    return name.lower().replace("_", "-").replace(".", "-")
