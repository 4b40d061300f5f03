"""Accuracy against latency of fieldrun and its peers, one panel a set, from the record `peers.json`."""

from __future__ import annotations

from typing import Any

from fieldrun_benchmarks.report.canvas import INK, RULE, colour

from ..columns import Record, micros, percent
from ..drawing import style, svg, ticks
from .tables import OURS, TITLES, side_by_side

__all__ = ["accuracy_latency"]

_ASIDE = {
    OURS: (9, 6, "left"),
    "wordllama": (-8, -3, "right"),
    "MiniLM-L6 int8": (-8, -12, "right"),
    "MiniLM-L6 fp32": (0, -34, "center"),
    "gte-small int8": (-8, 0, "right"),
    "gte-small fp32": (0, 22, "center"),
}
"""Where a name stands beside its point, in points, where it is not to the right."""


def accuracy_latency(record: Record) -> str:
    """Return the drawing: median latency on a logarithmic axis, accuracy with its 95 % interval, one panel a set."""
    from matplotlib.figure import Figure

    found = side_by_side(record)
    said = []
    with style():
        figure = Figure(figsize=(8.4, 3.9), layout="constrained")
        tasks = list(found[OURS])
        panels = figure.subplots(1, len(tasks), sharey=True)
        for axes, task in zip(panels, tasks, strict=True):
            for name, rows in found.items():
                said.append(_point(axes, name, rows[task], task))
            axes.set(xscale="log", xlim=(3, 3e4), title=TITLES.get(task, task), xlabel="text in, label out: median, µs")
            ticks(axes.xaxis, [10, 100, 1000, 10000])
        panels[0].set_ylabel("accuracy, %")
        panels[0].margins(y=0.1)
    return svg(figure, f"Accuracy against latency, one thread. {'; '.join(said)}.")


def _point(axes: Any, name: str, row: Record, task: str) -> str:
    """Draw one subject, and return what the point says."""
    x, entry = row["single_stream"]["percentiles"]["p50"]["value_us"], row["accuracy"][task]
    y, low, high = (100 * value for value in (entry["accuracy"], *entry["ci95"]))
    ours, dx, dy, side = name == OURS, *_ASIDE.get(name, (8, -3, "left"))
    pen = colour(0 if ours else 3)
    axes.errorbar(x, y, [[y - low], [high - y]], color=pen if ours else RULE, linewidth=1.5, zorder=2)
    axes.scatter([x], [y], s=90 if ours else 32, color=pen, zorder=3)
    axes.annotate(
        name.replace(OURS, "fieldrun"),
        (x, y),
        (dx, dy),
        textcoords="offset points",
        ha=side,
        color=pen if ours else INK,
        fontsize=12 if ours else 9,
        fontweight="bold" if ours else "normal",
    )
    return f"{name.replace(OURS, 'fieldrun')}, {TITLES.get(task, task)}: {percent(entry['accuracy'])} %, {micros(x)}"
