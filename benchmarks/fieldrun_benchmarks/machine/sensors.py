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
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, TypeAlias, TypeVar

__all__ = ["THROTTLE_FLAGS", "Reading", "Sensors", "Unavailable", "parse_tegrastats", "process_memory"]

Value = TypeVar("Value")
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


class Unavailable(Exception):
    """The reason why there is no value."""

    def to_dict(self) -> dict[str, str]:
        """Return the JSON object that replaces the value."""
        return {"unavailable": str(self)}


Reading: TypeAlias = float | str | Mapping[str, float] | Unavailable


class Sensors:
    """The sensors of the machine under `root`; another root is for tests. A sensor raises `Unavailable`."""

    def __init__(self, root: Path = Path("/"), which: Callable[[str], str | None] = shutil.which) -> None:
        self._root, self._which = root, which

    def read(self) -> dict[str, Reading]:
        """Read every sensor once: its value, or the reason why there is none."""
        found: dict[str, Reading] = {}
        for name in _READ:
            try:
                found[name] = getattr(self, name)()
            except Unavailable as why:
                found[name] = why
        return found

    def clock_mhz(self) -> float:
        """Return the mean clock of the cores now."""
        clocks = [khz / 1000 for khz in self._all(f"{_CPUFREQ}/scaling_cur_freq", self._number)]
        clocks = clocks or [*map(float, self._matches("proc/cpuinfo", r"^cpu MHz\s*: ([\d.]+)$"))]
        none = "the kernel shows no clock: no cpufreq, no 'cpu MHz' in /proc/cpuinfo"
        return sum(clocks) / len(clocks) if clocks else _unavailable(none)

    def governor(self) -> str:
        """Return the cpufreq governors of the cores."""
        names = sorted({text.strip() for text in self._all(f"{_CPUFREQ}/scaling_governor", self._text)})
        return ", ".join(names) or _unavailable("no cpufreq: a virtual machine, or a fixed clock")

    def temperature_c(self) -> float:
        """Return the hottest thermal zone, in degrees Celsius."""
        hottest = max(self._all("sys/class/thermal/thermal_zone*/temp", self._number), default=0.0)
        return hottest / 1000 if hottest > 0 else _unavailable("no thermal zone can be read in /sys/class/thermal")

    def throttled(self) -> float:
        """Return how often processor or container were throttled since the start; what counts is how much it grows."""
        found = self._all("sys/devices/system/cpu/cpu*/thermal_throttle/core_throttle_count", self._number)
        for path in ("sys/fs/cgroup/cpu.stat", "sys/fs/cgroup/cpu/cpu.stat"):
            found += map(float, self._matches(path, r"^nr_throttled (\d+)$")[:1])
        return sum(found) if found else _unavailable("the kernel shows no count of throttling")

    def throttle_flags(self) -> float:
        """Return the flags of the Raspberry Pi's firmware as a number; `THROTTLE_FLAGS` names its bits."""
        path = self._root / "sys/devices/platform/soc/soc:firmware/get_throttled"
        return self._number(path, lambda text: int(text, 16))

    def energy_j(self) -> Mapping[str, float]:
        """Return the energy counter of each processor package, in joules since some start (RAPL)."""
        found = {zone.name: self._number(zone / "energy_uj") / 1e6 for zone in self._packages()}
        return found or _unavailable("no RAPL counter of a package in /sys/class/powercap")

    def energy_range_j(self) -> dict[str, float]:
        """Return where each package's energy counter starts again from 0, for the packages that say so."""
        found = {}
        for zone in self._packages():
            with suppress(Unavailable):
                found[zone.name] = self._number(zone / "max_energy_range_uj") / 1e6
        return found

    def _packages(self) -> list[Path]:
        """Return the RAPL zones of whole packages; `psys`, the platform, contains them, and a package its cores."""
        names = self._all("sys/class/powercap/intel-rapl:*/name", lambda path: (path.parent, self._text(path)))
        return [zone for zone, name in names if name.startswith("package") and (zone / "energy_uj").exists()]

    def power_w(self) -> float:
        """Return the power now, in watts: of the board's input where it is measured, else of the module's rails."""
        why = "no INA3221 or INA238 in /sys/class/hwmon, and no tegrastats"
        rails: dict[str, float] = {}
        for folder, name in self._all("sys/class/hwmon/hwmon*/name", lambda path: (path.parent, self._text(path))):
            try:
                if name.strip() == "ina238":  # the input of a Thor's carrier board; no other Jetson has this chip
                    rails["VIN"] = self._number(folder / "power1_input") / 1e6
                elif name.strip() == "ina3221":
                    rails |= self._ina3221(folder)
            except Unavailable as error:
                why = str(error)
        if rails:
            return _total(rails)
        program = self._which("tegrastats")
        return _tegrastats(program) if program else _unavailable(why)

    def _ina3221(self, folder: Path) -> dict[str, float]:
        watts: dict[str, float] = {}
        for channel in "123":
            with suppress(Unavailable):
                volt, ampere = (self._number(folder / f"{kind}{channel}_input") / 1e3 for kind in ("in", "curr"))
                name = f"{folder.name} {channel}"
                with suppress(Unavailable):
                    name = self._text(folder / f"in{channel}_label").strip()
                watts[name] = volt * ampere
        return watts or _unavailable(f"{folder}: the INA3221 shows no channel")

    def busy(self) -> dict[str, float] | None:
        """Return the seconds that all processors were busy, and that a hypervisor took, since the start."""
        found = self._matches("proc/stat", r"\Acpu((?: +\d+){8})")
        if not found:
            return None
        user, nice, system, _, _, irq, softirq, stolen = (int(n) / os.sysconf("SC_CLK_TCK") for n in found[0].split())
        return {"busy": user + nice + system + irq + softirq, "stolen": stolen}

    def _all(self, pattern: str, read: Callable[[Path], Value]) -> list[Value]:
        """Read every file that the pattern finds; those that cannot be read are left out."""
        found = []
        for path in sorted(self._root.glob(pattern)):
            with suppress(Unavailable):
                found.append(read(path))
        return found

    def _matches(self, path: str, pattern: str) -> list[str]:
        with suppress(Unavailable):
            return re.findall(pattern, self._text(self._root / path), re.MULTILINE)
        return []

    def _text(self, path: Path) -> str:
        try:
            return path.read_text("utf-8", errors="replace")
        except OSError as error:
            why = "only root may read it" if isinstance(error, PermissionError) else error.strerror or error
            raise Unavailable(f"/{path.relative_to(self._root)}: {why}") from error

    def _number(self, path: Path, read: Callable[[str], float] = float) -> float:
        try:
            return float(read(self._text(path)))
        except ValueError as error:
            raise Unavailable(f"/{path.relative_to(self._root)} is not a number") from error


def _unavailable(why: str) -> NoReturn:
    raise Unavailable(why)


def parse_tegrastats(line: str) -> float:
    """Return the watts in one line of tegrastats: of the board's input, or else the sum of the module's rails."""
    rails = {name: int(now) / 1000 for name, now in _TEGRASTATS_POWER.findall(line) or _TEGRASTATS_OLD.findall(line)}
    return _total(rails) if rails else _unavailable("tegrastats shows no power rail")


def _total(rails: dict[str, float]) -> float:
    whole = [rails[name] for name in _WHOLE_BOARD if name in rails]
    return whole[0] if whole else sum(value for name, value in rails.items() if name not in _WITHIN_ANOTHER)


def _tegrastats(program: str) -> float:
    try:
        running = subprocess.Popen([program, "--interval", "100"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    except OSError as error:
        raise Unavailable(f"tegrastats: {error.strerror}") from error
    with running, selectors.DefaultSelector() as ready:
        stdout, line = running.stdout, b""
        if stdout is not None and ready.register(stdout, selectors.EVENT_READ) and ready.select(_TEGRASTATS_S):
            line = os.read(stdout.fileno(), 1 << 16)
        running.kill()
    if not line:
        raise Unavailable(f"tegrastats printed nothing within {_TEGRASTATS_S:g} s")
    return parse_tegrastats(line.decode("utf-8", "replace").partition("\n")[0])


def process_memory(pid: int | str = "self", root: Path = Path("/")) -> dict[str, Any]:
    """Return a process's resident, peak and proportional memory in MiB, each a number or `{"unavailable": why}`.

    Proportional (PSS) divides a page that several processes map among them, such as those of a mapped bundle.
    """
    found: dict[str, Any] = {}
    for name, (file, key) in _MEMORY.items():
        found[name] = {"unavailable": f"/proc/{pid}/{file} has no {key}"}
        try:
            text = (root / "proc" / str(pid) / file).read_text("utf-8")
        except OSError as error:
            found[name] = {"unavailable": f"/proc/{pid}/{file}: {error.strerror or error}"}
            continue
        if match := re.search(rf"^{key}:\s+(\d+) kB$", text, re.MULTILINE):
            found[name] = round(int(match[1]) / 1024, 1)
    return found
