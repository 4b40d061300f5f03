"""Tensor mixtures: a dense map as the mean of N local operators, each dense on a part of the modes (arXiv 2605.25344).

    W' ~ 1/N sum_k I_(2^k) (x) T_k (x) I_(2^(N-1-k)),   T_k of shape (outputs / 2^(N-1), inputs / 2^(N-1))

with W (inputs, outputs) and (x) the Kronecker product: N / 4^(N-1) of the parameters (a half for N = 2, a fifth for 3).
The start is least squares, one operator after the other: T_k is the partial trace, over the modes where it is the
identity, of what the others leave. That holds little of a matrix without structure (44 % of its energy for N = 2), so
the pass `recover` belongs after it, which regresses the fields of the student in float32.

The operators are stored as float16 and opened to the dense matrix when a bundle is loaded: it is a student's smallest
part, and one matrix product is faster than N small ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from fieldrun.errors import ExportError, RecipeError
from fieldrun.formats.packing import mixture
from fieldrun.formats.tensors import Array

from ...precision import Precision, branches_of
from ...student.passes import PassReport
from ..deployed import Deployed

__all__ = ["decompose", "mixt"]

_CYCLES = 50


def mixt(deployed: Deployed, precision: Precision) -> tuple[Deployed, PassReport]:
    """Put tensor mixtures in place of the dense layers that `precision` says.

    Raises:
        RecipeError: a layer's sizes cannot be halved that often.
        ExportError: nothing became a mixture, or it is not what its stored form opens to.
    """
    tensors, packed = dict(deployed.tensors), dict(deployed.packed)
    changed: dict[str, Mapping[str, Any]] = {}
    for layer in deployed.dense():
        count, name = branches_of(precision.of(layer)), f"{layer}.weight"
        if not count:
            continue
        matrix = deployed.tensors[name].T
        parts = 2 ** (count - 1)
        if matrix.shape[0] % parts or matrix.shape[1] % parts:
            raise RecipeError(
                f"precision.{layer}: a mixture of {count} divides both sizes of a layer by {parts}, and "
                f"{matrix.shape[1]} x {matrix.shape[0]} cannot be; give it another precision"
            )
        stored = [branch.astype(np.float16) for branch in decompose(matrix, count)]
        opened = mixture(stored)
        error = np.square(opened - matrix).sum(dtype=np.float64) / np.square(matrix).sum(dtype=np.float64)
        tensors[name] = np.ascontiguousarray(opened.T)
        packed |= {f"{name}.mixt.{k}": branch for k, branch in enumerate(stored)}
        packed[f"{name}.width"] = np.array([matrix.shape[1]], np.int32)
        changed[layer] = {
            "weights": int(matrix.size),
            "parameters": sum(branch.size for branch in stored),
            "bytes_before": matrix.nbytes,
            "bytes_after": sum(branch.nbytes for branch in stored),
            "relative_error": float(np.sqrt(error)),
            "energy_kept": float(1 - error),
        }
    result = replace(deployed, tensors=tensors, packed=packed)
    if not changed or result.nbytes() >= deployed.nbytes():
        raise ExportError("mixt: nothing became a mixture; check the recipe's precision")
    return result, PassReport(name="mixt", bytes_before=deployed.nbytes(), bytes_after=result.nbytes(), changed=changed)


def decompose(matrix: Array, count: int) -> list[Array]:
    """Return the `count` operators of the mixture nearest to `matrix (outputs, inputs)`, by cyclic least squares."""
    rows, columns = (size // 2 ** (count - 1) for size in matrix.shape)
    branches = [np.zeros((rows, columns)) for _ in range(count)]
    target = matrix.astype(np.float64)
    for _ in range(_CYCLES):
        largest = 0.0
        for k in range(count):
            others: Sequence[Array] = [b if j != k else np.zeros_like(b) for j, b in enumerate(branches)]
            left = count * (target - mixture(others))
            before, branches[k] = branches[k], _partial_trace(left, k, count)
            largest = max(largest, float(np.abs(branches[k] - before).max()))
        if largest < 1e-6 * float(np.abs(target).max()):
            break
    return branches


def _partial_trace(matrix: Array, k: int, count: int) -> Array:
    """Return the mean over the identity modes of branch `k`: the T for which I (x) T (x) I is nearest to `matrix`."""
    outer, inner = 2**k, 2 ** (count - 1 - k)
    rows, columns = matrix.shape[0] // (outer * inner), matrix.shape[1] // (outer * inner)
    modes = matrix.reshape(outer, rows, inner, outer, columns, inner)
    found: Array = np.einsum("aobaib->oi", modes) / (outer * inner)
    return found
