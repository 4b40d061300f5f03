"""What this machine has, which engines and extras are ready, and the command that brings what is missing.

Nothing is imported to find that out and nothing is sent anywhere: facts come from `/proc`, `/sys`, the device tree and
the metadata of the installed packages; the one command that is run is a Jetson's `nvpmodel -q`. A fact that cannot be
read is None, never 0.
"""

from __future__ import annotations

import os
import platform
import sys
from typing import Any

from fieldrun_runtimes.tensorrt.device import parse_nv_tegra_release

from .boards import Board, board, parse_device_tree, parse_nvpmodel
from .containers import container, container_cpus, container_memory_mib
from .cpu import Cpu, int8_instructions, parse_cpuinfo, parse_meminfo
from .gpu import nvidia, parse_cuda_version, parse_driver_version
from .installed import ROOT, parse_dpkg_status, read, version
from .readiness import engines, extras, parse_requirements

__all__ = [
    "Board",
    "Cpu",
    "board_facts",
    "container",
    "container_cpus",
    "container_memory_mib",
    "engines",
    "examine",
    "extras",
    "parse_cpuinfo",
    "parse_cuda_version",
    "parse_device_tree",
    "parse_dpkg_status",
    "parse_driver_version",
    "parse_meminfo",
    "parse_nv_tegra_release",
    "parse_nvpmodel",
    "parse_requirements",
]


def board_facts() -> dict[str, Any]:
    """Return `{device, board, nvidia, container, cpu, memory}`: what a measurement on this machine depends on."""
    cpu = parse_cpuinfo(read(ROOT / "proc/cpuinfo") or "")
    packages = parse_dpkg_status(read(ROOT / "var/lib/dpkg/status") or "")
    known = board(packages)
    allowed = sorted(os.sched_getaffinity(0)) if sys.platform == "linux" else None
    return {
        "device": known["model"],
        "board": known,
        "nvidia": nvidia(packages),
        "container": container(),
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
    }


def examine(*, commands: bool = True) -> dict[str, Any]:
    """Return everything this package knows of the machine and the installation, as one JSON object.

    `commands`: with those that bring what is missing. They name folders of this machine, so a record, which is to be
    shown to others, is made without them.
    """
    facts = board_facts()
    found = {
        "fieldrun": version("fieldrun"),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        **facts,
        "packages": {name: version(name) for name in ("numpy", "tokenizers", "click")},
        "engines": engines(facts["board"], facts["nvidia"], facts["container"]),
        "extras": extras(),
    }
    return found if commands else _without_commands(found)


def _without_commands(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_commands(each) for key, each in value.items() if key != "command"}
    return [_without_commands(each) for each in value] if isinstance(value, list) else value
