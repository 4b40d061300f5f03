"""The tables of frozen vectors on texts and labels that nobody trained on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..columns import Block, Column, Part, Record, Table, accuracy, block, change, conditions, interval
from .scores import FUSIONS
from .vectors import OURS, STATIC

__all__ = ["BLOCKS"]

_SHOWN = {"8": "8 rows a label", "64": "64 rows a label", "all": "all rows"}
_FUSED = {"by_rank": "by rank", "by_score": "by score"}


def _name(row: Any) -> str:
    return str(row["name"]).replace(OURS, "**fieldrun**")


def _figure(entry: Record) -> str:
    return f"{entry['value']:.3f} {interval(entry['ci95'], 3, 1)}"


def _means(record: Record) -> Sequence[Part]:
    parts: list[Part] = []
    for group in ("all", "transfer"):
        means = {column: record["accuracy"][column]["means"] for column in _SHOWN}
        rows = [
            {"name": name, **{column: means[column][name][group] for column in _SHOWN}} for name in record["subjects"]
        ]
        columns = [
            Column("Vectors of", _name),
            *(Column(f"{title}, % (95 % interval)", key, accuracy) for key, title in _SHOWN.items()),
        ]
        tasks = rows[0]["all"]["tasks"]
        title = f"All {tasks} tasks" if group == "all" else f"The {tasks} of `transfer` alone"
        parts += [f"**{title}**: mean accuracy", Table(columns, rows), *_verdict(record, group)]
    return [*parts, conditions(record, after="")]


def _verdict(record: Record, group: str) -> list[str]:
    """Return how fieldrun stands beside the best peer without a transformer, in the mean of `group` and by task."""
    static = [name for name in STATIC if name in record["differences"]]
    if not static:
        return []
    said = []
    for column, title in _SHOWN.items():
        means, differences = record["accuracy"][column]["means"], record["differences"]
        best = max(static, key=lambda name: means[name][group]["accuracy"])
        line = f"{title}: {change(differences[best][column]['means'][group])} to {best}"
        if group == "all":
            least = {
                task: min(differences[name][column]["tasks"][task]["difference"] for name in static)
                for task in record["data"]["tasks"]
            }
            behind = ", ".join(f"{task} {100 * lost:+.1f}" for task, lost in least.items() if lost < -0.01)
            line += f"; more than a point below the best static peer of a task: {behind or 'nowhere'}"
        said.append(f"- {line}")
    return ["`fieldrun` minus the static peer with the best mean, points (95 % interval):", "\n".join(said)]


def _tasks(record: Record) -> Sequence[Part]:
    parts: list[Part] = []
    for key, title in _SHOWN.items():
        found = record["accuracy"][key]["tasks"]
        rows = [{"name": task, "about": about} for task, about in record["data"]["tasks"].items()]
        columns = [
            Column("Task", "name"),
            Column("labels", "about.labels"),
            *([Column("train rows", "about.rows_used", "{:,}")] if key == "all" else []),
            Column("n", "about.n", "{:,}"),
            *(Column(name.replace(OURS, "**fieldrun**"), _of(found[name])) for name in record["subjects"]),
        ]
        parts += [f"**{title[0].upper()}{title[1:]}**: accuracy, % (95 % interval)", Table(columns, rows)]
    return parts


def _of(found: Mapping[str, Any]) -> Callable[[Any], str]:
    return lambda row: accuracy(found[row["name"]])


def _similarity(record: Record) -> Sequence[Part]:
    rows = [{"name": name, **found} for name, found in record["similarity"].items()]
    columns = [
        Column("Vectors of", _name),
        Column("numbers", "dim"),
        Column("Spearman, whole (95 % interval)", "spearman.whole", _figure),
        *(Column(f"first {size}", f"spearman.{size}", _figure, missing="") for size in (128, 64)),
        *(Column(f"neighbours kept by the first {size}", f"overlap.{size}", _figure, missing="") for size in (128, 64)),
    ]
    pairs, texts = rows[0]["n"], rows[0]["texts"]
    return [Table(columns, rows), f"STS-B dev: {pairs:,} pairs, {texts:,} different texts."]


def _retrieval(record: Record) -> Sequence[Part]:
    parts: list[Part] = []
    for name, found in record["retrieval"].items():
        rows = [{"name": subject, **found[subject]} for subject in ("BM25", *record["subjects"])]
        columns = [Column("Ranked by", _name), Column("nDCG@10 (95 % interval)", "plain", _figure)]
        for key in FUSIONS:
            columns += [
                Column(f"fused with BM25 {_FUSED[key]}", key, _figure, missing=""),
                Column("minus BM25", f"over_bm25.{key}", lambda entry: change(entry, 3, 1, "value"), missing=""),
            ]
        about = record["data"]["retrieval"][name]
        parts += [
            f"**{name}**: {about['queries']:,} queries, {about['documents']:,} documents",
            Table(columns, rows),
        ]
    return parts


BLOCKS: dict[str, Block] = {
    "transfer-means": block(_means, "transfer"),
    "transfer-retrieval": block(_retrieval, "transfer"),
    "transfer-similarity": block(_similarity, "transfer"),
    "transfer-tasks": block(_tasks, "transfer"),
}
