"""Which engines and extras are ready here, and for each that is not: what is missing and the command that brings it."""

from __future__ import annotations

import platform
import re
from importlib import metadata, util
from pathlib import Path
from typing import Any

from . import installed

__all__ = ["engines", "extras", "parse_requirements"]

_ORT = ("onnxruntime", "onnxruntime-gpu")  # one import name, two distributions
_GPU_ENGINES = ("onnxruntime-cuda", "tensorrt", "tensorrt-rtx")
_RTX_REFUSED = ("8.7", "11.0")  # TensorRT-RTX 1.7 builds for 7.5, 8.0, 8.6, 8.9, 12.0 and 12.1: not for Jetson
Missing = tuple[str, str | None]
"""What is missing, and the command that brings it; None where no command can."""


def engines(board: dict[str, Any], nvidia: dict[str, Any], container: str | None) -> list[dict[str, Any]]:
    """Return one `{name, ready, version, reason, command}` per engine.

    `reason` says what is missing, None when the engine is ready; `command` brings it, None where no command can.
    """
    found = [
        _engine("native", *_native()),
        _engine("numpy", installed.version("numpy"), None),
        _engine("onnxruntime", *_onnxruntime()),
    ]
    for name in _GPU_ENGINES:
        missing = _no_gpu(board, nvidia, container) or _no_package(name, board)
        versions = {"tensorrt": nvidia["tensorrt"], "tensorrt-rtx": nvidia["tensorrt_rtx"]}
        found.append(_engine(name, versions.get(name) or installed.version(*_ORT), missing))
    return found


def _engine(name: str, version: str | None, missing: Missing | None) -> dict[str, Any]:
    reason, command = missing or (None, None)
    return {
        "name": name,
        "ready": missing is None,
        "version": version if missing is None else None,
        "reason": reason,
        "command": command,
    }


def _native() -> tuple[str | None, Missing | None]:
    runtimes = getattr(util.find_spec("fieldrun_runtimes"), "origin", None)
    if runtimes is not None and (Path(runtimes).parent / "native.so.1").is_file():
        return installed.version("fieldrun"), None
    command = "apt-get install gcc && pip install --force-reinstall --no-deps fieldrun"
    return None, ("no C compiler was there when fieldrun was installed", command)


def _onnxruntime() -> tuple[str | None, Missing | None]:
    if util.find_spec("onnxruntime") is None:
        return None, ("onnxruntime is not installed", "pip install 'fieldrun[ort]'")
    return installed.version(*_ORT), None


def _no_gpu(board: dict[str, Any], nvidia: dict[str, Any], container: str | None) -> Missing | None:
    jetson = board["kind"] == "jetson"
    if nvidia["driver_library"] and (nvidia["gpu"] or jetson):
        return None
    if container and (nvidia["gpu"] or jetson):
        flags = "--runtime nvidia" if jetson else "--gpus all"
        return "the container was started without the GPU's driver", f"docker run {flags} ..."
    if jetson:
        return "libcuda.so.1 of Jetson Linux is not there", "sudo apt-get install nvidia-l4t-cuda"
    if not nvidia["gpu"]:
        return "no NVIDIA GPU on this machine", None
    ubuntu = _distribution() == "ubuntu"
    return "no NVIDIA driver", "sudo ubuntu-drivers install" if ubuntu else "sudo apt-get install nvidia-driver"


def _no_package(engine: str, board: dict[str, Any]) -> Missing | None:
    if engine == "onnxruntime-cuda":
        return _no_cuda_provider(board)
    if engine == "tensorrt-rtx":
        if board["compute_capability"] in _RTX_REFUSED:
            return f"TensorRT-RTX has no code for compute capability {board['compute_capability']}: use tensorrt", None
        if util.find_spec("tensorrt_rtx_bindings") is None and util.find_spec("tensorrt_rtx") is None:
            return "TensorRT-RTX is not installed", "pip install 'fieldrun[tensorrt-rtx]'"
    elif util.find_spec("tensorrt") is None:
        if board["kind"] == "jetson":
            command = "sudo apt-get install python3-libnvinfer, and an environment made with --system-site-packages"
            return "JetPack's Python module of TensorRT is not visible", command
        return "TensorRT is not installed", "pip install tensorrt, from NVIDIA's own package index"
    if installed.version("cuda-bindings", "cuda-python") is None:
        return "cuda-python is not installed", f"pip install 'fieldrun[{engine}]'"
    return None


def _no_cuda_provider(board: dict[str, Any]) -> Missing | None:
    spec = util.find_spec("onnxruntime")
    folders = getattr(spec, "submodule_search_locations", None) or ()
    if any((Path(folder) / "capi/libonnxruntime_providers_cuda.so").is_file() for folder in folders):
        return None
    reason = "onnxruntime is not installed" if spec is None else "this onnxruntime has no CUDA provider"
    if board["jetpack_series"] is not None and board["jetpack_series"] < 7:
        return reason, "pip install NVIDIA's onnxruntime-gpu wheel for this JetPack, in the place of onnxruntime"
    return reason, "pip uninstall --yes onnxruntime && pip install onnxruntime-gpu"


def _distribution() -> str | None:
    try:
        return platform.freedesktop_os_release().get("ID")
    except OSError:
        return None


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
        packages = {p: installed.version(p) for p in parse_requirements(metadata.requires("fieldrun") or [], name)}
        if "onnxruntime" in packages:
            packages["onnxruntime"] = installed.version(*_ORT)
        ready = all(packages.values())
        command = None if ready else f"pip install 'fieldrun[{name}]'"
        found.append({"name": name, "ready": ready, "packages": packages, "command": command})
    return found
