"""A value is spelled by its unit, the same on a page, in Markdown, in a comparison and on the terminal."""

from __future__ import annotations

import pytest

from fieldrun_benchmarks.report.table import shown, span


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (46.04, "us", "46.0 us"),
        (263.4, "us", "263 us"),
        (6712.0, "us", "6,712 us"),
        (18_600.0, "us", "18.6 ms"),
        (2.5e6, "us", "2.50 s"),
        (0.137, "s", "0.137 s"),
        (3.541, "s", "3.54 s"),
        (173.6, "ms", "173.6 ms"),
        (0.9321, "share", "93.2 %"),
        (-0.25, "points", "-25.0 points"),
        (15_677_276, "bytes", "15.7 MB"),
        (109_100_000, "bytes", "109 MB"),
        (8_430, "bytes", "8.4 kB"),
        (43.5, "MiB", "44 MiB"),
        (4.35, "MiB", "4.3 MiB"),
        (11_997.4, "texts/s", "11,997 texts/s"),
        (1.0204, "times", "1.020 times"),
        (140.26, "ratio", "140.3"),
        (22_489_014, "count", "22,489,014"),
        ("native", "", "native"),
        (None, "us", "not measured"),
        ({"unavailable": "why"}, "us", "not measured"),
    ],
)
def test_a_value_and_its_unit(value: object, unit: str, text: str) -> None:
    assert shown(value, unit) == text


def test_an_interval_names_a_shared_unit_once() -> None:
    assert span(38.9, 40.6, "us") == "38.9 - 40.6 us"
    assert span(9_970.0, 18_600.0, "us") == "9,970 us - 18.6 ms"
    assert span(0.904, 0.953, "share") == "90.4 - 95.3 %"
    assert span(0.99, 1.0, "ratio") == "0.990 - 1.000"
