"""The table of flips: how far the engines' logits differ, and how many labels differ with them."""

from __future__ import annotations

from collections.abc import Sequence

from ..columns import Block, Column, Part, Record, Table, block, conditions

__all__ = ["BLOCKS"]

_COLUMNS = (
    Column("Task", "task"),
    Column("labels", "labels"),
    Column("largest difference of a logit", "largest_difference", "{:.1e}"),
    Column("texts within the bound", "within_bound", "{:,}"),
    Column("labels that flip", "flips"),
    Column(
        "largest margin of a flip",
        "largest_margin_of_a_flip",
        lambda value: "" if value is None else f"{value:.1e}",
    ),
)


def _flips(record: Record) -> Sequence[Part]:
    rows = [{"task": name, **found} for name, found in record["tasks"].items()]
    fields = max(each["max"] for each in record["fields"])
    company = next(each["max"] for each in record["fields"] if each["ways"][0] == "onnxruntime")
    beyond = sum(row["flips_beyond_bound"] for row in rows)
    return [
        Table(_COLUMNS, rows),
        f"{record['texts']:,} texts, by native, numpy, onnxruntime in batches and onnxruntime one text at a time; a "
        f"pair is a text and the next one. Fields differ by at most {fields:.1e} between engines, and by at most "
        f"{company:.1e} between the two ways of onnxruntime. **The bound is {record['bound']:.1e}**, twice the largest "
        "difference of a logit in the first half of the texts. Of all texts, "
        f"{beyond} labels flip where the two best logits are farther apart, and "
        f"{sum(row['flips'] for row in rows) - beyond} where they are nearer.",
        conditions(record, after=""),
    ]


BLOCKS: dict[str, Block] = {"flips": block(_flips, "flips")}
