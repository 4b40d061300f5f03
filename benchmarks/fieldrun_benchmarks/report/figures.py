"""The figures of a record, drawn by Matplotlib as SVG that follows the page's light or dark colours."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fieldrun.errors import MissingDependency

__all__ = ["Figure", "check_matplotlib", "figures"]

Record = Mapping[str, Any]
Axes = Any  # matplotlib's, which is imported only when something is drawn

# Drawn in colours that stand for the page's: each becomes a CSS variable, so that one drawing serves light and dark.
_INK, _GRID, _PAPER = "#010203", "#010204", "#010205"
_LINES = ("#010211", "#010212", "#010213", "#010214", "#010215", "#010216")
_VARIABLES = {_INK: "ink", _GRID: "rule", _PAPER: "paper"} | {colour: f"line{i}" for i, colour in enumerate(_LINES)}
_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",
    "svg.hashsalt": "fieldrun",
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.edgecolor": _INK,
    "axes.labelcolor": _INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": _GRID,
    "grid.linewidth": 0.8,
    "text.color": _INK,
    "xtick.color": _INK,
    "ytick.color": _INK,
    "figure.facecolor": "none",
    "legend.frameon": False,
    "lines.linewidth": 1.8,
}
_FEWEST = 20  # calls of a class of lengths that is drawn
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


def figures(record: Record, prefix: str) -> dict[str, Figure]:
    """Return the record's figures by name; one that has nothing to show is left out.

    Args:
        record: of kind `bench`.
        prefix: of every id in the SVG, so that several drawings live in one page.
    """
    check_matplotlib()
    found = {}
    for name, draw in _DRAWINGS.items():
        made = _drawn(record, draw, f"{prefix}-{name}")
        if made is not None:
            found[name] = made
    return found


def _drawn(record: Record, draw: Callable[[Record, Axes], tuple[str, str] | None], name: str) -> Figure | None:
    import matplotlib
    from matplotlib.figure import Figure as Canvas

    with matplotlib.rc_context(_STYLE):
        canvas = Canvas(figsize=(4.8, 3.1), layout="constrained")
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


def _alive(record: Record) -> list[tuple[int, str, Any]]:
    found = [(name, subject) for name, subject in record["subjects"].items() if "failed" not in subject]
    return [(i, name, subject) for i, (name, subject) in enumerate(found)]


def _pen(i: int, *, marked: bool = False) -> dict[str, Any]:
    style: dict[str, Any] = {"color": _LINES[i % len(_LINES)], "linestyle": _DASHES[i % len(_DASHES)]}
    return style | ({"marker": _MARKS[i % len(_MARKS)], "markersize": 5} if marked else {})


def _plain(axis: Any) -> None:
    """Write 20, 50, 100 along a logarithmic axis, not powers; only 10, 100 where it is long."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    low, high = axis.get_view_interval()
    subs = (1.0, 2.0, 5.0) if high < 50 * low else (1.0,)
    axis.set_major_locator(LogLocator(base=10, subs=subs, numticks=12))
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else f"{value:g}"))
    axis.set_minor_formatter(NullFormatter())


def _legend(axes: Axes, count: int) -> None:
    if count > 1:
        axes.legend(fontsize=9)


def _below(axes: Axes, columns: int = 2) -> None:
    """Put the legend under the axes, where it covers nothing."""
    axes.figure.legend(*axes.get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=columns)


def _ecdf(record: Record, axes: Axes) -> tuple[str, str] | None:
    alive = _alive(record)
    if not alive:
        return None
    for i, name, subject in alive:
        shares, micros = zip(*[point for point in subject["single_stream"]["ecdf"] if point[0] <= 0.995], strict=True)
        axes.plot(micros, [100 * share for share in shares], label=name, **_pen(i))
    axes.set(xscale="log", xlabel="latency of one text, us", ylabel="answered within, %", ylim=(0, 100))
    _plain(axes.xaxis)
    _legend(axes, len(alive))
    said = "; ".join(f"{name}: half within {s['single_stream']['p50_us']:.0f} us" for _, name, s in alive)
    return "Distribution of latency (up to 99.5 %)", f"Share of texts answered within a time. {said}."


def _length(record: Record, axes: Axes) -> tuple[str, str] | None:
    drawn, said, unit = 0, [], "tokens"
    for i, name, subject in _alive(record):
        found = subject["by_length"]
        if "classes" not in found:
            continue
        rows, unit = [row for row in found["classes"] if row["calls"] >= _FEWEST], found["unit"]
        if not rows:
            continue
        x = [row["mean"] for row in rows]
        axes.plot(x, [row["p50_us"] for row in rows], label=name, **_pen(i, marked=True))
        axes.fill_between(
            x,
            [r["p10_us"] for r in rows],
            [r["p90_us"] for r in rows],
            color=_LINES[i % len(_LINES)],
            alpha=0.15,
            linewidth=0,
        )
        said.append(
            f"{name}: " + ", ".join(f"{row['p50_us']:.0f} us at {row['mean']:.0f}" for row in (rows[0], rows[-1]))
        )
        drawn += 1
    if not drawn:
        return None
    axes.set(xlabel=f"{unit} of the text", ylabel="latency, us", ylim=(0, None))
    _legend(axes, drawn)
    return "Latency by length: median, and 10 to 90 %", f"Median latency by length in {unit}. {'; '.join(said)}."


def _stages(record: Record, axes: Axes) -> tuple[str, str] | None:
    rows = [
        (name, subject["stages"])
        for _, name, subject in _alive(record)
        if {"tokenize", "engine", "end_to_end"} <= set(subject["stages"])
    ]
    if not rows:
        return None
    said = []
    for y, (name, stages) in enumerate(rows):
        whole, *parts = (stages[key]["p50_us"] for key in ("end_to_end", "tokenize", "engine"))
        left = 0.0
        for i, (label, value) in enumerate(
            zip(("tokenize", "engine", "the rest"), [*parts, max(0.0, whole - sum(parts))], strict=True)
        ):
            axes.barh(
                y, value, left=left, color=_LINES[i], edgecolor=_PAPER, height=0.5, label=label if y == 0 else None
            )
            left += value
        said.append(f"{name}: tokenize {parts[0]:.0f}, engine {parts[1]:.0f}, whole {whole:.0f} us")
    axes.set(
        yticks=range(len(rows)),
        yticklabels=[name for name, _ in rows],
        xlabel="median, us",
        ylim=(-0.6, len(rows) - 0.4),
    )
    axes.grid(axis="y", visible=False)
    _below(axes, 3)
    return "Where the time of one text goes", f"{'; '.join(said)}."


def _throughput(record: Record, axes: Axes) -> tuple[str, str] | None:
    drawn, said = 0, []
    for i, name, subject in _alive(record):
        rows = subject["offline"] if isinstance(subject["offline"], list) else []
        one = [row for row in rows if row["threads"] == 1]
        if not one:
            continue
        y = [row["texts_per_s"] for row in one]
        spread = [
            [v - row["min"] for v, row in zip(y, one, strict=True)],
            [row["max"] - v for v, row in zip(y, one, strict=True)],
        ]
        axes.errorbar(
            [row["batch"] for row in one],
            y,
            yerr=spread,
            capsize=3,
            label=f"{name}, 1 caller" if len(rows) > len(one) else name,
            **_pen(i, marked=True),
        )
        for row in (row for row in rows if row["threads"] > 1):
            axes.plot(
                row["batch"],
                row["texts_per_s"],
                color=_LINES[i % len(_LINES)],
                marker="*",
                markersize=10,
                linestyle="none",
                label=f"{name}, {row['threads']} callers",
            )
        said.append(
            f"{name}: {y[0]:,.0f} texts a second at batch {one[0]['batch']}, {y[-1]:,.0f} at {one[-1]['batch']}"
        )
        drawn += 1
    if not drawn:
        return None
    axes.set(xscale="log", xlabel="batch", ylabel="texts a second", ylim=(0, None))
    ticks = sorted(
        {row["batch"] for _, _, s in _alive(record) if isinstance(s["offline"], list) for row in s["offline"]}
    )
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(_nothing())
    _below(axes)
    return "Throughput by batch and callers (bars: least and most of 3)", f"Texts a second by batch. {'; '.join(said)}."


def _nothing() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _server(record: Record, axes: Axes) -> tuple[str, str] | None:
    drawn = 0
    for i, name, subject in _alive(record):
        loads = subject["server"].get("loads", [])
        for key, marked in (("p50", True), ("p99", False)):
            points = [
                (100 * load["load"], load["percentiles"][key]["value_us"])
                for load in loads
                if "value_us" in load["percentiles"][key]
            ]
            if points:
                pen = _pen(i, marked=True) | ({} if marked else {"alpha": 0.6, "markerfacecolor": _PAPER})
                axes.plot(*zip(*points, strict=True), label=f"{name}, {key}", **pen)
                drawn += 1
        if "bound_ms" in subject["server"]:
            axes.axhline(1e3 * subject["server"]["bound_ms"], color=_LINES[i % len(_LINES)], linewidth=1, linestyle=":")
    if not drawn:
        return None
    axes.set(yscale="log", xlabel="load, % of back-to-back calls", ylabel="latency, us")
    _plain(axes.yaxis)
    _below(axes)
    return (
        "Latency under load (dotted: the bound)",
        "Latency of randomly arriving texts by load; the table has the figures.",
    )


def _stability(record: Record, axes: Axes) -> tuple[str, str] | None:
    alive = _alive(record)
    if not alive:
        return None
    for i, name, subject in alive:
        points = subject["single_stream"]["over_time"]
        pen = _pen(i) | {"linewidth": 1.2}
        axes.plot([p["s"] for p in points], [p["p50_us"] for p in points], label=name, **pen)
    axes.set(xlabel="seconds since the start", ylabel="median of a slice, us", ylim=(0, None))
    _legend(axes, len(alive))
    said = "; ".join(
        f"{name}: repeats vary by {100 * (s['single_stream']['variation'] or 0):.1f} %" for _, name, s in alive
    )
    return "Latency over time", f"Medians of slices over the run. {said}."


def _workload(record: Record, axes: Axes) -> tuple[str, str] | None:
    rows = record["workload"]["characters"]["histogram"]
    axes.bar(range(len(rows)), [row["texts"] for row in rows], color=_LINES[0], width=0.9)
    axes.set_xticks(range(len(rows)), [f"{row['low']}-{row['high'] - 1}" for row in rows], rotation=45, ha="right")
    axes.set(xlabel="characters", ylabel="texts")
    axes.grid(axis="x", visible=False)
    top = max(rows, key=lambda row: row["texts"])
    return (
        "Lengths of the texts",
        f"Histogram of lengths; most, {top['texts']}, have {top['low']} to {top['high'] - 1} characters.",
    )


def _pareto(record: Record, axes: Axes) -> tuple[str, str] | None:
    points = []
    for i, name, subject in _alive(record):
        found = [entry for entry in subject["accuracy"].values() if isinstance(entry, Mapping) and "accuracy" in entry]
        size = subject["about"].get("artifact", {}).get("bytes")
        if found and size:
            mean = 100 * sum(entry["accuracy"] for entry in found) / len(found)
            points.append((i, name, subject["single_stream"]["p50_us"], mean, size / 1e6))
    if len(points) < 2:
        return None
    for i, name, micros, mean, size in points:
        axes.scatter(
            micros,
            mean,
            s=30 + 4 * size,
            color=_LINES[i % len(_LINES)],
            alpha=0.7,
            marker=_MARKS[i % len(_MARKS)],
            label=f"{name}, {size:.0f} MB",
        )
    axes.set(xscale="log", xlabel="median latency, us", ylabel="mean accuracy of the tasks, %")
    _plain(axes.xaxis)
    axes.margins(0.25)
    _below(axes)
    said = "; ".join(f"{name}: {micros:.0f} us, {mean:.1f} %, {size:.0f} MB" for _, name, micros, mean, size in points)
    return "Accuracy, latency and size (area)", said + "."


def _ratios(record: Record, axes: Axes) -> tuple[str, str] | None:
    rows = [ratio for ratio in record["ratios"] if ratio.get("ci95") and ratio["to"] == record["ratios"][0]["to"]]
    if not rows:
        return None
    for y, ratio in enumerate(rows):
        low, high = ratio["ci95"]
        axes.errorbar(
            ratio["median"],
            y,
            xerr=[[ratio["median"] - low], [high - ratio["median"]]],
            fmt="o",
            capsize=4,
            color=_LINES[0],
        )
    axes.axvline(1, color=_INK, linewidth=1)
    axes.set(
        yticks=range(len(rows)),
        yticklabels=[ratio["of"] for ratio in rows],
        ylim=(-0.6, len(rows) - 0.4),
        xlabel=f"times the latency of {rows[0]['to']}",
    )
    return "Paired ratios with 95 % intervals", "; ".join(f"{r['of']}: {r['median']:.2f} times" for r in rows) + "."


_DRAWINGS: dict[str, Callable[[Record, Axes], tuple[str, str] | None]] = {
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
