"""What this machine has, which engines and extras are ready, and the command that installs what is missing.

`fieldrun.doctor()` calls `doctor`. No engine is imported for the facts, and nothing is sent anywhere: they come from
`/proc`, `/sys`, the device tree and the metadata of the installed packages. The one command that is run is a Jetson's
`nvpmodel -q`. A fact that cannot be read is None, never 0.
"""

from __future__ import annotations

import inspect
import os
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from fieldrun.errors import FieldrunError

from .boards import board
from .containers import container, container_cpus, container_memory_mib
from .cpu import int8_instructions, parse_cpuinfo, parse_meminfo
from .gpu import nvidia
from .installed import ROOT, parse_dpkg_status, read, version
from .readiness import engines, extras

__all__ = ["DoctorReport", "doctor", "examine"]


@dataclass(frozen=True, slots=True, kw_only=True)
class DoctorReport:
    """The machine, and what of fieldrun runs on it.

    `machine` is what `examine` returns, but for the engines and extras. `engines` has `{name, engine, provider, ready,
    version, missing}` for each engine that `fieldrun.load` takes, `missing` being `{part, reason, command}` for each
    part that is not installed; `extras` has `{name, ready, packages, command}`. `bundle` says whether it loads:
    `{path, ready, engine, reason}`.
    """

    machine: Mapping[str, Any]
    engines: tuple[Mapping[str, Any], ...]
    extras: tuple[Mapping[str, Any], ...]
    bundle: Mapping[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Return the report as one JSON object."""
        found = {"engines": list(self.engines), "extras": list(self.extras), "bundle": self.bundle}
        return {**self.machine, **found}


def doctor(bundle: str | os.PathLike[str] = "reference") -> DoctorReport:
    """Report what this machine has, which engines and extras are ready, and whether `bundle` loads."""
    facts = examine()
    return DoctorReport(
        engines=tuple(facts.pop("engines")),
        extras=tuple(facts.pop("extras")),
        machine=facts,
        bundle=_try(os.fspath(bundle)),
    )


class _Callable(ModuleType):
    """Lets `fieldrun.doctor` be this package and the function at once."""

    __call__ = staticmethod(doctor)
    __signature__ = inspect.signature(doctor)


sys.modules[__name__].__class__ = _Callable


def examine(*, commands: bool = True) -> dict[str, Any]:
    """Return everything that can be read of the machine and the installation, as one JSON object.

    `commands`: include the commands that install what is missing. They name folders of this machine, so records, which
    are shown to others, leave them out.
    """
    cpu = parse_cpuinfo(read(ROOT / "proc/cpuinfo") or "")
    packages = parse_dpkg_status(read(ROOT / "var/lib/dpkg/status") or "")
    known, gpu, inside = board(packages), nvidia(packages), container()
    allowed = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else None
    found = {
        "fieldrun": version("fieldrun"),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "device": known["model"],
        "board": known,
        "nvidia": gpu,
        "container": inside,
        "cpu": {
            "model": cpu.model or platform.processor() or None,
            "features": list(cpu.features),
            "int8": int8_instructions(cpu.features),
            "processors": cpu.processors or os.cpu_count(),
            "allowed": len(allowed) if allowed else os.cpu_count(),
            "allowed_cpus": allowed,
            "container_limit": container_cpus(),
        },
        "memory": {**parse_meminfo(read(ROOT / "proc/meminfo") or ""), "container_limit_mib": container_memory_mib()},
        "packages": {name: version(name) for name in ("numpy", "tokenizers", "click")},
        "engines": engines(known, gpu, inside),
        "extras": extras(),
    }
    return found if commands else _without_commands(found)


def _without_commands(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_commands(each) for key, each in value.items() if key != "command"}
    return [_without_commands(each) for each in value] if isinstance(value, list) else value


def _try(bundle: str) -> dict[str, Any]:
    from fieldrun_runtimes.model import load

    try:
        with load(bundle) as model:
            return {"path": str(model.path), "ready": True, "engine": model.engine, "reason": model.engine_reason}
    except FieldrunError as error:
        return {"path": bundle, "ready": False, "engine": None, "reason": str(error)}
