"""The sensors of a machine: each returns a value, or the reason why there is none.

| Sensor | Read from |
|---|---|
| clock_mhz | cpufreq's `scaling_cur_freq`, else `/proc/cpuinfo` |
| governor | cpufreq |
| temperature_c | the hottest zone of `/sys/class/thermal` |
| throttled | x86 thermal throttle counts, the container's quota |
| throttle_flags | the Raspberry Pi's firmware: what is true now, and what has been since it was switched on |
| energy_j | RAPL's `energy_uj` of each processor package |
| power_w | a Jetson's INA238 or INA3221 (voltage times current) through hwmon, else tegrastats |
| busy_cores, stolen_cores | `/proc/stat` |

No permission is needed: a file that only root may read is "unavailable", with that reason. The only program that is
started is tegrastats, where a Jetson's files have no power; it is stopped after its first line or `_TEGRASTATS_S`.
"""

from __future__ import annotations

import os
import re
import selectors
import shutil
import subprocess
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

__all__ = ["THROTTLE_FLAGS", "Reading", "Sensors", "Unavailable", "parse_tegrastats", "process_memory"]

_READ = ("clock_mhz", "governor", "temperature_c", "throttled", "throttle_flags", "energy_j", "power_w")
_CPUFREQ = "sys/devices/system/cpu/cpu[0-9]*/cpufreq"
_TEGRASTATS_POWER = re.compile(r"\b([A-Z]\w*) (-?\d+)mW")
_TEGRASTATS_OLD = re.compile(r"\b(POM_5V_\w+|SYS5V|VDDRQ|CPU|GPU|SOC|CV) (\d+)/\d+(?=\s|$)")  # JetPack 4 wrote no unit
_WHOLE_BOARD = ("VIN", "VDD_IN", "POM_5V_IN")  # the input of Thor, of Orin Nano and NX, of Nano
_TEGRASTATS_S = 2.0
_WITHIN_ANOTHER = ("NC", "VDDQ_VDD2_1V8AO")  # not connected; fed from VIN_SYS_5V0, which counts it
_MEMORY = {
    "resident_mib": ("status", "VmRSS"),
    "peak_mib": ("status", "VmHWM"),
    "proportional_mib": ("smaps_rollup", "Pss"),
}

THROTTLE_FLAGS = ("under-voltage", "frequency capped", "throttled", "soft temperature limit")
"""Bits 0 to 3 of the Raspberry Pi's `get_throttled`: true now; bits 16 to 19: true once since it was switched on."""


@dataclass(frozen=True, slots=True)
class Unavailable:
    """The reason why there is no value."""

    why: str

    def to_dict(self) -> dict[str, str]:
        """Return the JSON object that replaces the value."""
        return {"unavailable": self.why}


Reading: TypeAlias = float | str | Mapping[str, float] | Unavailable


class Sensors:
    """The sensors of the machine under `root`; another root is for tests."""

    def __init__(self, root: Path = Path("/"), which: Callable[[str], str | None] = shutil.which) -> None:
        self._root, self._which = root, which

    def read(self) -> dict[str, Reading]:
        """Read every sensor once."""
        return {name: getattr(self, name)() for name in _READ}

    def clock_mhz(self) -> Reading:
        """Return the mean clock of the cores now."""
        if khz := self._numbers(f"{_CPUFREQ}/scaling_cur_freq"):
            return sum(khz) / len(khz) / 1000
        clocks = re.findall(r"^cpu MHz\s*: ([\d.]+)$", self._found("proc/cpuinfo"), re.MULTILINE)
        if clocks:
            return sum(map(float, clocks)) / len(clocks)
        return Unavailable("the kernel shows no clock: no cpufreq, no 'cpu MHz' in /proc/cpuinfo")

    def governor(self) -> Reading:
        """Return the cpufreq governors of the cores."""
        found = [self._text(path) for path in self._glob(f"{_CPUFREQ}/scaling_governor")]
        names = sorted({text.strip() for text in found if isinstance(text, str)})
        return ", ".join(names) if names else Unavailable("no cpufreq: a virtual machine, or a fixed clock")

    def temperature_c(self) -> Reading:
        """Return the hottest thermal zone, in degrees Celsius."""
        found = [value / 1000 for value in self._numbers("sys/class/thermal/thermal_zone*/temp") if value > 0]
        return max(found) if found else Unavailable("no thermal zone can be read in /sys/class/thermal")

    def throttled(self) -> Reading:
        """Return how often processor or container were throttled since the start; what counts is how much it grows."""
        found = self._numbers("sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count")
        for path in ("sys/fs/cgroup/cpu.stat", "sys/fs/cgroup/cpu/cpu.stat"):
            found += map(float, re.findall(r"^nr_throttled (\d+)$", self._found(path), re.MULTILINE)[:1])
        return sum(found) if found else Unavailable("the kernel shows no count of throttling")

    def throttle_flags(self) -> Reading:
        """Return the flags of the Raspberry Pi's firmware as a number; `THROTTLE_FLAGS` names its bits."""
        text = self._text(self._root / "sys/devices/platform/soc/soc:firmware/get_throttled")
        try:
            return float(int(text, 16)) if isinstance(text, str) else text
        except ValueError:
            return Unavailable("the firmware's get_throttled is not a number")

    def energy_j(self) -> Reading:
        """Return the energy counter of each processor package, in joules since some start (RAPL)."""
        found: dict[str, float] = {}
        for name, folder in self._packages().items():
            value = self._number(folder / "energy_uj")
            if isinstance(value, Unavailable):
                return value
            found[name] = value / 1e6
        return found or Unavailable("no RAPL counter of a package in /sys/class/powercap")

    def energy_range_j(self) -> dict[str, float]:
        """Return where each package's energy counter starts again from 0, for the packages that say so."""
        found = {name: self._number(folder / "max_energy_range_uj") for name, folder in self._packages().items()}
        return {name: value / 1e6 for name, value in found.items() if isinstance(value, float)}

    def _packages(self) -> dict[str, Path]:
        """Return the RAPL zones of whole packages; `psys`, the platform, contains them, and a package its cores."""
        zones = [path.parent for path in self._glob("sys/class/powercap/intel-rapl:*/energy_uj")]
        names = {zone: self._text(zone / "name") for zone in zones}
        return {zone.name: zone for zone, name in names.items() if isinstance(name, str) and name.startswith("package")}

    def power_w(self) -> Reading:
        """Return the power now, in watts: of the board's input where it is measured, else of the module's rails."""
        why = "no INA3221 or INA238 in /sys/class/hwmon, and no tegrastats"
        rails: dict[str, float] = {}
        for path in self._glob("sys/class/hwmon/hwmon*/name"):
            chip = self._text(path)
            read = {"ina238": self._ina238, "ina3221": self._ina3221}.get(chip.strip() if isinstance(chip, str) else "")
            found = read(path.parent) if read else {}
            if isinstance(found, Unavailable):
                why = found.why
            else:
                rails |= found
        if rails:
            return _total(rails)
        program = self._which("tegrastats")
        return Unavailable(why) if program is None else _tegrastats(program)

    def _ina238(self, folder: Path) -> dict[str, float] | Unavailable:
        """Return the input of a Thor's carrier board; no other Jetson has this chip."""
        value = self._number(folder / "power1_input")
        return {"VIN": value / 1e6} if isinstance(value, float) else value

    def _ina3221(self, folder: Path) -> dict[str, float] | Unavailable:
        watts: dict[str, float] = {}
        for volts in sorted(folder.glob("in[1-3]_input")):
            channel = volts.name[2]
            millivolt, milliampere = self._number(volts), self._number(folder / f"curr{channel}_input")
            label = self._text(folder / f"in{channel}_label")
            if isinstance(millivolt, float) and isinstance(milliampere, float):
                name = label.strip() if isinstance(label, str) else f"{folder.name} {channel}"
                watts[name] = millivolt * milliampere / 1e6
        return watts or Unavailable(f"{folder}: the INA3221 shows no channel")

    def busy(self) -> dict[str, float] | None:
        """Return the seconds that all processors were busy, and that a hypervisor took, since the start."""
        line = self._found("proc/stat").split("\n", 1)[0].split()
        if len(line) < 9 or line[0] != "cpu":
            return None
        user, nice, system, _, _, irq, softirq, stolen = (int(value) / os.sysconf("SC_CLK_TCK") for value in line[1:9])
        return {"busy": user + nice + system + irq + softirq, "stolen": stolen}

    def _glob(self, pattern: str) -> list[Path]:
        return sorted(self._root.glob(pattern))

    def _found(self, path: str) -> str:
        text = self._text(self._root / path)
        return text if isinstance(text, str) else ""

    def _text(self, path: Path) -> str | Unavailable:
        try:
            return path.read_text("utf-8", errors="replace")
        except PermissionError:
            return Unavailable(f"/{path.relative_to(self._root)}: only root may read it")
        except OSError as error:
            return Unavailable(f"/{path.relative_to(self._root)}: {error.strerror or error}")

    def _number(self, path: Path) -> float | Unavailable:
        text = self._text(path)
        try:
            return float(text) if isinstance(text, str) else text
        except ValueError:
            return Unavailable(f"/{path.relative_to(self._root)} is not a number")

    def _numbers(self, pattern: str) -> list[float]:
        return [value for path in self._glob(pattern) if isinstance(value := self._number(path), float)]


def parse_tegrastats(line: str) -> Reading:
    """Return the watts in one line of tegrastats: of the board's input, or else the sum of the module's rails."""
    found = _TEGRASTATS_POWER.findall(line) or _TEGRASTATS_OLD.findall(line)
    rails = {name: int(now) / 1000 for name, now in found}
    return _total(rails) if rails else Unavailable("tegrastats shows no power rail")


def _total(rails: dict[str, float]) -> float:
    whole = [rails[name] for name in _WHOLE_BOARD if name in rails]
    return whole[0] if whole else sum(value for name, value in rails.items() if name not in _WITHIN_ANOTHER)


def _tegrastats(program: str) -> Reading:
    try:
        running = subprocess.Popen([program, "--interval", "100"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError as error:
        return Unavailable(f"tegrastats: {error.strerror}")
    with running, selectors.DefaultSelector() as ready:
        stdout, line = running.stdout, b""
        if stdout is not None and ready.register(stdout, selectors.EVENT_READ) and ready.select(_TEGRASTATS_S):
            line = os.read(stdout.fileno(), 1 << 16)
        running.kill()
    if not line:
        return Unavailable(f"tegrastats printed nothing within {_TEGRASTATS_S:g} s")
    return parse_tegrastats(line.decode("utf-8", "replace").partition("\n")[0])


def process_memory(pid: int | str = "self", root: Path = Path("/")) -> dict[str, Any]:
    """Return a process's resident, peak and proportional memory in MiB, each a number or `{"unavailable": why}`.

    Proportional (PSS) divides a page that several processes map among them, such as those of a mapped bundle.
    """
    found: dict[str, Any] = {}
    for name, (file, key) in _MEMORY.items():
        try:
            text = (root / "proc" / str(pid) / file).read_text("utf-8")
        except OSError as error:
            found[name] = {"unavailable": f"/proc/{pid}/{file}: {error.strerror or error}"}
            continue
        match = re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE)
        missing = {"unavailable": f"/proc/{pid}/{file} has no {key}"}
        found[name] = round(int(match.group(1)) / 1024, 1) if match else missing
    return found
