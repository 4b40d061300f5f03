"""Processor and memory, from `/proc/cpuinfo` and `/proc/meminfo`."""

from __future__ import annotations

import re
from dataclasses import dataclass

__all__ = ["FEATURES", "Cpu", "int8_instructions", "parse_cpuinfo", "parse_meminfo"]

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
    (0x41, 0xD83): "Neoverse-V3AE",
    (0x4E, 0x004): "NVIDIA Carmel",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Cpu:
    """A processor: `model` is None if the kernel does not name it; `features` are those that every core has."""

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


def int8_instructions(features: tuple[str, ...]) -> dict[str, bool] | None:
    """Say which instructions for int8 products a processor with `features` has; None if they are unknown.

    `vnni` and `amx` are x86's, `dotprod` (`asimddp`) and `i8mm` ARM's.
    """
    if not features:
        return None
    return {
        "vnni": not {"avx512_vnni", "avx_vnni"}.isdisjoint(features),
        "amx": "amx_int8" in features,
        "dotprod": "asimddp" in features,
        "i8mm": "i8mm" in features,
    }
