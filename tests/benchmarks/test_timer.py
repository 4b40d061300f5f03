"""Timing in alternating slices: every subject sees every text equally often, in an order drawn anew; cold starts."""

from __future__ import annotations

import random
import time
from itertools import permutations
from pathlib import Path

import numpy as np
import pytest

from fieldrun.errors import FieldrunError
from fieldrun_benchmarks.harness.cold_start import cold_starts
from fieldrun_benchmarks.harness.record import conditions
from fieldrun_benchmarks.harness.single_stream import order_of_turn
from fieldrun_benchmarks.harness.timer import text_to_labels_us, time_texts


def test_every_subject_answers_every_text_in_every_repeat() -> None:
    calls: list[tuple[str, int]] = []
    subjects = {name: lambda text, name=name: calls.append((name, text)) for name in "abc"}
    texts = range(450)  # three slices
    timing = time_texts(subjects, texts, repeats=3, warm_up=0)
    assert [timing[name]["calls"] for name in "abc"] == [3 * 450] * 3
    assert sorted(calls) == sorted((name, text) for name in "abc" for text in texts for _ in range(3))
    slices = [calls[i][0] for i in range(0, len(calls), 150)]
    assert all(len({name for name, _ in calls[i : i + 150]}) == 1 for i in range(0, len(calls), 150))
    assert [slices[i] for i in range(0, len(slices), 3)] == [*"abc"] * 3  # who is first in a turn


def test_nobody_always_follows_the_same_neighbour() -> None:
    draw = random.Random(0)
    turns = [order_of_turn("abcd", turn, draw) for turn in range(80)]
    assert [turn[0] for turn in turns] == [*"abcd"] * 20
    assert {"".join(turn) for turn in turns} == {"".join(order) for order in permutations("abcd")}


def test_warm_up_is_not_counted() -> None:
    calls: list[str] = []
    timing = time_texts({"one": calls.append}, ["a", "b", "c"], repeats=1, warm_up=2)
    assert calls == ["b", "c", "a", "b", "c"]
    assert timing["one"]["calls"] == 3


def test_figures_are_percentiles_in_microseconds(monkeypatch: pytest.MonkeyPatch) -> None:
    durations = np.arange(1, 102) * 1000  # 1..101 us
    ticks = iter(np.concatenate([[1_000_000, 1_000_000 + d] for d in durations]).tolist())
    monkeypatch.setattr(time, "perf_counter_ns", lambda: next(ticks))
    measured = time_texts({"one": lambda text: None}, ["t"] * 101, repeats=1, warm_up=0)["one"]
    assert measured == {
        "calls": 101,
        "p50_us": 51.0,
        "p90_us": 91.0,
        "p99_us": None,  # needs 662 calls
        "min_us": 1.0,
        "ci95_us": (41.0, 61.0),
        "repeats_p50_us": (51.0,),
    }


def test_ratios_are_paired_within_one_run() -> None:
    def spin(micros: int) -> None:
        end = time.perf_counter_ns() + 1000 * micros
        while time.perf_counter_ns() < end:
            pass

    subjects = {"fast": lambda text: spin(50), "slow": lambda text: spin(100)}
    timing = time_texts(subjects, ["text"] * 20, repeats=8)
    found = timing.ratio("slow", "fast")
    assert found["pairs"] == 8
    assert found["ci95"][0] <= found["median"] <= found["ci95"][1]
    assert found["median"] == pytest.approx(2, rel=0.2)


def test_what_a_subject_raises_is_raised() -> None:
    def fail(text: str) -> None:
        raise ValueError(text)

    for warm_up in (None, 0):
        with pytest.raises(ValueError, match="a text"):
            time_texts({"one": fail}, ["a text"], warm_up=warm_up)


def test_the_time_of_a_bundle(toy_bundle: Path) -> None:
    assert 1 < text_to_labels_us(toy_bundle, ["a good film", "a bad film"]) < 1e6


def test_cold_starts_measures_fresh_processes() -> None:
    measured = cold_starts({"small": "pass", "large": "x = bytearray(64 << 20)"}, runs=2)
    assert measured["small"]["runs"] == 2
    assert measured["large"]["peak_rss_mib"] - measured["small"]["peak_rss_mib"] == pytest.approx(64, abs=8)
    assert measured["small"].keys() == {"runs", "wall_s", "peak_rss_mib"}


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
    assert cold_starts({"chatty": say}, runs=1)["chatty"]["peak_rss_mib"] > 1


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
