"""The driver, the GPU and JetPack of this machine, read without any CUDA package.

TensorRT's objects are created only after the driver has answered here: a Runtime that is created without a driver
crashes the process when it ends.
"""

from __future__ import annotations

import contextlib
import ctypes
import re
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from fieldrun.errors import EngineError
from fieldrun.formats.storage import sha256_bytes

__all__ = ["Gpu", "find_gpu", "jetpack", "machine_id", "parse_nv_tegra_release", "require_gpu"]

_DRIVER = "libcuda.so.1"
_CAPABILITY_MAJOR, _CAPABILITY_MINOR = 75, 76  # CUdevice_attribute
_IDENTITY = ("etc/machine-id", "proc/device-tree/serial-number")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gpu:
    """The first GPU that the driver lists: its name, compute capability ("8.7"), UUID and the driver's CUDA version."""

    name: str
    compute_capability: str
    uuid: str
    cuda: str


def require_gpu() -> Gpu:
    """Return the first GPU; `EngineError` says why none was found."""
    found = find_gpu()
    if isinstance(found, str):
        raise EngineError(f"{found}; use engine='auto' to run on the CPU")
    return found


@cache
def find_gpu() -> Gpu | str:
    """Return the first GPU, or why none was found: no driver library, a driver that does not start, no device."""
    try:
        driver: Any = ctypes.CDLL(_DRIVER)
    except OSError:
        return f"no NVIDIA driver on this machine: {_DRIVER} cannot be loaded"
    code = driver.cuInit(0)
    if code != 0:
        return f"the NVIDIA driver does not start (cuInit gives error {code})"
    count, device, version = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    if driver.cuDeviceGetCount(ctypes.byref(count)) != 0 or count.value < 1:
        return "the NVIDIA driver shows no GPU"
    name, uuid = ctypes.create_string_buffer(256), ctypes.create_string_buffer(16)
    major, minor = ctypes.c_int(), ctypes.c_int()
    calls = (
        driver.cuDeviceGet(ctypes.byref(device), 0),
        driver.cuDeviceGetName(name, len(name), device),
        driver.cuDeviceGetAttribute(ctypes.byref(major), _CAPABILITY_MAJOR, device),
        driver.cuDeviceGetAttribute(ctypes.byref(minor), _CAPABILITY_MINOR, device),
        driver.cuDeviceGetUuid(uuid, device),
        driver.cuDriverGetVersion(ctypes.byref(version)),
    )
    if any(calls):
        return f"the NVIDIA driver does not describe its GPU (error {next(c for c in calls if c)})"
    return Gpu(
        name=name.value.decode("utf-8", "replace"),
        compute_capability=f"{major.value}.{minor.value}",
        uuid=uuid.raw.hex(),
        cuda=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )


def parse_nv_tegra_release(text: str) -> str | None:
    """Return the version of Jetson Linux (L4T), such as "36.4.3", from the text of `/etc/nv_tegra_release`."""
    found = re.search(r"\bR(\d+) \(release\), REVISION: (\d+(?:\.\d+)*)", text)
    return f"{found[1]}.{found[2]}" if found else None


def jetpack(root: Path = Path("/")) -> str | None:
    """Return the L4T release that JetPack installed, such as "36.4.0"; None on other machines."""
    return parse_nv_tegra_release(_read(root / "etc/nv_tegra_release"))


def machine_id(gpu: Gpu | None, root: Path = Path("/")) -> str:
    """Return 16 hexadecimal digits that identify this machine: a hash of its identity and its GPU's."""
    parts = ["fieldrun engines", gpu.uuid if gpu is not None else ""]
    parts += [_read(root / name).strip("\0 \n") for name in _IDENTITY]
    return sha256_bytes("\n".join(parts).encode("utf-8"))[:16]


def _read(path: Path) -> str:
    with contextlib.suppress(OSError):
        return path.read_text("utf-8", "replace")
    return ""
