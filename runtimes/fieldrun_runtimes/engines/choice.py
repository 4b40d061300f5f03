"""Which engine `engine="auto"` takes: the native one where it was compiled, else the faster of the other two.

The native engine needs no measurement: it was the fastest in every bucket (benchmarks/records/latency.json), and to
measure would import ONNX Runtime, which costs more time and memory than the rest of a start.
"""

from __future__ import annotations

import importlib.util
import time
from dataclasses import dataclass

import numpy as np

from fieldrun.errors import EngineError, MissingDependency, UsageError
from fieldrun.formats.bundle import Bundle, GraphNetwork

from . import Engine, open_engine
from .native_engine import is_compiled
from .weights import read_weights

__all__ = ["Choice", "choose_engine"]

_CALLS = 5
_TOKENS = 24


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """An open engine, its name, and why it was taken."""

    name: str
    engine: Engine
    reason: str


def choose_engine(bundle: Bundle, name: str, threads: int = 1, provider: str | None = None) -> Choice:
    """Open the engine `name` for `bundle`; `"auto"` opens the native engine, or else the faster one of the others.

    Only ONNX Runtime runs a bundle of graphs, and only ONNX Runtime has a `provider`. The others are compared in a few
    interleaved calls at batch 1 on a text of about 24 tokens, which takes some milliseconds.

    Raises:
        UsageError: `threads` is not a positive integer.
        UnknownName, UsageError, MissingDependency, EngineError: as `open_engine`.
    """
    if not isinstance(threads, int) or isinstance(threads, bool) or threads < 1:
        raise UsageError(f"threads must be a positive integer, not {threads!r}")
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
        except EngineError:  # a library for another machine: the others still run
            pass
    weights = read_weights(bundle)
    if importlib.util.find_spec("onnxruntime") is None:
        plain = open_engine("numpy", bundle, threads, weights)
        return Choice(name="numpy", engine=plain, reason="onnxruntime is not installed")
    if threads > 1:
        compiled = open_engine("onnxruntime", bundle, threads, weights)
        return Choice(name="onnxruntime", engine=compiled, reason="numpy runs on one thread")
    longest = max(bucket.length for bucket in bundle.manifest.buckets)
    ids = np.linspace(1, bundle.manifest.network.vocab_size - 1, min(longest, _TOKENS)).astype(int).tolist()
    engines = {"numpy": open_engine("numpy", bundle, threads, weights)}
    try:
        engines["onnxruntime"] = open_engine("onnxruntime", bundle, threads, weights)
        seconds: dict[str, list[float]] = {key: [] for key in engines}
        for _ in range(1 + _CALLS):  # the first call opens a session
            for key, engine in engines.items():
                start = time.perf_counter()
                engine.run([ids])
                seconds[key].append(time.perf_counter() - start)
    except (EngineError, MissingDependency) as error:  # installed but broken: the base install must still run
        return Choice(name="numpy", engine=engines["numpy"], reason=f"onnxruntime cannot run here: {error}")
    micros = {key: 1e6 * float(np.median(values[1:])) for key, values in seconds.items()}
    winner = min(micros, key=lambda key: micros[key])
    reason = f"measured here: onnxruntime {micros['onnxruntime']:.0f} us, numpy {micros['numpy']:.0f} us a text"
    return Choice(name=winner, engine=engines[winner], reason=reason)
