"""Which engine `engine="auto"` takes: the native one where it was compiled, else the faster of the other two.

The native engine needs no measurement: it was the fastest in every bucket (benchmarks/records/latency.json), and to
measure would import ONNX Runtime, which costs more time and memory than all the rest of a start.
"""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass

import numpy as np

from fieldrun.errors import EngineError, MissingDependency
from fieldrun.formats.bundle import Bundle, GraphNetwork

from . import Engine, map_weights, open_engine
from .native_engine import is_compiled

__all__ = ["Choice", "choose_engine"]

_CALLS = 5
_TOKENS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An open engine, its name, and why it was taken."""

    name: str
    engine: Engine
    reason: str


def choose_engine(bundle: Bundle, name: str, threads: int, provider: str | None = None) -> Choice:
    """Open the engine `name` for `bundle`; `"auto"` opens the native engine, or else the faster one of the others.

    A bundle that is nothing but graphs is run by ONNX Runtime alone, and so is one with a `provider`, which is ONNX
    Runtime's. The measurement of the others is a handful of interleaved calls at batch 1 on a text of about 24 tokens,
    some milliseconds.

    Raises:
        UnknownName, UsageError, MissingDependency, EngineError: as `open_engine`.
    """
    if provider is not None and name == "auto":
        name = "onnxruntime"
    if name != "auto":
        engine = open_engine(name, bundle, threads, provider=provider)
        return Choice(name=name, engine=engine, reason="asked for" if provider is None else f"asked for on {provider}")
    if isinstance(bundle.manifest.network, GraphNetwork):
        return Choice(
            name="onnxruntime", engine=open_engine("onnxruntime", bundle, threads), reason="the bundle is a graph"
        )
    if is_compiled():
        try:
            return Choice(name="native", engine=open_engine("native", bundle, threads), reason="compiled here")
        except EngineError:  # a library of another machine: the others still run
            pass
    weights = map_weights(bundle)
    plain = open_engine("numpy", bundle, threads, weights)
    if importlib.util.find_spec("onnxruntime") is None:
        return Choice(name="numpy", engine=plain, reason="onnxruntime is not installed")
    length = next((b.length for b in bundle.manifest.buckets if b.batch == 1 and b.length >= _TOKENS), None)
    if length is None:
        length = max(b.length for b in bundle.manifest.buckets if b.batch == 1)
    network = bundle.manifest.network
    text = np.linspace(1, network.vocab_size - 1, min(length, _TOKENS)).astype(np.int64)
    ids = network.frame([text.tolist()], 1, length)
    try:
        compiled = open_engine("onnxruntime", bundle, threads, weights)
        compiled.run(ids)
    except (EngineError, MissingDependency) as error:  # installed but broken: the base install must still run
        return Choice(name="numpy", engine=plain, reason=f"onnxruntime cannot run here: {error}")
    seconds: dict[str, list[float]] = {"numpy": [], "onnxruntime": []}
    for _ in range(_CALLS):
        for key, engine in (("numpy", plain), ("onnxruntime", compiled)):
            start = time.perf_counter()
            engine.run(ids)
            seconds[key].append(time.perf_counter() - start)
    micros = {key: 1e6 * float(np.median(values[1:])) for key, values in seconds.items()}
    winner = min(micros, key=lambda key: micros[key])
    reason = f"measured here: onnxruntime {micros['onnxruntime']:.0f} us, numpy {micros['numpy']:.0f} us a text"
    return Choice(name=winner, engine=plain if winner == "numpy" else compiled, reason=reason)
