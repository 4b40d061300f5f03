"""The suite's report files: what a bundle's tasks are measured on."""

from __future__ import annotations

from pathlib import Path

from fieldrun.errors import DatasetError
from fieldrun.evaluation.dataset import Dataset, read_tsv
from fieldrun.formats.bundle import Bundle

__all__ = ["report_sets"]


def report_sets(bundle: Path, data: Path) -> dict[str, Dataset]:
    """Return the report file of every task of `bundle`; `DatasetError` where `data` lacks one."""
    sets = {}
    for task in Bundle.load(bundle).manifest.tasks:
        found = [data / task.name / name for name in ("dev.tsv", "test.tsv") if (data / task.name / name).is_file()]
        if not found:
            raise DatasetError(f"{data / task.name} has neither dev.tsv nor test.tsv")
        sets[task.name] = read_tsv(found[0])
    return sets
