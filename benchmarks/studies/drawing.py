"""Drawings of the pages: matplotlib's SVG, the same bytes each time, in colours for light and dark pages."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from html import escape
from typing import Any

__all__ = ["GRID", "INK", "LINES", "MUTED", "plain", "style", "svg"]

# Each colour is drawn as a placeholder and becomes a CSS variable, so that one file serves light and dark pages.
INK, MUTED, GRID = "#010203", "#010204", "#010205"
LINES = ("#010211", "#010212", "#010213", "#010214")
_COLOURS = {
    INK: ("ink", "#24292f", "#e6edf3"),
    MUTED: ("muted", "#57606a", "#9da7b3"),
    GRID: ("grid", "#d0d7de", "#3d444d"),
    LINES[0]: ("line0", "#0969da", "#58a6ff"),
    LINES[1]: ("line1", "#bf5700", "#f0883e"),
    LINES[2]: ("line2", "#1a7f37", "#3fb950"),
    LINES[3]: ("line3", "#8250df", "#bc8cff"),
}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fieldrun",
    "font.size": 10,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": MUTED,
    "axes.titlecolor": INK,
    "axes.titlesize": 11,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}


@contextmanager
def style() -> Iterator[None]:
    """Draw in the style of the pages."""
    import matplotlib

    with matplotlib.rc_context(_STYLE):
        yield


def svg(figure: Any, alt: str) -> str:
    """Return a matplotlib figure as an SVG file; `alt` is what it says to a reader who cannot see it."""
    out = io.StringIO()
    with style():
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    text = re.sub(r"\s*<metadata>.*?</metadata>", "", out.getvalue()[out.getvalue().index("<svg") :], flags=re.DOTALL)
    text = re.sub(r"font-family: [^;\"]+", "font-family: sans-serif", text)
    themes = []
    for column in (1, 2):
        values = "; ".join(f"--{colour[0]}: {colour[column]}" for colour in _COLOURS.values())
        themes.append(f"svg {{ {values} }}")
    for placeholder, (name, *_) in _COLOURS.items():
        text = text.replace(placeholder, f"var(--{name})")
    head, rest = text.split(">", 1)
    return (
        f'{head} role="img">\n <title>{escape(alt)}</title>\n <style>{themes[0]} '
        f"@media (prefers-color-scheme: dark) {{ {themes[1]} }}</style>{rest}"
    )


def plain(axis: Any, ticks: Sequence[float]) -> None:
    """Put plain numbers at `ticks` of an axis, in place of powers of ten."""
    from matplotlib.ticker import NullLocator

    axis.set_ticks(ticks, [f"{tick:,g}" for tick in ticks])
    axis.set_minor_locator(NullLocator())
