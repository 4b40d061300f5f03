"""What this machine has, which engines and extras are ready, and the command that brings what is missing.

Nothing is imported to find that out and nothing is sent anywhere: facts come from `/proc`, `/sys` and the metadata of
the installed packages. A fact that cannot be read is None, never 0.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import sys
from dataclasses import dataclass
from importlib import metadata, util
from pathlib import Path, PurePosixPath
from typing import Any

__all__ = [
    "Cpu",
    "container_cpus",
    "container_memory_mib",
    "engines",
    "examine",
    "extras",
    "parse_cpuinfo",
    "parse_meminfo",
    "parse_requirements",
]

_X86 = "avx f16c fma avx2 avx512f avx512bw avx512vl avx512_vnni avx_vnni avx512_bf16 avx512_fp16 amx_int8 amx_bf16"
_ARM = "neon asimd asimddp asimdhp fphp i8mm bf16 sve sve2 svei8mm"
# What the kernels of NumPy and ONNX Runtime choose by; on ARM: NEON, dot products, half floats, matrix multiply, SVE.
FEATURES = (*_X86.split(), *_ARM.split())
"""Instruction sets that decide how fast a bundle runs, as `/proc/cpuinfo` spells them."""

_ARM_CORES = {  # (implementer, part) of MIDR_EL1
    (0x41, 0xD03): "Cortex-A53",
    (0x41, 0xD04): "Cortex-A35",
    (0x41, 0xD05): "Cortex-A55",
    (0x41, 0xD07): "Cortex-A57",
    (0x41, 0xD08): "Cortex-A72",
    (0x41, 0xD0B): "Cortex-A76",
    (0x41, 0xD0C): "Neoverse-N1",
    (0x41, 0xD40): "Neoverse-V1",
    (0x41, 0xD41): "Cortex-A78",
    (0x41, 0xD42): "Cortex-A78AE",
    (0x41, 0xD49): "Neoverse-N2",
    (0x41, 0xD4F): "Neoverse-V2",
    (0x4E, 0x004): "NVIDIA Carmel",
}
_NO_LIMIT_BYTES = 1 << 60  # cgroup v1 says "no limit" with a number near 2**63


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """A processor: `model` is None where the kernel does not name it; `features` are those that every core has."""

    model: str | None
    features: tuple[str, ...]
    processors: int


def parse_cpuinfo(text: str) -> Cpu:
    """Read the text of `/proc/cpuinfo`, of x86 or ARM."""
    models: dict[str, None] = {}
    common: set[str] | None = None
    processors = 0
    for block in re.split(r"\n\s*\n", text):
        facts = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in block.splitlines())}
        flags = facts.get("flags", facts.get("Features"))
        if "processor" not in facts or not facts["processor"].isdigit():
            continue
        processors += 1
        if flags is not None:
            common = set(flags.split()) if common is None else common & set(flags.split())
        if name := _arm_core(facts) or facts.get("model name"):
            models[name] = None
    features = tuple(name for name in FEATURES if name in (common or ()))
    return Cpu(model=" + ".join(models) or None, features=features, processors=processors)


def _arm_core(facts: dict[str, str]) -> str | None:
    try:
        implementer, part = int(facts["CPU implementer"], 16), int(facts["CPU part"], 16)
    except (KeyError, ValueError):
        return None
    return _ARM_CORES.get((implementer, part), f"ARM implementer {implementer:#04x} part {part:#05x}")


def parse_meminfo(text: str) -> dict[str, int | None]:
    """Read the text of `/proc/meminfo`: `total_mib` and `available_mib`."""
    found = {key: int(kib) // 1024 for key, kib in re.findall(r"^(\w+):\s+(\d+) kB$", text, re.MULTILINE)}
    return {"total_mib": found.get("MemTotal"), "available_mib": found.get("MemAvailable")}


def container_memory_mib(root: Path = Path("/")) -> int | None:
    """Return the smallest memory limit of this process's control groups in MiB, None when there is none."""
    texts = [_read(folder / "memory.max") for folder in _cgroups(root, "")]
    texts += [_read(folder / "memory.limit_in_bytes") for folder in _cgroups(root, "memory")]
    limits = [int(text) for text in texts if text is not None and text.strip().isdigit()]
    return min((limit // 2**20 for limit in limits if limit < _NO_LIMIT_BYTES), default=None)


def container_cpus(root: Path = Path("/")) -> float | None:
    """Return the smallest CPU quota of this process's control groups in CPUs, None when there is none."""
    quotas = [(_read(folder / "cpu.max") or "").split() for folder in _cgroups(root, "")]
    for folder in _cgroups(root, "cpu"):
        quotas.append(f"{_read(folder / 'cpu.cfs_quota_us')} {_read(folder / 'cpu.cfs_period_us')}".split())
    limits = [int(q[0]) / int(q[1]) for q in quotas if len(q) == 2 and q[0].isdigit() and q[1].isdigit() and int(q[1])]
    return min(limits, default=None)


def _cgroups(root: Path, controller: str) -> list[Path]:
    """Return the folders of a control group and its ancestors; controller "" is the one hierarchy of cgroup v2."""
    base = root / "sys/fs/cgroup" / controller
    folders = [base]
    for line in (_read(root / "proc/self/cgroup") or "").splitlines():
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if controller in controllers.split(","):
            inside = PurePosixPath(path.lstrip("/"))
            folders += [base / part for part in (inside, *inside.parents) if ".." not in part.parts]
    return folders


def engines() -> list[dict[str, Any]]:
    """Return one `{name, ready, version, command}` per engine; `command` brings it when it is not ready."""
    ort = util.find_spec("onnxruntime") is not None
    runtimes = getattr(util.find_spec("fieldrun_runtimes"), "origin", None)
    native = runtimes is not None and (Path(runtimes).parent / "native.so.1").is_file()
    return [
        {
            "name": "native",
            "ready": native,
            "version": _version("fieldrun") if native else None,
            "command": None if native else "apt-get install gcc && pip install --force-reinstall --no-deps fieldrun",
        },
        {"name": "numpy", "ready": True, "version": _version("numpy"), "command": None},
        {
            "name": "onnxruntime",
            "ready": ort,
            # The GPU and Jetson wheels have the same import name under other distribution names.
            "version": next(filter(None, map(_version, ("onnxruntime", "onnxruntime-gpu"))), None) if ort else None,
            "command": None if ort else "pip install 'fieldrun[ort]'",
        },
    ]


def parse_requirements(requirements: list[str], extra: str, distribution: str = "fieldrun") -> list[str]:
    """Return the packages that `extra` adds, from the `Requires-Dist` lines of the metadata.

    A line whose marker asks for more than the extra (a Python version, a platform) is left out: it may not apply here.
    """
    packages: dict[str, None] = {}
    for line in requirements:
        needed, _, marker = line.partition(";")
        asked = re.fullmatch(r"""\(?\s*extra\s*==\s*['"]([\w.-]+)['"]\s*\)?""", marker.strip())
        name = re.match(r"\s*([\w.-]+)\s*(?:\[([^\]]*)\])?", needed)
        if asked is None or name is None or asked.group(1) != extra:
            continue
        if name.group(1) == distribution:
            for inner in (name.group(2) or "").split(","):
                packages |= dict.fromkeys(parse_requirements(requirements, inner.strip(), distribution))
        else:
            packages[name.group(1)] = None
    return list(packages)


def extras() -> list[dict[str, Any]]:
    """Return one `{name, ready, packages, command}` per extra; `packages` maps each package to its version or None."""
    try:
        about = metadata.metadata("fieldrun")
    except metadata.PackageNotFoundError:
        return []
    found = []
    for name in about.get_all("Provides-Extra") or []:
        packages = {p: _version(p) for p in parse_requirements(metadata.requires("fieldrun") or [], name)}
        if "onnxruntime" in packages:
            packages["onnxruntime"] = engines()[-1]["version"]
        ready = all(packages.values())
        command = None if ready else f"pip install 'fieldrun[{name}]'"
        found.append({"name": name, "ready": ready, "packages": packages, "command": command})
    return found


def examine() -> dict[str, Any]:
    """Return everything this module knows of the machine and the installation, as one JSON object."""
    cpu = parse_cpuinfo(_read(Path("/proc/cpuinfo")) or "")
    board = _read(Path("/proc/device-tree/model"))
    return {
        "fieldrun": _version("fieldrun"),
        "python": platform.python_version(),
        "implementation": platform.python_implementation(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "device": board.strip("\0 \n") if board else None,
        "cpu": {
            "model": cpu.model or platform.processor() or None,
            "features": list(cpu.features),
            "processors": cpu.processors or os.cpu_count(),
            "allowed": len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count(),
            "container_limit": container_cpus(),
        },
        "memory": {**parse_meminfo(_read(Path("/proc/meminfo")) or ""), "container_limit_mib": container_memory_mib()},
        "packages": {name: _version(name) for name in ("numpy", "tokenizers", "click")},
        "engines": engines(),
        "extras": extras(),
    }


def _version(distribution: str) -> str | None:
    with contextlib.suppress(metadata.PackageNotFoundError):
        return metadata.version(distribution)
    return None


def _read(path: Path) -> str | None:
    with contextlib.suppress(OSError):
        return path.read_text("utf-8", errors="replace")
    return None
