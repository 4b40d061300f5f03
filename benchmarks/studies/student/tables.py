"""The blocks of the shipped student: accuracy of its recipes, and what a fresh process takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..columns import Block, Column, Part, Record, Table, accuracy, block, conditions, megabytes, percent

__all__ = ["BLOCKS", "RECIPES"]

RECIPES = {
    "cpu-small": "`reference` (`cpu-small`), % (95 % interval)",
    "cpu-int8": "`cpu-int8`, %",
    "cpu-fp32": "`cpu-fp32`, %",
}
"""The recipes that accuracy is recorded of, the shipped one first, with the titles of their columns."""


def _accuracy(*records: Record) -> Sequence[Part]:
    found = dict(zip(RECIPES, records, strict=True))
    shipped = next(iter(found.values()))

    def recipe(name: str) -> Column:
        def claim(row: Any) -> tuple[str, str, str]:
            return "accuracy", found[name]["artifact"]["weights_sha256"], f"{row['task']}, n = {row['n']}"

        shown = accuracy if found[name] is shipped else lambda entry: percent(entry["accuracy"])
        return Column(RECIPES[name], lambda row: found[name]["tasks"][row["task"]], shown, claim=claim)

    columns = (
        Column("Task", lambda row: row["file"].removesuffix(".tsv")),
        Column("n", "n", "{:,}"),
        *map(recipe, RECIPES),
        Column("majority, %", "majority", percent),
        Column("calibration error", "calibration_error", "{:.3f}"),
    )
    means = [f"{100 * record['mean_accuracy']:.2f}" for record in found.values()]
    sizes = [megabytes(record["artifact"]["bytes"]) for record in found.values()]
    rows = [{**entry, "task": task} for task, entry in shipped["tasks"].items()]
    similarity, rejection = shipped["similarity"], shipped["rejection"]
    by_dim = ", ".join(f"{value:.3f} ({dim}-d)" for dim, value in similarity["spearman"].items())
    return [
        Table(columns, rows, [["mean", "", *means, "", ""], ["bundle, MB", "", *sizes, "", ""]]),
        f"Similarity, STS-B dev (n = {similarity['n']:,}), Spearman's correlation of cosine and grade: {by_dim}. "
        f"Telling CLINC150's {rejection['out_of_scope']} texts out of scope from the others (n = {rejection['n']:,}), "
        f"area under the ROC curve: {rejection['auroc']['rejection']:.3f} by `rejection`, "
        f"{rejection['auroc']['probability of its own label']:.3f} by the label that the task has for them.",
    ]


def _cold_start(record: Record) -> Sequence[Part]:
    programs = dict(record["programs"])
    base = programs.pop("imports only")
    columns = (
        Column(
            "Fresh process, start to exit",
            lambda row: (
                "every bucket run once, engine `onnxruntime`"
                if row["name"] == "every bucket"
                else f"first label, engine `{row['name']}`"
            ),
        ),
        Column("times as long as the imports", "ratio_to_imports", "{:.2f}"),
        Column("peak memory, times the imports'", lambda row: row["peak_rss_mib"] / base["peak_rss_mib"], "{:.2f}"),
    )
    return [
        Table(columns, [{**values, "name": name} for name, values in programs.items()]),
        f"The imports are `{record['imports_only']}`: {base['wall_s']:.2f} s, {base['peak_rss_mib']:.0f} MiB.",
        conditions(record),
    ]


BLOCKS: dict[str, Block] = {
    "accuracy": block(_accuracy, *(f"accuracy-{name}" for name in RECIPES), kind="accuracy"),
    "cold-start": block(_cold_start, "cold-start"),
}
