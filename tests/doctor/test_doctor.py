"""The doctor's parsers on texts captured from real machines, and its report on this one."""

from __future__ import annotations

import json
import platform
import shlex
import subprocess
import sys
from importlib import metadata, util
from pathlib import Path

import pytest

import fieldrun
from fieldrun.doctor import containers, examine, installed, readiness
from fieldrun.doctor.cpu import Cpu, int8_instructions, parse_cpuinfo, parse_meminfo
from fieldrun.doctor.gpu import nvidia
from fieldrun_runtimes.engines import ENGINES, PROVIDERS

# The form and the model: several public reports of this server processor; the flags are cut to those that matter.
X86 = """\
processor\t: 0
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz
flags\t\t: fpu sse2 sse4_1 avx f16c fma avx2 avx512f avx512bw avx512vl avx512_vnni
bogomips\t: 5586.87

processor\t: 1
vendor_id\t: GenuineIntel
model name\t: Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz
flags\t\t: fpu sse2 sse4_1 avx f16c fma avx2 avx512f avx512bw avx512vl avx512_vnni
bogomips\t: 5586.87

"""

# The flags of an Orin: github.com/KavrakiLab/vamp/issues/20 (lscpu); implementer, part, variant and revision:
# github.com/Dr-Noob/cpufetch/issues/275; the other lines as other Jetsons print them, SoC table #63.
ORIN = """\
processor\t: 0
model name\t: ARMv8 Processor rev 1 (v8l)
BogoMIPS\t: 62.50
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp uscat \
ilrcpc flagm paca pacg
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x0
CPU part\t: 0xd42
CPU revision\t: 1

"""

# github.com/hrw/arm-socs-table, the "SoC table", issue 96, of which the first of four cores; no "model name", as
# mainline kernels write it, and a "Hardware" that says BCM2835 on every Raspberry Pi.
PI5 = """\
processor\t: 0
BogoMIPS\t: 108.00
Features\t: fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: 0x4
CPU part\t: 0xd0b
CPU revision\t: 1

Hardware\t: BCM2835
Revision\t: d04170
Serial\t\t: 0000000000000000
Model\t\t: Raspberry Pi 5 Model B Rev 1.0
"""

# SoC table, issue 28: a 32-bit system
PI4_32BIT = """\
processor       : 0
model name      : ARMv7 Processor rev 3 (v7l)
BogoMIPS        : 144.00
Features        : half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae evtstrm crc32
CPU implementer : 0x41
CPU architecture: 7
CPU variant     : 0x0
CPU part        : 0xd08
CPU revision    : 3

"""

# SoC table, issue 6: a Raspberry Pi 3, whose four Cortex-A53 a Zero 2 W has too
PI3 = """\
processor       : 0
model name      : ARMv8 Processor rev 4 (v8l)
BogoMIPS        : 38.40
Features        : fp asimd evtstrm crc32 cpuid
CPU implementer : 0x41
CPU architecture: 8
CPU variant     : 0x0
CPU part        : 0xd03
CPU revision    : 4

Hardware        : BCM2835
Revision        : a02082
Serial          : 0000000000000000
Model           : Raspberry Pi 3 Model B Rev 1.2
"""

# SoC table, issue 1: NXP's LX2160A, of the same Cortex-A72 as a Raspberry Pi 4, which lacks its aes to sha2
A72 = """\
processor       : 0
BogoMIPS        : 50.00
Features        : fp asimd evtstrm aes pmull sha1 sha2 crc32 cpuid
CPU implementer : 0x41
CPU architecture: 8
CPU variant     : 0x0
CPU part        : 0xd08
CPU revision    : 3

"""

# SoC table, issue 18: cores of two kinds, each as its first
RK3588 = """\
processor       : 0
BogoMIPS        : 48.00
Features        : fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer : 0x41
CPU architecture: 8
CPU variant     : 0x2
CPU part        : 0xd05
CPU revision    : 0

processor       : 4
BogoMIPS        : 48.00
Features        : fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop asimddp
CPU implementer : 0x41
CPU architecture: 8
CPU variant     : 0x4
CPU part        : 0xd0b
CPU revision    : 0

"""

# Invented: two kinds of cores, of which only the first has dot products.
BIG_LITTLE = """\
processor\t: 0
Features\t: fp asimd aes asimddp
CPU implementer\t: 0x41
CPU part\t: 0xd0b

processor\t: 1
Features\t: fp asimd aes
CPU implementer\t: 0x41
CPU part\t: 0xd03
"""

MEMINFO = (
    "MemTotal:       24685236 kB\nMemFree:         1000 kB\nMemAvailable:   12000000 kB\nHugePages_Total:       0\n"
)

REQUIRES = [
    "click>=8.1.7",
    "onnxruntime>=1.20; extra == 'ort'",
    'onnx>=1.17; extra == "export"',
    "tomli>=2; (python_version < '3.11') and extra == 'export'",
    "fieldrun[export,ort]; extra == 'dev'",
    "coverage[toml]>=7.10; extra == 'dev'",
]


def test_x86() -> None:
    cpu = parse_cpuinfo(X86)
    assert cpu.model == "Intel(R) Xeon(R) Platinum 8370C CPU @ 2.80GHz"
    assert cpu.processors == 2
    assert cpu.features == ("avx", "f16c", "fma", "avx2", "avx512f", "avx512bw", "avx512vl", "avx512_vnni")


HALF_AND_DOT = ("asimd", "asimddp", "asimdhp", "fphp")


@pytest.mark.parametrize(
    ("text", "model", "processors", "features"),
    [
        (ORIN, "Cortex-A78AE", 1, HALF_AND_DOT),
        (PI5, "Cortex-A76", 1, HALF_AND_DOT),
        (PI4_32BIT, "Cortex-A72", 1, ("neon",)),
        (A72, "Cortex-A72", 1, ("asimd",)),
        (PI3, "Cortex-A53", 1, ("asimd",)),
        (RK3588, "Cortex-A55 + Cortex-A76", 2, HALF_AND_DOT),
    ],
)
def test_arm(text: str, model: str, processors: int, features: tuple[str, ...]) -> None:
    assert parse_cpuinfo(text) == Cpu(model=model, processors=processors, features=features)


def test_int8_instructions() -> None:
    assert int8_instructions(parse_cpuinfo(X86).features) == {
        "vnni": True, "amx": False, "dotprod": False, "i8mm": False
    }  # fmt: skip
    arm = int8_instructions(parse_cpuinfo(ORIN).features)
    assert arm == {"vnni": False, "amx": False, "dotprod": True, "i8mm": False}
    assert int8_instructions(()) is None


def test_features_are_those_of_every_core() -> None:
    cpu = parse_cpuinfo(BIG_LITTLE)
    assert cpu == Cpu(model="Cortex-A76 + Cortex-A53", features=("asimd",), processors=2)


def test_unknown_arm_core_is_named_by_its_numbers() -> None:
    text = "processor\t: 0\nFeatures\t: asimd\nCPU implementer\t: 0x99\nCPU part\t: 0x001\n"
    assert parse_cpuinfo(text).model == "ARM implementer 0x99 part 0x001"


@pytest.mark.parametrize("text", ["", "no colon", "processor : 0\n", "CPU implementer : zz\nprocessor : 0\n"])
def test_unreadable_cpuinfo_is_unknown(text: str) -> None:
    cpu = parse_cpuinfo(text)
    assert (cpu.model, cpu.features) == (None, ())


def test_meminfo() -> None:
    assert parse_meminfo(MEMINFO) == {"total_mib": 24106, "available_mib": 11718}
    assert parse_meminfo("") == {"total_mib": None, "available_mib": None}


def write(root: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text, "utf-8")
    return root


def test_limits_of_cgroup_v2_count_on_every_level(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/memory.max": "1073741824\n"}
    files |= {"sys/fs/cgroup/a/b/memory.max": "max\n", "sys/fs/cgroup/a/b/cpu.max": "150000 100000\n"}
    write(tmp_path, files | {"sys/fs/cgroup/a/cpu.max": "max 100000\n"})
    assert containers.container_memory_mib(tmp_path) == 1024
    assert containers.container_cpus(tmp_path) == 1.5


def test_limits_of_cgroup_v1(tmp_path: Path) -> None:
    files = {"proc/self/cgroup": "4:memory:/docker/1\n3:cpu,cpuacct:/docker/1\n0::/\n"}
    files |= {"sys/fs/cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n"}
    files |= {"sys/fs/cgroup/memory/docker/1/memory.limit_in_bytes": "536870912\n"}
    files |= {"sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n", "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n"}
    files |= {"sys/fs/cgroup/cpu/docker/1/cpu.cfs_quota_us": "50000\n"}
    write(tmp_path, files | {"sys/fs/cgroup/cpu/docker/1/cpu.cfs_period_us": "100000\n"})
    assert containers.container_memory_mib(tmp_path) == 512
    assert containers.container_cpus(tmp_path) == 0.5


def test_no_limit_is_none(tmp_path: Path) -> None:
    assert containers.container_memory_mib(tmp_path) is None
    assert containers.container_cpus(tmp_path) is None
    write(tmp_path, {"proc/self/cgroup": "0::/../escape\nbroken\n"})
    assert containers.container_memory_mib(tmp_path) is None


def test_requirements_of_an_extra() -> None:
    assert readiness.parse_requirements(REQUIRES, "ort") == ["onnxruntime"]
    assert readiness.parse_requirements(REQUIRES, "export") == ["onnx"]
    assert readiness.parse_requirements(REQUIRES, "dev") == ["onnx", "onnxruntime", "coverage"]
    assert readiness.parse_requirements(REQUIRES, "absent") == []


PIP = f"{shlex.quote(sys.executable)} -m pip"
HOST = {"kind": None, "compute_capability": None, "jetpack_series": None}


def test_missing_engine_names_its_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(util, "find_spec", lambda _: None)
    monkeypatch.setattr(installed, "version", lambda *names: "2.0" if "numpy" in names else None)
    native, ort, numpy, *gpu = readiness.engines(HOST, nvidia({}, tmp_path), None)
    assert (native["name"], native["ready"], native["version"]) == ("native", False, None)
    assert "install gcc" in native["missing"][0]["command"]
    assert (numpy["name"], numpy["ready"], numpy["version"], numpy["missing"]) == ("numpy", True, "2.0", [])
    assert (ort["name"], ort["ready"], ort["version"]) == ("onnxruntime", False, None)
    assert ort["missing"] == [
        {"part": "package", "reason": "onnxruntime is not installed", "command": f"{PIP} install 'fieldrun[ort]'"}
    ]
    assert [engine["name"] for engine in gpu] == ["onnxruntime --provider cuda", "tensorrt", "tensorrt-rtx"]
    assert [[lack["part"] for lack in engine["missing"]] for engine in gpu] == [
        ["device", "package"],
        ["device", "bindings", "cuda-python"],
        ["device", "bindings", "cuda-python"],
    ]
    for engine in gpu:
        assert engine["missing"][0] == {
            "part": "device",
            "reason": "no NVIDIA GPU on this machine",
            "command": None,
        }


@pytest.mark.parametrize(
    ("origin", "source"),
    [
        ('{"dir_info": {}, "url": "file://FOLDER/the%20checkout"}', "'FOLDER/the checkout'"),
        ('{"dir_info": {"editable": true}, "url": "file://FOLDER/the%20checkout"}', "--editable 'FOLDER/the checkout'"),
        ('{"dir_info": {}, "url": "file://FOLDER/gone"}', "CHECKOUT-OF-FIELDRUN"),
        ('{"archive_info": {}, "url": "file://FOLDER/the%20checkout"}', "CHECKOUT-OF-FIELDRUN"),
        ('{"vcs_info": {}, "url": "https://example.org/fieldrun"}', "CHECKOUT-OF-FIELDRUN"),
        *((text, "CHECKOUT-OF-FIELDRUN") for text in ("", "{", "[]", "{}", '{"url": 3}', '{"url": "file://["}')),
        (None, "CHECKOUT-OF-FIELDRUN"),
    ],
)
def test_the_native_engine_is_compiled_from_where_fieldrun_came_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, origin: str | None, source: str
) -> None:
    write(tmp_path, {"the checkout/pyproject.toml": "", "fieldrun-1.0.dist-info/METADATA": "Name: fieldrun\n"})
    if origin is not None:
        write(tmp_path, {"fieldrun-1.0.dist-info/direct_url.json": origin.replace("FOLDER", str(tmp_path))})
    monkeypatch.setattr(
        metadata, "distribution", lambda _: metadata.PathDistribution(tmp_path / "fieldrun-1.0.dist-info")
    )
    monkeypatch.setattr(util, "find_spec", lambda _: None)
    native, *_ = readiness.engines(HOST, nvidia({}, tmp_path), None)
    expected = f"{PIP} install --force-reinstall --no-deps {source}".replace("FOLDER", str(tmp_path))
    assert native["missing"][0]["command"] == f"sudo apt-get install gcc libc6-dev && {expected}"


def test_a_command_of_pip_is_for_this_python(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a folder with a space, not activated: the shell must still run the environment's own pip."""
    python = tmp_path / "my venv" / "python"
    python.parent.mkdir()
    python.write_text('#!/bin/sh\nfor word; do echo "$word"; done\n')
    python.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(python))
    monkeypatch.setattr(util, "find_spec", lambda _: None)
    _, ort, *_ = readiness.engines(HOST, nvidia({}, tmp_path), None)
    ended = subprocess.run(["sh", "-c", ort["missing"][0]["command"]], capture_output=True, text=True, check=True)
    assert ended.stdout.splitlines() == ["-m", "pip", "install", "fieldrun[ort]"]


def test_every_engine_that_load_takes_is_listed() -> None:
    known = {(engine["engine"], engine["provider"]) for engine in examine()["engines"]}
    # "null" is a meter of overheads; a CUDA graph needs nothing that "cuda" does not; "cpu" is the default
    assert {engine for engine, _ in known} == set(ENGINES) - {"null"}
    assert {provider for _, provider in known} - {None} == set(PROVIDERS) - {"cpu", "cuda-graph"}


def test_extras_from_the_metadata(monkeypatch: pytest.MonkeyPatch) -> None:
    versions = {"onnx": "1.19", "onnxruntime-gpu": "1.23"}

    class About:
        def get_all(self, name: str) -> list[str]:
            return ["dev", "export", "ort"] if name == "Provides-Extra" else []

    monkeypatch.setattr(metadata, "metadata", lambda _: About())
    monkeypatch.setattr(metadata, "requires", lambda _: REQUIRES)
    monkeypatch.setattr(installed, "version", lambda *names: next(filter(None, map(versions.get, names)), None))
    monkeypatch.setattr(util, "find_spec", lambda _: object())
    dev, export, ort = readiness.extras()
    assert dev == {
        "name": "dev",
        "ready": False,
        "packages": {"onnx": "1.19", "onnxruntime": "1.23", "coverage": None},
        "command": f"{PIP} install 'fieldrun[dev]'",
    }
    assert export == {"name": "export", "ready": True, "packages": {"onnx": "1.19"}, "command": None}
    assert ort["packages"] == {"onnxruntime": "1.23"}  # the GPU wheel serves as well


def test_no_extras_when_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> None:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "metadata", missing)
    assert readiness.extras() == []


def test_this_machine() -> None:
    facts = examine()
    assert json.loads(json.dumps(facts)) == facts
    assert facts["python"] == platform.python_version()
    assert 1 <= facts["cpu"]["allowed"] <= facts["cpu"]["processors"]
    assert len(facts["cpu"]["allowed_cpus"]) == facts["cpu"]["allowed"]
    assert facts["packages"]["numpy"]


def test_what_a_record_keeps_names_no_folder_of_this_machine() -> None:
    whole, kept = json.dumps(examine()), json.dumps(examine(commands=False))
    assert sys.prefix in whole, "the commands name the interpreter"
    assert sys.prefix not in kept
    assert {engine["engine"] for engine in json.loads(kept)["engines"]} >= {"native", "numpy"}


def test_the_bundle_is_tried(toy_bundle: Path, tmp_path: Path) -> None:
    report = fieldrun.doctor(toy_bundle)
    assert report.bundle["ready"] is True
    assert report.bundle["engine"] in ENGINES
    missing = fieldrun.doctor(tmp_path / "nowhere")
    assert (missing.bundle["ready"], missing.bundle["engine"]) == (False, None)
    assert "nowhere" in missing.bundle["reason"]
    assert missing.to_dict().keys() == examine().keys() | {"bundle"}
