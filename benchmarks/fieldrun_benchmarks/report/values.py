"""How a value is spelled, by its unit: the one place for pages, Markdown, comparisons and the terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["UNITS", "shown", "span"]

NOT_MEASURED = "not measured"


def _micros(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:,.2f} s"
    if value >= 1e4:
        return f"{value / 1e3:,.1f} ms"
    return f"{value:,.0f} us" if value >= 100 else f"{value:.1f} us"


def _bytes(value: float) -> str:
    if value >= 1e8:
        return f"{value / 1e6:,.0f} MB"
    return f"{value / 1e6:.1f} MB" if value >= 1e5 else f"{value / 1e3:.1f} kB"


UNITS: dict[str, Callable[[Any], str]] = {
    "": str,
    "C": "{:g} C".format,
    "MHz": "{:,.0f} MHz".format,
    "MiB": lambda value: f"{value:,.0f} MiB" if value >= 10 else f"{value:.1f} MiB",
    "W": "{:.2f} W".format,
    "bytes": _bytes,
    "completed": lambda value: "yes" if value else "no",
    "cores": "{:.2f} cores".format,
    "count": "{:,}".format,
    "mJ": "{:.3f} mJ".format,
    "ms": lambda value: _micros(1e3 * value),
    "points": lambda value: f"{100 * value:+.1f} points",
    "ratio": lambda value: f"{value:.3f}" if value < 10 else f"{value:,.1f}",
    "s": lambda value: f"{value:.2f} s" if value >= 1 else f"{value:.3f} s",
    "share": lambda value: f"{100 * value:.1f} %",
    "texts/s": "{:,.0f} texts/s".format,
    "times": lambda value: f"{value:.3f} times" if value < 10 else f"{value:,.1f} times",
    "us": _micros,
}
"""What spells a value of each unit; "share" and "points" take shares of 1."""


def shown(value: Any, unit: str = "", missing: str = NOT_MEASURED) -> str:
    """Return `value` with its unit; `missing` for None and for a value that a record calls unavailable."""
    if value is None or (unit and not isinstance(value, int | float)):
        return missing
    return UNITS[unit](value)


def span(low: float, high: float, unit: str) -> str:
    """Return the two ends of an interval, with the unit once where both have the same."""
    (first, *of_first), (_, *of_last) = (shown(end, unit).split(" ", 1) for end in (low, high))
    return f"{first if of_first == of_last else shown(low, unit)} - {shown(high, unit)}"
