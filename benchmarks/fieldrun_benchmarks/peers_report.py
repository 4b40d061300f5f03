"""Render the README's table of peers from the record `peers.json`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .record import read_record

__all__ = ["TABLES"]

_HEAD = (
    "| Text in, label out, one thread | accuracy, % (95 % interval) | p50 | p90 | times the tokenizer "
    "| times `fieldrun` | batch 256, texts/s |"
)


def _peers_table(records: Path) -> str:
    record = read_record(records / "peers.json", "peers")
    ours = f"fieldrun {record['auto']['engine']}, all labels"
    blocks = [_workload(workload, ours) for workload in record["workloads"].values()]
    return "\n\n".join([*blocks, _notes(record, ours), *_profile(record)])


def _workload(workload: Mapping[str, Any], ours: str) -> str:
    name = workload["file"].removesuffix(".tsv")
    lines = [f"**{name}**: {workload['texts']:,} texts, {workload['mean_tokens']:.0f} tokens in the mean", ""]
    lines += [_HEAD, "|---" * 7 + "|"]
    for subject, values in workload["latency"].items():
        hits, batch = workload["accuracy"].get(subject), workload["throughput"].get(subject)
        cells = [
            "" if hits is None else _accuracy(hits),
            f"{values['p50_us']:,.0f} us",
            f"{values['p90_us']:,.0f} us",
            _times(values["to_tokenizer"]),
            _times(values["to_fieldrun"][ours]),
            "" if batch is None else f"{batch['texts_per_s']:,}",
        ]
        lines.append(f"| {subject} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _accuracy(entry: Mapping[str, Any]) -> str:
    low, high = (100 * x for x in entry["ci95"])
    return f"{100 * entry['accuracy']:.1f} ({low:.1f} - {high:.1f})"


def _times(ratio: Mapping[str, float]) -> str:
    median, low, high = (_digits(ratio[key]) for key in ("median", "min", "max"))
    return f"{median} ({low} - {high})"


def _digits(value: float) -> str:
    return f"{value:.2f}" if value < 10 else f"{value:,.0f}"


def _notes(record: Mapping[str, Any], ours: str) -> str:
    about, tasks = record["conditions"], record["artifact"]["single_tasks"]
    packages = about["packages"]
    model2vec = next(
        (peer["made_with"]["model2vec"] for peer in record["peers"].values() if "model2vec" in peer["made_with"]), None
    )
    rows = sorted({n for peer in record["peers"].values() for n in peer["head_rows"].values()})
    slow = sorted(
        {values["every"] for workload in record["workloads"].values() for values in workload["latency"].values()} - {1}
    )
    heads = " to ".join(f"{n:,}" for n in dict.fromkeys((rows[0], rows[-1]))) if rows else "no"
    every = "".join(f" The encoders are timed on every {n}th text, and compared on those." for n in slow)
    return (
        f"(Ratios: median of {record['settings']['rounds']} interleaved rounds, least and largest in brackets. Times "
        f"`fieldrun` is against {ours}: the engine that `auto` takes here, {len(tasks)} tasks at once. A peer answers "
        f"one task, with a linear head fitted on {heads} train rows.{every} {about['date']}, {about['cores_allowed']} "
        f"shared cores of {about['processor']}, {about['system']}, Python {about['python']}, onnxruntime "
        f"{packages['onnxruntime']}, numpy {packages['numpy']}, tokenizers {packages['tokenizers']}, model2vec "
        f"{model2vec}; a shared machine: read the ratios)"
    )


def _profile(record: Mapping[str, Any]) -> list[str]:
    found = record["profile"]
    if found is None:
        return []
    bucket, p50 = found["bucket"], found["p50_us"]
    nodes = p50["session_run"] - p50["session_run_of_one_node"]
    operators = ", ".join(f"{entry['op']} {100 * entry['share']:.0f} %" for entry in found["operators"][:5])
    return [
        f"Where the time goes, `{bucket['graph']}` on the {found['texts']['in_bucket']} texts of "
        f"{found['texts']['file']} of its length, p50: all labels {p50['all_labels']:.0f} us, the tokenizer alone "
        f"{p50['tokenizer']:.0f} us, `session.run` {p50['session_run']:.0f} us, of which a call that does nothing is "
        f"{p50['session_run_of_one_node']:.0f} us and the {found['nodes']} nodes {nodes:.0f} us. Their shares in ONNX "
        f"Runtime's own profile, which slows the run to {found['profiled_session_run_p50_us']:.0f} us: {operators}."
    ]


TABLES: dict[str, Callable[[Path], str]] = {"peers": _peers_table}
