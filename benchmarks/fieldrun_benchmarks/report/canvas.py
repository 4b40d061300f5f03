"""What all figures share: a drawing as SVG that follows the page's light or dark colours, pens, axes, legends."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fieldrun.errors import MissingDependency

__all__ = [
    "INK",
    "LINES",
    "PAPER",
    "WIDE",
    "Axes",
    "Figure",
    "Record",
    "below",
    "check_matplotlib",
    "drawn",
    "from_zero",
    "legend",
    "numbered",
    "pen",
    "plain",
]

Record = Mapping[str, Any]
Axes = Any  # matplotlib's, which is imported only when something is drawn

# Drawn in colours that stand for the page's: each becomes a CSS variable, so that one drawing serves light and dark.
INK, _GRID, PAPER = "#010203", "#010204", "#010205"
LINES = ("#010211", "#010212", "#010213", "#010214", "#010215", "#010216")
_VARIABLES = {INK: "ink", _GRID: "rule", PAPER: "paper"} | {colour: f"line{i}" for i, colour in enumerate(LINES)}
_STYLE: dict[Any, Any] = {
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
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
_FEW = 4  # subjects whose legend needs no higher canvas
WIDE = 20  # times from the least to the most value, above which an axis is logarithmic
_MARKS = ("o", "s", "^", "D", "v", "P")
_DASHES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (3, 1, 1, 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """A drawing: the SVG element, its caption, and what a reader who cannot see it is told."""

    svg: str
    caption: str
    alt: str


def check_matplotlib() -> None:
    """Raise `MissingDependency` when there is nothing to draw with, before anything was measured."""
    for package in ("matplotlib", "jinja2"):
        try:
            importlib.import_module(package)
        except ImportError as error:
            raise MissingDependency(package, "bench") from error


def drawn(record: Record, draw: Callable[[Record, Axes], tuple[str, str] | None], name: str) -> Figure | None:
    """Return what `draw` draws, with ids that begin with `name`; it returns caption and alternative text, or None."""
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=(4.8, 3.1 + 0.13 * max(0, len(numbered(record)) - _FEW)), layout="constrained")
        axes = canvas.add_subplot()
        axes.set_axisbelow(True)
        said = draw(record, axes)
        if said is None:
            return None
        out = io.StringIO()
        canvas.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    caption, alt = said
    return Figure(svg=_embed(out.getvalue(), name, alt), caption=caption, alt=alt)


def _embed(svg: str, name: str, alt: str) -> str:
    """Make a whole SVG file an element of a page: own ids, the page's colours and font, a title that is read aloud."""
    from html import escape

    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>\s*", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="([^"]+)"', rf'id="{name}-\1"', svg)
    svg = re.sub(
        r'(xlink:href="#|href="#|url\(#)([^")]+)',
        lambda m: m[1] if m[2].startswith(f"{name}-") else f"{m[1]}{name}-{m[2]}",
        svg,
    )
    for colour, variable in _VARIABLES.items():
        svg = svg.replace(colour, f"var(--{variable})")
    svg = re.sub(r"font: ([\d.]+)px [^;\"]+", r"font: \1px var(--font)", svg)
    title = f'<title id="{name}-title">{escape(alt)}</title>'
    head = re.sub(r'\s(?:width|height)="[^"]*"', "", svg[: svg.index(">") + 1])
    head = head.replace("<svg", f'<svg role="img" aria-labelledby="{name}-title"', 1)
    return head + title + svg[svg.index(">") + 1 :].strip()


def numbered(record: Record) -> list[tuple[int, str, Any]]:
    """Return the subjects that were measured: number, name, values."""
    found = [(name, subject) for name, subject in record["subjects"].items() if "failed" not in subject]
    return [(i, name, subject) for i, (name, subject) in enumerate(found)]


def pen(i: int, *, marked: bool = False) -> dict[str, Any]:
    """Return the line of subject `i`."""
    other = i + i // len(LINES)  # the seventh has the first one's colour and not its dashes
    style: dict[str, Any] = {"color": LINES[i % len(LINES)], "linestyle": _DASHES[other % len(_DASHES)]}
    return style | ({"marker": _MARKS[other % len(_MARKS)], "markersize": 5} if marked else {})


def plain(axis: Any) -> None:
    """Write 20, 50, 100 along a logarithmic axis, not powers; only 10, 100 where it is long."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high < 50 * low else (1.0,)
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def from_zero(axes: Axes, values: Sequence[float]) -> None:
    """Let the upright axis begin at 0, or be logarithmic where the values differ too much."""
    if max(values) > WIDE * min(values) > 0:
        axes.set(yscale="log")
        plain(axes.yaxis)
    else:
        axes.set(ylim=(0, None))


def legend(axes: Axes, count: int) -> None:
    """Name the subjects where there are several."""
    if count > 1:
        below(axes)


def below(axes: Axes, columns: int = 2) -> None:
    """Put the legend under the axes, where it covers nothing."""
    handles, labels = axes.get_legend_handles_labels()
    made = axes.figure.legend(handles, labels, fontsize=9, loc="outside lower center", ncols=columns)
    for handle in made.legend_handles:
        if hasattr(handle, "set_sizes"):
            handle.set_sizes([40])
