"""The figures of a record, by name. Each function draws one and returns its caption, or None for too little to show."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

from .canvas import INK, PAPER, WIDE, Axes, colour, drawn, from_zero, legend, logarithmic, pen
from .table import Record, alive, find, shown

__all__ = ["figures"]

_FEWEST = 20  # calls of a class of lengths that is drawn


def figures(record: Record, prefix: str) -> dict[str, tuple[str, str]]:
    """Return caption and SVG element of the record's figures, by name; one with nothing to show is left out.

    `prefix` begins every id in the SVG, so that several drawings fit in one page.
    """
    found = {name: drawn(record, draw, f"{prefix}-{name}") for name, draw in _DRAWINGS.items()}
    return {name: figure for name, figure in found.items() if figure is not None}


def _values(record: Record, path: str) -> Iterator[tuple[int, str, Any]]:
    """Yield number, name and value of the subjects whose value at `path` was measured."""
    for i, (name, subject) in enumerate(alive(record).items()):
        value = find(subject, path)
        if value and not (isinstance(value, dict) and "unavailable" in value):
            yield i, name, value


def _ecdf(record: Record, axes: Axes) -> str:
    for i, name, points in _values(record, "single_stream/ecdf"):
        shares, micros = zip(*[point for point in points if point[0] <= 0.995], strict=True)
        axes.plot(micros, [100 * share for share in shares], label=name, **pen(i))
    axes.set(xlabel="latency of one text, us", ylabel="answered within, %", ylim=(0, 100))
    logarithmic(axes, "x")
    return "Distribution of latency (up to 99.5 %)"


def _length(record: Record, axes: Axes) -> str:
    unit = ""
    for i, name, found in _values(record, "by_length"):
        rows, unit = [row for row in found["classes"] if row["calls"] >= _FEWEST], found["unit"]
        if rows:
            x, p10, p50, p90 = ([row[key] for row in rows] for key in ("mean", "p10_us", "p50_us", "p90_us"))
            axes.plot(x, p50, label=name, **pen(i, marked=True))
            axes.fill_between(x, p10, p90, color=colour(i), alpha=0.15, linewidth=0)
    axes.set(xlabel=f"{unit} of the text", ylabel="latency, us")
    from_zero(axes)
    return "Latency by length: median, and 10 to 90 %"


def _stages(record: Record, axes: Axes) -> str:
    parts = ("tokenize", "engine", "the rest")
    rows = [(name, found) for _, name, found in _values(record, "stages") if {*parts[:2], "end_to_end"} <= set(found)]
    for y, (_, stages) in enumerate(rows):
        tokenize, engine, whole = (stages[key]["p50_us"] for key in (*parts[:2], "end_to_end"))
        edges = (0.0, tokenize, tokenize + engine, max(whole, tokenize + engine))
        for i, (left, right) in enumerate(pairwise(edges)):
            label = parts[i] if y == 0 else None
            axes.barh(y, right - left, left=left, color=colour(i), edgecolor=PAPER, height=0.5, label=label)
    _name_rows(axes, [name for name, _ in rows])
    axes.set(xlabel="median, us")
    axes.grid(axis="y", visible=False)
    legend(axes, 3)
    return "Where the time of one text goes"


def _throughput(record: Record, axes: Axes) -> str | None:
    from matplotlib.ticker import NullLocator

    ticks, most = set(), 0
    for i, name, rows in _values(record, "offline"):
        one = [row for row in rows if row["threads"] == 1]
        x, y, low, high = ([row[key] for row in one] for key in ("batch", "texts_per_s", "min", "max"))
        spread = [[b - a for a, b in zip(*ends, strict=True)] for ends in ((low, y), (y, high))]
        label = f"{name}, 1 caller" if len(rows) > len(one) else name
        axes.errorbar(x, y, yerr=spread, capsize=3, label=label, **pen(i, marked=True))
        for row in (row for row in rows if row["threads"] > 1):
            star = {"color": colour(i), "marker": "*", "markersize": 10, "linestyle": "none"}
            axes.plot(row["batch"], row["texts_per_s"], label=f"{name}, {row['threads']} callers", **star)
        ticks |= {row["batch"] for row in rows}
        most = max(most, len(rows))
    if most < 2:
        return None
    axes.set(xscale="log", xlabel="batch", ylabel="texts a second", ylim=(0, None))
    axes.set_xticks(sorted(ticks), [str(tick) for tick in sorted(ticks)])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter("{x:,.0f}")
    return "Throughput by batch and callers (bars: least and most of 3)"


def _server(record: Record, axes: Axes) -> str | None:
    for i, name, server in _values(record, "server"):
        for key, look in (("p50", {}), ("p99", {"alpha": 0.6, "markerfacecolor": PAPER})):
            found = [(100 * load["load"], find(load, f"percentiles/{key}/value_us")) for load in server["loads"]]
            if points := [point for point in found if point[1] is not None]:
                axes.plot(*zip(*points, strict=True), label=f"{name}, {key}", **pen(i, marked=True) | look)
        axes.axhline(1e3 * server["bound_ms"], color=colour(i), linewidth=1, linestyle=":")
    if not axes.get_legend_handles_labels()[1]:
        return None
    axes.set(xlabel="load, % of back-to-back calls", ylabel="latency, us")
    logarithmic(axes, "y")
    return "Latency under load (dotted: the bound)"


def _stability(record: Record, axes: Axes) -> str:
    for i, name, points in _values(record, "single_stream/over_time"):
        axes.plot([p["s"] for p in points], [p["p50_us"] for p in points], label=name, **pen(i) | {"linewidth": 1.2})
    axes.set(xlabel="seconds since the start", ylabel="median of a slice, us")
    from_zero(axes)
    return "Latency over time"


def _workload(record: Record, axes: Axes) -> str:
    rows = record["workload"]["characters"]["histogram"]
    axes.bar(range(len(rows)), [row["texts"] for row in rows], color=colour(0), width=0.9)
    axes.set_xticks(range(len(rows)), [f"{row['low']}-{row['high'] - 1}" for row in rows], rotation=45, ha="right")
    axes.set(xlabel="characters", ylabel="texts")
    axes.grid(axis="x", visible=False)
    return "Lengths of the texts"


def _pareto(record: Record, axes: Axes) -> str | None:
    for i, name, accuracy in _values(record, "accuracy"):
        subject = record["subjects"][name]
        found = [entry["accuracy"] for entry in accuracy.values() if "accuracy" in entry]
        size = find(subject, "about/artifact/bytes")
        if found and size:
            look = {"s": 30 + 4e-6 * size, "alpha": 0.7, "color": colour(i), "marker": pen(i, marked=True)["marker"]}
            mean, label = 100 * sum(found) / len(found), f"{name}, {shown(size, 'bytes')}"
            axes.scatter(subject["single_stream"]["p50_us"], mean, label=label, **look)
    if len(axes.collections) < 2:
        return None
    axes.set(xlabel="median latency, us", ylabel="mean accuracy of the tasks, %")
    axes.margins(0.25)
    logarithmic(axes, "x")
    return "Accuracy, latency and size (area)"


def _ratios(record: Record, axes: Axes) -> str | None:
    rows = [ratio for ratio in record["ratios"] if ratio.get("ci95") and ratio["to"] == record["ratios"][0]["to"]]
    if not rows:
        return None
    for y, ratio in enumerate(rows):
        reach = [[ratio["median"] - ratio["ci95"][0]], [ratio["ci95"][1] - ratio["median"]]]
        axes.errorbar(ratio["median"], y, xerr=reach, fmt="o", capsize=4, color=colour(0))
    axes.axvline(1, color=INK, linewidth=1)
    medians = [1.0, *(ratio["median"] for ratio in rows)]
    if max(medians) > WIDE * min(medians):
        logarithmic(axes, "x")
    _name_rows(axes, [ratio["of"] for ratio in rows])
    axes.set(xlabel=f"times the latency of {rows[0]['to']}")
    return "Paired ratios with 95 % intervals"


def _name_rows(axes: Axes, names: list[str]) -> None:
    """Write a name at every row, the first at the top."""
    axes.set(yticks=range(len(names)), yticklabels=names, ylim=(len(names) - 0.4, -0.6))


_DRAWINGS: dict[str, Callable[[Record, Axes], str | None]] = {
    "ecdf": _ecdf,
    "length": _length,
    "pareto": _pareto,
    "ratios": _ratios,
    "server": _server,
    "stability": _stability,
    "stages": _stages,
    "throughput": _throughput,
    "workload": _workload,
}
