"""The weights of a look-up student as the engines read them: unpacked, and checked before use."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from fieldrun.errors import BundleError, EngineError
from fieldrun.formats import limits
from fieldrun.formats.bundle import Bundle, GraphNetwork, Network
from fieldrun.formats.packing import expand
from fieldrun.formats.tensors import Array

__all__ = ["check_padding", "check_weights", "lookup_network", "read_weights", "unusable"]

_INTEGERS = (np.int32,)
_FLOATS = (np.float32,)
_WEIGHTS = (np.float32, np.float16, np.int8)


def read_weights(bundle: Bundle, *, packed_table: bool = False) -> dict[str, Array]:
    """Return the tensors of `weights.safetensors`, and unpack what is packed.

    With `packed_table` a packed table stays in its parts, for the native engine, which opens rows as they are needed.

    Raises:
        BundleError: the file does not hold what it says.
    """
    try:
        return expand(bundle.tensors(), but=("table",) if packed_table else ())
    except ValueError as error:
        raise unusable(bundle, error) from error


def lookup_network(bundle: Bundle, engine: str) -> Network:
    """Return the look-up network of `bundle`; `EngineError` when it is a graph, which `engine` does not run."""
    network = bundle.manifest.network
    if isinstance(network, GraphNetwork):
        raise EngineError(
            f"{bundle.path} is an ONNX graph, which the engine {engine!r} does not run; use engine='onnxruntime'"
        )
    return network


def check_weights(bundle: Bundle, net: Network, weights: Mapping[str, Array], table: tuple[int, ...] | None) -> None:
    """Check that `weights`, with a table of the shape `table`, belong to the network `net` of the manifest.

    Checked is all that decides where an engine reads: shapes, types, and row numbers; and that floats are finite. The
    native engine reads no farther than these say, so weights that pass cannot make it leave its arrays, whatever
    numbers the tables hold.

    Raises:
        BundleError: a tensor is missing, or has another shape, type or value than the network needs.
    """
    pooled = (net.mixer_width or net.width) * (2 if net.mean else 1)
    labels, pairs = (
        sum(len(task.labels) for task in bundle.manifest.tasks if task.kind == kind) for kind in ("single", "pair")
    )
    layers = {
        "mixer": (net.mixer_kernel * net.width, net.mixer_width),
        "hidden": (pooled, net.hidden),
        "output": (net.hidden or pooled, net.field_dim + labels),
        "pairs": (4 * net.field_dim, pairs),
    }
    layers = {name: shape for name, shape in layers.items() if min(shape)}
    try:
        if table is None:
            raise KeyError("table")
        blocks = (weights["rows.modulus"].size,)
        longest = max(bucket.length for bucket in bundle.manifest.buckets)
        limits.check_size(blocks[0], limits.BLOCKS, "the number of table rows of a token")
        limits.check_size(4 * longest * blocks[0] * net.width, limits.SCRATCH, "the bytes of a text's table rows")
        wanted: dict[str, tuple[tuple[int, ...], tuple[type[np.generic], ...]]] = {
            "rows.modulus": (blocks, _INTEGERS),
            "rows.coef": ((len(net.shifts), *blocks), _INTEGERS),
            "rows.base": (blocks, _INTEGERS),
            "table.scale": (table[:1], _FLOATS),
            "mean.gain": ((1,), _FLOATS),
        }
        for name, shape in layers.items():
            wanted[f"{name}.weight"] = (shape, _WEIGHTS)
            if name != "mixer":
                wanted[f"{name}.bias"] = (shape[1:], _FLOATS)
            if weights[f"{name}.weight"].dtype == np.int8:
                wanted[f"{name}.weight_scale"] = (shape[1:], _FLOATS)
            if f"{name}.input_scale" in weights:
                wanted[f"{name}.input_scale"] = ((1,), _FLOATS)
        if net.mean:
            wanted["score.weight"] = ((net.mixer_width or net.width, 1), _FLOATS)
        wrong = [
            name
            for name, (shape, kinds) in wanted.items()
            if weights[name].shape != shape or weights[name].dtype.type not in kinds
        ]
    except KeyError as error:
        raise unusable(bundle, error) from error
    wrong += [name for name in ("mixer.bias",) if name in weights]
    wrong += [name for name in ("pairs.weight",) if name in weights and "pairs" not in layers]
    if table[1:] != (net.width,) or ("table" in weights and weights["table"].dtype.type not in _WEIGHTS):
        wrong.append("table")
    if not wrong:  # the values can be read
        modulus, base = weights["rows.modulus"], weights["rows.base"].astype(np.int64)
        steps = [name for name in wanted if name.endswith("input_scale") or name == "mean.gain"]
        wrong += [name for name in steps if not (np.isfinite(weights[name][0]) and weights[name][0] > 0)]
        floats = [name for name, (_, kinds) in wanted.items() if np.float32 in kinds] + ["table"]
        wrong += [name for name in floats if name in weights and not _is_sane(weights[name])]
        if (modulus <= 0).any():
            wrong.append("rows.modulus")
        if (base < 0).any() or (base + modulus > table[0]).any():
            wrong.append("rows.base")
    if wrong:
        raise BundleError(
            f"{bundle.path}: {wrong[0]!r} in weights.safetensors does not fit the manifest's network; copy it again"
        )


def check_padding(bundle: Bundle) -> None:
    """Prove that a padding position adds nothing, whatever stands beside it: its sum is negative in every column.

    The row of the padding token, which no other token has, outweighs the largest numbers of all other rows.

    Raises:
        BundleError: it does not.
    """
    net = bundle.manifest.network
    if isinstance(net, GraphNetwork):
        return
    weights = read_weights(bundle)
    check_weights(bundle, net, weights, weights["table"].shape if "table" in weights else None)
    table, scale, coef = weights["table"], weights["table.scale"], weights["rows.coef"]
    own = [j for j in range(coef.shape[1]) if coef[net.shifts.index(0), j] and np.count_nonzero(coef[:, j]) == 1]
    most = np.zeros(net.width)
    for j, (base, modulus) in enumerate(zip(weights["rows.base"], weights["rows.modulus"], strict=True)):
        if own and j == own[0]:
            most += scale[base] * table[base].astype(np.float64)
        else:
            rows = slice(int(base), int(base + modulus))
            most += max(0.0, float((scale[rows] * table[rows].max(1)).max()))
    if not own or (most > 0).any():
        raise BundleError(f"{bundle.path}: padding is not zero in weights.safetensors; export again")


def _is_sane(tensor: Array) -> bool:
    """Return whether no number of `tensor` is NaN, infinite or beyond the limit."""
    if tensor.dtype.kind != "f" or not tensor.size:
        return True
    return bool(tensor.min() >= -limits.NUMBER and tensor.max() <= limits.NUMBER)  # a NaN fails both


def unusable(bundle: Bundle, error: Exception) -> BundleError:
    """Return the error of a `weights.safetensors` that does not hold what it should."""
    return BundleError(f"{bundle.path}: weights.safetensors cannot be used ({error}); copy it again")
