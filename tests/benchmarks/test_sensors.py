"""Sensors on planted /proc and /sys trees: values in their units, or the reason why there is none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fieldrun_benchmarks.sampler import Sampler
from fieldrun_benchmarks.sensors import Sensors, Unavailable, parse_tegrastats, process_memory


def _plant(root: Path, files: dict[str, str]) -> Sensors:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, "utf-8")
    return Sensors(root, which=lambda name: None)


def test_a_bare_machine_says_why(tmp_path: Path) -> None:
    found = _plant(tmp_path, {}).read()
    assert {name for name, value in found.items() if isinstance(value, Unavailable)} == set(found)
    assert all(isinstance(value, Unavailable) and value.why for value in found.values())


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
            f"{rapl}/intel-rapl:0/energy_uj": "2500000\n",
            f"{rapl}/intel-rapl:0:0/energy_uj": "900000\n",
            f"{rapl}/intel-rapl:0/max_energy_range_uj": "9000000\n",
            "proc/stat": "cpu  100 20 30 4000 50 6 7 8 0 0\n",
        },
    )
    found = sensors.read()
    assert found["clock_mhz"] == 2000
    assert found["governor"] == "powersave"
    assert found["temperature_c"] == 63.5
    assert found["throttled"] == 7
    assert found["energy_j"] == 2.5
    assert sensors.energy_range_j() == 9
    ticks = os.sysconf("SC_CLK_TCK")
    assert sensors.busy() == pytest.approx({"busy": 163 / ticks, "stolen": 8 / ticks})


def test_a_counter_that_only_root_may_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sensors = _plant(tmp_path, {"sys/class/powercap/intel-rapl:0/energy_uj": "1"})

    def refuse(*_: object, **__: object) -> str:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "read_text", refuse)
    found = sensors.energy_j()
    assert isinstance(found, Unavailable)
    assert found.why == "/sys/class/powercap/intel-rapl:0/energy_uj: only root may read it"


def test_a_jetson(tmp_path: Path) -> None:
    chip = "sys/class/hwmon/hwmon1"
    files = {f"{chip}/name": "ina3221\n"}
    for channel, (label, volt, ampere) in enumerate([("VDD_IN", 5000, 1200), ("VDD_CPU", 5000, 400)], start=1):
        files |= {f"{chip}/in{channel}_label": label, f"{chip}/in{channel}_input": str(volt)}
        files |= {f"{chip}/curr{channel}_input": str(ampere)}
    assert _plant(tmp_path / "a", files).power_w() == 6.0
    assert _plant(tmp_path / "b", {f"{chip}/name": "ina238", f"{chip}/power1_input": "7250000"}).power_w() == 7.25
    line = "RAM 2458/7620MB CPU [2%@729] VDD_IN 4988mW/5012mW VDD_CPU_GPU_CV 480mW/500mW"
    assert parse_tegrastats(line) == 4.988
    assert isinstance(parse_tegrastats("RAM 1/2MB"), Unavailable)


def test_a_sampler_adds_up_what_it_saw(tmp_path: Path) -> None:
    counter = tmp_path / "sys/class/powercap/intel-rapl:0/energy_uj"
    ticks = os.sysconf("SC_CLK_TCK")
    files = {str(counter.relative_to(tmp_path)): "8000000", "proc/stat": "cpu  0 0 0 0 0 0 0 0 0 0\n"}
    files["sys/class/powercap/intel-rapl:0/max_energy_range_uj"] = "10000000"
    sensors = _plant(tmp_path, files)
    times = iter([0.0, 5.0, 10.0])
    with Sampler(sensors, interval_s=1e6, clock=lambda: next(times)) as sampler:
        counter.write_text("1000000", "utf-8")  # past its end: 2 J, then 1 J
        sampler.take()
        counter.write_text("6000000", "utf-8")
        (tmp_path / "proc/stat").write_text(f"cpu  {30 * ticks} 0 0 0 0 0 0 {ticks} 0 0\n", "utf-8")
    found = sampler.summary(own_cpu_s=10.0)
    assert found["energy_j"] == {"joules": 8.0, "mean_w": 0.8, "of": "processor packages (RAPL)"}
    assert found["other_cores"] == 2.0
    assert found["stolen_cores"] == 0.1
    assert "unavailable" in found["temperature_c"]
    assert found["readings"] == 3


def test_memory_of_a_process(tmp_path: Path) -> None:
    _plant(tmp_path, {"proc/7/status": "VmHWM:\t  2048 kB\nVmRSS:\t  1024 kB\n"})
    found = process_memory(7, tmp_path)
    assert (found["resident_mib"], found["peak_mib"]) == (1.0, 2.0)
    assert "smaps_rollup" in found["proportional_mib"]["unavailable"]
    assert process_memory()["resident_mib"] > 1
