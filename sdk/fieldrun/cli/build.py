"""`fieldrun build`: a bundle's TensorRT graphs in, engines for this device out."""

from __future__ import annotations

import shlex

import click

from .options import bundle_argument, cache_option, examples, json_option
from .output import note, progress, put, put_json, put_table

__all__ = ["build"]

_DLA = (
    "a DLA has neither look-ups nor integer arithmetic, and a student is mostly those: every layer would go back to "
    "the GPU; use --device gpu"
)


@click.command(
    short_help="Compile a bundle for this GPU.",
    epilog=examples(
        "fieldrun build bundle --target tensorrt",
        "fieldrun build bundle --target tensorrt-rtx --compute-capability 8.6",
    ),
)
@bundle_argument()
@click.option("--target", type=click.Choice(["tensorrt", "tensorrt-rtx"]), default="tensorrt", show_default=True)
@click.option(
    "--compute-capability",
    metavar="X.Y",
    help="Build for another GPU, with TensorRT-RTX alone, to see that its graphs are taken.  [default: this GPU's]",
)
@cache_option
@click.option("--device", type=click.Choice(["gpu", "dla"]), default="gpu", show_default=True)
@json_option
def build(
    bundle: str, target: str, compute_capability: str | None, cache_root: str | None, device: str, as_json: bool
) -> None:
    """Build an engine for every TensorRT graph of a bundle, on the device that runs them.

    Engines that are valid already are left alone. They are run with --engine tensorrt, or tensorrt-rtx, on this machine
    alone; a bundle has such graphs if its recipe has [tensorrt], as jetson-orin-int8.
    """
    from fieldrun_runtimes.tensorrt.build import build as build_engines
    from fieldrun_runtimes.tensorrt.cache import EngineCache, default_cache

    if device == "dla":
        raise click.UsageError(_DLA)
    with progress() as step:
        report = build_engines(
            bundle, target=target, compute_capability=compute_capability, cache=cache_root, progress=step
        )
    if as_json:
        put_json(report.to_dict())
    else:
        rows: list[tuple[str, ...]] = [("engine", "bucket", "MB", "seconds", "precision")]
        for engine in report.engines:
            seconds = "kept" if engine.reused else f"{engine.seconds:.1f}"
            layers = ", ".join(f"{part} {kind}" for part, kind in engine.layers.items()) or "not listed"
            rows.append((engine.graph, engine.bucket, f"{engine.bytes / 1e6:.1f}", seconds, layers))
        put_table(rows)
        put(f"{report.folder}: {report.target} {report.version}, compute capability {report.compute_capability}")
    for line in dict.fromkeys(line for engine in report.engines for line in engine.fallen_back):
        note(f"{line}: slower than the recipe says, and as right")
    unchecked = dict.fromkeys(part for engine in report.engines for part in engine.unchecked)
    if unchecked:
        note(f"not checked: the builder does not list what it computes {', '.join(unchecked)} in")
    root = EngineCache(cache_root).root.absolute()
    if report.device is None:
        note("there is no GPU here, so nothing here runs these engines; build again on the device")
    elif root != default_cache().absolute():
        note(f"--engine {target} finds these engines only with FIELDRUN_CACHE={shlex.quote(str(root))}")
