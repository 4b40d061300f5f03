"""`fieldrun verify`: does a bundle still give, on this machine, what its export measured?"""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fieldrun.errors import ParityError, StorageError

from .options import bundle_argument, engine_options, examples, json_option
from .output import note, put_json, put_table, warn

if TYPE_CHECKING:
    from fieldrun.formats.bundle import Bundle
    from fieldrun_runtimes.verify import VerifyReport

__all__ = ["verify"]


@click.command(
    short_help="Check a bundle's answers on this machine.",
    epilog=examples("fieldrun verify reference --engine numpy", "fieldrun verify reference --record records"),
)
@bundle_argument
@engine_options
@click.option(
    "--record",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Also write the outcome and what this machine is to DIR/verify-BUNDLE-RECIPE-ENGINE.json, with the provider "
    "behind the engine where it has one; an older record of the same name is replaced.",
)
@json_option
@click.pass_context
def verify(
    ctx: click.Context,
    bundle: str,
    engine: str,
    provider: str | None,
    threads: int,
    record: Path | None,
    as_json: bool,
) -> None:
    """Replay the golden texts of a bundle and compare fields and scores with those of the export.

    Ends with exit code 8 when they differ by more than the bundle's tolerance; the record is written all the same.
    """
    import fieldrun

    if record is not None:
        _make_folder(record)
    report = fieldrun.verify(bundle, engine=engine, provider=provider, threads=threads)
    value = report.to_dict()
    if record is not None:
        note(f"wrote {_write(record, report, threads)}")
    if as_json:
        put_json(value)
    else:
        put_table([(key.replace("_", " "), item) for key, item in value.items() if not isinstance(item, dict | list)])
    if not report.passed:
        warn("error: the bundle does not give its golden values on this machine; copy it again or export it here")
        ctx.exit(ParityError.exit_code)


def _make_folder(folder: Path) -> None:
    """Make the folder of the record before the work, so that one that cannot be written costs none."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot make the folder {folder}: {error.strerror}; choose another place") from error


def _write(folder: Path, report: VerifyReport, threads: int) -> Path:
    from fieldrun.doctor import board_facts
    from fieldrun.formats.bundle import Bundle
    from fieldrun_benchmarks.harness.record import conditions, write_record

    bundle = Bundle.load(report.path)
    manifest = bundle.manifest
    value = report.to_dict()
    del value["path"]  # where it lies says nothing to a reader
    value |= {"bundle": manifest.name, "recipe": manifest.recipe.get("name"), "sha256": manifest.to_dict()["sha256"]}
    value |= {"files_sha256": {name: entry.sha256 for name, entry in manifest.files.items()}}
    value |= {"threads": threads, "conditions": conditions() | {"machine": board_facts()}}
    command = f"fieldrun verify {manifest.name} --engine {report.engine}"
    if report.provider is not None:
        command += f" --provider {report.provider}"
    if report.engine in ("tensorrt", "tensorrt-rtx") or report.provider in ("cuda", "cuda-graph"):
        value |= _gpu(bundle, report.engine)
    parts = (manifest.name, manifest.recipe.get("name"), report.engine, report.provider)
    name = "-".join(re.sub(r"[^\w.-]+", "-", str(part)) for part in parts if part is not None)
    path = folder / f"verify-{name}.json"
    write_record(path, "verify", command, value)
    return path


def _gpu(bundle: Bundle, engine: str) -> dict[str, Any]:
    """Return the GPU, and of TensorRT the engines that ran, with their layers' precision."""
    from fieldrun_runtimes.tensorrt.device import require_gpu
    from fieldrun_runtimes.tensorrt.engine import built_engines

    gpu = require_gpu()
    about = {"name": gpu.name, "compute_capability": gpu.compute_capability, "cuda": gpu.cuda}
    return {"gpu": about, "engines": built_engines(bundle, engine) if engine.startswith("tensorrt") else None}
