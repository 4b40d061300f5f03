"""Replay bundles on emulated ARM processors with every engine that runs there.

Two by default: the shipped bundle as it is, and the shipped checkpoint exported here with the recipe raspberry-pi, as
its user would.

    make test-arm
    python -m tests.arm -o benchmarks/records/arm-emulation.json    # writes the record as well

qemu's user-mode emulation runs ARM's Python with the ARM wheels of NumPy, ONNX Runtime and tokenizers, on this
checkout's unmodified runtime; the native engine is `native.c`, cross-compiled with the flags of the installation. What
it tells is numerics. It says nothing of a board's speed, memory or power, and the record holds no time.
"""

from __future__ import annotations

import json
import platform
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import click

import fieldrun
from fieldrun.errors import FieldrunError
from fieldrun_benchmarks.harness.record import write_record
from hatch_build import FLAGS, SOURCE

from .packages import call, compile_native, emulator, guest_python, guest_root, guest_site

ENGINES = ("native", "numpy", "onnxruntime")
RECIPES = ("raspberry-pi",)
LARGEST = 1e-5
BLOCK = """\
processor\t: 0
BogoMIPS\t: {bogomips}
Features\t: {features}
CPU implementer\t: 0x41
CPU architecture: 8
CPU variant\t: {variant}
CPU part\t: {part}
CPU revision\t: {revision}

"""
# Where its own file is missing, qemu shows the x86 machine's, on which ONNX Runtime's ARM wheel crashes at its import.
PROCESSORS: dict[str, dict[str, str]] = {
    "cortex-a76": {
        "boards": "Raspberry Pi 5; dot products and half floats, as Jetson Orin's Cortex-A78AE",
        "features": "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop "
        "asimddp",
        "bogomips": "108.00",
        "variant": "0x4",
        "part": "0xd0b",
        "revision": "1",
    },
    "cortex-a72": {
        "boards": "Raspberry Pi 4; no dot products",
        "features": "fp asimd evtstrm crc32 cpuid",
        "bogomips": "108.00",
        "variant": "0x0",
        "part": "0xd08",
        "revision": "3",
    },
}
ROOT = Path(__file__).resolve().parents[2]


@click.command()
@click.argument("bundle", default="reference")
@click.option("--cache", type=click.Path(path_type=Path), default=ROOT / "build/arm", help="Folder of what is fetched.")
@click.option("--cpu", "cpus", multiple=True, type=click.Choice(list(PROCESSORS)), default=list(PROCESSORS))
@click.option("--engine", "engines", multiple=True, type=click.Choice(ENGINES), default=ENGINES)
@click.option("--recipe", "recipes", multiple=True, default=RECIPES, help="Export the shipped checkpoint with it.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Write the record here.")
def main(
    bundle: str,
    cache: Path,
    cpus: tuple[str, ...],
    engines: tuple[str, ...],
    recipes: tuple[str, ...],
    output: Path | None,
) -> None:
    """Replay golden texts on emulated ARM processors: BUNDLE's, and those of the shipped checkpoint's exports.

    Ends with exit code 8 when an answer differs.
    """
    try:
        if platform.machine() in {"aarch64", "arm64"}:
            raise FieldrunError("this machine is ARM: run `fieldrun verify` on it, there is nothing to emulate")
        with tempfile.TemporaryDirectory() as folder:
            exported = {recipe: _export(recipe, Path(folder) / recipe) for recipe in recipes}
            found = _emulate(bundle, exported, cache.resolve(), cpus, engines)
    except FieldrunError as error:
        click.echo(f"error: {error}", err=True)
        sys.exit(error.exit_code)
    answers = [part for cpu in found["processors"].values() for part in (cpu["engines"], *cpu["recipes"].values())]
    results = [result for engines_of in answers for result in engines_of.values()]
    passed = sum(map(_passed, results))
    if output is not None:
        write_record(output, "arm-emulation", f"python -m tests.arm {bundle} -o {output}", found)
    click.echo(f"{passed} passed, {len(results) - passed} failed")
    sys.exit(0 if passed == len(results) else 8)


def _export(recipe: str, to: Path) -> Path:
    click.echo(f"exporting the shipped checkpoint with {recipe}", err=True)
    return fieldrun.export("reference", to, recipe=recipe).path


def _emulate(
    bundle: str, exported: dict[str, Path], cache: Path, cpus: tuple[str, ...], engines: tuple[str, ...]
) -> dict[str, Any]:
    click.echo(f"preparing {cache}", err=True)
    qemu, root = emulator(cache), guest_root(cache)
    python = guest_python(root)
    site = guest_site(cache, python, ROOT / ".ci/constraints.txt")
    runtimes = cache / "runtimes"
    shutil.rmtree(runtimes, ignore_errors=True)  # this checkout's, with a library of its own: never that of x86
    ignore = shutil.ignore_patterns("native.so.1", "__pycache__")
    shutil.copytree(ROOT / "runtimes/fieldrun_runtimes", runtimes / "fieldrun_runtimes", ignore=ignore)
    compiler = compile_native(cache, ROOT / SOURCE, FLAGS, runtimes / "fieldrun_runtimes/native/native.so.1")
    # All the variables there are: one for this machine's processor, OPENBLAS_CORETYPE, must not reach the other's.
    environment = [f"PYTHONPATH={site}:{ROOT / 'sdk'}:{runtimes}", "PYTHONDONTWRITEBYTECODE=1"]
    environment += [f"{name}_NUM_THREADS=1" for name in ("OMP", "OPENBLAS")]
    processors: dict[str, Any] = {}
    hashes: dict[str, str] = {}
    about: dict[str, Any] = {}

    def replay(cpu: str, name: str, path: str | Path) -> dict[str, Any]:
        answers = {}
        for engine in engines:
            click.echo(f"{cpu}, {name}, {engine}: ", err=True, nl=False)
            command: list[str | Path] = ["env", "-i", *environment, qemu, "-cpu", cpu, "-L", root]
            command += [python, ROOT / "tests/arm/replay.py", path, engine]
            said = call(command, needs=f"the emulated {cpu} could not run {engine}")
            result = json.loads(said.splitlines()[-1])
            hashes[name] = result.pop("sha256")
            about.update({key: result.pop(key) for key in ("machine", "python", "packages")})
            answers[engine] = result
            click.echo(f"field {result['max_abs_field']:.1e} {'same' if _passed(result) else 'DIFFERS'}", err=True)
        return answers

    for cpu in cpus:
        facts = PROCESSORS[cpu]
        (root / "proc").mkdir(exist_ok=True)
        (root / "proc/cpuinfo").write_text(BLOCK.format(**facts), "utf-8")
        processors[cpu] = {
            "boards": facts["boards"],
            "features": facts["features"],
            "engines": replay(cpu, bundle, bundle),
            "recipes": {recipe: replay(cpu, recipe, path) for recipe, path in exported.items()},
        }
    version = call([qemu, "--version"], needs="it needs qemu-user-static").splitlines()[0]
    return {
        "emulated": True,
        "says": "numerics only: no speed, memory or power of a board",
        "emulator": version,
        "native": {"compiler": compiler, "flags": list(FLAGS), "path": "plain C, no ARM intrinsics"},
        "bundle": {"name": bundle, "sha256": hashes.pop(bundle)},
        "recipes": hashes,
        "guest": about,
        "processors": processors,
    }


def _passed(result: dict[str, Any]) -> bool:
    """Whether it is within the bundle's tolerance, which a recipe may set wider, and within `LARGEST` of the golden."""
    close = max(result["max_abs_field"], result["max_abs_scores"]) <= LARGEST
    return bool(result["passed"]) and close and result["labels_equal"] == result["labels"]


if __name__ == "__main__":
    main()
