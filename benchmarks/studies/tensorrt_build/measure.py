"""Build every TensorRT recipe of the shipped student with TensorRT-RTX for three GPUs, on a machine without one.

python -m studies.tensorrt_build.measure -o benchmarks/records/tensorrt-build.json

The study measures the build: engine bytes, seconds, and the precision that every layer was compiled in. Nothing is run.
Every engine is built twice, and both builds must have the same bytes.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import click

import fieldrun
from fieldrun.errors import FieldrunError
from fieldrun.formats.bundle import Bundle
from fieldrun.formats.storage import sha256_file
from fieldrun_benchmarks.harness.record import write_record
from fieldrun_exporters.recipe import load_recipe, recipe_names

from ..suite import output_option, study

__all__ = ["CAPABILITIES", "main", "measure_recipe"]

CAPABILITIES = ("8.6", "8.9", "12.0")
"""Ampere, Ada and Blackwell. TensorRT-RTX builds for these, but not for Orin (8.7) and Thor (11.0)."""


def measure_recipe(checkpoint: str | Path, recipe: str, folder: Path, capabilities: tuple[str, ...]) -> dict[str, Any]:
    """Export `checkpoint` with `recipe` into `folder` and build it for `capabilities`; return the record's entry.

    Raises:
        MissingDependency: TensorRT-RTX is not installed.
        FieldrunError: a graph is refused, a layer is in more bits than the recipe says, or two builds differ.
    """
    bundle = Bundle.load(fieldrun.export(checkpoint, folder / "bundle", recipe=recipe).path)
    engines: dict[str, list[dict[str, Any]]] = {}
    version = ""
    for capability in capabilities:
        reports = [
            fieldrun.build(
                bundle.path, target="tensorrt-rtx", compute_capability=capability, cache=folder / f"cache{turn}"
            )
            for turn in range(2)
        ]
        first, second = reports
        version = first.version
        engines[capability] = []
        for one, other in zip(first.engines, second.engines, strict=True):
            name = Path(one.graph).with_suffix(".engine")
            if sha256_file(first.folder / name) != sha256_file(second.folder / name):
                raise FieldrunError(f"{recipe}, {capability}: two builds of {one.graph} are not the same")
            if one.fallen_back:
                raise FieldrunError(f"{recipe}, {capability}, {one.graph}: {one.fallen_back[0]}")
            engines[capability].append(
                {
                    "graph": one.graph,
                    "bucket": one.bucket,
                    "bytes": one.bytes,
                    "seconds": [round(one.seconds, 2), round(other.seconds, 2)],
                    "layers": one.layers,
                }
            )
    return {
        "bundle_bytes": bundle.total_bytes(),
        "weights_sha256": bundle.manifest.files["weights.safetensors"].sha256,
        "tensorrt_rtx": version,
        "engines": engines,
    }


@study(__doc__)
@output_option
@click.option("--checkpoint", default="reference", show_default=True, help="The student, by name or path.")
def main(output: Path, checkpoint: str) -> None:
    """Write the record `tensorrt-build.json`."""
    recipes = {}
    for name in recipe_names():
        if load_recipe(name).tensorrt is None:
            continue
        click.echo(f"{name} ...", err=True)
        with tempfile.TemporaryDirectory() as folder:
            recipes[name] = measure_recipe(checkpoint, name, Path(folder), CAPABILITIES)
    command = "python -m studies.tensorrt_build.measure -o benchmarks/records/tensorrt-build.json"
    write_record(output, "tensorrt-build", command, {"recipes": recipes})


if __name__ == "__main__":
    main()
