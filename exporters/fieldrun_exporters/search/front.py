"""Draw a search's fronts: accuracy against size, and against latency, with intervals, as one SVG.

The same points give the same bytes. Colours follow the reader's light or dark scheme.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

__all__ = ["front_plot"]

_STYLE = """
text { font: 12px system-ui, sans-serif; fill: #57606a; }
.title { font-weight: 600; fill: #24292f; }
.grid { stroke: #8c959f; stroke-opacity: .35; }
.whisker { stroke: #0969da; stroke-width: 1.5; }
.line { fill: none; stroke: #0969da; stroke-width: 1.5; stroke-opacity: .6; }
.dot { fill: #0969da; }
.chosen { fill: #bf5700; }
.uniform { fill: none; stroke: #57606a; stroke-width: 1.5; }
@media (prefers-color-scheme: dark) {
text { fill: #9da7b3; } .title { fill: #e6edf3; }
.whisker, .line { stroke: #58a6ff; } .dot { fill: #58a6ff; } .chosen { fill: #f0883e; }
.uniform { stroke: #9da7b3; }
}
""".strip()
_WIDTH, _HEIGHT, _LEFT, _TOP, _STEP = 300, 220, 56, 34, 390  # px, of a panel's inside and around it


def front_plot(
    points: Sequence[Mapping[str, Any]],
    chosen: int,
    shapes: Sequence[Mapping[str, Any]],
    uniform: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return the SVG of a search's report: change of mean accuracy in points, with 95 % intervals.

    Args:
        points: the front of size; those that were judged have `accuracy` and are drawn.
        chosen: the number of the chosen one.
        shapes: the front of latency; its panel is left out when empty.
        uniform: candidates with all tables at one level, judged, drawn as rings beside the front of size.
    """
    sizes = [
        (point["bytes"] / 1e6, *_change(point["accuracy"]), "chosen" if number == chosen else "dot")
        for number, point in enumerate(points)
        if "accuracy" in point
    ]
    sizes += [(point["bytes"] / 1e6, *_change(point["accuracy"]), "uniform") for point in uniform]
    panels = [("bundle, MB", sizes)]
    if shapes:
        times = [(shape["latency_us"], *_change(shape["accuracy"]), "dot") for shape in shapes]
        panels.append(("text to all labels, us (shapes in float32 accuracy)", sorted(times)))
    drawn = [_panel(number, title, found) for number, (title, found) in enumerate(panels)]
    note = "Change of mean accuracy against float32, points, with 95 % intervals"
    if any(style == "chosen" for *_, style in sizes):
        note += "; the chosen one in orange"
    if uniform:
        note += "; rings: one level for all tables"
    width, height = _LEFT + _STEP * len(panels), _TOP + _HEIGHT + 70
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" aria-label="{escape(note)}">',
            f"<style>\n{_STYLE}\n</style>",
            *drawn,
            _text(_LEFT - 40, height - 12, note),
            "</svg>\n",
        ]
    )


def _change(accuracy: Mapping[str, Any]) -> tuple[float, float, float]:
    """Return the change of accuracy and its interval, low and high, in points."""
    low, high = accuracy["ci95"]
    return -accuracy["mean_drop"], -high, -low


def _panel(number: int, title: str, found: Sequence[tuple[float, float, float, float, str]]) -> str:
    x0, y0 = _LEFT + number * _STEP, _TOP
    left, right = _bounds([x for x, *_ in found], 0.06)
    bottom, top = _bounds([y for _, _, low, high, _ in found for y in (low, high)] + [0.0], 0.05)

    def px(x: float) -> float:
        return x0 + _WIDTH * (x - left) / (right - left)

    def py(y: float) -> float:
        return y0 + _HEIGHT * (1 - (y - bottom) / (top - bottom))

    parts = [_text(x0, y0 - 12, title, "title")]
    for y in _ticks(bottom, top):
        parts += [_line(x0, py(y), x0 + _WIDTH, py(y), "grid"), _text(x0 - 6, py(y) + 4, f"{y:+g}", anchor="end")]
    for x in _ticks(left, right):
        parts += [_line(px(x), y0, px(x), y0 + _HEIGHT, "grid")]
        parts += [_text(px(x), y0 + _HEIGHT + 18, f"{x:g}", anchor="middle")]
    path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y, *_, style in found if style != "uniform")
    parts.append(f'<polyline class="line" points="{path}"/>')
    for x, y, low, high, style in found:
        if style != "uniform":
            parts.append(_line(px(x), py(low), px(x), py(high), "whisker"))
        parts.append(f'<circle class="{style}" cx="{px(x):.1f}" cy="{py(y):.1f}" r="{5 if style == "chosen" else 4}"/>')
    return "\n".join(parts)


def _bounds(values: Sequence[float], margin: float) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = margin * (high - low) or 1.0
    return low - room, high + room


def _ticks(low: float, high: float) -> list[float]:
    """Return four to eight round numbers within the bounds."""
    rough = (high - low) / 6
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough)
    first = math.ceil(low / step)
    return [round(k * step, 10) for k in range(first, math.floor(high / step) + 1)]


def _text(x: float, y: float, text: str, style: str = "", anchor: str = "start") -> str:
    attribute = f' class="{style}"' if style else ""
    return f'<text{attribute} x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, style: str) -> str:
    return f'<line class="{style}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'
