"""Which engines and extras are ready, what the others lack, and the command that installs it."""

from __future__ import annotations

import json
import platform
import re
import shlex
import sys
from importlib import metadata, util
from pathlib import Path
from typing import Any, TypeAlias
from urllib.parse import unquote, urlsplit

from fieldrun_runtimes.tensorrt.library import MODULES, OLDEST

from . import installed

__all__ = ["engines", "extras", "parse_requirements"]

_ORT = ("onnxruntime", "onnxruntime-gpu")  # one import name, two distributions
_LIBRARIES = {"tensorrt": "tensorrt_libs", "tensorrt-rtx": "tensorrt_rtx_libs"}  # the package of the shared library
_TITLES = {"tensorrt": "TensorRT", "tensorrt-rtx": "TensorRT-RTX"}
_RTX_REFUSED = ("8.7", "11.0")  # TensorRT-RTX 1.7 builds for 7.5, 8.0, 8.6, 8.9, 12.0 and 12.1: not for Jetson
_LAST_ORT_OF_CUDA12 = "<1.27"  # the extra `cuda` of 1.26 installs CUDA 12, of 1.27 CUDA 13
_CUDA13_DRIVER = 580  # docs.nvidia.com/deploy/cuda-compatibility: CUDA 13 needs 580, CUDA 12 needs 525
_WITH_SYSTEM = "/usr/bin/python3 -m venv --system-site-packages"


Lack: TypeAlias = dict[str, str | None]


def _lack(part: str, reason: str, command: str | None = None) -> Lack:
    """Return a part that an engine lacks; `command` installs it, None where no command can."""
    return {"part": part, "reason": reason, "command": command}


def engines(board: dict[str, Any], nvidia: dict[str, Any], container: str | None) -> list[dict[str, Any]]:
    """Return `{name, engine, provider, ready, version, missing}` for each engine that `fieldrun.load` takes.

    `missing` lists every part that is not installed as `{part, reason, command}`: "package", "bindings", "library",
    "cuda-python", "device", "driver" or "compiler"; `command` is None where no command installs it.
    """
    gpu = _Gpu(board, nvidia, container)
    ort = [] if util.find_spec("onnxruntime") else [_lack("package", "onnxruntime is not installed", _extra("ort"))]
    found = [
        _engine("native", installed.version("fieldrun"), _native()),
        _engine("onnxruntime", installed.version(*_ORT), ort),
        _engine("numpy", installed.version("numpy"), []),
        _engine("onnxruntime", installed.version(*_ORT), gpu.driver() + gpu.cuda_provider(), "cuda"),
    ]
    for name in MODULES:
        found.append(_engine(name, nvidia[name.replace("-", "_")], gpu.driver() + gpu.tensorrt(name)))
    return found


def _engine(name: str, version: str | None, missing: list[Lack], provider: str | None = None) -> dict[str, Any]:
    return {
        "name": name if provider is None else f"{name} --provider {provider}",
        "engine": name,
        "provider": provider,
        "ready": not missing,
        "version": None if missing else version,
        "missing": missing,
    }


def _native() -> list[Lack]:
    runtimes = getattr(util.find_spec("fieldrun_runtimes"), "origin", None)
    if runtimes is not None and (Path(runtimes).parent / "native" / "native.so.1").is_file():
        return []
    command = "sudo apt-get install gcc libc6-dev && " + _pip(f"install --force-reinstall --no-deps {_source()}")
    return [_lack("compiler", "there was no C compiler when fieldrun was installed", command)]


def _pip(arguments: str) -> str:
    """Return the pip command for this very environment, whether it is activated or not."""
    return f"{shlex.quote(sys.executable or 'python3')} -m pip {arguments}"


def _extra(name: str) -> str:
    return _pip(f"install 'fieldrun[{name}]'")


def _source() -> str:
    """Return the checkout that fieldrun was installed from, as pip noted it, or a name to fill in."""
    try:
        # packaging.python.org/en/latest/specifications/direct-url: where a package was installed from
        origin = json.loads(metadata.distribution("fieldrun").read_text("direct_url.json") or "{}")
        url = urlsplit(origin["url"])
        folder = Path(unquote(url.path))
        if url.scheme == "file" and (folder / "pyproject.toml").is_file():
            return ("--editable " if origin["dir_info"].get("editable") else "") + shlex.quote(str(folder))
    except (metadata.PackageNotFoundError, OSError, ValueError, KeyError, TypeError, AttributeError):
        pass
    return "CHECKOUT-OF-FIELDRUN"


class _Gpu:
    """What the GPU engines lack here."""

    def __init__(self, board: dict[str, Any], nvidia: dict[str, Any], container: str | None) -> None:
        self.board, self.nvidia, self.container = board, nvidia, container
        self.jetson = board["kind"] == "jetson"
        self.old_jetpack = board["jetpack_series"] is not None and board["jetpack_series"] < 7
        driver = nvidia["driver"]
        self.before_cuda13 = self.old_jetpack if driver is None else int(driver.partition(".")[0]) < _CUDA13_DRIVER

    def driver(self) -> list[Lack]:
        """Say whether there is a GPU and its driver."""
        there = self.nvidia["gpu"] or self.jetson
        if self.nvidia["driver_library"] and there:
            return []
        if self.container and there:
            flags = "--runtime nvidia" if self.jetson else "--gpus all"
            return [_lack("driver", "the container was started without the GPU's driver", f"docker run {flags} ...")]
        if self.jetson:
            reason = "libcuda.so.1 of Jetson Linux is not installed"
            return [_lack("driver", reason, "sudo apt-get install nvidia-l4t-cuda")]
        if not there:
            inside = ", or it was not given to this container (docker run --gpus all ...)" if self.container else ""
            return [_lack("device", f"no NVIDIA GPU on this machine{inside}")]
        ubuntu = _distribution() == "ubuntu"
        command = "sudo ubuntu-drivers install" if ubuntu else "sudo apt-get install nvidia-driver"
        return [_lack("driver", "no NVIDIA driver", command)]

    def tensorrt(self, engine: str) -> list[Lack]:
        """Say whether TensorRT's bindings and library are there and new enough, and CUDA's bindings."""
        capability, version = self.board["compute_capability"], self.nvidia[engine.replace("-", "_")]
        if engine == "tensorrt-rtx" and capability in _RTX_REFUSED:
            return [_lack("device", f"TensorRT-RTX does not support compute capability {capability}: use tensorrt")]
        found = []
        if not _is_there(*MODULES[engine]):
            found.append(_lack("bindings", *self._install(engine)))
        elif not _is_there(_LIBRARIES[engine]) and not self.nvidia[f"{engine.replace('-', '_')}_library"]:
            reason = f"{_TITLES[engine]}'s Python module is installed, its shared library is not"
            found.append(_lack("library", reason, self._install(engine)[1]))
        elif engine == "tensorrt" and version is not None and _is_too_old(version):
            needed = ".".join(map(str, OLDEST[engine]))
            command = "flash JetPack 6.1 or later" if self.jetson else _pip("install --upgrade tensorrt")
            found.append(_lack("library", f"TensorRT {version} is too old: {needed} or later is needed", command))
        return found + self._cuda_python(engine)

    def _install(self, engine: str) -> tuple[str, str]:
        """Return why the Python module of TensorRT cannot be imported, and the command."""
        if engine == "tensorrt-rtx":
            return "TensorRT-RTX is not installed", _extra("tensorrt-rtx")
        if not self.jetson:
            return "TensorRT is not installed (pip's package fetches it from NVIDIA)", _pip("install tensorrt")
        if self.nvidia["tensorrt_module"] is None:
            reason = "JetPack's Python module of TensorRT is not installed; pip does not have it"
            return reason, "sudo apt-get install python3-libnvinfer"
        hidden = "JetPack's Python module of TensorRT is not visible"
        if sys.prefix != sys.base_prefix:
            return f"{hidden} in this virtual environment", f"{_WITH_SYSTEM} {sys.prefix}"
        running = f"{sys.version_info.major}.{sys.version_info.minor}"
        return f"{hidden} to this Python {running}, only to the system's", f"{_WITH_SYSTEM} fieldrun-gpu"

    def _cuda_python(self, engine: str) -> list[Lack]:
        """Say whether cuda-python is there, for a CUDA that the driver supports: it contains CUDA's runtime."""
        version = installed.version("cuda-bindings", "cuda-python")
        command = _pip("install 'cuda-bindings>=12.8,<13'") if self.before_cuda13 else _extra(engine)
        if version is None:
            return [_lack("cuda-python", "cuda-python is not installed", command)]
        if self.before_cuda13 and int(version.partition(".")[0]) >= 13:
            reason = f"cuda-python {version} needs a driver for CUDA 13, and this one is older"
            return [_lack("cuda-python", reason, command)]
        return []

    def cuda_provider(self) -> list[Lack]:
        """Say whether the installed ONNX Runtime has the CUDA provider, and CUDA's own libraries are there."""
        package = f"'onnxruntime-gpu[cuda,cudnn]{_LAST_ORT_OF_CUDA12 if self.before_cuda13 else ''}'"
        spec = util.find_spec("onnxruntime")
        folders = getattr(spec, "submodule_search_locations", None) or ()
        if any((Path(folder) / "capi/libonnxruntime_providers_cuda.so").is_file() for folder in folders):
            if self.nvidia["cublas_library"]:
                return []
            command = "sudo apt-get install nvidia-jetpack" if self.jetson else _pip(f"install {package}")
            return [_lack("library", "CUDA's own libraries (cuBLAS) are not installed", command)]
        reason = "onnxruntime is not installed" if spec is None else "this onnxruntime has no CUDA provider"
        before = "" if spec is None else _pip("uninstall --yes onnxruntime") + " && "
        if self.old_jetpack:
            reason += "; pip's package for ARM is for CUDA 13, so use NVIDIA's wheel for this JetPack"
            package = "./onnxruntime_gpu-*.whl"
        return [_lack("package", reason, before + _pip(f"install {package}"))]


def _is_too_old(version: str) -> bool:
    numbers = re.match(r"(\d+)\.(\d+)", version)
    return numbers is not None and (int(numbers[1]), int(numbers[2])) < OLDEST["tensorrt"]


def _is_there(*modules: str) -> bool:
    return any(util.find_spec(name) is not None for name in modules)


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
    """Return `{name, ready, packages, command}` for each extra; `packages` maps each package to its version or None."""
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
        found.append({"name": name, "ready": ready, "packages": packages, "command": None if ready else _extra(name)})
    return found
