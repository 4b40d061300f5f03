"""What a report says, as sections of tables and lines: the page and its Markdown are two spellings of these."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .facts import Record, Section, Table, alive, facts, machine_of

__all__ = ["claim", "sections"]


def claim(record: Record) -> str:
    """Return the record's first subject in one line: size, latency, accuracy, machine."""
    name, subject = next(iter(record["subjects"].items()))
    if "failed" in subject:
        return f"{name} failed: {subject['failed']}"
    single = subject["single_stream"]
    artifact = subject["about"].get("artifact", {})
    size = f" ({artifact['recipe']}, {artifact['bytes'] / 1e6:.1f} MB)" if "recipe" in artifact else ""
    length = subject["by_length"]
    texts = f"texts of {length['mean']:.0f} {length['unit']}" if "mean" in length else "the texts"
    tail = single["percentiles"]["p99"]
    slow = f", 99 % within {_us(tail['upper_us'])}" if "upper_us" in tail else ""
    best = [
        f"{100 * entry['accuracy']:.1f} % right on {task} (n = {entry['n']:,})"
        for task, entry in subject.get("accuracy", {}).items()
        if isinstance(entry, Mapping) and "accuracy" in entry
    ]
    right = f"; {', '.join(best[:2])}" if best else ""
    return f"{name}{size} answers {texts} in {_us(single['p50_us'])} (median{slow}), on {machine_of(record)}{right}."


def sections(record: Record) -> list[Section]:
    """Return a record's sections, in reading order."""
    found = [_summary(record), _warnings(record), _latency(record), _stages(record), _throughput(record)]
    found += [_server(record), _loadgen(record), _start_and_memory(record), _energy(record), _accuracy(record)]
    found += [_stability(record), *facts(record)]
    return [section for section in found if section is not None]


def _summary(record: Record) -> Section:
    rows: list[tuple[str, ...]] = []
    for name, subject in record["subjects"].items():
        if "failed" in subject:
            rows.append((name, "failed", "", "", "", ""))
            continue
        single, artifact = subject["single_stream"], subject["about"].get("artifact", {})
        best = max((row["texts_per_s"] for row in _list(subject["offline"])), default=None)
        rows.append(
            (
                name,
                _us(single["p50_us"]),
                _percentile(single["percentiles"]["p99"]),
                "not measured" if best is None else f"{best:,.0f}",
                _mib(subject["memory"], "after", "peak_mib"),
                f"{artifact['bytes'] / 1e6:.1f} MB" if "bytes" in artifact else "none",
            )
        )
    head: tuple[str, ...] = ("Subject", "median", "99 % within", "texts/s, best", "peak memory", "artifact")
    tables = [Table(caption="One text at a time, text in, answer out", head=head, rows=tuple(rows))]
    if record["ratios"]:
        shown = []
        for ratio in record["ratios"]:
            value = _times(ratio["median"]) if "median" in ratio else ratio["unavailable"]
            ends = ratio.get("ci95")
            interval = f"{_times(ends[0])} - {_times(ends[1])}" if ends else "too few pairs"
            shown.append((f"{ratio['of']} / {ratio['to']}", value, interval, str(ratio["pairs"])))
        columns = ("Ratio of times", "median", "95 % interval", "paired slices")
        caption = "Compared in alternating slices on the same texts, each subject in its own process"
        tables.append(Table(caption=caption, head=columns, rows=tuple(shown)))
    return Section(title="At a glance", tables=tuple(tables), figures=("pareto", "ratios"))


def _warnings(record: Record) -> Section:
    lines = tuple(f"{entry['about']}: {entry['text']}" for entry in record["warnings"])
    return Section(title="Warnings", lines=lines or ("None: no noise, no throttling, no drift was seen.",))


def _latency(record: Record) -> Section:
    rows = []
    for name, subject in alive(record).items():
        for scenario, label in (("single_stream", "SingleStream"), ("multi_stream", "MultiStream, 8 a query")):
            found = subject[scenario].get("percentiles")
            if found:
                calls = subject[scenario].get("calls", subject[scenario].get("queries"))
                cells = [_percentile(found[key]) for key in ("p50", "p90", "p99", "p99.9")]
                rows.append((f"{name}, {label}", f"{calls:,}", *cells))
    table = Table(
        caption="Latency; each is the value below which the share lies with 99 % confidence",
        head=("Subject, scenario", "queries", "50 %", "90 %", "99 %", "99.9 %"),
        rows=tuple(rows),
    )
    lines = ("A percentile that so few queries cannot support is not given.",)
    return Section(title="Latency", lines=lines, tables=(table,), figures=("ecdf", "length"))


def _stages(record: Record) -> Section | None:
    rows = []
    labels = {"end_to_end": "end to end", "tokenize": "tokenize", "engine": "engine"}
    for name, subject in alive(record).items():
        stages = subject["stages"]
        if len(stages) < 2 or "unavailable" in stages:
            continue
        for stage, entry in stages.items():
            ends = entry["ci95"]
            interval = f"{ends[0]:.1f} - {ends[1]:.1f} us" if ends else "too few calls"
            rows.append((f"{name}, {labels.get(stage, stage)}", _us(entry["p50_us"]), interval, f"{entry['calls']:,}"))
    if not rows:
        return None
    table = Table(
        caption="Three boundaries, timed in turns on the same texts",
        rows=tuple(rows),
        head=("Subject, boundary", "median", "95 % interval", "calls"),
    )
    line = "End to end is what a user pays; what tokenize and engine leave of it is checks, framing and reading labels."
    return Section(title="Where the time goes", lines=(line,), tables=(table,), figures=("stages",))


def _throughput(record: Record) -> Section:
    rows = tuple(
        (
            name,
            str(row["batch"]),
            str(row["threads"]),
            f"{row['texts_per_s']:,.0f}",
            f"{row['min']:,.0f} - {row['max']:,.0f}",
        )
        for name, subject in alive(record).items()
        for row in _list(subject["offline"])
    )
    table = Table(
        caption="Offline: texts a second",
        head=("Subject", "batch", "callers", "median of 3", "least - most"),
        rows=rows,
    )
    line = "Callers are threads of one process that share the loaded subject."
    return Section(title="Throughput", lines=(line,), tables=(table,), figures=("throughput",))


def _server(record: Record) -> Section | None:
    rows: list[tuple[str, ...]] = []
    for name, subject in alive(record).items():
        server = subject["server"]
        for load in server.get("loads", ()):
            tail = _percentile(load["percentiles"]["p99"])
            met = "too few" if isinstance(load["bound_met"], Mapping) else "yes" if load["bound_met"] else "no"
            rows.append(
                (
                    name,
                    f"{100 * load['load']:.0f} %",
                    f"{load['offered_per_s']:,.0f}",
                    _percentile(load["percentiles"]["p50"]),
                    tail,
                    f"{server['bound_ms']:.3f} ms: {met}",
                )
            )
    if not rows:
        return None
    head = ("Subject", "load", "texts/s offered", "50 %", "99 %", "99 % within the bound")
    table = Table(caption="Server: texts arrive at random (Poisson); waiting counts", head=head, rows=tuple(rows))
    line = "Load is the share of the rate that back-to-back calls reach. The bound is ten times the median."
    return Section(title="Under load", lines=(line,), tables=(table,), figures=("server",))


def _loadgen(record: Record) -> Section | None:
    rows = []
    for name, subject in alive(record).items():
        if "unavailable" in subject["loadgen"]:
            continue
        for scenario, found in subject["loadgen"].items():
            cells = [_us(found[key]) if key in found else "" for key in ("p50_us", "p90_us", "p99_us")]
            rate = f"{found['texts_per_s']:,.0f}" if "texts_per_s" in found else ""
            rows.append(
                (f"{name}, {scenario}", f"{found.get('queries', 0):,}", *cells, rate, str(found.get("validity", "")))
            )
    if not rows:
        return None
    head = ("Subject, scenario", "queries", "50 %", "90 %", "99 %", "texts/s", "LoadGen says")
    harness = record["harness"]
    cost = harness["loadgen"].get("p50_us")
    own = f"The null subject: {harness['own_loop']['p50_us']:.2f} us a query in the own loop"
    lines = [f"{own}, {cost:.2f} us in LoadGen." if cost is not None else f"{own}."]
    lines.append("INVALID is LoadGen's word for a run that is too short, or outside the bound, for an official result.")
    return Section(
        title="MLPerf LoadGen's second opinion",
        lines=tuple(lines),
        tables=(Table(caption="The same scenarios, driven by LoadGen", head=head, rows=tuple(rows)),),
    )


def _start_and_memory(record: Record) -> Section:
    rows = []
    for name, subject in alive(record).items():
        cold, memory = subject["cold_start"], subject["memory"]
        start = f"{cold['wall_s']:.2f} s, {cold['peak_rss_mib']:.0f} MiB" if "wall_s" in cold else "not measured"
        cells = (_mib(memory, "loaded", key) for key in ("resident_mib", "proportional_mib"))
        size = subject.get("install", {}).get("bytes")
        packages = "not measured" if size is None else f"{size / 1e6:,.0f} MB"
        rows.append((name, start, f"{subject['load_ms']:.0f} ms", *cells, _mib(memory, "after", "peak_mib"), packages))
    head = (
        "Subject",
        "fresh process to first answer, peak",
        "load",
        "resident",
        "proportional",
        "peak, at the end",
        "packages on disk",
    )
    table = Table(
        caption="Cold start (page cache warm), memory of the subject's process, and what it needs installed",
        head=head,
        rows=tuple(rows),
    )
    harness = record["harness"]["memory"]["resident_mib"]
    own = f"Of the memory {harness:.0f} MiB are Python, NumPy and the harness." if isinstance(harness, float) else ""
    line = f"{own} The peak includes the batches, the labelled rows and a second engine for the boundaries.".strip()
    return Section(title="Cold start and memory", lines=(line,), tables=(table,))


def _energy(record: Record) -> Section:
    energy, idle = record["sensors"]["energy_j"], record["idle"]["energy_j"]
    if "unavailable" in energy:
        return Section(title="Energy", lines=(f"Not measured: {energy['unavailable']}.",))
    calls = sum(subject["single_stream"]["calls"] for subject in alive(record).values())
    base = f", {idle['mean_w']:.2f} W before it" if "mean_w" in idle else ""
    lines = [f"{energy['mean_w']:.2f} W of {energy['of']} while single stream ran{base}."]
    if len(record["subjects"]) == 1 and calls:
        lines.append(
            f"That is {1e3 * energy['joules'] / calls:.3f} mJ a text, everything else on this machine included."
        )
    return Section(title="Energy", lines=tuple(lines))


def _accuracy(record: Record) -> Section:
    rows, lines = [], []
    for name, subject in alive(record).items():
        found = subject["accuracy"]
        if "unavailable" in found:
            lines.append(f"{name}: not measured, {found['unavailable']}.")
            continue
        for task, entry in found.items():
            if "accuracy" not in entry:
                lines.append(f"{name}, {task}: not measured, {entry['unavailable']}.")
                continue
            low, high = (100 * x for x in entry["ci95"])
            rows.append(
                (
                    f"{name}, {task}",
                    f"{100 * entry['accuracy']:.1f} %",
                    f"{low:.1f} - {high:.1f} %",
                    f"{entry['n']:,}",
                    entry["file"],
                )
            )
    head = ("Subject, task", "right", "95 % interval", "n", "rows")
    tables = (
        (Table(caption="Accuracy of the very artifact that was timed", head=head, rows=tuple(rows)),) if rows else ()
    )
    return Section(title="Accuracy", lines=tuple(lines), tables=tables)


def _stability(record: Record) -> Section:
    rows = []
    for name, subject in alive(record).items():
        single = subject["single_stream"]
        minutes = single["minutes"]
        drift = f"{minutes['ratio']:.3f}" if "ratio" in minutes else "run under 120 s"
        spread = "one repeat" if single["variation"] is None else f"{100 * single['variation']:.1f} %"
        medians = " / ".join(f"{value:.1f}" for value in single["repeats_p50_us"])
        rows.append((name, medians, spread, drift, f"{single['cpu_us']:.1f} us", f"{single['involuntary_switches']:,}"))
    head = (
        "Subject",
        "medians of the repeats, us",
        "variation",
        "last / first minute",
        "CPU time a text",
        "times put aside",
    )
    table = Table(caption="The repeats", head=head, rows=tuple(rows))
    return Section(title="Stability", tables=(table,), figures=("stability",))


def _list(value: Any) -> Sequence[Mapping[str, Any]]:
    return value if isinstance(value, list) else ()


def _us(value: float) -> str:
    if value >= 1e6:
        return f"{value / 1e6:,.2f} s"
    if value >= 1e4:
        return f"{value / 1e3:,.1f} ms"
    return f"{value:,.0f} us" if value >= 100 else f"{value:.1f} us"


def _times(value: float) -> str:
    return f"{value:.3f}" if value < 10 else f"{value:,.1f}"


def _percentile(entry: Mapping[str, Any]) -> str:
    return _us(entry["upper_us"]) if "upper_us" in entry else "too few"


def _mib(memory: Mapping[str, Any], moment: str, key: str) -> str:
    value = memory.get(moment, {}).get(key)
    return f"{value:.0f} MiB" if isinstance(value, int | float) else "not measured"
