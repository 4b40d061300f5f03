"""GPU, driver, CUDA and TensorRT, from files and the metadata of packages; no library is loaded."""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .installed import ROOT, read, version

__all__ = ["has_library", "nvidia", "parse_cuda_version", "parse_driver_version"]

_DEVICES = ("nvidia0", "nvhost-gpu", "nvgpu", "dxg")  # a discrete GPU, Jetson's (two kernels), Windows' subsystem
_FOLDERS = (
    "usr/lib/aarch64-linux-gnu",
    "usr/lib/aarch64-linux-gnu/nvidia",
    "usr/lib/aarch64-linux-gnu/tegra",
    "usr/lib/x86_64-linux-gnu",
    "usr/lib/x86_64-linux-gnu/nvidia/current",
    "usr/lib64",
    "usr/lib",
    "usr/lib/wsl/lib",
    "usr/local/nvidia/lib64",
    "usr/local/cuda/compat",
    "usr/local/cuda/lib64",
)
_CUBLAS = ("nvidia-cublas", "nvidia-cublas-cu13", "nvidia-cublas-cu12")
_VENDOR, _DISPLAY = "0x10de", "0x03"  # NVIDIA; the PCI class of display controllers


def parse_driver_version(text: str) -> str | None:
    """Return the driver's version from the text of `/proc/driver/nvidia/version`."""
    found = re.search(r"^NVRM version:.*?\s(\d+\.\d+(?:\.\d+)?)(?=\s|$)", text, re.MULTILINE)
    return found[1] if found else None


def parse_cuda_version(text: str) -> str | None:
    """Return CUDA's version from the text of `version.json` or, before CUDA 11.1, `version.txt`."""
    try:
        value = json.loads(text)
    except ValueError:
        found = re.match(r"CUDA Version (\d+(?:\.\d+)+)", text)
        return found[1] if found else None
    entry = value.get("cuda") if isinstance(value, dict) else None
    found = entry.get("version") if isinstance(entry, dict) else None
    return found if isinstance(found, str) else None


def has_library(name: str, root: Path = ROOT, environment: Mapping[str, str] = os.environ) -> bool:
    """Say whether the loader finds a shared library whose name matches the pattern `name`."""
    asked = [Path(folder) for folder in environment.get("LD_LIBRARY_PATH", "").split(":") if folder]
    for folder in (*asked, *(root / folder for folder in _FOLDERS)):
        with contextlib.suppress(OSError, ValueError):  # a folder that cannot be read; a name that is not valid
            if any(folder.glob(name)):
                return True
    return False


def nvidia(packages: Mapping[str, str], root: Path = ROOT) -> dict[str, Any]:
    """Return which NVIDIA hardware and software is here; `packages` are the installed Debian packages.

    `gpu` and the names that end in `_library` are true or false, the others versions or None. `tensorrt_module` is
    JetPack's package of TensorRT's Python module.
    """
    return {
        "gpu": _has_gpu(root),
        "driver_library": has_library("libcuda.so.1", root),
        "driver": parse_driver_version(read(root / "proc/driver/nvidia/version") or ""),
        "cuda": _cuda(packages, root),
        "tensorrt": _tensorrt(packages),
        "tensorrt_library": has_library("libnvinfer.so.*", root),
        "tensorrt_module": packages.get("python3-libnvinfer"),
        "tensorrt_rtx": version("tensorrt-rtx", "tensorrt-rtx-cu13", "tensorrt-rtx-cu13-bindings"),
        "tensorrt_rtx_library": has_library("libtensorrt_rtx.so.*", root),
        "cublas_library": has_library("libcublasLt.so.*", root) or version(*_CUBLAS) is not None,
        "cuda_python": version("cuda-bindings", "cuda-python"),
    }


def _has_gpu(root: Path) -> bool:
    if any((root / "dev" / name).exists() for name in _DEVICES):
        return True
    for device in sorted((root / "sys/bus/pci/devices").glob("*")):
        if (read(device / "vendor") or "").strip() == _VENDOR and (read(device / "class") or "").startswith(_DISPLAY):
            return True
    return False


def _cuda(packages: Mapping[str, str], root: Path) -> str | None:
    for name in ("version.json", "version.txt"):
        if (text := read(root / "usr/local/cuda" / name)) and (found := parse_cuda_version(text)):
            return found
    runtimes = [tuple(map(int, m.groups())) for p in packages if (m := re.fullmatch(r"cuda-cudart-(\d+)-(\d+)", p))]
    if runtimes:
        return ".".join(map(str, max(runtimes)))
    return version("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu13", "nvidia-cuda-runtime-cu12")


def _tensorrt(packages: Mapping[str, str]) -> str | None:
    libraries = [(int(m[1]), p) for p in packages if (m := re.fullmatch(r"libnvinfer(\d+)", p))]
    if libraries:
        return re.split(r"[-+]", packages[max(libraries)[1]])[0]
    return version("tensorrt", "tensorrt-cu13", "tensorrt-cu12", "tensorrt-cu13-bindings", "tensorrt-cu12-bindings")
