"""The contents of a report, as sections of tables and lines, from which the page and the Markdown are written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .facts import facts
from .metrics import machine_of
from .table import Cell, Record, Section, alive, at, ends, find, shown, table

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
    answered = (
        f"{name}{size} answers {texts} in {shown(single['p50_us'], 'us')} (median{slow}), on {machine_of(record)}"
    )
    right = [
        f"{shown(entry['accuracy'], 'share')} right on {task} (n = {entry['n']:,})"
        for task, entry in subject["accuracy"].items()
        if find(entry, "accuracy") is not None
    ]
    warned = [f"{entry['about']}: {entry['text']}" for entry in record["warnings"]]
    more = f" (and {len(warned) - 1} more)" if len(warned) > 1 else ""
    return f"{'; '.join([answered, *right[:2]])}." + (f" Warning: {warned[0]}{more}." if warned else "")


def sections(record: Record) -> list[Section]:
    """Return a record's sections, in reading order."""
    found = [_summary(record), _warnings(record), *_tabled(record, *_PERFORMANCE), _energy(record)]
    return [*found, _accuracy(record), *_tabled(record, _STABILITY), *facts(record)]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Kind:
    """A section with one table; it is left out where the table has no rows."""

    title: str
    caption: str
    columns: Mapping[str, Cell]
    rows: Callable[[Record], Iterable[Any]]
    lines: Callable[[Record], Sequence[str]] | Sequence[str] = ()
    figures: Sequence[str] = ()


def _tabled(record: Record, *kinds: _Kind) -> Iterator[Section]:
    for kind in kinds:
        found = table(kind.caption, kind.columns, kind.rows(record))
        if found.rows:
            lines = kind.lines(record) if callable(kind.lines) else kind.lines
            yield Section(title=kind.title, lines=lines, tables=(found,), figures=kind.figures)


def _named(record: Record) -> list[dict[str, Any]]:
    return [{"name": name, **subject} for name, subject in alive(record).items()]


def _parts(record: Record, key: str) -> Iterator[dict[str, Any]]:
    """Yield the measured parts of one value of each subject, with `subject`, `part` and a `name` of both."""
    for name, subject in alive(record).items():
        found = subject[key]
        for part, entry in enumerate(found) if isinstance(found, list) else found.items():
            if isinstance(entry, Mapping) and "unavailable" not in entry:
                yield {"subject": name, "part": part, "name": f"{name}, {part}", **entry}


def _stages(record: Record) -> list[dict[str, Any]]:
    rows = _parts(record, "stages")
    return [
        row | {"name": row["name"].replace("end_to_end", "end to end")}
        for row in rows
        if len(record["subjects"][row["subject"]]["stages"]) > 1
    ]


def _queries(record: Record) -> Iterator[dict[str, Any]]:
    for name, subject in alive(record).items():
        for scenario, label in (("single_stream", "SingleStream"), ("multi_stream", "MultiStream, 8 a query")):
            if "percentiles" in subject[scenario]:
                calls = subject[scenario].get("calls", subject[scenario].get("queries"))
                yield {**subject[scenario], "name": f"{name}, {label}", "calls": calls}


def _loads(record: Record) -> Iterator[dict[str, Any]]:
    for name, subject in alive(record).items():
        for load in subject["server"].get("loads", ()):
            yield {"name": name, "bound_ms": subject["server"]["bound_ms"], **load}


def _bound(row: Mapping[str, Any]) -> str:
    met = row["bound_met"]
    return f"{shown(row['bound_ms'], 'ms')}: {'too few' if isinstance(met, Mapping) else 'yes' if met else 'no'}"


def _loadgen_lines(record: Record) -> tuple[str, ...]:
    own, cost = record["harness"]["own_loop"]["p50_us"], record["harness"]["loadgen"].get("p50_us")
    other = "" if cost is None else f", {cost:.2f} us in LoadGen"
    return (
        f"The null subject takes {own:.2f} us a query in our loop{other}.",
        "INVALID is LoadGen's word for a run that is too short, or outside the bound, for an official result.",
    )


def _memory_lines(record: Record) -> tuple[str, ...]:
    harness = record["harness"]["memory"]["resident_mib"]
    own = f"Python, NumPy and the harness take {shown(harness, 'MiB')} of it. " if isinstance(harness, float) else ""
    return (f"{own}The peak includes the batches, the labelled rows and a second engine for the boundaries.",)


def _first_answer(row: Mapping[str, Any]) -> str:
    cold = row["cold_start"]
    return f"{shown(cold['wall_s'], 's')}, {shown(cold['peak_rss_mib'], 'MiB')}" if "wall_s" in cold else shown(None)


def _percentile(name: str, which: str = "value_us") -> Cell:
    return at(f"percentiles/{name}/{which}", "us", "too few")


_PERFORMANCE = (
    _Kind(
        title="Latency",
        caption="The time within which a share of the queries was answered",
        columns={
            "Subject, scenario": at("name"),
            "queries": at("calls", "count"),
            **{f"{name[1:]} %": _percentile(name) for name in ("p50", "p90", "p99")},
            "99 %, upper bound": _percentile("p99", "upper_us"),
            "99.9 %": _percentile("p99.9"),
        },
        rows=_queries,
        lines=(
            "The upper bound lies above the true 99th percentile with 99 % confidence. A percentile without enough "
            "queries is not given.",
        ),
        figures=("ecdf", "length"),
    ),
    _Kind(
        title="Where the time goes",
        caption="Three boundaries, timed in turns on the same texts",
        columns={
            "Subject, boundary": at("name"),
            "median": at("p50_us", "us"),
            "95 % interval": ends("ci95", "us"),
            "calls": at("calls", "count"),
        },
        rows=_stages,
        lines=("A user waits end to end. Besides tokenize and engine, it has checks and the reading of the labels.",),
        figures=("stages",),
    ),
    _Kind(
        title="Throughput",
        caption="Offline: texts a second",
        columns={
            "Subject": at("subject"),
            "batch": at("batch", "count"),
            "callers": at("threads", "count"),
            "median of 3": at("texts_per_s", "texts/s"),
            "least - most": ends("min max", "texts/s"),
        },
        rows=lambda record: _parts(record, "offline"),
        lines=("Callers are threads of one process that share the loaded subject.",),
        figures=("throughput",),
    ),
    _Kind(
        title="Under load",
        caption="Server: texts arrive at random (Poisson); waiting counts",
        columns={
            "Subject": at("name"),
            "load": lambda row: f"{100 * row['load']:.0f} %",
            "sent": at("offered_per_s", "texts/s"),
            "50 %": _percentile("p50"),
            "99 %": _percentile("p99"),
            "99 % within the bound": _bound,
        },
        rows=_loads,
        lines=("Load is the share of the rate that back-to-back calls reach. The bound is ten times the median.",),
        figures=("server",),
    ),
    _Kind(
        title="MLPerf LoadGen's second opinion",
        caption="The same scenarios, driven by LoadGen",
        columns={
            "Subject, scenario": at("name"),
            "queries": at("queries", "count", "0"),
            **{f"{share} %": at(f"p{share}_us", "us", "") for share in (50, 90, 99)},
            "throughput": at("texts_per_s", "texts/s", ""),
            "LoadGen says": at("validity", missing=""),
        },
        rows=lambda record: _parts(record, "loadgen"),
        lines=_loadgen_lines,
    ),
    _Kind(
        title="Cold start and memory",
        caption="Cold start (page cache warm), memory of the subject's process, and the packages it needs",
        columns={
            "Subject": at("name"),
            "fresh process to first answer, peak": _first_answer,
            "load": at("load_ms", "ms"),
            "resident": at("memory/loaded/resident_mib", "MiB"),
            "proportional": at("memory/loaded/proportional_mib", "MiB"),
            "peak, at the end": at("memory/after/peak_mib", "MiB"),
            "packages on disk": at("install/bytes", "bytes"),
        },
        rows=_named,
        lines=_memory_lines,
    ),
)
_STABILITY = _Kind(
    title="Stability",
    caption="The repeats",
    columns={
        "Subject": at("name"),
        "medians of the repeats, us": lambda row: " / ".join(
            f"{x:.1f}" for x in row["single_stream"]["repeats_p50_us"]
        ),
        "variation": at("single_stream/variation", "share", "one repeat"),
        "last / first minute": at("single_stream/minutes/ratio", "ratio", "run under 120 s"),
        "CPU time a text": at("single_stream/cpu_us", "us"),
        "lost its core": at("single_stream/involuntary_switches", "count"),
    },
    rows=_named,
    figures=("stability",),
)


def _unless_failed(cell: Cell, failed: str = "") -> Cell:
    return lambda row: failed if "failed" in row else cell(row)


def _best(row: Mapping[str, Any]) -> str:
    rates = [entry["texts_per_s"] for entry in row["offline"]] if isinstance(row["offline"], list) else []
    return shown(max(rates, default=None), "texts/s")


_SUMMARY = {
    "Subject": at("name"),
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
    "Subject, task": at("name"),
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
    tables = [table("Accuracy of the artifact that was timed", _ACCURACY, _parts(record, "accuracy"))]
    return Section(title="Accuracy", lines=lines, tables=tables if tables[0].rows else ())
