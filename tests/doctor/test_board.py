"""What the doctor says of boards: its parsers on the public formats, and engines on boards that are not here.

Each sample has beside it where it was published. "jetson_stats #N" is github.com/rbonghi/jetson_stats/issues/N, whose
reports hold the raw files; "SoC table #N" is github.com/hrw/arm-socs-table/issues/N; "kernel" is the Linux kernel's
source. A device tree's strings end with a zero byte each, which a terminal does not show.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from importlib import metadata, util
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fieldrun.doctor import boards, containers, readiness
from fieldrun.doctor.boards import board, jetpack_series, parse_device_tree, parse_nvpmodel
from fieldrun.doctor.gpu import has_library, nvidia, parse_cuda_version, parse_driver_version
from fieldrun.doctor.installed import parse_dpkg_status
from fieldrun_runtimes.tensorrt.device import parse_nv_tegra_release
from tests.doctor.test_doctor import HOST, PIP, write

DEVKIT = "Engineering Reference Developer Kit"
TREES: dict[str, tuple[str, str, dict[str, str | None]]] = {
    # a course's page with the files of an Orin Nano Super; github.com/NVIDIA/jetson-gpio/pull/119 has the same strings
    "Orin Nano developer kit, JetPack 6.2": (
        f"NVIDIA Jetson Orin Nano {DEVKIT} Super\0",
        "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
        {"kind": "jetson", "part": "p3767-0005", "module": "Jetson Orin Nano 8GB developer kit", "soc": "tegra234"},
    ),
    # jetson_stats #400: the module's own part stands first among two
    "Orin Nano 8GB, JetPack 5": (
        "NVIDIA Orin Nano Developer Kit\0",
        "nvidia,p3768-0000+p3767-0003\0nvidia,p3768-0000+p3767-0005\0nvidia,p3767-0003\0nvidia,p3767-0005\0"
        "nvidia,tegra234\0nvidia,tegra23x\0",
        {"kind": "jetson", "part": "p3767-0003", "module": "Jetson Orin Nano 8GB", "soc": "tegra234"},
    ),
    # model: jetson_stats #603, of a p3767-0001; the strings as kernel tegra234-p3768-0000+p3767-0000.dts has them
    "Orin NX 16GB, JetPack 6": (
        f"NVIDIA Jetson Orin NX {DEVKIT}\0",
        "nvidia,p3768-0000+p3767-0000\0nvidia,p3767-0000\0nvidia,tegra234\0",
        {"kind": "jetson", "part": "p3767-0000", "module": "Jetson Orin NX 16GB", "compute_capability": "8.7"},
    ),
    # a report on a Seeed reComputer J401 with these strings, an Orin Nano 8GB by its TNSPEC and its memory
    "Orin Nano 8GB on another maker's carrier, whose model text names an Orin NX": (
        f"NVIDIA Jetson Orin NX {DEVKIT} Super\0",
        "nvidia,p3768-0000+p3767-0003-super\0nvidia,p3767-0003\0nvidia,tegra234\0",
        {"kind": "jetson", "part": "p3767-0003", "module": "Jetson Orin Nano 8GB"},
    ),
    # strings: github.com/tier4/ota-client, boot_control; model: no raw file of JetPack 5 found, this is JetPack 6's
    "AGX Orin, JetPack 5": (
        "NVIDIA Jetson AGX Orin Developer Kit\0",
        "nvidia,p3737-0000+p3701-0000\0nvidia,tegra234\0nvidia,tegra23x\0",
        {"kind": "jetson", "part": "p3701-0000", "module": "Jetson AGX Orin developer kit", "soc": "tegra234"},
    ),
    # model: jetson_stats #476; several projects' tests and notes have the strings, with Jetson Linux 36.5
    "AGX Orin 64GB, JetPack 6": (
        "NVIDIA Jetson AGX Orin Developer Kit\0",
        "nvidia,p3737-0000+p3701-0005\0nvidia,p3701-0005\0nvidia,tegra234\0",
        {"kind": "jetson", "part": "p3701-0005", "module": "Jetson AGX Orin 64GB", "compute_capability": "8.7"},
    ),
    # jetson_stats #711
    "AGX Thor, JetPack 7": (
        "NVIDIA Jetson AGX Thor Developer Kit\0",
        "nvidia,p4071-0000+p3834-0008\0nvidia,p3834-0008\0nvidia,tegra264\0",
        {"kind": "jetson", "part": "p3834-0008", "module": "Jetson T5000 (Thor)", "compute_capability": "11.0"},
    ),
    # invented
    "a module that is newer than this list": (
        "NVIDIA Jetson Something\0",
        "nvidia,p9999-0001+p8888-0002\0nvidia,p8888-0002\0nvidia,tegra999\0",
        {"kind": "jetson", "part": "p8888-0002", "module": None, "soc": "tegra999", "compute_capability": None},
    ),
    # model: SoC table #96; strings: kernel bindings/arm/bcm/bcm2835.yaml, for all Raspberry Pis
    "Raspberry Pi 5": (
        "Raspberry Pi 5 Model B Rev 1.0\0",
        "raspberrypi,5-model-b\0brcm,bcm2712\0",
        {"kind": "raspberry-pi", "module": "Raspberry Pi 5 Model B", "soc": "bcm2712", "part": None},
    ),
    # model: SoC table #28
    "Raspberry Pi 4": (
        "Raspberry Pi 4 Model B Rev 1.4\0",
        "raspberrypi,4-model-b\0brcm,bcm2711\0",
        {"kind": "raspberry-pi", "module": "Raspberry Pi 4 Model B", "soc": "bcm2711"},
    ),
    # model and strings: a project's emulated boards
    "Raspberry Pi Zero 2 W": (
        "Raspberry Pi Zero 2 W Rev 1.0\0",
        "raspberrypi,model-zero-2-w\0brcm,bcm2837\0",
        {"kind": "raspberry-pi", "module": "Raspberry Pi Zero 2 W", "soc": "bcm2837"},
    ),
    # strings: kernel rk3588-rock-5b.dts; model: SoC table #18, "Radxa Rock 5B"
    "another board": ("Radxa ROCK 5B\0", "radxa,rock-5b\0rockchip,rk3588\0", {"kind": None, "model": "Radxa ROCK 5B"}),
}

OOT = "# KERNEL_VARIANT: oot\nTARGET_USERSPACE_LIB_DIR=nvidia\n"
OOT += "TARGET_USERSPACE_LIB_DIR_PATH=usr/lib/aarch64-linux-gnu/nvidia\n"
_R35 = "BOARD: t186ref, EABI: aarch64"
_R36 = "BOARD: generic, EABI: aarch64"
RELEASES = [  # the first line of /etc/nv_tegra_release without its "# ", what follows it, Jetson Linux, JetPack
    # no whole file of Jetson Linux 32 found; the form is that of 35
    (f"R32 (release), REVISION: 7.1, GCID: 29689809, {_R35}", "", "32.7.1", 4),
    # jetson_stats #400
    (f"R35 (release), REVISION: 3.1, GCID: 32827747, {_R35}, DATE: Sun Mar 19 15:19:21 UTC 2023", "", "35.3.1", 5),
    # github.com/Triton-AI/Camera_fusion2025
    (f"R35 (release), REVISION: 4.1, GCID: 33958178, {_R35}, DATE: Tue Aug  1 19:57:35 UTC 2023", "", "35.4.1", 5),
    # two projects' notes from Orins: 36.4.3 and 36.4.7
    (f"R36 (release), REVISION: 4.3, GCID: 38968081, {_R36}, DATE: Wed Jan  8 01:49:37 UTC 2025", OOT, "36.4.3", 6),
    (f"R36 (release), REVISION: 4.7, GCID: 42132812, {_R36}, DATE: Thu Sep 18 22:54:44 UTC 2025", OOT, "36.4.7", 6),
    # jetson_stats #711
    (f"R38 (release), REVISION: 2.0, GCID: 41844464, {_R36}, DATE: Fri Aug 22 00:55:42 UTC 2025", OOT, "38.2.0", 7),
    # jetson_stats #864; a maker's tutorial for JetPack 7.2.1
    (f"R39 (release), REVISION: 2.0, GCID: 45755727, {_R36}, DATE: Mon Jun  1 09:28:48 PM UTC 2026", OOT, "39.2.0", 7),
    (f"R39 (release), REVISION: 2.1, GCID: 46758480, {_R36}, DATE: Fri Aug 7 05:54:22 AM UTC 2026", OOT, "39.2.1", 7),
]  # fmt: skip

POWER_MODES = [
    ("NV Power Mode: MAXN\n0\n", {"name": "MAXN", "id": 0}),  # a Thor: github.com/anduril/jetpack-nixos/pull/460
    ("NV Power Mode: MAXN_SUPER\n2\n", {"name": "MAXN_SUPER", "id": 2}),  # an Orin Nano, of the page above
    ("NV Power Mode: 25W\n1\n", {"name": "25W", "id": 1}),  # after the form above
    ("NV Power Mode: 120W\n1\n", {"name": "120W", "id": 1}),  # after the form above; Thor's modes are MAXN and 120W
    ("NV Fan Mode:quiet\nNV Power Mode: MODE_15W\n2\n", {"name": "MODE_15W", "id": 2}),  # JetPack 4 and 5
    # github.com/NVIDIA-AI-IOT/jetbot/issues/49: without root, an answer and an error
    (
        "NV Power Mode: 5W\n1\nNVPM ERROR: Error opening /sys/kernel/nvpmodel_emc_cap/emc_iso_cap: 13\n"
        "NVPM ERROR: failed to read PARAM EMC: ARG MAX_FREQ: PATH /sys/kernel/nvpmodel_emc_cap/emc_iso_cap\n",
        {"name": "5W", "id": 1},
    ),
    # a device's report in a repository: a Xavier NX
    (
        "NV Fan Mode:quiet\nNV Power Mode: MODE_15W_DESKTOP\n7\n"
        "NVPM ERROR: Error opening /sys/kernel/nvpmodel_emc_cap/emc_iso_cap: 13\n",
        {"name": "MODE_15W_DESKTOP", "id": 7},
    ),
    # `nvpmodel -q --verbose` of a Xavier NX, in a blog's repository
    (
        "NV Fan Mode:quiet\nNVPM VERB: Current mode: NV Power Mode: MODE_15W_6CORE\n2\n"
        "NVPM VERB: PARAM CPU_ONLINE: ARG CORE_0: PATH /sys/devices/system/cpu/cpu0/online: REAL_VAL: 1 CONF_VAL: 1\n",
        {"name": "MODE_15W_6CORE", "id": 2},
    ),
    # github.com/open-rdc/orne-box/issues/16: as it was pasted, without its number
    ("NV Fan Mode:quiet\nNV Power Mode: MAXN\n", {"name": "MAXN", "id": None}),
    ("NV Power Mode:\n", None),  # invented, and so are the next
    ("NVPM ERROR: failed to open /etc/nvpmodel.conf\n", None),
    ("", None),
]

# The form is Debian's (deb-control(5)); versions: jetson_stats #603 (CUDA 12.6.68, TensorRT 10.3.0.30) and a report
# with "libnvinfer10 10.3.0.30-1+cuda12.5"; nvidia-jetpack's and nvidia-l4t-core's are of JetPack 6.2.1.
DPKG = """\
Package: nvidia-jetpack
Status: install ok installed
Architecture: arm64
Source: nvidia-jetpack (6.2.1)
Version: 6.2.1+b38

Package: nvidia-l4t-core
Status: install ok installed
Version: 36.4.4-20250616085344
Description: NVIDIA Core Package
 Package: this line belongs to the description

Package: libnvinfer10
Status: install ok installed
Version: 10.3.0.30-1+cuda12.5

Package: cuda-cudart-12-6
Status: install ok installed
Version: 12.6.68-1

Package: cuda-cudart-12-2
Status: install ok installed
Version: 12.2.140-1

Package: removed
Status: deinstall ok config-files
Version: 1.0
"""


@pytest.mark.parametrize("name", TREES)
def test_device_trees(name: str) -> None:
    model, compatible, expected = TREES[name]
    found = parse_device_tree(model, compatible)
    assert found["model"] == model.strip("\0")
    assert {key: found[key] for key in expected} == expected


def test_no_device_tree_is_no_board() -> None:
    for texts in ((None, None), ("\0", "")):
        assert set(parse_device_tree(*texts).values()) == {None}


@given(st.text(), st.text())
def test_any_text_is_read(model: str, compatible: str) -> None:
    assert parse_device_tree(model, compatible)["kind"] in {None, "jetson", "raspberry-pi"}
    parse_nv_tegra_release(model)
    parse_nvpmodel(model)
    parse_dpkg_status(model)
    parse_driver_version(model)
    parse_cuda_version(model)


@pytest.mark.parametrize(("line", "rest", "l4t", "series"), RELEASES)
def test_tegra_releases(line: str, rest: str, l4t: str, series: int) -> None:
    assert parse_nv_tegra_release(f"# {line}\n{rest}") == l4t
    assert jetpack_series(l4t) == series


def test_unknown_releases_are_unknown() -> None:
    assert parse_nv_tegra_release("# nothing\n") is None
    assert jetpack_series(None) is None
    assert jetpack_series("77.1.0") is None


@pytest.mark.parametrize(("text", "mode"), POWER_MODES)
def test_power_modes(text: str, mode: dict[str, Any] | None) -> None:
    assert parse_nvpmodel(text) == mode


@pytest.mark.parametrize("failure", [OSError(), subprocess.TimeoutExpired("nvpmodel", 3)])
def test_a_power_mode_that_cannot_be_asked_is_unknown(monkeypatch: pytest.MonkeyPatch, failure: Exception) -> None:
    def fail(*_: object, **__: object) -> None:
        raise failure

    monkeypatch.setattr(shutil, "which", lambda *_, **__: "/usr/sbin/nvpmodel")
    monkeypatch.setattr(subprocess, "run", fail)
    assert boards._power_mode() is None


def test_only_installed_packages_count() -> None:
    packages = parse_dpkg_status(DPKG)
    assert packages["nvidia-l4t-core"] == "36.4.4-20250616085344"
    assert packages["libnvinfer10"] == "10.3.0.30-1+cuda12.5"
    assert "removed" not in packages
    assert parse_dpkg_status("") == {}


@pytest.mark.parametrize(
    ("text", "version"),
    [
        # reports of hosts, as several projects' issues and tests have them
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  570.195.03  Release Build  "
            "(dvs-builder@U22-I3-H04-03-1)  Sat Sep 20 00:47:16 UTC 2025\nGCC version:  gcc version 12.3.0\n",
            "570.195.03",
        ),
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  580.142  Release Build  "
            "(dvs-builder@U22-I3-AD05-51-5)  Tue Mar  3 19:14:46 UTC 2026\n",
            "580.142",
        ),
        ("NVRM version: NVIDIA UNIX x86_64 Kernel Module  535.216.03  Thu Apr  3 01:14:19 UTC 2025\n", "535.216.03"),
        # an Orin Nano with JetPack 6.2, of the page above
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  540.4.0  Release Build  "
            "(buildbrain@mobile-u64-6336-d8000)  Tue Jan  7 17:35:12 PST 2025\n"
            "GCC version:  collect2: error: ld returned 1 exit status\n",
            "540.4.0",
        ),
        # github.com/nix-community/nixGL/issues/139: an Orin NX with JetPack 5 gives Jetson Linux's version
        (
            "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  35.3.1  Release Build  "
            "(buildbrain@mobile-u64-6289-d7000)  Sun Mar 19 08:09:33 PDT 2023\n",
            "35.3.1",
        ),
        ("NVRM version: NVIDIA UNIX Open Kernel Module for x86_64 malformed\n", None),
        ("", None),
    ],
)  # fmt: skip
def test_driver_versions(text: str, version: str | None) -> None:
    assert parse_driver_version(text) == version


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ('{"cuda": {"name": "CUDA SDK", "version": "12.6.11"}, "cuda_cccl": {"version": "12.6.37"}}', "12.6.11"),
        ("CUDA Version 10.2.300\n", "10.2.300"),
        ('{"cuda": 5}', None),
        ("[1]", None),
        ("", None),
    ],
)
def test_cuda_versions(text: str, version: str | None) -> None:
    assert parse_cuda_version(text) == version


def test_a_jetson_as_its_files_describe_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "_power_mode", lambda: {"name": "25W", "id": 1})
    model, compatible, _ = TREES["Orin Nano developer kit, JetPack 6.2"]
    files = {"proc/device-tree/model": model, "proc/device-tree/compatible": compatible, "dev/nvhost-gpu": ""}
    files |= {"usr/lib/aarch64-linux-gnu/nvidia/libcuda.so.1": ""}
    packages = parse_dpkg_status(DPKG)
    write(tmp_path, files)
    known = board(packages, tmp_path)  # no /etc/nv_tegra_release: the package says the release
    assert (known["l4t"], known["jetpack"], known["jetpack_series"]) == ("36.4.4", "6.2.1+b38", 6)
    assert known["power_mode"] == {"name": "25W", "id": 1}
    gpu = nvidia(packages, tmp_path)
    assert (gpu["gpu"], gpu["driver_library"], gpu["cuda"], gpu["tensorrt"]) == (True, True, "12.6", "10.3.0.30")


def test_a_jetson_image_without_the_device_tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards, "_power_mode", lambda: None)
    known = board({}, write(tmp_path, {"etc/nv_tegra_release": f"# {RELEASES[3][0]}\n"}))
    assert (known["kind"], known["l4t"], known["module"], known["power_mode"]) == ("jetson", "36.4.3", None, None)


def test_a_machine_without_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", _absent)
    assert set(board({}, tmp_path).values()) == {None}
    found = nvidia({}, tmp_path)
    there = {name: found.pop(name) for name in list(found) if name == "gpu" or name.endswith("_library")}
    assert (len(there), set(there.values())) == (5, {False})
    assert set(found.values()) == {None}


def _absent(name: str) -> str:
    raise metadata.PackageNotFoundError(name)


def test_a_discrete_gpu_without_its_driver(tmp_path: Path) -> None:
    pci = "sys/bus/pci/devices/0000:01:00.0/"
    write(tmp_path, {pci + "vendor": "0x10de\n", pci + "class": "0x030200\n"})
    assert nvidia({}, tmp_path)["gpu"] is True
    write(tmp_path, {pci + "class": "0x040300\n"})  # its sound device is no GPU
    assert nvidia({}, tmp_path)["gpu"] is False


@pytest.mark.parametrize(
    ("files", "environment", "kind"),
    [
        ({}, {}, None),
        ({"proc/self/cgroup": "0::/user.slice/session-1.scope\n"}, {}, None),
        ({".dockerenv": ""}, {}, "docker"),
        ({"run/.containerenv": 'engine="podman-5"\n'}, {}, "podman"),
        ({".dockerenv": ""}, {"KUBERNETES_SERVICE_HOST": "10.0.0.1"}, "kubernetes"),
        ({"proc/1/environ": "TERM=linux\0container=lxc\0"}, {}, "lxc"),
        ({"proc/self/cgroup": "12:pids:/kubepods/besteffort/pod1\n0::/\n"}, {}, "kubernetes"),
        ({"proc/self/cgroup": "4:memory:/docker/1f\n"}, {}, "docker"),
    ],
)
def test_containers(tmp_path: Path, files: dict[str, str], environment: dict[str, str], kind: str | None) -> None:
    assert containers.container(write(tmp_path, files), environment) == kind


JETSON = {"kind": "jetson", "compute_capability": "8.7", "jetpack_series": 6}
THOR = {"kind": "jetson", "compute_capability": "11.0", "jetpack_series": 7}
READY = {
    "gpu": True,
    "driver_library": True,
    "driver": None,
    "tensorrt": "10.3.0.30",
    "tensorrt_library": True,
    "tensorrt_module": "10.3.0.30-1+cuda12.5",
    "tensorrt_rtx": None,
    "tensorrt_rtx_library": False,
    "cublas_library": True,
}
BARE = {**READY, "tensorrt": None, "tensorrt_library": False, "tensorrt_module": None, "cublas_library": False}
NO_DRIVER = {**BARE, "driver_library": False}
CUDA = "onnxruntime --provider cuda"


def lacks(
    name: str, board: dict[str, Any], gpu: dict[str, Any], container: str | None = None
) -> dict[str, tuple[str, str | None]]:
    """What the engine `name` lacks: part -> (reason, command)."""
    (engine,) = (engine for engine in readiness.engines(board, gpu, container) if engine["name"] == name)
    assert engine["ready"] is not bool(engine["missing"])
    return {lack["part"]: (lack["reason"], lack["command"]) for lack in engine["missing"]}


def have(monkeypatch: pytest.MonkeyPatch, *modules: str, **versions: str) -> None:
    """Let only these modules be found, and only these distributions be installed."""
    monkeypatch.setattr(util, "find_spec", lambda name: object() if name in modules else None)
    known = {name.replace("_", "-"): version for name, version in versions.items()}
    monkeypatch.setattr(metadata, "version", lambda name: known[name] if name in known else _absent(name))


@pytest.mark.parametrize(
    ("board", "gpu", "container", "part", "reason", "command"),
    [
        (JETSON, NO_DRIVER, None, "driver", "libcuda", "apt-get install nvidia-l4t-cuda"),
        (JETSON, NO_DRIVER, "docker", "driver", "started without the GPU", "docker run --runtime nvidia"),
        (HOST, NO_DRIVER, "docker", "driver", "started without the GPU", "docker run --gpus all"),
        (JETSON, BARE, None, "bindings", "pip does not have it", "sudo apt-get install python3-libnvinfer"),
        (JETSON, READY, None, "bindings", "not visible", "/usr/bin/python3 -m venv --system-site-packages"),
        (HOST, BARE, None, "bindings", "TensorRT is not installed", "pip install tensorrt"),
        (JETSON, READY, None, "cuda-python", "not installed", "pip install 'cuda-bindings>=12.8,<13'"),
        (THOR, READY, None, "cuda-python", "not installed", "pip install 'fieldrun[tensorrt]'"),
        (HOST, {**READY, "driver": "570.86.10"}, None, "cuda-python", "not installed", "cuda-bindings>=12.8,<13"),
        (HOST, {**READY, "driver": "580.95.05"}, None, "cuda-python", "not installed", "'fieldrun[tensorrt]'"),
    ],
)
def test_what_tensorrt_lacks(
    monkeypatch: pytest.MonkeyPatch,
    board: dict[str, Any],
    gpu: dict[str, Any],
    container: str | None,
    part: str,
    reason: str,
    command: str,
) -> None:
    have(monkeypatch)
    found = lacks("tensorrt", board, gpu, container)[part]
    assert reason in found[0]
    assert command in str(found[1])


def test_a_machine_without_gpu_lists_all_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch)
    bare = {**NO_DRIVER, "gpu": False}
    assert list(lacks("tensorrt", HOST, bare)) == ["device", "bindings", "cuda-python"]
    assert list(lacks("tensorrt-rtx", HOST, bare)) == ["device", "bindings", "cuda-python"]
    assert list(lacks(CUDA, HOST, bare)) == ["device", "package"]
    assert "--gpus all" in lacks(CUDA, HOST, bare, "docker")["device"][0]


@pytest.mark.parametrize(("system", "command"), [("ubuntu", "ubuntu-drivers"), ("debian", "nvidia-driver")])
def test_the_driver_is_the_distribution_s(monkeypatch: pytest.MonkeyPatch, system: str, command: str) -> None:
    monkeypatch.setattr(readiness, "_distribution", lambda: system)
    assert command in str(lacks("tensorrt", HOST, NO_DRIVER)["driver"][1])


def test_tensorrt_is_ready_with_its_module_and_cuda_python(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, "tensorrt", cuda_bindings="12.9.4")
    engines = {engine["name"]: engine for engine in readiness.engines(JETSON, READY, None)}
    assert (engines["tensorrt"]["ready"], engines["tensorrt"]["version"]) == (True, "10.3.0.30")


def test_cuda_python_of_a_newer_cuda_than_the_driver_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, "tensorrt", cuda_bindings="13.4.4")
    reason, command = lacks("tensorrt", JETSON, READY)["cuda-python"]
    assert "13.4.4 needs a driver for CUDA 13" in reason
    assert command == f"{PIP} install 'cuda-bindings>=12.8,<13'"
    assert lacks("tensorrt", THOR, READY) == {}


def test_an_old_tensorrt_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, "tensorrt", cuda_bindings="12.9.4")
    old = {**READY, "tensorrt": "8.6.2.3"}  # JetPack 6.0
    assert lacks("tensorrt", JETSON, old)["library"] == (
        "TensorRT 8.6.2.3 is too old: 10.3 or later is needed",
        "flash JetPack 6.1 or later",
    )
    assert "pip install" in str(lacks("tensorrt", HOST, old)["library"][1])


def test_bindings_without_their_library_are_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    have(monkeypatch, "tensorrt", "tensorrt_rtx_bindings", cuda_bindings="13.4.4")
    bare = {**READY, "tensorrt_library": False}
    assert "its shared library is not" in lacks("tensorrt", HOST, bare)["library"][0]
    assert "fieldrun[tensorrt-rtx]" in str(lacks("tensorrt-rtx", HOST, bare)["library"][1])
    have(monkeypatch, "tensorrt_rtx_bindings", "tensorrt_rtx_libs", cuda_bindings="13.4.4")
    assert lacks("tensorrt-rtx", HOST, bare) == {}


def test_tensorrt_rtx_is_refused_on_jetson() -> None:
    ((reason, command),) = lacks("tensorrt-rtx", JETSON, READY).values()
    assert "8.7" in reason
    assert command is None


def test_the_cuda_provider_is_a_file_of_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Spec:
        origin = None
        submodule_search_locations = (str(tmp_path),)

    monkeypatch.setattr(util, "find_spec", lambda name: Spec() if name == "onnxruntime" else None)
    reason, command = lacks(CUDA, JETSON, READY)["package"]
    assert "no CUDA provider" in reason
    assert "NVIDIA's wheel for this JetPack" in reason
    assert str(command).startswith(f"{PIP} uninstall --yes onnxruntime && {PIP} install ")
    assert str(lacks(CUDA, THOR, READY)["package"][1]).endswith("pip install 'onnxruntime-gpu[cuda,cudnn]'")
    old = {**READY, "driver": "535.216.03"}
    assert str(lacks(CUDA, HOST, old)["package"][1]).endswith("pip install 'onnxruntime-gpu[cuda,cudnn]<1.27'")
    write(tmp_path, {"capi/libonnxruntime_providers_cuda.so": ""})
    assert lacks(CUDA, JETSON, READY) == {}
    assert "nvidia-jetpack" in str(lacks(CUDA, JETSON, {**READY, "cublas_library": False})["library"][1])
    assert "[cuda,cudnn]" in str(lacks(CUDA, HOST, {**READY, "cublas_library": False})["library"][1])


def test_libraries_are_files_where_the_loader_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(metadata, "version", _absent)
    files = {"usr/lib/aarch64-linux-gnu/libnvinfer.so.10": "", "usr/local/cuda/lib64/libcublasLt.so.12": ""}
    found = nvidia({"python3-libnvinfer": "10.3.0.30-1+cuda12.5"}, write(tmp_path, files))
    assert (found["tensorrt_library"], found["cublas_library"], found["tensorrt_rtx_library"]) == (True, True, False)
    assert found["tensorrt_module"] == "10.3.0.30-1+cuda12.5"


def test_a_library_path_that_cannot_be_looked_into_is_passed_over(tmp_path: Path) -> None:
    closed, there = tmp_path / "closed", write(tmp_path / "there", {"libcuda.so.1": ""})
    closed.mkdir(mode=0)
    user = os.geteuid()
    tmp_path.chmod(0o755)
    if user == 0:  # whom no mode stops
        os.seteuid(65534)
    try:
        for folder in ("x" * 300, "a\0b", str(closed), str(closed / "inside")):
            assert not has_library("libcuda.so.1", tmp_path, {"LD_LIBRARY_PATH": folder})
    finally:
        os.seteuid(user)
        closed.chmod(0o700)
    path = ":".join(("x" * 300, "", str(there)))
    assert has_library("libcuda.so.1", tmp_path, {"LD_LIBRARY_PATH": path})
