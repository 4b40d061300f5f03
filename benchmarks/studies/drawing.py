"""Drawings of the pages: those of the reports as SVG files, the same bytes each time, for light and dark pages."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

from fieldrun_benchmarks.report.canvas import STYLE, VARIABLES

__all__ = ["style", "svg", "ticks"]

_LIGHT = {"ink": "#24292f", "rule": "#d0d7de", "paper": "#ffffff"}
_LIGHT |= {"line0": "#0969da", "line1": "#bf5700", "line2": "#1a7f37", "line3": "#57606a"}
_DARK = {"ink": "#e6edf3", "rule": "#3d444d", "paper": "#0d1117"}
_DARK |= {"line0": "#58a6ff", "line1": "#f0883e", "line2": "#3fb950", "line3": "#9da7b3"}


@contextmanager
def style() -> Iterator[None]:
    """Draw in the style of the reports."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        yield


def svg(figure: Any, alt: str) -> str:
    """Return a matplotlib figure as an SVG file; `alt` describes it to readers who cannot see it."""
    out = io.StringIO()
    with style():
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", out.getvalue()[out.getvalue().index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]+", "font-family: sans-serif", text)
    for placeholder, name in VARIABLES.items():
        text = text.replace(placeholder, f"var(--{name})")
    light, dark = ("; ".join(f"--{name}: {value}" for name, value in theme.items()) for theme in (_LIGHT, _DARK))
    head, rest = text.split(">", 1)
    themes = f"<style>svg {{ {light} }} @media (prefers-color-scheme: dark) {{ svg {{ {dark} }} }}</style>"
    return f'{head} role="img">\n <title>{escape(alt)}</title>\n {themes}{rest}'


def ticks(axis: Any, at: Sequence[float]) -> None:
    """Put plain numbers on a logarithmic axis, in place of powers of ten."""
    from matplotlib.ticker import NullLocator

    axis.set_ticks(at, [f"{value:,g}" for value in at])
    axis.set_minor_locator(NullLocator())
