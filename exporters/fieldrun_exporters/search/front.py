"""Draw what `compress` found: accuracy against size, and against latency, with intervals, as one SVG."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any

from fieldrun.errors import MissingDependency

__all__ = ["front_plot"]

_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fieldrun",
    "font.size": 9,
    "axes.grid": True,
    "grid.alpha": 0.35,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_BLUE, _ORANGE, _GREY = "#0969da", "#bf5700", "#57606a"


def front_plot(
    points: Sequence[Mapping[str, Any]],
    chosen: int,
    shapes: Sequence[Mapping[str, Any]],
    uniform: Sequence[Mapping[str, Any]] = (),
) -> str:
    """Return an SVG of the change of mean accuracy against float32, in points, with 95 % intervals.

    Of `points`, the front of size, those with `accuracy` are drawn, the `chosen` one in another colour; beside them
    `uniform`, the candidates with all tables at one level. `shapes`, the front of latency, are a second panel.

    Raises:
        MissingDependency: matplotlib is not installed.
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingDependency("matplotlib", "bench") from error
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(4.2 * (2 if shapes else 1), 3), layout="constrained")
        panels = figure.subplots(1, 2 if shapes else 1, squeeze=False)[0]
        judged = [point for point in points if "accuracy" in point]
        _draw(panels[0], judged, "bytes", 1e-6, _BLUE, "o-", "found")
        _draw(
            panels[0],
            [p for p in points[chosen : chosen + 1] if "accuracy" in p],
            "bytes",
            1e-6,
            _ORANGE,
            "o",
            "chosen",
        )
        _draw(panels[0], uniform, "bytes", 1e-6, _GREY, "o", "one level for all tables", markerfacecolor="none")
        panels[0].set_xlabel("bundle, MB")
        panels[0].set_ylabel("change of mean accuracy, points")
        panels[0].legend(frameon=False)
        if shapes:
            _draw(panels[1], sorted(shapes, key=lambda s: s["latency_us"]), "latency_us", 1, _BLUE, "o-", "shapes")
            panels[1].set_xlabel("text to all labels, us (accuracy in float32)")
        out = io.StringIO()
        figure.savefig(out, format="svg", metadata={"Date": None, "Creator": None})
    return out.getvalue()


def _draw(
    axes: Any,
    found: Sequence[Mapping[str, Any]],
    key: str,
    unit: float,
    colour: str,
    mark: str,
    label: str,
    **more: Any,
) -> None:
    if not found:
        return
    x = [unit * each[key] for each in found]
    y = [-each["accuracy"]["mean_drop"] for each in found]
    ends = [each["accuracy"]["ci95"] for each in found]
    error = [
        [high + at for (_, high), at in zip(ends, y, strict=True)],
        [-low - at for (low, _), at in zip(ends, y, strict=True)],
    ]
    axes.errorbar(x, y, yerr=error, color=colour, fmt=mark, linewidth=1.2, markersize=5, label=label, **more)
