"""The figures of a record, by name."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from .canvas import (
    INK,
    LINES,
    PAPER,
    WIDE,
    Axes,
    Figure,
    Record,
    below,
    check_matplotlib,
    drawn,
    from_zero,
    legend,
    numbered,
    pen,
    plain,
)

__all__ = ["figures"]

_FEWEST = 20  # calls of a class of lengths that is drawn


def figures(record: Record, prefix: str) -> dict[str, Figure]:
    """Return the record's figures by name; one that has nothing to show is left out.

    Args:
        record: of kind `bench`.
        prefix: of every id in the SVG, so that several drawings live in one page.
    """
    check_matplotlib()
    found = {}
    for name, draw in _DRAWINGS.items():
        made = drawn(record, draw, f"{prefix}-{name}")
        if made is not None:
            found[name] = made
    return found


def _ecdf(record: Record, axes: Axes) -> tuple[str, str] | None:
    alive = numbered(record)
    if not alive:
        return None
    for i, name, subject in alive:
        shares, micros = zip(*[point for point in subject["single_stream"]["ecdf"] if point[0] <= 0.995], strict=True)
        axes.plot(micros, [100 * share for share in shares], label=name, **pen(i))
    axes.set(xscale="log", xlabel="latency of one text, us", ylabel="answered within, %", ylim=(0, 100))
    plain(axes.xaxis)
    legend(axes, len(alive))
    said = "; ".join(f"{name}: half within {s['single_stream']['p50_us']:.0f} us" for _, name, s in alive)
    return "Distribution of latency (up to 99.5 %)", f"Share of texts answered within a time. {said}."


def _length(record: Record, axes: Axes) -> tuple[str, str] | None:
    count, said, unit = 0, [], "tokens"
    for i, name, subject in numbered(record):
        found = subject["by_length"]
        if "classes" not in found:
            continue
        rows, unit = [row for row in found["classes"] if row["calls"] >= _FEWEST], found["unit"]
        if not rows:
            continue
        x = [row["mean"] for row in rows]
        axes.plot(x, [row["p50_us"] for row in rows], label=name, **pen(i, marked=True))
        axes.fill_between(
            x,
            [r["p10_us"] for r in rows],
            [r["p90_us"] for r in rows],
            color=LINES[i % len(LINES)],
            alpha=0.15,
            linewidth=0,
        )
        said.append(
            f"{name}: " + ", ".join(f"{row['p50_us']:.0f} us at {row['mean']:.0f}" for row in (rows[0], rows[-1]))
        )
        count += 1
    if not count:
        return None
    axes.set(xlabel=f"{unit} of the text", ylabel="latency, us")
    from_zero(axes, [row["p50_us"] for _, _, s in numbered(record) for row in s["by_length"].get("classes", ())])
    legend(axes, count)
    return "Latency by length: median, and 10 to 90 %", f"Median latency by length in {unit}. {'; '.join(said)}."


def _stages(record: Record, axes: Axes) -> tuple[str, str] | None:
    rows = [
        (name, subject["stages"])
        for _, name, subject in numbered(record)
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
            axes.barh(y, value, left=left, color=LINES[i], edgecolor=PAPER, height=0.5, label=label if y == 0 else None)
            left += value
        said.append(f"{name}: tokenize {parts[0]:.0f}, engine {parts[1]:.0f}, whole {whole:.0f} us")
    axes.set(
        yticks=range(len(rows)),
        yticklabels=[name for name, _ in rows],
        xlabel="median, us",
        ylim=(len(rows) - 0.4, -0.6),
    )
    axes.grid(axis="y", visible=False)
    below(axes, 3)
    return "Where the time of one text goes", f"{'; '.join(said)}."


def _throughput(record: Record, axes: Axes) -> tuple[str, str] | None:
    count, said = 0, []
    if not any(len(s["offline"]) > 1 for _, _, s in numbered(record)):
        return None
    for i, name, subject in numbered(record):
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
            **pen(i, marked=True),
        )
        for row in (row for row in rows if row["threads"] > 1):
            axes.plot(
                row["batch"],
                row["texts_per_s"],
                color=LINES[i % len(LINES)],
                marker="*",
                markersize=10,
                linestyle="none",
                label=f"{name}, {row['threads']} callers",
            )
        said.append(
            f"{name}: {y[0]:,.0f} texts a second at batch {one[0]['batch']}, {y[-1]:,.0f} at {one[-1]['batch']}"
        )
        count += 1
    if not count:
        return None
    axes.set(xscale="log", xlabel="batch", ylabel="texts a second", ylim=(0, None))
    ticks = sorted(
        {row["batch"] for _, _, s in numbered(record) if isinstance(s["offline"], list) for row in s["offline"]}
    )
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.xaxis.set_minor_locator(_nothing())
    axes.yaxis.set_major_formatter("{x:,.0f}")
    below(axes)
    return "Throughput by batch and callers (bars: least and most of 3)", f"Texts a second by batch. {'; '.join(said)}."


def _nothing() -> Any:
    from matplotlib.ticker import NullLocator

    return NullLocator()


def _server(record: Record, axes: Axes) -> tuple[str, str] | None:
    count = 0
    for i, name, subject in numbered(record):
        loads = subject["server"].get("loads", [])
        for key, marked in (("p50", True), ("p99", False)):
            points = [
                (100 * load["load"], load["percentiles"][key]["value_us"])
                for load in loads
                if "value_us" in load["percentiles"][key]
            ]
            if points:
                style = pen(i, marked=True) | ({} if marked else {"alpha": 0.6, "markerfacecolor": PAPER})
                axes.plot(*zip(*points, strict=True), label=f"{name}, {key}", **style)
                count += 1
        if "bound_ms" in subject["server"]:
            axes.axhline(1e3 * subject["server"]["bound_ms"], color=LINES[i % len(LINES)], linewidth=1, linestyle=":")
    if not count:
        return None
    axes.set(yscale="log", xlabel="load, % of back-to-back calls", ylabel="latency, us")
    plain(axes.yaxis)
    below(axes)
    return (
        "Latency under load (dotted: the bound)",
        "Latency of randomly arriving texts by load; the table has the figures.",
    )


def _stability(record: Record, axes: Axes) -> tuple[str, str] | None:
    alive = numbered(record)
    if not alive:
        return None
    for i, name, subject in alive:
        points = subject["single_stream"]["over_time"]
        style = pen(i) | {"linewidth": 1.2}
        axes.plot([p["s"] for p in points], [p["p50_us"] for p in points], label=name, **style)
    axes.set(xlabel="seconds since the start", ylabel="median of a slice, us")
    from_zero(axes, [p["p50_us"] for _, _, s in alive for p in s["single_stream"]["over_time"]])
    legend(axes, len(alive))
    said = "; ".join(
        f"{name}: repeats vary by {100 * (s['single_stream']['variation'] or 0):.1f} %" for _, name, s in alive
    )
    return "Latency over time", f"Medians of slices over the run. {said}."


def _workload(record: Record, axes: Axes) -> tuple[str, str] | None:
    rows = record["workload"]["characters"]["histogram"]
    axes.bar(range(len(rows)), [row["texts"] for row in rows], color=LINES[0], width=0.9)
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
    for i, name, subject in numbered(record):
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
            color=LINES[i % len(LINES)],
            alpha=0.7,
            marker=pen(i, marked=True)["marker"],
            label=f"{name}, {size:.0f} MB",
        )
    axes.set(xscale="log", xlabel="median latency, us", ylabel="mean accuracy of the tasks, %")
    plain(axes.xaxis)
    axes.margins(0.25)
    below(axes)
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
            color=LINES[0],
        )
    axes.axvline(1, color=INK, linewidth=1)
    medians = [1.0, *(ratio["median"] for ratio in rows)]
    if max(medians) > WIDE * min(medians):
        axes.set(xscale="log")
        plain(axes.xaxis)
    axes.set(
        yticks=range(len(rows)),
        yticklabels=[ratio["of"] for ratio in rows],
        ylim=(len(rows) - 0.4, -0.6),
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
