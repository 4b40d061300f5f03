"""The board: Jetson modules with their system release and power mode, and Raspberry Pis.

The parsers take text and return what it says; `board` reads the files. The formats are public: the device tree's
bindings (`arm/tegra.yaml`, `arm/bcm/bcm2835.yaml` of the Linux kernel) and the Jetson Linux Developer Guide.
"""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

from fieldrun_runtimes.tensorrt.device import parse_nv_tegra_release

from .installed import ROOT, read

__all__ = ["board", "jetpack_series", "parse_device_tree", "parse_nvpmodel"]

MODULES = {
    "p2888-0001": "Jetson AGX Xavier 16GB",
    "p2888-0004": "Jetson AGX Xavier 32GB",
    "p2888-0005": "Jetson AGX Xavier 64GB",
    "p2888-0008": "Jetson AGX Xavier Industrial",
    "p3448-0000": "Jetson Nano",
    "p3448-0002": "Jetson Nano",
    "p3448-0003": "Jetson Nano 2GB",
    "p3668-0000": "Jetson Xavier NX",
    "p3668-0001": "Jetson Xavier NX",
    "p3668-0003": "Jetson Xavier NX 16GB",
    "p3701-0000": "Jetson AGX Orin developer kit",
    "p3701-0004": "Jetson AGX Orin 32GB",
    "p3701-0005": "Jetson AGX Orin 64GB",
    "p3701-0008": "Jetson AGX Orin Industrial",
    "p3767-0000": "Jetson Orin NX 16GB",
    "p3767-0001": "Jetson Orin NX 8GB",
    "p3767-0003": "Jetson Orin Nano 8GB",
    "p3767-0004": "Jetson Orin Nano 4GB",
    "p3767-0005": "Jetson Orin Nano 8GB developer kit",
    "p3834-0008": "Jetson T5000 (Thor)",
}
"""Jetson modules by part number, as the Jetson Linux Developer Guide lists them."""

COMPUTE_CAPABILITY = {"tegra186": "6.2", "tegra194": "7.2", "tegra210": "5.3", "tegra234": "8.7", "tegra264": "11.0"}
_SERIES = {32: 4, 34: 5, 35: 5, 36: 6, 38: 7, 39: 7}  # JetPack by the first number of Jetson Linux
_NVPMODEL_SECONDS = 3


def parse_device_tree(model: str | None, compatible: str | None) -> dict[str, str | None]:
    """Read the texts of `/proc/device-tree/model` and `compatible` (names that end with a zero byte).

    Returns `{kind, model, module, part, soc, compute_capability}`, each None where the tree does not say it. `kind` is
    "jetson" or "raspberry-pi". `model` is the tree's own text, which on another maker's carrier board can name a module
    that is not on it. `part`, and the `module` it stands for, come from the compatible strings.
    """
    name = (model or "").strip("\0 \n") or None
    entries = [entry for entry in re.split(r"[\0\n]", compatible or "") if entry]
    found = dict.fromkeys(("kind", "model", "module", "part", "soc", "compute_capability")) | {"model": name}
    soc = next((m[1] for entry in entries if (m := re.fullmatch(r"nvidia,(tegra\d+)", entry))), None)
    if soc is not None:
        # The module has an entry of its own, or stands after its carrier board: "nvidia,p3737-0000+p3701-0000".
        parts = [m[1] for e in entries if (m := re.fullmatch(r"nvidia,(?:[\w-]+\+)?(p\d{4}-\d{4})(?:-[a-z]+)?", e))]
        part = next((p for p in parts if p in MODULES), parts[-1] if parts else None)
        found |= {"kind": "jetson", "module": MODULES.get(part or ""), "part": part}
        found |= {"soc": soc, "compute_capability": COMPUTE_CAPABILITY.get(soc)}
    elif any(entry.startswith("raspberrypi,") for entry in entries) or (name or "").startswith("Raspberry Pi"):
        chip = next((m[1] for entry in entries if (m := re.fullmatch(r"brcm,(bcm\d+)", entry))), None)
        module = re.sub(r" Rev \d+(\.\d+)*$", "", name) if name else None
        found |= {"kind": "raspberry-pi", "module": module, "soc": chip}
    return found


def jetpack_series(l4t: str | None) -> int | None:
    """Return the major version of the JetPack that a version of Jetson Linux belongs to."""
    return _SERIES.get(int(l4t.partition(".")[0])) if l4t else None


def parse_nvpmodel(text: str) -> dict[str, Any] | None:
    """Return `{name, id}` of the power mode in the output of `nvpmodel -q`, None if there is no name in it."""
    found = re.search(r"NV Power Mode:[ \t]*(\S+)[ \t]*(?:\n[ \t]*(\d+)[ \t]*$)?", text, re.MULTILINE)
    return {"name": found[1], "id": int(found[2]) if found[2] else None} if found else None


def board(packages: dict[str, str], root: Path = ROOT) -> dict[str, Any]:
    """Return what is known about the board as JSON; `packages` are the installed Debian packages.

    For a Jetson also `l4t`, `jetpack` (the version of its package), `jetpack_series` and `power_mode`.
    """
    tree = parse_device_tree(read(root / "proc/device-tree/model"), read(root / "proc/device-tree/compatible"))
    # A container has neither the host's device tree nor its packages; NVIDIA's images contain the release file.
    l4t = parse_nv_tegra_release(read(root / "etc/nv_tegra_release") or "")
    if l4t is None and (core := re.match(r"\d+(?:\.\d+)+", packages.get("nvidia-l4t-core", ""))):
        l4t = core[0]
    kind = tree["kind"] or ("jetson" if l4t else None)
    return {
        **tree,
        "kind": kind,
        "l4t": l4t,
        "jetpack": packages.get("nvidia-jetpack"),
        "jetpack_series": jetpack_series(l4t),
        "power_mode": _power_mode() if kind == "jetson" else None,
    }


def _power_mode() -> dict[str, Any] | None:
    command = shutil.which("nvpmodel", path="/usr/sbin:/usr/bin:/sbin:/bin")
    if command is None:
        return None
    options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
    try:
        ended = subprocess.run([command, "-q"], timeout=_NVPMODEL_SECONDS, check=False, **options)
    except (OSError, subprocess.SubprocessError):
        return None
    return parse_nvpmodel(ended.stdout)
