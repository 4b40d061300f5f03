"""Compare the processor time of a head with that of scikit-learn's logistic regression on the same rows.

    python -m studies.fit_heads.speed -o benchmarks/records/fit-speed.json

9,000 made rows of 256 inputs and 64 labels, a number of them labelled wrongly. `fit_fields` searches its penalty and
then fits; scikit-learn fits once, at the penalty that was found, with one BLAS thread, to its own tolerance and to one
that reaches the same minimum. The two take turns.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import click
import numpy as np

from fieldrun.formats.tensors import Array
from fieldrun.heads.blas import one_thread
from fieldrun.heads.fit import fit_fields
from fieldrun_benchmarks.harness.record import write_record

from ..peers.heads import need
from ..suite import output_option, study

__all__ = ["main", "rows"]

_TOLERANCES = (1e-4, 1e-6)  # scikit-learn's own, and the one of the same minimum


def rows(n: int = 9000, inputs: int = 256, classes: int = 64) -> tuple[Array, list[str]]:
    """Return fields `(n, inputs) float32` of uneven variance, and their labels, 8 % of them random."""
    rng = np.random.default_rng(0)
    axes = np.linalg.qr(rng.standard_normal((inputs, inputs)))[0] * np.exp(-np.arange(inputs) / 70)[:, None]
    centres, y = rng.standard_normal((classes, inputs)) * 0.45, rng.integers(0, classes, n)
    x = ((centres[y] + rng.standard_normal((n, inputs))) @ axes / 8).astype(np.float32)
    return x, [f"{label:02d}" for label in np.where(rng.random(n) < 0.08, rng.integers(0, classes, n), y)]


def _seconds(call: Callable[[], object]) -> float:
    began = time.process_time()
    call()
    return time.process_time() - began


@study(__doc__)
@click.option("--repeats", type=click.IntRange(1), default=5, show_default=True, help="The number of turns.")
@output_option
def main(repeats: int, output: Path) -> None:
    """Write the record."""
    x, labels = rows()
    strength = fit_fields(x, labels).about["strength"] * float(x.var(0, dtype=np.float64).mean())
    logistic: Any = need("sklearn.linear_model").LogisticRegression
    calls: dict[str, Callable[[], object]] = {"fieldrun": lambda: fit_fields(x, labels)}
    for tol in _TOLERANCES:
        calls[f"scikit-learn, tol {tol:g}"] = lambda tol=tol: logistic(C=1 / strength, max_iter=5000, tol=tol).fit(  # type: ignore[misc]
            x, labels
        )
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    with one_thread():
        for _ in range(repeats):
            for name, call in calls.items():
                seconds[name].append(_seconds(call))
    values = {
        "rows": len(x),
        "inputs": x.shape[1],
        "labels": len(set(labels)),
        "processor_s": {name: {"median": median(each), "all": each} for name, each in seconds.items()},
        "scikit_learn": need("sklearn").__version__,
    }
    write_record(output, "fit-speed", "python -m studies.fit_heads.speed -o RECORD", values)


if __name__ == "__main__":
    main()
