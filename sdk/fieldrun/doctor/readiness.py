"""Which engines and extras are ready here, and for each that is not: what is missing and the command that brings it."""

from __future__ import annotations

import json
import platform
import re
import shlex
import sys
from importlib import metadata, util
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from fieldrun_runtimes.tensorrt.library import MODULES, OLDEST

from . import installed

__all__ = ["engines", "extras", "parse_requirements"]

_ORT = ("onnxruntime", "onnxruntime-gpu")  # one import name, two distributions
_LIBRARIES = {  # engine -> the package of its shared library, and what `nvidia` says of the library as a file
    "tensorrt": ("tensorrt_libs", "tensorrt_library"),
    "tensorrt-rtx": ("tensorrt_rtx_libs", "tensorrt_rtx_library"),
}
_RTX_REFUSED = ("8.7", "11.0")  # TensorRT-RTX 1.7 builds for 7.5, 8.0, 8.6, 8.9, 12.0 and 12.1: not for Jetson
_LAST_ORT_OF_CUDA12 = "<1.27"  # the extra `cuda` of 1.26 brings CUDA 12, of 1.27 CUDA 13
_CUDA13_DRIVER = 580  # docs.nvidia.com/deploy/cuda-compatibility: CUDA 13 needs 580, CUDA 12 needs 525
Missing = tuple[str, str, str | None]
"""Which part is missing, what is the matter with it, and the command that brings it; None where no command can."""


def engines(board: dict[str, Any], nvidia: dict[str, Any], container: str | None) -> list[dict[str, Any]]:
    """Return one `{name, engine, provider, ready, version, missing}` per engine that `fieldrun.load` takes.

    `missing` lists every part that is not there as `{part, reason, command}`: "package", "bindings", "library",
    "cuda-python", "device", "driver" or "compiler"; `command` is None where no command brings it.
    """
    gpu = _no_gpu(board, nvidia, container)
    found = [
        _engine("native", installed.version("fieldrun"), _native()),
        _engine("onnxruntime", installed.version(*_ORT), _onnxruntime()),
        _engine("numpy", installed.version("numpy"), []),
        _engine("onnxruntime", installed.version(*_ORT), gpu + _no_cuda_provider(board, nvidia), "cuda"),
    ]
    for name in MODULES:
        found.append(_engine(name, nvidia[name.replace("-", "_")], gpu + _no_tensorrt(name, board, nvidia)))
    return found


def _engine(name: str, version: str | None, missing: list[Missing], provider: str | None = None) -> dict[str, Any]:
    return {
        "name": name if provider is None else f"{name} --provider {provider}",
        "engine": name,
        "provider": provider,
        "ready": not missing,
        "version": None if missing else version,
        "missing": [dict(zip(("part", "reason", "command"), one, strict=True)) for one in missing],
    }


def _native() -> list[Missing]:
    runtimes = getattr(util.find_spec("fieldrun_runtimes"), "origin", None)
    if runtimes is not None and (Path(runtimes).parent / "native" / "native.so.1").is_file():
        return []
    command = "sudo apt-get install gcc libc6-dev && " + _pip(f"install --force-reinstall --no-deps {_source()}")
    return [("compiler", "no C compiler was there when fieldrun was installed", command)]


def _pip(arguments: str) -> str:
    """Return the command of pip for this very environment, whether it is activated or not."""
    return f"{shlex.quote(sys.executable or 'python3')} -m pip {arguments}"


def _source() -> str:
    """Return the checkout that fieldrun was installed from, as pip noted it; a name to fill in where it did not.

    A wheel has nothing to compile, and no index need have fieldrun.
    """
    try:
        # packaging.python.org/en/latest/specifications/direct-url: where a package was installed from
        origin = json.loads(metadata.distribution("fieldrun").read_text("direct_url.json") or "{}")
        folder = Path(unquote(urlsplit(origin["url"]).path))
        if urlsplit(origin["url"]).scheme == "file" and (folder / "pyproject.toml").is_file():
            return ("--editable " if origin["dir_info"].get("editable") else "") + shlex.quote(str(folder))
    except (metadata.PackageNotFoundError, OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return "CHECKOUT-OF-FIELDRUN"


def _onnxruntime() -> list[Missing]:
    if util.find_spec("onnxruntime") is None:
        return [("package", "onnxruntime is not installed", _pip("install 'fieldrun[ort]'"))]
    return []


def _no_gpu(board: dict[str, Any], nvidia: dict[str, Any], container: str | None) -> list[Missing]:
    jetson = board["kind"] == "jetson"
    if nvidia["driver_library"] and (nvidia["gpu"] or jetson):
        return []
    if container and (nvidia["gpu"] or jetson):
        flags = "--runtime nvidia" if jetson else "--gpus all"
        return [("driver", "the container was started without the GPU's driver", f"docker run {flags} ...")]
    if jetson:
        return [("driver", "libcuda.so.1 of Jetson Linux is not there", "sudo apt-get install nvidia-l4t-cuda")]
    if not nvidia["gpu"]:
        inside = ", or this container was not given it (docker run --gpus all ...)" if container else ""
        return [("device", f"no NVIDIA GPU on this machine{inside}", None)]
    ubuntu = _distribution() == "ubuntu"
    return [
        (
            "driver",
            "no NVIDIA driver",
            "sudo ubuntu-drivers install" if ubuntu else "sudo apt-get install nvidia-driver",
        )
    ]


def _no_tensorrt(engine: str, board: dict[str, Any], nvidia: dict[str, Any]) -> list[Missing]:
    if engine == "tensorrt-rtx" and board["compute_capability"] in _RTX_REFUSED:
        reason = f"TensorRT-RTX has no code for compute capability {board['compute_capability']}: use tensorrt"
        return [("device", reason, None)]
    package, seen = _LIBRARIES[engine]
    title = "TensorRT" if engine == "tensorrt" else "TensorRT-RTX"
    version = nvidia[engine.replace("-", "_")]
    found: list[Missing] = []
    if _is_there(MODULES[engine]):
        if not _is_there((package,)) and not nvidia[seen]:
            reason = f"{title}'s Python module is there, its shared library is not"
            found.append(("library", reason, _tensorrt_command(engine, board, nvidia)[1]))
        elif engine == "tensorrt" and version is not None and _is_too_old(version):
            command = "flash JetPack 6.1 or later" if board["kind"] == "jetson" else _pip("install --upgrade tensorrt")
            found.append(
                (
                    "library",
                    f"TensorRT {version} is too old: {'.'.join(map(str, OLDEST[engine]))} or later is needed",
                    command,
                )
            )
    else:
        found.append(("bindings", *_tensorrt_command(engine, board, nvidia)))
    return found + _no_cuda_python(engine, board, nvidia)


def _is_too_old(version: str) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) < OLDEST["tensorrt"]


def _is_there(modules: tuple[str, ...]) -> bool:
    return any(util.find_spec(name) is not None for name in modules)


def _tensorrt_command(engine: str, board: dict[str, Any], nvidia: dict[str, Any]) -> tuple[str, str]:
    """Return what to say of a module that cannot be found, and the command."""
    if engine == "tensorrt-rtx":
        return "TensorRT-RTX is not installed", _pip("install 'fieldrun[tensorrt-rtx]'")
    if board["kind"] != "jetson":
        return "TensorRT is not installed (pip's package fetches it from NVIDIA)", _pip("install tensorrt")
    if nvidia["tensorrt_module"] is None:
        reason = "JetPack's Python module of TensorRT is not installed; it is no package of pip's"
        return reason, "sudo apt-get install python3-libnvinfer"
    if sys.prefix != sys.base_prefix:
        reason = "JetPack's Python module of TensorRT is not visible in this virtual environment"
        return reason, f"/usr/bin/python3 -m venv --system-site-packages {sys.prefix}"
    running = f"{sys.version_info.major}.{sys.version_info.minor}"
    reason = f"JetPack's Python module of TensorRT is not visible to this Python {running}, only to the system's"
    return reason, "/usr/bin/python3 -m venv --system-site-packages fieldrun-gpu"


def _no_cuda_python(engine: str, board: dict[str, Any], nvidia: dict[str, Any]) -> list[Missing]:
    """Say whether cuda-python is there and of a CUDA that the driver knows: it has CUDA's runtime linked in."""
    version = installed.version("cuda-bindings", "cuda-python")
    old = _is_before_cuda13(board, nvidia)
    command = _pip("install 'cuda-bindings>=12.8,<13'" if old else f"install 'fieldrun[{engine}]'")
    if version is None:
        return [("cuda-python", "cuda-python is not installed", command)]
    if old and int(version.partition(".")[0]) >= 13:
        return [("cuda-python", f"cuda-python {version} needs a driver of CUDA 13, and this one is older", command)]
    return []


def _is_before_cuda13(board: dict[str, Any], nvidia: dict[str, Any]) -> bool:
    if nvidia["driver"] is not None:
        return int(nvidia["driver"].partition(".")[0]) < _CUDA13_DRIVER
    return board["jetpack_series"] is not None and board["jetpack_series"] < 7


def _no_cuda_provider(board: dict[str, Any], nvidia: dict[str, Any]) -> list[Missing]:
    old = _is_before_cuda13(board, nvidia)
    package = f"'onnxruntime-gpu[cuda,cudnn]{_LAST_ORT_OF_CUDA12 if old else ''}'"
    spec = util.find_spec("onnxruntime")
    folders = getattr(spec, "submodule_search_locations", None) or ()
    if any((Path(folder) / "capi/libonnxruntime_providers_cuda.so").is_file() for folder in folders):
        if nvidia["cublas_library"]:
            return []
        command = "sudo apt-get install nvidia-jetpack" if board["kind"] == "jetson" else _pip(f"install {package}")
        return [("library", "CUDA's own libraries (cuBLAS) are not there", command)]
    reason = "onnxruntime is not installed" if spec is None else "this onnxruntime has no CUDA provider"
    before = "" if spec is None else _pip("uninstall --yes onnxruntime") + " && "
    if board["jetpack_series"] is not None and board["jetpack_series"] < 7:
        reason += "; pip's own for ARM is for CUDA 13, so take NVIDIA's wheel for this JetPack"
        return [("package", reason, before + _pip("install ./onnxruntime_gpu-*.whl"))]
    return [("package", reason, before + _pip(f"install {package}"))]


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
        command = None if ready else _pip(f"install 'fieldrun[{name}]'")
        found.append({"name": name, "ready": ready, "packages": packages, "command": command})
    return found
