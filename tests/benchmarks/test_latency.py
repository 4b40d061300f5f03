"""Timing in turns: every subject sees every text equally often, in an order drawn anew; figures are percentiles."""

from __future__ import annotations

import random
import time
from itertools import permutations

import numpy as np
import pytest

from fieldrun.errors import FieldrunError
from fieldrun_benchmarks.harness.cold_start import cold_starts
from fieldrun_benchmarks.harness.latency import interleave, order_of_turn, time_in_turns
from fieldrun_benchmarks.harness.record import conditions


def test_every_subject_sees_every_text_in_rotating_order() -> None:
    calls: list[tuple[str, str]] = []
    subjects = {name: lambda text, name=name: calls.append((name, text)) for name in "abc"}
    measured = interleave(subjects, ["x", "y"], repeats=3, warm_up=0)
    assert [value.calls for value in measured.values()] == [6, 6, 6]
    assert sorted(calls) == sorted((name, text) for name in "abc" for text in "xy" for _ in range(3))
    firsts = [calls[i][0] for i in range(0, len(calls), 3)]
    assert set(firsts) == set("abc")


def test_nobody_always_follows_the_same_neighbour() -> None:
    draw = random.Random(0)
    turns = [order_of_turn("abcd", turn, draw) for turn in range(80)]
    assert [turn[0] for turn in turns] == [*"abcd"] * 20
    assert {"".join(turn) for turn in turns} == {"".join(order) for order in permutations("abcd")}


def test_apart_gives_every_subject_another_text_in_a_turn() -> None:
    calls: list[tuple[str, str]] = []
    subjects = {name: lambda text, name=name: calls.append((name, text)) for name in "abc"}
    timed = time_in_turns(subjects, ["x", "y", "z"], rounds=2, warm_up=0, apart=True)
    assert all(len({text for _, text in calls[i : i + 3]}) == 3 for i in range(0, len(calls), 3))
    assert sorted(calls) == sorted((name, text) for name in "abc" for text in "xyz" for _ in range(2))
    assert {name: micros.shape for name, micros in timed.items()} == dict.fromkeys("abc", (2, 3))


def test_warm_up_is_not_counted() -> None:
    calls: list[str] = []
    measured = interleave({"one": calls.append}, ["a", "b", "c"], warm_up=2)
    assert calls == ["a", "b", "a", "b", "c"]
    assert measured["one"].calls == 3


def test_figures_are_percentiles_in_microseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = np.arange(1, 102) * 1000  # 1..101 us
    ticks = iter(np.concatenate([[1_000_000, 1_000_000 + d] for d in durations]).tolist())
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(ticks))
    measured = interleave({"one": lambda text: None}, ["t"] * 101, warm_up=0)["one"]
    assert measured.to_dict() == {"calls": 101, "p50_us": 51.0, "p90_us": 91.0, "min_us": 1.0}


def test_cold_starts_measures_fresh_processes() -> None:
    measured = cold_starts({"small": "pass", "large": "x = bytearray(64 << 20)"}, runs=2)
    assert measured["small"].runs == 2
    assert measured["large"].peak_rss_mib - measured["small"].peak_rss_mib == pytest.approx(64, abs=8)
    assert measured["small"].to_dict().keys() == {"runs", "wall_s", "peak_rss_mib"}


def test_a_cold_start_has_the_threads_of_a_users_shell(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "TOKENIZERS_PARALLELISM"]
    for name in names:
        monkeypatch.setenv(name, "1")
    assert conditions()["threads"] == dict.fromkeys(names, "1")
    cold_starts({"look": f"import os; assert not set({names}) & set(os.environ)"}, runs=1)


def test_a_program_that_fails_is_named_with_its_last_line() -> None:
    with pytest.raises(FieldrunError, match="'broken' ended with exit code 1: ValueError: no"):
        cold_starts({"broken": "raise ValueError('no')"}, runs=1)


def test_what_a_program_says_at_its_end_is_not_taken_for_its_peak() -> None:
    say = "import atexit, sys\natexit.register(print, 'bye', file=sys.stderr)\nsys.stderr.write('no end of line')"
    assert cold_starts({"chatty": say}, runs=1)["chatty"].peak_rss_mib > 1


@pytest.mark.parametrize(
    ("program", "python", "words"),
    [
        ("raise SystemExit(0)", None, "'it' ended before its peak memory was read"),
        ("pass", "/no/python", "'it' does not start with /no/python: No such file"),
    ],
)
def test_a_program_without_a_peak(program: str, python: str | None, words: str) -> None:
    with pytest.raises(FieldrunError, match=words):
        cold_starts({"it": program}, runs=1, pythons={"it": python} if python else None)
