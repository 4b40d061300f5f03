"""Does the order of a codebook's values matter more than the values? An experiment of arXiv 2603.17917, repeated.

    python -m studies.rank_order.measure --data DATA -o benchmarks/records/rank-order.json

Parts of the student are clustered (one codebook a part, as the recipes do). Then only the codebooks are changed, and
every code stays:

- *order kept*: the values become evenly spaced from the least to the greatest, each still the k-th of them;
- *order kept, affine*: the same, then w' = a w + b with the a > 0 and b that bring mean and variance back;
- *neighbours swapped*: every second value changes places with the next one, then a and b as before: the values change
  least of all, and the order with them;
- *order broken*: the values are permuted, then a and b as before.

The effect on the fields and on the accuracy on all report files is measured on the student in NumPy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import numpy as np

from fieldrun.evaluation.dataset import Dataset
from fieldrun.formats.bundle import resolve_bundle
from fieldrun.formats.packing import code_bits, expand
from fieldrun.formats.tensors import Array
from fieldrun.heads.trained import Checkpoint
from fieldrun_benchmarks.harness.record import write_record
from fieldrun_exporters.calibrate import choose_texts, tokenize
from fieldrun_exporters.parity import field_errors
from fieldrun_exporters.precision import Precision
from fieldrun_exporters.student.deployed import Deployed
from fieldrun_exporters.student.drop import accuracy_drop
from fieldrun_exporters.student.passes.fold import fold
from fieldrun_exporters.student.passes.palettize import palettize
from fieldrun_exporters.student.simulate import outputs

from ..suite import data_option, output_option, report_sets, study

__all__ = ["CHANGES", "changed_codebooks", "main"]

_LENGTH = 256  # tokens that a text is cut to
_PARTS: dict[str, dict[str, str]] = {
    "all tables": {"tables": "palette{k}"},
    "the word itself": {"tables": "int8", "offset0": "palette{k}"},
    "n-grams": {"tables": "int8", "ngrams": "palette{k}"},
    "mixer": {"mixer": "palette{k}"},
    "hidden": {"hidden": "palette{k}"},
    "all of them": {"tables": "palette{k}", "mixer": "palette{k}", "hidden": "palette{k}"},
}


def _kept(values: Array) -> Array:
    """Return the codebook with evenly spaced values in the same order."""
    order = np.argsort(np.argsort(values, kind="stable"), kind="stable")
    spaced: Array = values.min() + (values.max() - values.min()) * order / (len(values) - 1)
    return spaced


def _swapped(values: Array) -> Array:
    order = np.argsort(values, kind="stable")
    partner = order.copy()
    even = len(order) // 2 * 2
    partner[0:even:2], partner[1:even:2] = order[1:even:2], order[0:even:2]
    out = values.copy()
    out[order] = values[partner]
    return out


def _broken(values: Array) -> Array:
    return np.random.default_rng(0).permutation(values)


CHANGES: dict[str, tuple[Callable[[Array], Array], bool]] = {
    "order kept": (_kept, False),
    "order kept, affine": (_kept, True),
    "neighbours swapped": (_swapped, True),
    "order broken": (_broken, True),
}
"""How a codebook's values are changed, and whether mean and variance of the weights are brought back."""


def moments_matched(values: Array, wanted: Array, counts: Array) -> Array:
    """Return a v + b, a > 0, with the mean and variance of `wanted`, both weighed by how often an entry is used."""
    share = counts / counts.sum()
    means = [float(share @ v) for v in (values, wanted)]
    spreads = [float(np.sqrt(share @ np.square(v - m))) for v, m in zip((values, wanted), means, strict=True)]
    matched: Array = (values - means[0]) * (spreads[1] / max(spreads[0], 1e-12)) + means[1]
    return matched


def changed_codebooks(deployed: Deployed, change: Callable[[Array], Array], affine: bool) -> tuple[Deployed, float]:
    """Return `deployed` with changed codebooks, and by how much: the change of the values over their own size (RMS)."""
    packed, moved, size = dict(deployed.packed), 0.0, 0.0
    for name, book in deployed.packed.items():
        if ".codebook." not in name:
            continue
        values = book[:, 0].astype(np.float64)
        counts = _uses(deployed.packed[name.replace(".codebook.", ".codes.")], len(book))
        new = change(values)
        if affine:
            new = moments_matched(new, values, counts)
        new = np.clip(np.rint(new), -127, 127)
        moved += float(counts @ np.square(new - values))
        size += float(counts @ np.square(values))
        packed[name] = new.astype(np.int8)[:, None]
    opened = expand(replace(deployed, packed=packed).stored())
    tensors = {name: opened[name] for name in deployed.tensors}
    return replace(deployed, tensors=tensors, packed=packed), float(np.sqrt(moved / max(size, 1e-30)))


def _uses(codes: Array, entries: int) -> Array:
    bits = code_bits(entries)
    counts = np.zeros(entries, np.float64)
    for start in range(0, len(codes), 1 << 13):
        each = np.unpackbits(codes[start : start + (1 << 13)], axis=1, bitorder="little").reshape(-1, bits)
        counts += np.bincount(each @ (1 << np.arange(bits)), minlength=entries)[:entries]
    return counts


def _measured(
    source: Checkpoint, folded: Deployed, form: Deployed, ids: list[list[int]], data: Mapping[str, Dataset]
) -> dict[str, Any]:
    dim = folded.network.field_dim
    errors = field_errors(outputs(folded, ids)[:, :dim], outputs(form, ids)[:, :dim])
    drop = accuracy_drop((source, folded), (source, form), data, _LENGTH)
    return {"field": errors, "mean_drop": drop["mean_drop"], "ci95": drop["ci95"]}


@study(__doc__)
@data_option
@output_option
@click.option("--checkpoint", default="reference", show_default=True, help="The student, by name or path.")
@click.option(
    "--bundle", default="reference", show_default=True, help="A bundle of the student, for the names of its tasks."
)
@click.option(
    "--entries",
    multiple=True,
    type=int,
    default=(16, 32, 64),
    show_default=True,
    help="The values of a codebook.",
)
def main(data: Path, output: Path, checkpoint: str, bundle: str, entries: tuple[int, ...]) -> None:
    """Write the record of the rank experiment."""
    source = Checkpoint.load(checkpoint)
    folded, _ = fold(source)
    sets = report_sets(resolve_bundle(bundle), data)
    ids = tokenize(source, choose_texts(None, 512), _LENGTH)
    results: list[dict[str, Any]] = []
    for number in entries:
        for part, rules in _PARTS.items():
            if part not in ("all tables", "all of them") and number != entries[0]:
                continue
            precision = Precision({name: value.format(k=number) for name, value in rules.items()})
            clustered, _ = palettize(folded, folded, precision)
            forms = {"clustered": (clustered, 0.0)}
            forms |= {name: changed_codebooks(clustered, *how) for name, how in CHANGES.items()}
            for name, (form, moved) in forms.items():
                click.echo(f"K = {number}, {part}, {name}", err=True)
                found = _measured(source, folded, form, ids, sets)
                results.append(
                    {"entries": number, "part": part, "change": name, "values_moved": round(moved, 4)} | found
                )
    values = {"results": results, "data_sha256": {task: rows.sha256 for task, rows in sets.items()}}
    command = "python -m studies.rank_order.measure --data DATA -o benchmarks/records/rank-order.json"
    write_record(output, "rank-order", command, values)


if __name__ == "__main__":
    main()
