"""What emulation needs, fetched into a cache folder: Debian packages, Python wheels and a cross compiler.

No file of this machine outside the cache folder changes: apt gets lists and archives of its own there, packages are
unpacked and never installed, and no foreign architecture is added. So it needs no root.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from fieldrun.errors import FieldrunError

__all__ = ["call", "compile_native", "emulator", "guest_python", "guest_root", "guest_site", "made"]

GUEST_PACKAGES = ("python3-minimal", "libpython3-stdlib", "libstdc++6")
WHEELS = ("click", "numpy", "onnxruntime", "tokenizers")
PLATFORMS = tuple(f"manylinux{tag}_aarch64" for tag in ("_2_28", "_2_27", "_2_17", "2014"))
COMPILER, EMULATOR = "aarch64-linux-gnu-gcc", "qemu-aarch64-static"


def call(command: Sequence[str | Path], *, needs: str, **environment: str) -> str:
    """Run `command` and return its standard output; a failure is one line that says what it `needs`."""
    words = [str(word) for word in command]
    try:
        ended = subprocess.run(
            words,
            env={**os.environ, **environment},
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
            check=False,
        )
    except OSError as error:
        raise FieldrunError(f"cannot run {words[0]}: {error.strerror}; {needs}") from error
    if ended.returncode:
        said = (ended.stderr or ended.stdout).strip().splitlines() or ["it said nothing"]
        raise FieldrunError(f"{words[0]} ended with exit code {ended.returncode}: {said[-1]}; {needs}")
    return ended.stdout


def made(folder: Path, key: str, make: Callable[[Path], None]) -> Path:
    """Return `folder`, made by `make` unless it is there whole and for the same `key`.

    It is made beside its place and renamed, so that a run which was cut off starts this step again and no other.
    """
    stamp = folder / ".made"
    if stamp.is_file() and stamp.read_text("utf-8") == key:
        return folder
    partial = folder.with_name(folder.name + ".partial")
    for old in (partial, folder):
        shutil.rmtree(old, ignore_errors=True)
    partial.mkdir(parents=True)
    make(partial)
    (partial / ".made").write_text(key, "utf-8")
    partial.rename(folder)
    return folder


def guest_root(cache: Path) -> Path:
    """Return the folder with ARM's Python, C library and C++ library, as Debian packages them."""
    return made(cache / "root", f"arm64 {GUEST_PACKAGES}", lambda to: _unpack(cache, "arm64", GUEST_PACKAGES, to))


def guest_python(root: Path) -> Path:
    """Return the interpreter in `root`, by its versioned name."""
    return next(path for path in sorted((root / "usr/bin").glob("python3.*")) if path.name.count(".") == 1)


def guest_site(cache: Path, python: Path, constraints: Path) -> Path:
    """Return the folder with the unpacked ARM wheels of what the runtime imports, of the versions in `constraints`."""
    version = python.name.removeprefix("python")
    downloads = cache / "wheels"

    def unpack(to: Path) -> None:
        platforms = [word for tag in PLATFORMS for word in ("--platform", tag)]
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
        command += ["--python-version", version, "--implementation", "cp", *platforms, "--dest", str(downloads)]
        shutil.rmtree(downloads, ignore_errors=True)
        call([*command, "--constraint", constraints, *WHEELS], needs="it needs pip and a package index")
        for wheel in sorted(downloads.glob("*.whl")):
            shutil.unpack_archive(wheel, to, "zip")

    return made(cache / "site", f"{version} {WHEELS} {constraints.read_text('utf-8')}", unpack)


def emulator(cache: Path) -> Path:
    """Return the user-mode emulator: this machine's, else Debian's in the cache."""
    found = shutil.which(EMULATOR)
    if found:
        return Path(found)
    folder = cache / "emulator"
    made(folder, EMULATOR, lambda to: _unpack(cache, "", ("qemu-user-static",), to, f"./usr/bin/{EMULATOR}"))
    return folder / "usr/bin" / EMULATOR


def compile_native(cache: Path, source: Path, flags: Sequence[str], library: Path) -> str:
    """Cross-compile `source` to `library` and return the compiler's name and version."""
    needs = "it needs Debian's gcc-aarch64-linux-gnu and libc6-dev-arm64-cross"
    words, environment = [str(shutil.which(COMPILER))], {}
    if words == ["None"]:
        packages = ("gcc-aarch64-linux-gnu", "libc6-dev-arm64-cross")
        tools = made(cache / "compiler", str(packages), lambda to: _unpack(cache, "", packages, to))
        words = [str(tools / "usr/bin" / COMPILER), f"--sysroot={tools}"]
        environment = {"LD_LIBRARY_PATH": str(tools / "usr/lib/x86_64-linux-gnu")}
    call([*words, *flags, "-o", library, source, "-lm"], needs=needs, **environment)
    return call([words[0], "--version"], needs=needs, **environment).splitlines()[0]


def _unpack(cache: Path, architecture: str, packages: Sequence[str], to: Path, *members: str) -> None:
    """Download `packages` with what they depend on, and unpack them (or only `members`) into the folder `to`.

    `architecture` "" is this machine's: what it has installed is then not fetched again.
    """
    needs = "this needs a Debian machine with apt and its package archive; or run it where qemu and gcc are installed"
    state, archives = cache / f"apt-{architecture or 'host'}", cache / f"packages-{packages[0]}"
    for folder in (state / "lists/partial", archives / "archives/partial"):
        folder.mkdir(parents=True, exist_ok=True)
    status = Path("/var/lib/dpkg/status")
    options = ["-qq", "-o", f"Dir::State={state}", "-o", f"Dir::Cache={archives}", "-o", "APT::Sandbox::User="]
    if architecture:
        status = state / "status"
        status.touch()
        options += ["-o", f"APT::Architecture={architecture}", "-o", f"APT::Architectures::={architecture}"]
    options += ["-o", f"Dir::State::status={status}"]
    call(["apt-get", *options, "update"], needs=needs)
    install = ["--yes", "--no-install-recommends", "--download-only", "install", *packages]
    call(["apt-get", *options, *install], needs=needs, DEBIAN_FRONTEND="noninteractive")
    for package in sorted((archives / "archives").glob("*.deb")):
        if members:
            archive = to / "data.tar"
            with archive.open("wb") as file:
                subprocess.run(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=file, check=True)
            call(["tar", "-x", "-C", to, "-f", archive, *members], needs=needs)
            archive.unlink()
        else:
            call(["dpkg-deb", "--extract", package, to], needs=needs)
