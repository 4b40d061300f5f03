"""How far a changed map is from the original, and how many numbers an encoder's blocks have."""

from __future__ import annotations

import numpy as np

from fieldrun.formats.tensors import Array
from fieldrun_exporters.encoder.activations import Moments
from fieldrun_exporters.encoder.model import MAPS, Encoder

__all__ = ["block_parameters", "map_errors"]


def block_parameters(encoder: Encoder) -> int:
    """Return the numbers in the dense maps of all blocks, weights and biases."""
    return sum(t.size for name, t in encoder.tensors.items() if name.startswith("layer") and name.split(".")[1] in MAPS)


def map_errors(name: str, before: Array, after: Array, moments: Moments | None) -> dict[str, float]:
    """Return how far the weight `after` of the map `name` is from `before`, as relative root mean squares.

    `weight_error` of the numbers, and with `moments` `output_error` of what the map gives on the calibration text.
    `name` is that of the weight, `layer<k>.<map>.weight`; both are `(inputs, outputs)`.
    """
    step, old = np.asarray(before - after, np.float64), before.astype(np.float64)
    size = float(np.square(old).sum())
    errors = {"weight_error": float(np.sqrt(np.square(step).sum() / size)) if size else 0.0}
    if moments is not None:
        layer, own, _ = name.split(".")
        R = moments.second[f"{layer}.{'query' if own in ('key', 'value') else own}"]
        output = float(np.sum(old * (R @ old)))
        errors["output_error"] = float(np.sqrt(max(float(np.sum(step * (R @ step))), 0.0) / output)) if output else 0.0
    return errors
