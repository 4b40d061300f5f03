"""What all figures share: a drawing as SVG that follows the page's light or dark colours, pens, axes, legends."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Callable
from html import escape
from typing import Any, TypeAlias

from fieldrun.errors import MissingDependency

from .table import Record, alive

__all__ = [
    "INK",
    "PAPER",
    "RULE",
    "STYLE",
    "VARIABLES",
    "WIDE",
    "Axes",
    "check_matplotlib",
    "colour",
    "drawn",
    "from_zero",
    "legend",
    "logarithmic",
    "pen",
]

Axes: TypeAlias = Any  # matplotlib's, which is imported only when something is drawn

# Drawn in colours that stand for the page's: each becomes a CSS variable, so that one drawing serves light and dark.
INK, RULE, PAPER = "#010203", "#010204", "#010205"
_LINES = ("#010211", "#010212", "#010213", "#010214", "#010215", "#010216")
VARIABLES = {INK: "ink", RULE: "rule", PAPER: "paper"} | {colour: f"line{i}" for i, colour in enumerate(_LINES)}
STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fieldrun",
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.edgecolor": INK,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": RULE,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
}
_FEW = 4  # subjects whose legend fits the canvas
WIDE = 20  # ratio of the largest to the smallest value above which an axis is logarithmic
_MARKS = ("o", "s", "^", "D", "v", "P")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))


def check_matplotlib() -> None:
    """Raise `MissingDependency` when a page cannot be made, before anything is measured."""
    for package in ("matplotlib", "jinja2"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingDependency(package, "bench") from error


def drawn(record: Record, draw: Callable[[Record, Axes], str | None], name: str) -> tuple[str, str] | None:
    """Return caption and SVG element of what `draw` draws, with ids that begin with `name`; None for empty axes."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(STYLE):
        canvas = Canvas(figsize=(4.8, 3.1 + 0.13 * max(0, len(alive(record)) - _FEW)), layout="constrained")
        axes = canvas.add_subplot()
        caption = draw(record, axes)
        if caption is None or not axes.has_data():
            return None
        if not canvas.legends:
            legend(axes)
        out = io.StringIO()
        canvas.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return caption, _embed(out.getvalue(), name, caption)


def _embed(svg: str, name: str, title: str) -> str:
    """Make an SVG file an element of a page: ids of its own, the page's colours and font, a title to read aloud."""
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg[svg.index("<svg") :], flags=re.DOTALL)
    svg = re.sub(r'(\bid="|href="#|url\(#)([^")]+)', rf"\1{name}-\2", svg)
    for stand_in, variable in VARIABLES.items():
        svg = svg.replace(stand_in, f"var(--{variable})")
    svg = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font: \1px var(--font)", svg)
    head, _, body = svg.partition(">")
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", head)
    head = head.replace("<svg", f'<svg role="img" aria-labelledby="{name}-title"', 1)
    return f'{head}><title id="{name}-title">{escape(title)}</title>{body.strip()}'


def colour(i: int) -> str:
    """Return the colour of subject `i`."""
    return _LINES[i % len(_LINES)]


def pen(i: int, *, marked: bool = False) -> dict[str, Any]:
    """Return the line of subject `i`."""
    other = i + i // len(_LINES)  # the seventh subject has the first one's colour but not its dashes
    style: dict[str, Any] = {"color": colour(i), "linestyle": _DASHES[other % len(_DASHES)]}
    return style | ({"marker": _MARKS[other % len(_MARKS)]} if marked else {})


def logarithmic(axes: Axes, which: str) -> None:
    """Make the axis `which` ("x" or "y") logarithmic, with ticks written as 20, 50, 100 and not as powers."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set(**{f"{which}scale": "log"})
    axis = getattr(axes, f"{which}axis")
    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high < 50 * low else (1.0,)
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def from_zero(axes: Axes) -> None:
    """Let the y axis begin at 0, or make it logarithmic where the values of the lines differ too much."""
    values = [value for line in axes.lines for value in line.get_ydata()]
    if values and max(values) > WIDE * min(values) > 0:
        logarithmic(axes, "y")
    else:
        axes.set(ylim=(0, None))


def legend(axes: Axes, columns: int = 2) -> None:
    """Name what is drawn below the axes, where the legend covers nothing; one name needs no legend."""
    handles, labels = axes.get_legend_handles_labels()
    if len(labels) < 2:
        return
    made = axes.figure.legend(handles, labels, fontsize=9, loc="outside lower center", ncols=columns)
    for handle in made.legend_handles:
        if hasattr(handle, "set_sizes"):
            handle.set_sizes([40])
