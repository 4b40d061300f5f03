"""What a report says about a record, as sections of tables and lines: page and Markdown are two spellings of these."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from .facts import facts
from .metrics import machine_of
from .table import Cell, Record, Section, alive, at, ends, find, table
from .values import shown

__all__ = ["claim", "sections"]


def claim(record: Record) -> str:
    """Return the record's first subject in one sentence (size, latency, machine, accuracy), and its warnings."""
    name, subject = next(iter(record["subjects"].items()))
    if "failed" in subject:
        return f"{name} failed: {subject['failed']}"
    single, length = subject["single_stream"], subject["by_length"]
    artifact = subject["about"].get("artifact", {})
    size = f" ({artifact['recipe']}, {shown(artifact['bytes'], 'bytes')})" if "recipe" in artifact else ""
    texts = f"texts of {length['mean']:.0f} {length['unit']}" if "mean" in length else "the texts"
    p99 = find(single, "percentiles/p99/value_us")
    slow = "" if p99 is None else f", 99 % within {shown(p99, 'us')}"
    right = [
        f"{shown(entry['accuracy'], 'share')} right on {task} (n = {entry['n']:,})"
        for task, entry in subject["accuracy"].items()
        if find(entry, "accuracy") is not None
    ]
    answered = (
        f"{name}{size} answers {texts} in {shown(single['p50_us'], 'us')} (median{slow}), on {machine_of(record)}"
    )
    return f"{'; '.join([answered, *right[:2]])}.{_caution(record)}"


def _caution(record: Record) -> str:
    found = [f"{entry['about']}: {entry['text']}" for entry in record["warnings"]]
    more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
    return f" Warning: {found[0]}{more}." if found else ""


def sections(record: Record) -> list[Section]:
    """Return a record's sections, in reading order; one without rows is left out."""
    made = (
        _summary,
        _warnings,
        _latency,
        _stages,
        _throughput,
        _server,
        _loadgen,
        _memory,
        _energy,
        _accuracy,
        _stability,
    )
    found = [make(record) for make in made]
    return [section for section in [*found, *facts(record)] if section is not None]


_NAME: Cell = at("name")


def _rows(record: Record) -> list[dict[str, Any]]:
    return [{"name": name, **subject} for name, subject in alive(record).items()]


def _inner(record: Record, key: str) -> Iterator[dict[str, Any]]:
    """Yield the parts of a value of each subject that were measured, named after subject and part."""
    for name, subject in alive(record).items():
        found = subject[key]
        parts = enumerate(found) if isinstance(found, list) else found.items()
        for part, entry in parts:
            if isinstance(entry, Mapping) and "unavailable" not in entry:
                yield {"subject": name, "part": part, "name": f"{name}, {part}", **entry}


def _unless_failed(cell: Cell, failed: str = "") -> Cell:
    return lambda row: failed if "failed" in row else cell(row)


def _best(row: Mapping[str, Any]) -> str:
    rates = [entry["texts_per_s"] for entry in row["offline"]] if isinstance(row["offline"], list) else []
    return shown(max(rates, default=None), "texts/s")


_SUMMARY = {
    "Subject": _NAME,
    "median": _unless_failed(at("single_stream/p50_us", "us"), "failed"),
    "99 % within": _unless_failed(at("single_stream/percentiles/p99/value_us", "us", "too few")),
    "throughput, best": _unless_failed(_best),
    "peak memory": _unless_failed(at("memory/after/peak_mib", "MiB")),
    "artifact": _unless_failed(at("about/artifact/bytes", "bytes", "none")),
}
_RATIOS = {
    "Ratio of times": lambda row: f"{row['of']} / {row['to']}",
    "median": lambda row: shown(row["median"], "ratio") if "median" in row else str(row["unavailable"]),
    "95 % interval": ends("ci95", "ratio", "too few pairs"),
    "paired slices": at("pairs", "count"),
}


def _summary(record: Record) -> Section:
    rows = [{"name": name, **subject} for name, subject in record["subjects"].items()]
    tables = [table("One text at a time, text in, answer out", _SUMMARY, rows)]
    if record["ratios"]:
        caption = "Compared in alternating slices of the same texts, each subject in its own process"
        tables.append(table(caption, _RATIOS, record["ratios"]))
    return Section(title="At a glance", tables=tables, figures=("pareto", "ratios"))


def _warnings(record: Record) -> Section:
    lines = [f"{entry['about']}: {entry['text']}" for entry in record["warnings"]]
    return Section(title="Warnings", lines=lines or ["None: no noise, throttling or drift was seen."])


_LATENCY = {
    "Subject, scenario": _NAME,
    "queries": lambda row: shown(row.get("calls", row.get("queries")), "count"),
    **{f"{name[1:]} %": at(f"percentiles/{name}/value_us", "us", "too few") for name in ("p50", "p90", "p99", "p99.9")},
    "99 %, upper bound": at("percentiles/p99/upper_us", "us", "too few"),
}


def _latency(record: Record) -> Section:
    rows = [
        {**subject[scenario], "name": f"{name}, {label}"}
        for name, subject in alive(record).items()
        for scenario, label in (("single_stream", "SingleStream"), ("multi_stream", "MultiStream, 8 a query"))
        if "percentiles" in subject[scenario]
    ]
    lines = (
        "The upper bound lies above the true 99th percentile with 99 % confidence. Without enough queries for a "
        "percentile, it is not given.",
    )
    tables = (table("Latency: the time within which a share of the queries was answered", _LATENCY, rows),)
    return Section(title="Latency", lines=lines, tables=tables, figures=("ecdf", "length"))


_STAGES = {
    "Subject, boundary": lambda row: f"{row['subject']}, {row['part'].replace('_', ' ')}",
    "median": at("p50_us", "us"),
    "95 % interval": ends("ci95", "us"),
    "calls": at("calls", "count"),
}


def _stages(record: Record) -> Section | None:
    rows = [row for row in _inner(record, "stages") if len(record["subjects"][row["subject"]]["stages"]) > 1]
    if not rows:
        return None
    line = "A user waits end to end. What tokenize and engine leave of it is checks and reading the labels."
    tables = (table("Three boundaries, timed in turns on the same texts", _STAGES, rows),)
    return Section(title="Where the time goes", lines=(line,), tables=tables, figures=("stages",))


_THROUGHPUT = {
    "Subject": at("subject"),
    "batch": at("batch", "count"),
    "callers": at("threads", "count"),
    "median of 3": at("texts_per_s", "texts/s"),
    "least - most": ends("min max", "texts/s"),
}


def _throughput(record: Record) -> Section:
    line = "Callers are threads of one process that share the loaded subject."
    tables = (table("Offline: texts a second", _THROUGHPUT, _inner(record, "offline")),)
    return Section(title="Throughput", lines=(line,), tables=tables, figures=("throughput",))


def _bound(row: Mapping[str, Any]) -> str:
    met = row["bound_met"]
    return f"{shown(row['bound_ms'], 'ms')}: {'too few' if isinstance(met, Mapping) else 'yes' if met else 'no'}"


_SERVER = {
    "Subject": _NAME,
    "load": lambda row: f"{100 * row['load']:.0f} %",
    "sent": at("offered_per_s", "texts/s"),
    "50 %": at("percentiles/p50/value_us", "us", "too few"),
    "99 %": at("percentiles/p99/value_us", "us", "too few"),
    "99 % within the bound": _bound,
}


def _server(record: Record) -> Section | None:
    rows = [
        {"name": name, "bound_ms": subject["server"]["bound_ms"], **load}
        for name, subject in alive(record).items()
        for load in subject["server"].get("loads", ())
    ]
    if not rows:
        return None
    line = "Load is the share of the rate that back-to-back calls reach. The bound is ten times the median."
    tables = (table("Server: texts arrive at random (Poisson); waiting counts", _SERVER, rows),)
    return Section(title="Under load", lines=(line,), tables=tables, figures=("server",))


_LOADGEN = {
    "Subject, scenario": _NAME,
    "queries": at("queries", "count", "0"),
    **{f"{share} %": at(f"p{share}_us", "us", "") for share in (50, 90, 99)},
    "throughput": at("texts_per_s", "texts/s", ""),
    "LoadGen says": at("validity", missing=""),
}


def _loadgen(record: Record) -> Section | None:
    rows = [*_inner(record, "loadgen")]
    if not rows:
        return None
    own, cost = record["harness"]["own_loop"]["p50_us"], record["harness"]["loadgen"].get("p50_us")
    other = "" if cost is None else f", {cost:.2f} us in LoadGen"
    lines = (
        f"The null subject takes {own:.2f} us a query in our loop{other}.",
        "INVALID is LoadGen's word for a run that is too short, or outside the bound, for an official result.",
    )
    tables = (table("The same scenarios, driven by LoadGen", _LOADGEN, rows),)
    return Section(title="MLPerf LoadGen's second opinion", lines=lines, tables=tables)


def _first_answer(row: Mapping[str, Any]) -> str:
    cold = row["cold_start"]
    return f"{shown(cold['wall_s'], 's')}, {shown(cold['peak_rss_mib'], 'MiB')}" if "wall_s" in cold else shown(None)


_MEMORY = {
    "Subject": _NAME,
    "fresh process to first answer, peak": _first_answer,
    "load": at("load_ms", "ms"),
    "resident": at("memory/loaded/resident_mib", "MiB"),
    "proportional": at("memory/loaded/proportional_mib", "MiB"),
    "peak, at the end": at("memory/after/peak_mib", "MiB"),
    "packages on disk": at("install/bytes", "bytes"),
}


def _memory(record: Record) -> Section:
    harness = record["harness"]["memory"]["resident_mib"]
    own = f"{shown(harness, 'MiB')} of it are Python, NumPy and the harness. " if isinstance(harness, float) else ""
    line = f"{own}The peak includes the batches, the labelled rows and a second engine for the boundaries."
    caption = "Cold start (page cache warm), memory of the subject's process, and the packages it needs"
    return Section(title="Cold start and memory", lines=(line,), tables=(table(caption, _MEMORY, _rows(record)),))


def _energy(record: Record) -> Section:
    energy, idle = record["sensors"]["energy_j"], record["idle"]["energy_j"]
    if "unavailable" in energy:
        return Section(title="Energy", lines=(f"Not measured: {energy['unavailable']}.",))
    calls = sum(subject["single_stream"]["calls"] for subject in alive(record).values())
    base = f", {shown(idle['mean_w'], 'W')} before it" if "mean_w" in idle else ""
    lines = [f"{shown(energy['mean_w'], 'W')} of {energy['of']} during single stream{base}."]
    if len(record["subjects"]) == 1 and calls:
        each = shown(1e3 * energy["joules"] / calls, "mJ")
        lines.append(f"That is {each} a text, including everything else that runs on this machine.")
    return Section(title="Energy", lines=lines)


_ACCURACY = {
    "Subject, task": _NAME,
    "right": at("accuracy", "share"),
    "95 % interval": ends("ci95", "share"),
    "n": at("n", "count"),
    "rows": at("file"),
}


def _accuracy(record: Record) -> Section:
    lines = []
    for name, subject in alive(record).items():
        found = subject["accuracy"]
        parts = {name: found} if "unavailable" in found else {f"{name}, {task}": one for task, one in found.items()}
        lines += [f"{part}: not measured, {one['unavailable']}." for part, one in parts.items() if "unavailable" in one]
    rows = [*_inner(record, "accuracy")]
    tables = (table("Accuracy of the very artifact that was timed", _ACCURACY, rows),) if rows else ()
    return Section(title="Accuracy", lines=lines, tables=tables)


_STABILITY = {
    "Subject": _NAME,
    "medians of the repeats, us": lambda row: " / ".join(
        f"{p50:.1f}" for p50 in row["single_stream"]["repeats_p50_us"]
    ),
    "variation": at("single_stream/variation", "share", "one repeat"),
    "last / first minute": at("single_stream/minutes/ratio", "ratio", "run under 120 s"),
    "CPU time a text": at("single_stream/cpu_us", "us"),
    "lost its core": at("single_stream/involuntary_switches", "count"),
}


def _stability(record: Record) -> Section:
    tables = (table("The repeats", _STABILITY, _rows(record)),)
    return Section(title="Stability", tables=tables, figures=("stability",))
