"""The scenarios of MLPerf Inference, as thin loops: what they add to a call is measured with the null subject.

| Scenario | Sends | Measures |
|---|---|---|
| SingleStream | one text, then the next when it is answered | latency of every call |
| MultiStream | `SAMPLES_PER_QUERY` texts at once, then the next so many | latency of every query |
| Offline | everything there is, in batches, from one or several threads | texts a second |
| Server | one text at a time, at the moments of a Poisson process | latency, waiting included |

Reddi et al., "MLPerf Inference Benchmark", ISCA 2020.
"""

from __future__ import annotations

import gc
import itertools
import random
import resource
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

__all__ = [
    "SAMPLES_PER_QUERY",
    "SliceTimes",
    "multi_stream",
    "offline",
    "poisson_arrivals",
    "server",
    "timed_calls",
    "timed_slice",
]

Item = TypeVar("Item")
Run = Callable[[list[str]], object]

SAMPLES_PER_QUERY = 8
_SPIN_S = 0.0002  # sleeping is not exact to more than this
_CLOCK_LOOKS = 64  # at least, in a run of MultiStream


@dataclass(frozen=True, slots=True, kw_only=True)
class SliceTimes:
    """A slice of SingleStream.

    `nanos` are the wall times of the calls, `cpu_ns` the CPU time of all of them, `switches` how often the process lost
    its core meanwhile, `process_cpu_s` the CPU time of the process since its start.
    """

    nanos: Sequence[int] | npt.NDArray[np.int64]
    cpu_ns: int
    process_cpu_s: float
    switches: int


def timed_slice(
    call: Callable[[Item], object], items: Sequence[Item], *, start: int, count: int, warm_up: int
) -> SliceTimes:
    """Time `count` items one by one from item `start` on, going round, after the `warm_up` items before them."""
    chosen = [items[(start + i) % len(items)] for i in range(-warm_up, count)]
    for item in chosen[:warm_up]:
        call(item)
    usage, cpu = resource.getrusage(resource.RUSAGE_SELF), time.process_time_ns()
    nanos = timed_calls(call, chosen[warm_up:])
    cpu = time.process_time_ns() - cpu
    switches = resource.getrusage(resource.RUSAGE_SELF).ru_nivcsw - usage.ru_nivcsw
    return SliceTimes(nanos=nanos, cpu_ns=cpu, process_cpu_s=time.process_time(), switches=switches)


def timed_calls(call: Callable[[Item], object], items: Sequence[Item]) -> list[int]:
    """Call `call` with every item and return the nanoseconds of each call, without garbage collection."""
    clock = time.perf_counter_ns
    nanos = [0] * len(items)
    with _no_collection():
        for i, item in enumerate(items):
            start = clock()
            call(item)
            nanos[i] = clock() - start
    return nanos


def multi_stream(run: Run, texts: Sequence[str], *, seconds: float) -> list[int]:
    """Return the nanoseconds of every query of `SAMPLES_PER_QUERY` texts, sent for about `seconds`."""
    queries = _batches(texts, SAMPLES_PER_QUERY)
    run(queries[0])
    found: list[int] = []
    now = start = time.perf_counter()
    count = 1  # queries between two looks at the clock; the looks must not take a noticeable share of the time
    while not found or now < start + seconds:
        found += timed_calls(run, queries[:count])
        queries = queries[count:] + queries[:count]
        before, now = now, time.perf_counter()
        if now - before < seconds / _CLOCK_LOOKS:
            count = min(2 * count, len(queries), 64)
    return found


def offline(run: Run, texts: Sequence[str], *, batch: int, threads: int, seconds: float) -> float:
    """Return texts a second over about `seconds`, in batches of `batch`, from `threads` callers at once."""
    batches = _batches(texts, batch)
    run(batches[0])
    counter = itertools.count()
    done = [0] * threads
    gate = threading.Barrier(threads + 1)
    failures: list[BaseException] = []

    def caller(number: int) -> None:
        gate.wait()
        end = time.perf_counter() + seconds
        try:
            while time.perf_counter() < end:
                chosen = batches[next(counter) % len(batches)]
                run(chosen)
                done[number] += len(chosen)
        except BaseException as error:  # raised again in the thread that asked
            failures.append(error)

    callers = [threading.Thread(target=caller, args=(number,)) for number in range(threads)]
    with _no_collection():
        for thread in callers:
            thread.start()
        gate.wait()
        start = time.perf_counter()
        for thread in callers:
            thread.join()
        taken = time.perf_counter() - start
    if failures:
        raise failures[0]
    return sum(done) / taken


def poisson_arrivals(per_second: float, count: int, seed: int) -> npt.NDArray[np.float64]:
    """Return `count` moments in seconds from the start, whose gaps are exponential with mean `1 / per_second`."""
    gaps = np.random.default_rng(seed).exponential(1 / per_second, count)
    moments: npt.NDArray[np.float64] = np.cumsum(gaps)
    return moments


def server(run: Run, texts: Sequence[str], *, per_second: float, seconds: float, seed: int) -> dict[str, Any]:
    """Send texts at `per_second` for about `seconds` and return the `nanos` from each sending to its answer.

    One thread answers them in turn. A load that it cannot keep up with ends after twice the time; the texts that were
    not sent by then are counted as `unsent`.
    """
    count = max(1, round(per_second * seconds))
    arrivals = poisson_arrivals(per_second, count, seed)
    order = random.Random(seed).choices(texts, k=count)
    nanos: list[int] = []
    clock = time.perf_counter
    run([order[0]])
    with _no_collection():
        start = clock()
        for moment, text in zip(arrivals.tolist(), order, strict=True):
            wait = start + moment - clock()
            if wait > _SPIN_S:
                time.sleep(wait - _SPIN_S)
            while clock() < start + moment:
                pass
            run([text])
            now = clock() - start
            nanos.append(int(1e9 * (now - moment)))
            if now > 2 * seconds:
                break
    return {"nanos": nanos, "unsent": count - len(nanos)}


def _batches(texts: Sequence[str], size: int) -> list[list[str]]:
    """Cut texts into batches of `size`, going round when they run out; every text is in one at least."""
    count = -(-len(texts) // size)
    whole = list(itertools.islice(itertools.cycle(texts), count * size))
    return [whole[i : i + size] for i in range(0, len(whole), size)]


@contextmanager
def _no_collection() -> Iterator[None]:
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()
