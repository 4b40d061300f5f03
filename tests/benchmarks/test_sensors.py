"""Sensors on planted /proc and /sys trees: values in their units, or the reason why there is none."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from fieldrun_benchmarks.harness.warn import warnings_of
from fieldrun_benchmarks.machine import sensors
from fieldrun_benchmarks.machine.sampler import Sampler
from fieldrun_benchmarks.machine.sensors import Sensors, Unavailable, parse_tegrastats, process_memory


def _plant(root: Path, files: dict[str, str]) -> Sensors:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return Sensors(root, which=lambda name: None)


def test_a_bare_machine_says_why(tmp_path: Path) -> None:
    found = _plant(tmp_path, {}).read()
    assert all(isinstance(value, Unavailable) and value.to_dict()["unavailable"] for value in found.values())


def test_a_pc(tmp_path: Path) -> None:
    cpu, rapl = "sys/devices/system/cpu", "sys/class/powercap"
    sensors = _plant(
        tmp_path,
        {
            f"{cpu}/cpu0/cpufreq/scaling_cur_freq": "1800000\n",
            f"{cpu}/cpu1/cpufreq/scaling_cur_freq": "2200000\n",
            f"{cpu}/cpu0/cpufreq/scaling_governor": "powersave\n",
            f"{cpu}/cpu0/thermal_throttle/core_throttle_count": "3\n",
            "sys/fs/cgroup/cpu.stat": "usage_usec 5\nnr_throttled 4\n",
            "sys/class/thermal/thermal_zone0/temp": "41000\n",
            "sys/class/thermal/thermal_zone1/temp": "63500\n",
            f"{rapl}/intel-rapl:0/name": "package-0\n",
            f"{rapl}/intel-rapl:0/energy_uj": "2500000\n",
            f"{rapl}/intel-rapl:0/max_energy_range_uj": "9000000\n",
            f"{rapl}/intel-rapl:0:0/name": "core\n",
            f"{rapl}/intel-rapl:0:0/energy_uj": "900000\n",
            f"{rapl}/intel-rapl:1/name": "psys\n",  # the platform: the package is in it
            f"{rapl}/intel-rapl:1/energy_uj": "7000000\n",
            f"{rapl}/intel-rapl:1/max_energy_range_uj": "9000000\n",
            "proc/stat": "cpu  100 20 30 4000 50 6 7 8 0 0\n",
        },
    )
    found = sensors.read()
    assert found["clock_mhz"] == 2000
    assert found["governor"] == "powersave"
    assert found["temperature_c"] == 63.5
    assert found["throttled"] == 7
    assert found["energy_j"] == {"intel-rapl:0": 2.5}
    assert sensors.energy_range_j() == {"intel-rapl:0": 9}
    ticks = os.sysconf("SC_CLK_TCK")
    assert sensors.busy() == pytest.approx({"busy": 163 / ticks, "stolen": 8 / ticks})


def test_a_counter_that_only_root_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    zone = "sys/class/powercap/intel-rapl:0"
    sensors = _plant(tmp_path, {f"{zone}/energy_uj": "1", f"{zone}/name": "package-0\n"})
    read = Path.read_text

    def refuse(self: Path, *arguments: Any, **more: Any) -> str:
        if self.name == "energy_uj":
            raise PermissionError(13, "Permission denied")
        return read(self, *arguments, **more)

    monkeypatch.setattr(Path, "read_text", refuse)
    with pytest.raises(Unavailable, match="energy_uj: only root may read it"):
        sensors.energy_j()


def _ina3221(number: int, *channels: tuple[str, int, int]) -> dict[str, str]:
    """The files of one chip: label, millivolt and milliampere of each channel."""
    chip = f"sys/class/hwmon/hwmon{number}"
    files = {f"{chip}/name": "ina3221\n"}
    for channel, (label, volt, ampere) in enumerate(channels, start=1):
        files |= {f"{chip}/in{channel}_label": label, f"{chip}/in{channel}_input": str(volt)}
        files |= {f"{chip}/curr{channel}_input": str(ampere)}
    return files


def test_an_orin_nano(tmp_path: Path) -> None:
    # names of chip and files: the Linux kernel's Documentation/hwmon/ina3221.rst; labels: tegrastats of an Orin Nano
    files = _ina3221(1, ("VDD_IN", 5000, 1200), ("VDD_CPU_GPU_CV", 5000, 400), ("VDD_SOC", 5000, 300))
    assert _plant(tmp_path, files).power_w() == 6.0


def test_an_agx_orin_has_no_channel_for_the_whole(tmp_path: Path) -> None:
    # two chips, and none of their rails is the input: github.com/rbonghi/jetson_stats/issues/344
    files = _ina3221(1, ("NC", 0, 0), ("VDDQ_VDD2_1V8AO", 5000, 100), ("NC", 0, 0))
    files |= _ina3221(2, ("VDD_GPU_SOC", 20000, 100), ("VDD_CPU_CV", 20000, 50), ("VIN_SYS_5V0", 5000, 800))
    assert _plant(tmp_path, files).power_w() == 7.0


def test_a_thor(tmp_path: Path) -> None:
    # power1_input in microwatts: the Linux kernel's Documentation/hwmon/ina238.rst; that it is VIN, the input:
    # github.com/rbonghi/jetson_stats/pull/900
    files = _ina3221(1, ("VDD_GPU", 20000, 100), ("VDD_CPU_SOC_MSS", 20000, 300), ("VIN_SYS_5V0", 5000, 1200))
    files |= {"sys/class/hwmon/hwmon2/name": "ina238\n", "sys/class/hwmon/hwmon2/power1_input": "27250000"}
    assert _plant(tmp_path, files).power_w() == 27.25


TEGRASTATS = [  # captured lines as published, each with the watts that it says
    # Jetson Nano: the format without units is that of L4T 32's "AppendixTegraStats"; this line was composed after it
    ("RAM 1903/3964MB CPU [2%@102,off,off,1%@102] POM_5V_IN 2092/2092 POM_5V_GPU 0/0 POM_5V_CPU 203/203", 2.092),
    # AGX Xavier, JetPack 4: github.com/martinkersner/gtop/pull/7
    (
        "RAM 14700/15692MB (lfb 3x2MB) SWAP 898/8192MB (cached 23MB) CPU [0%@1190,0%@1190] EMC_FREQ 0% GR3D_FREQ 0% "
        "AO@30C GPU@30.5C PMIC@100C GPU 463/463 CPU 618/618 SOC 2936/2936 CV 0/0 VDDRQ 309/309 SYS5V 3306/3306",
        7.632,
    ),
    # AGX Orin, JetPack 5: a vehicle computer's manual ("rudi2"); every report of this board has these rails
    (
        "10-16-2023 10:59:22 RAM 1205/30623MB (lfb 6429x4MB) SWAP 0/15311MB (cached 0MB) CPU [0%@729,1%@729] "
        "GR3D_FREQ 0%@114 VIC_FREQ 729 APE 233 CPU@43.5C VDD_GPU_SOC 4788mW/4788mW VDD_CPU_CV 798mW/798mW "
        "VIN_SYS_5V0 3842mW/3842mW NC 0mW/0mW VDDQ_VDD2_1V8AO 707mW/707mW NC 0mW/0mW",
        9.428,
    ),
    # AGX Orin, JetPack 7: a project's test from its board; three values, now, mean and peak
    (
        "07-25-2026 09:08:28 RAM 20642/62817MB (lfb 1x2MB) CPU [23%@2201,10%@2201] EMC_FREQ 3%@3199 "
        "GR3D_FREQ 12%@[1300,1300] APE 174 cpu@52.968C/52.968C VDD_GPU_SOC 5139mW/5139mW/5139mW "
        "VDD_CPU_CV 3268mW/3268mW/3268mW VIN_SYS_5V0 5500mW/5500mW/5500mW",
        13.907,
    ),
    # Orin Nano: a project's test; beszel (github.com/henrygd/beszel/issues/286) has the same rails
    (
        "RAM 2493/7620MB (lfb 1x4MB) SWAP 0/3810MB (cached 0MB) CPU [5%@729,3%@729] GR3D_FREQ 37% cpu@45.5C "
        "VDD_IN 4542mW/4000mW VDD_CPU_GPU_CV 495mW/400mW VDD_SOC 1286mW/1200mW",
        4.542,
    ),
    # AGX Thor, JetPack 7: a project's test; that an idle GPU's rail reads -392 mW there is another's note
    (
        "07-31-2026 14:45:55 RAM 86905/125772MB (lfb 368x4MB) CPU [12%@972,off] cpu@39.812C tj@39.906C "
        "VDD_GPU -392mW/3561mW VDD_CPU_SOC_MSS 7910mW/7910mW VIN_SYS_5V0 7620mW/7620mW VIN 26686mW/26686mW",
        26.686,
    ),
]  # fmt: skip


@pytest.mark.parametrize(("line", "watts"), TEGRASTATS)
def test_tegrastats(line: str, watts: float) -> None:
    assert parse_tegrastats(line) == pytest.approx(watts)


def test_tegrastats_without_rails() -> None:
    with pytest.raises(Unavailable, match="tegrastats shows no power rail"):
        parse_tegrastats("RAM 1/2MB SWAP 0/3MB CPU [2%@729]")


def _program(folder: Path, text: str) -> Sensors:
    path = folder / "tegrastats"
    path.write_text(f"#!/bin/sh\n{text}\n", "utf-8")
    path.chmod(0o755)
    return Sensors(folder, which=lambda name: str(path))


def test_tegrastats_is_asked_for_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    endless = f"echo '{TEGRASTATS[4][0]}'\nexec sleep 3600"
    assert _program(tmp_path, endless).power_w() == pytest.approx(4.542)
    for text, seconds in (("exit 1", 2.0), ("exec sleep 3600", 0.05)):
        monkeypatch.setattr(sensors, "_TEGRASTATS_S", seconds)
        with pytest.raises(Unavailable, match=f"^tegrastats printed nothing within {seconds:g} s$"):
            _program(tmp_path, text).power_w()


PI_FLAGS = "sys/devices/platform/soc/soc:firmware/get_throttled"


@pytest.mark.parametrize(
    ("readings", "flags"),
    [
        (("0", "0", "0"), []),
        (("50005", "50005", "50005"), ["under-voltage", "throttled"]),  # all the time
        (("0", "4", "0"), ["throttled"]),  # for a while
        (("50005", "50000", "50000"), ["under-voltage", "throttled"]),  # until it was measured
        (("50000", "50000", "50000"), []),  # some time before
        (("0", "0", "20000"), ["frequency capped"]),  # between two readings
        (("0", "8", "80000"), ["soft temperature limit"]),
    ],
)
def test_a_raspberry_pi_that_is_throttled(tmp_path: Path, readings: tuple[str, str, str], flags: list[str]) -> None:
    files = {PI_FLAGS: readings[0], "sys/fs/cgroup/cpu.stat": "nr_throttled 4\n"}
    sensors = _plant(tmp_path, files)
    with Sampler(sensors, interval_s=1e6) as sampler:
        _plant(tmp_path, {PI_FLAGS: readings[1]})
        sampler.take()
        _plant(tmp_path, {PI_FLAGS: readings[2], "sys/fs/cgroup/cpu.stat": "nr_throttled 6\n"})
    found = sampler.summary()
    assert found["throttled"] == {"events": 2, "flags": flags}
    found |= {"other_cores": 0.0, "stolen_cores": 0.0}
    said = [entry["text"] for entry in warnings_of({"sensors": found, "subjects": {}, "harness": {}})]
    assert ("throttled 2 times" in said[0], len(said)) == (True, 1 + bool(flags))
    assert not flags or said[1] == f"the board reported {', '.join(flags)} during single stream"


def test_flags_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="is not a number"):
        _plant(tmp_path, {PI_FLAGS: "what"}).throttle_flags()


def test_each_package_starts_again_at_its_own_end(tmp_path: Path) -> None:
    zones = [f"sys/class/powercap/intel-rapl:{i}" for i in range(2)]
    for zone, joules, end in zip(zones, (8, 1), (10, 100), strict=True):
        _plant(
            tmp_path,
            {
                f"{zone}/name": f"package-{zone[-1]}",
                f"{zone}/energy_uj": f"{joules}000000",
                f"{zone}/max_energy_range_uj": f"{end}000000",
            },
        )
    times = iter([0.0, 1.0])
    with Sampler(Sensors(tmp_path), interval_s=1e6, clock=lambda: next(times)) as sampler:
        _plant(tmp_path, {f"{zones[0]}/energy_uj": "1000000", f"{zones[1]}/energy_uj": "21000000"})
    assert sampler.summary()["energy_j"]["joules"] == 3 + 20


def test_a_sampler_adds_up_what_it_saw(tmp_path: Path) -> None:
    counter = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    ticks = os.sysconf("SC_CLK_TCK")
    files = {str(counter.relative_to(tmp_path)): "8000000", "proc/stat": "cpu  0 0 0 0 0 0 0 0 0 0\n"}
    files["sys/class/powercap/intel-rapl:0/max_energy_range_uj"] = "10000000"
    files["sys/class/powercap/intel-rapl:0/name"] = "package-0\n"
    sensors = _plant(tmp_path, files)
    times = iter([0.0, 5.0, 10.0])
    with Sampler(sensors, interval_s=1e6, clock=lambda: next(times)) as sampler:
        counter.write_text("1000000", "utf-8")  # past its end: 2 J, then 1 J
        sampler.take()
        counter.write_text("6000000", "utf-8")
        (tmp_path / "proc/stat").write_text(f"cpu  {30 * ticks} 0 0 0 0 0 0 {ticks} 0 0\n", "utf-8")
    found = sampler.summary(own_cpu_s=10.0)
    assert found["energy_j"] == {"joules": 8.0, "mean_w": 0.8, "of": "processor packages (RAPL)"}
    assert found["other_cores"] == pytest.approx(2.0, abs=0.05)  # less what this process did
    assert found["stolen_cores"] == 0.1
    assert "unavailable" in found["temperature_c"]
    assert found["readings"] == 3


def test_memory_of_a_process(tmp_path: Path) -> None:
    _plant(tmp_path, {"proc/7/status": "VmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n"})
    found = process_memory(7, tmp_path)
    assert (found["resident_mib"], found["peak_mib"]) == (1.0, 2.0)
    assert "smaps_rollup" in found["proportional_mib"]["unavailable"]
    assert process_memory()["resident_mib"] > 1
