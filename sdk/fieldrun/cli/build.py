"""`fieldrun build`: a bundle's TensorRT graphs in, engines for this device out."""

from __future__ import annotations

import shlex
from typing import TYPE_CHECKING

import click

from .options import bundle_argument, cache_option, examples, json_option
from .output import note, put, put_json, put_table
from .progress import progress

if TYPE_CHECKING:
    from fieldrun_runtimes.tensorrt.build import BuildReport

__all__ = ["build"]


@click.command(
    short_help="Compile a bundle for this GPU.",
    epilog=examples(
        "fieldrun build my-bundle --target tensorrt",
        "fieldrun build my-bundle --target tensorrt-rtx --compute-capability 8.6",
    ),
)
@bundle_argument
@click.option(
    "--target",
    type=click.Choice(["tensorrt", "tensorrt-rtx"]),
    default="tensorrt",
    show_default=True,
    help="The compiler, and the engine that runs the result.",
)
@click.option(
    "--compute-capability",
    metavar="X.Y",
    help="Build for another GPU, to see that its graphs compile; with TensorRT-RTX only.  [default: this GPU's]",
)
@cache_option
@json_option
def build(bundle: str, target: str, compute_capability: str | None, cache_root: str | None, as_json: bool) -> None:
    """Build an engine for every TensorRT graph of a bundle, on the device that will run them.

    Valid engines are kept. Run them with --engine tensorrt, or tensorrt-rtx, on this machine. A bundle has TensorRT
    graphs if its recipe has a section [tensorrt], such as jetson-orin-int8. After an interruption, the same command
    continues.
    """
    import fieldrun

    with progress() as step:
        report = fieldrun.build(
            bundle, target=target, compute_capability=compute_capability, cache=cache_root, progress=step
        )
    if as_json:
        put_json(report.to_dict())
    else:
        _put(report)
    for line in dict.fromkeys(line for engine in report.engines for line in engine.fallen_back):
        note(f"{line}: slower than the recipe says, and just as accurate")
    unchecked = dict.fromkeys(part for engine in report.engines for part in engine.unchecked)
    if unchecked:
        note(f"not checked: the compiler does not list the precision of {', '.join(unchecked)}")
    root, default = (fieldrun.EngineCache(place).root.absolute() for place in (cache_root, None))
    if report.device is None:
        note("this machine has no GPU, so it cannot run these engines; build again on the device")
    elif root != default:
        note(f"--engine {target} finds these engines only with FIELDRUN_CACHE={shlex.quote(str(root))}")


def _put(report: BuildReport) -> None:
    rows: list[tuple[str, ...]] = [("engine", "bucket", "MB", "seconds", "precision")]
    for engine in report.engines:
        seconds = "kept" if engine.reused else f"{engine.seconds:.1f}"
        layers = ", ".join(f"{part} {kind}" for part, kind in engine.layers.items()) or "not listed"
        rows.append((engine.graph, engine.bucket, f"{engine.bytes / 1e6:.1f}", seconds, layers))
    put_table(rows)
    put(f"{report.folder}: {report.target} {report.version}, compute capability {report.compute_capability}")
